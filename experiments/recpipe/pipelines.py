#!/usr/bin/env python3
"""Quality and tail latency on one axis: pipelines of one to three stages on cores, and with a GPU.

python experiments/recpipe/pipelines.py [--data clicks|movielens] [--rate_qps 500] [--floor 0.995]
    [--cores 32] [--quick] [--out FOLDER]

In virtual time, 32 cores and the measured times of the trained rankers; every quality is that of
the very lists that the timed filters hand on. RecPipe's figures 7 (quality against p95; p95 against
rate at equal quality) and 8 (a GPU in front, behind, alone), its published points beside them.
pipelines_<data>.csv, .png; some 3 minutes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.common.panels import finish, legend
from experiments.common.study import Study
from experiments.recpipe.chains import KEPT, SIZES, Chain, Ndcg, chains
from experiments.recpipe.datasets.published import WORST_MS, equal_pipelines
from experiments.recpipe.design_studies import DesignCase, GoalOptions, goals_and_designs, rows_of
from experiments.recpipe.drawing import SHADES, STAGE_SHADES, bars, front, lines, views
from experiments.recpipe.world import GPU, RankingWorld, SystemDesign
from infra.messages import CPU

SHARES = (0.0625, 0.125, 0.25, 0.5)  # of the candidates, beside all of them
BATCHES = (64, 256, 1024, 4096)
RATES_QPS = (25, 50, 100, 200, 500, 1000, 1500, 2000, 3000, 5000, 10_000)
TABLES = ("pipelines_{}", "pipelines_goal_{}")
PUBLISHED_KINDS = {"gpu+cpu": "GPU in front", "cpu+gpu": "GPU behind", "gpu": "GPU"}


@dataclass(frozen=True)
class PipelineRow:
    """A design at a rate; p95 is infinite where the rate is not carried."""

    chain: str
    stages: int
    kind: str
    mapping: str
    batch_items: int
    share: float
    quality: Ndcg
    rate_qps: float
    p95_ms: float


def designs(kept: Sequence[int], k: int, *, quick: bool) -> Iterator[SystemDesign]:
    """The chains on shared cores, with a GPU in front, behind, alone; single rankers on less."""
    batches = BATCHES[1::2] if quick else BATCHES
    for chain in chains(kept, k):
        n = len(chain.rankers)
        for batch in batches:
            yield SystemDesign(chain, (CPU,) * n, batch)
            if n > 1:
                yield SystemDesign(chain, (GPU, *(CPU,) * (n - 1)), batch)
                yield SystemDesign(chain, (*(CPU,) * (n - 1), GPU), batch)
        yield SystemDesign(chain, (GPU,) * n)
    for name, share, batch in itertools.product(SIZES, SHARES, batches):
        yield SystemDesign(Chain((name,), (k,)), (CPU,), batch, share=share)


def cases(quick: bool, options: GoalOptions) -> list[DesignCase]:
    """The goal and all designs of each data set."""
    kept = {data: kept[:: 2 if quick else 1] for data, kept in KEPT.items()}
    return goals_and_designs(options, kept, partial(designs, quick=quick), quick=quick)


def measure(world: RankingWorld, design: SystemDesign, case: DesignCase) -> list[PipelineRow]:
    """A row for each rate up to the first that is not carried, as higher ones are not either."""
    rows = []
    for rate_qps in sorted({*RATES_QPS, case.rate_qps}):
        tail = world.run(design, rate_qps)
        row = PipelineRow(
            design.chain.label,
            len(design.devices),
            design.kind,
            design.mapping,
            design.cpu_batch,
            design.share,
            world.quality(design.chain, design.share),
            rate_qps,
            tail.p95_ms if tail.carried else np.inf,
        )
        rows.append(row)
        if not tail.carried:
            break
    return rows


def lowest(rows: pd.DataFrame, floor: float, by: str) -> pd.DataFrame:
    """The design of the lowest p95 at each rate among those of enough quality."""
    enough = rows[(rows["ndcg"] >= floor) & np.isfinite(rows["p95_ms"])]
    return enough.loc[enough.groupby([by, "rate_qps"])["p95_ms"].idxmin()]


def published() -> pd.DataFrame:
    """Figures 7 and 8: p95 at each nominal rate of the points that it calls equal in quality."""
    points = equal_pipelines()
    points["kind"] = points["devices"].map(PUBLISHED_KINDS).fillna("CPU")
    points["rate_qps"] = points["nominal_qps"]
    return points[points["p95_ms"] < WORST_MS]


def draw(rows: pd.DataFrame, goals: pd.DataFrame) -> Figure:
    """One ranker on some items; fronts by stages; p95 by rate on cores, and with a GPU."""
    (goal,) = goals.itertuples()
    figure = Figure(figsize=(12.5, 9), layout="constrained")
    (few, fronts), (rates, gpus) = figure.subplots(2, 2)
    at_rate = rows[(rows["rate_qps"] == goal.rate_qps) & np.isfinite(rows["p95_ms"])]
    cpu = at_rate[at_rate["kind"] == "CPU"]
    best = cpu.loc[cpu.groupby(["chain", "share"])["p95_ms"].idxmin()]
    for name in SIZES:
        bars(few, best[best["chain"] == name], "p95_ms", "o-", name, elinewidth=0.6)
    for n_stages, part in cpu.groupby("stages"):
        front(fronts, part, "p95_ms", n_stages, STAGE_SHADES, more=False)
    fronts.axhline(goal.floor, color="#c1121f", linestyle="--", linewidth=1)
    x = f"p95 at {goal.rate_qps:g} QPS (ms)"
    y = f"NDCG@{goal.k}"
    finish(few, x, y, "One ranker on 1/16 to all of the candidates, 32 cores", "x")
    legend(few)
    finish(fronts, x, y, "Chains that no other one beats, 32 cores", "x")
    legend(fronts)
    _by_rate(rates, rows[rows["kind"] == "CPU"], "stages", goal.floor)
    _by_rate(gpus, rows, "kind", goal.floor)
    rate = "arrivals per second"
    theirs = f"NDCG >= {goal.floor:.3f}; squares: published, 32 Cascade Lake engines"
    finish(rates, rate, "p95 (ms)", theirs, "xy")
    legend(rates)
    theirs = "Same, by mapping; GPU: a T4 by its roofline, published: measured"
    finish(gpus, rate, "p95 (ms)", theirs, "xy")
    legend(gpus)
    return figure


def _by_rate(axes: Axes, rows: pd.DataFrame, by: str, floor: float) -> None:
    best = lowest(rows, floor, by)
    points = published()
    points = points[points["kind"].isin(rows["kind"]) & points[by].isin(best[by])]
    points = points.groupby([by, "rate_qps"], as_index=False)["p95_ms"].min()
    shades = STAGE_SHADES if by == "stages" else SHADES
    lines(axes, best, by, "rate_qps", "p95_ms", "o-", shades=shades)
    thin: dict[str, Any] = {"linewidth": 0.6, "alpha": 0.6, "label": None}
    lines(axes, points, by, "rate_qps", "p95_ms", "s--", shades=shades, **thin)


def best_by(by: str, rows: pd.DataFrame, goals: pd.DataFrame) -> pd.DataFrame:
    """Lowest p95 by rate and stages (on cores) or mapping."""
    rows = rows[rows["kind"] == "CPU"] if by == "stages" else rows
    best = lowest(rows, goals["floor"].iloc[0], by)
    columns = [by, "rate_qps", "chain", "batch_items", "ndcg", "p95_ms"]
    return best[columns].reset_index(drop=True)


STUDY = Study(
    "recpipe_pipelines",
    "How do quality and tail latency of pipelines go together, on cores and with a GPU?",
    cases,
    lambda case: rows_of("pipelines", case, measure),
    efforts={"quick": True, "full": False},
    options=GoalOptions,
    figures=views("pipelines_{}", draw, *TABLES),
    report={
        **views("Lowest p95 by stages, {}", partial(best_by, "stages"), *TABLES),
        **views("Lowest p95 by mapping, {}", partial(best_by, "kind"), *TABLES),
    },
)

if __name__ == "__main__":
    STUDY.main()
