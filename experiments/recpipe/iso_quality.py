#!/usr/bin/env python3
"""How fast can RPAccel rank without losing quality?

RecPipe's figures 13 and 14, quality computed and never assumed.

python experiments/recpipe/iso_quality.py [--queries 20000] [--cache FOLDER] [--quick]
    [--out FOLDER]

Every chain of the trained click rankers on every split of the chip, whole queries or sub-batches,
at every published rate: the corrected model, caches on real ids, Poisson arrivals in virtual time.
at_floor.csv: lowest p95 by stages and rate among the chains whose NDCG@64 on clicks keeps the
published share of the large ranker's; figure14.csv: beside the published ones; frontier.csv: NDCG
and lowest p95 of every chain at 400 QPS; figure13.csv: quality and p95 by items; parts.csv: what
sub-batches cost in quality. iso_quality.png; two minutes, two more to train.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import asdict, astuple, dataclass
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from accelerator.rpaccel import Corrections, sub_array_splits
from experiments.common.case_log import row_of
from experiments.common.panels import finish, legend
from experiments.common.study import Study, View, progress
from experiments.recpipe.chains import KEPT, Chain, Ndcg, Scored, chains, quality, quality_of
from experiments.recpipe.chip import (
    CHIP_NAMES,
    ChipDesign,
    Int64Array,
    Misses,
    TimedDesign,
    arrivals_ns,
)
from experiments.recpipe.datasets.published import FLOOR, WORST_MS, equal_pipelines, published
from experiments.recpipe.drawing import SHADES, line, lines
from experiments.recpipe.released_chip import (
    SCALING_QPS,
    ChipCase,
    ChipOptions,
    by_items,
    cases,
    scored_pools,
)
from infra.progress import OnFraction
from infra.ranking import paired

K, ITEMS = 64, 4096
KEPT_SHARE = FLOOR / 0.92469  # of the large ranker's quality: the published floor over the best
PARTS = (1, 2, 4, 8, 16)  # sub-batches of a query
RATES_QPS = (100.0, 200.0, 400.0, 1000.0, 2000.0)
FRONTIER_QPS = 400.0
POOLS = ((ITEMS, 240), (12_288, 48))
# What the first of two stages hands on, by items.
SCALED = {4096: 512, 6140: 1024, 8192: 1024, 10_240: 1280, 12_288: 1280}
LEVELS = {"low": 15.0, "medium": 2.5, "high": 0.5}  # published: ms between queries, at most
NOT_CARRIED = {"gap_ms": np.nan, "p95_ms": np.inf}
LEVELS_QPS = {"low": 100.0, "medium": 400.0, "high": 2000.0}  # of the published RPAccel's best


@dataclass(frozen=True)
class IsoRow:
    """A chain on a split at a rate, with the quality of its filters, whole or in parts."""

    stages: int
    chain: str
    design: str
    sub_batches: int
    rate_qps: float
    p95_ms: float
    quality: Ndcg


@dataclass(frozen=True)
class PartsRow:
    """What the filters of a chain lose that see only a sub-batch."""

    chain: str
    sub_batches: int
    ndcg: float
    less_than_whole: float
    less_low: float
    less_high: float


def designs_of(chain: Chain, n_items: int) -> Iterator[ChipDesign]:
    """Every split of the chip that the release tries, evenly shared; whole queries and parts."""
    names = tuple(CHIP_NAMES[name] for name in chain.rankers)
    for split in sub_array_splits(len(names)):
        engines = tuple(max(n // len(names), 1) for n in split)
        for n_parts in PARTS:
            yield ChipDesign(names, (n_items, *chain.keeps[:-1]), split, engines, n_parts)


def timed(chain: Chain, n_items: int, misses: Misses) -> Iterator[TimedDesign]:
    """The designs of a chain with their service times, all faults corrected."""
    for design in designs_of(chain, n_items):
        yield TimedDesign.of(design, Corrections.all(), misses)


@cache
def poisson(rate_qps: float, n_queries: int) -> Int64Array:
    """The same arrivals for every design."""
    return arrivals_ns("exponential", rate_qps, n_queries)


def measure(
    scored: Scored, misses: Misses, n_queries: int, on_fraction: OnFraction
) -> pd.DataFrame:
    """p95 and quality of every chain, split and rate."""
    rows = []
    all_chains = [*chains(KEPT["clicks"], K)]
    for i, chain in enumerate(all_chains, start=1):
        for trial in timed(chain, ITEMS, misses):
            n_parts = trial.design.n_sub_batches
            ndcg = Ndcg.of(quality_of(chain, scored, n_parts))
            for rate in RATES_QPS:
                p95_ms = trial.p95_ms(poisson(rate, n_queries), rate)
                names = (len(chain.rankers), chain.label, trial.design.label, n_parts)
                rows.append(row_of(IsoRow(*names, rate, p95_ms, ndcg)))
        on_fraction(i / len(all_chains), chain.label)
    return pd.DataFrame(rows)


def parts_of(scored: Scored) -> list[PartsRow]:
    """What filters lose that see only a sub-batch, query by query against filters that see all."""
    rows = []
    for chain, n in itertools.product(chains(KEPT["clicks"], K), PARTS[1:]):
        if len(chain.rankers) > 1:
            whole, cut = (quality_of(chain, scored, n_parts)["ndcg"] for n_parts in (1, n))
            loss = paired(cut, whole).difference
            rows.append(PartsRow(chain.label, n, float(cut.mean()), *astuple(loss)))
    return rows


def lowest(rows: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """The line with the lowest p95 of each group; above WORST_MS it is inf, of no design."""
    best = rows.loc[rows.groupby(by, sort=False)["p95_ms"].idxmin()].copy()
    over = best["p95_ms"] > WORST_MS
    best["p95_ms"] = best["p95_ms"].mask(over, np.inf)
    hidden = [name for name in ("chain", "design") if name not in by]
    best[hidden] = best[hidden].mask(over, "-")
    return best


def at_floor(rows: pd.DataFrame, floor: float) -> pd.DataFrame:
    """The lowest p95 by stages and rate, of what has the quality."""
    return lowest(rows[rows["ndcg"] >= floor], ["stages", "rate_qps"])


def published_levels() -> list[dict[str, Any]]:
    """Figure 14 from the release's points: the lowest p95 at each level of load.

    On CPUs and with a GPU of 92.25 % or more; RPAccel's, whose quality was a constant there.
    """
    pipelines = equal_pipelines()
    with_gpu = pipelines["devices"].str.contains("gpu")
    chip = published("accelerator")
    kinds = {
        "CPU, published": pipelines[~with_gpu],
        "GPU, published": pipelines[with_gpu],
        "RPAccel, published": chip[chip["figure"] == "12"],
    }
    rows = []
    for kind, points in kinds.items():
        for (n_stages, part), (level, gap_ms) in itertools.product(
            points.groupby("stages"), LEVELS.items()
        ):
            able = part[(part["gap_ms"] <= gap_ms) & (part["p95_ms"] <= WORST_MS)]
            best = able.loc[able["p95_ms"].idxmin()] if len(able) else NOT_CARRIED
            facts = {"kind": kind, "stages": n_stages, "level": level}
            rows.append({**facts, "rate_qps": 1e3 / best["gap_ms"], "p95_ms": best["p95_ms"]})
    return rows


def figure_14(rows: pd.DataFrame, floor: float) -> list[dict[str, Any]]:
    """Published and ours, by level of load."""
    kinds = {"RPAccel, here": rows, "RPAccel, here, whole queries": rows[rows["sub_batches"] == 1]}
    levels = published_levels()
    for (kind, part), (level, rate) in itertools.product(kinds.items(), LEVELS_QPS.items()):
        best = at_floor(part[part["rate_qps"] == rate], floor)
        facts = best[["stages", "rate_qps", "p95_ms"]].assign(kind=kind, level=level)
        levels += facts.to_dict("records")
    return levels


def figure_13(scored: Scored, misses: Misses, n_queries: int) -> list[dict[str, Any]]:
    """Quality and lowest p95 by the number of candidates, large alone and small before large.

    The ideal list is the best of all candidates of the largest pools.
    """
    points = published("pipelines")
    points = points[points["figure"] == "13"].astype({"items": int})
    dcg64 = points.set_index("items")["dcg64"]
    arrival_ns = poisson(SCALING_QPS, n_queries)
    rows = []
    for n_items, keep in SCALED.items():
        pools = [np.arange(n_items)] * len(scored.data.queries)
        for chain in (Chain(("large",), (K,)), Chain(("small", "large"), (keep, K))):
            tails = {
                trial.p95_ms(arrival_ns, SCALING_QPS): trial.design
                for trial in timed(chain, n_items, misses)
            }
            p95 = min(tails)
            by_query = quality(chain, scored, pools, tails[p95].n_sub_batches)
            rows.append(
                {
                    "stages": len(chain.rankers),
                    "items": n_items,
                    "chain": chain.label,
                    "design": tails[p95].label,
                    "p95_ms": p95,
                    **asdict(Ndcg.of(by_query)),
                    "published dcg64": dcg64[n_items] if len(chain.rankers) == 1 else np.nan,
                }
            )
    return rows


def draw(levels: pd.DataFrame, frontier: pd.DataFrame, scaling: pd.DataFrame) -> Figure:
    """Figure 14; quality against p95; figure 13."""
    figure = Figure(figsize=(14, 8.4), layout="constrained")
    (bars, front), (qualities, tails) = figure.subplots(2, 2)
    _bars(bars, levels)
    able = frontier[np.isfinite(frontier["p95_ms"])]
    marks = {1: "o", 2: "^", 3: "s"}
    lines(front, able, "stages", "p95_ms", "ndcg", marks, markersize=6)
    floor = KEPT_SHARE * frontier.set_index("chain").loc["large", "ndcg"]
    front.axhline(floor, color="black", linewidth=0.8, linestyle="--", label="floor")
    y = f"NDCG@{K}"
    title = f"Every chain at {FRONTIER_QPS:g} queries per second"
    finish(front, "lowest p95 (ms)", f"{y} on clicks", title, "x")
    legend(front)
    front.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    marks = {1: "o-", 2: "^--"}
    lines(qualities, scaling, "stages", "items", "ndcg", marks, band=True, markersize=6)
    alone = scaling[scaling["stages"] == 1]
    look = {"color": SHADES[1], "label": "published: Criteo, its ideal 64 clicks"}
    line(qualities, alone, "items", "published dcg64", "s:", **look)
    x = "candidates of a query"
    finish(qualities, x, y, "Figure 13, large alone, small before large; ideal of all 12,288")
    legend(qualities)
    lines(tails, scaling, "stages", "items", "p95_ms", "o-", markersize=6)
    runs = published("accelerator")
    theirs = by_items(runs.assign(rate_qps=1e3 / runs["gap_ms"]), ["p95_ms"])
    lines(tails, theirs, "stages", "items", "p95_ms", "s:", label=None)
    title = f"Figure 13 at {SCALING_QPS:g} queries per second"
    finish(tails, x, "lowest p95 (ms)", f"{title}; squares: published, whole-ms gaps", "y")
    legend(tails)
    return figure


def _bars(axes: Axes, levels: pd.DataFrame) -> None:
    """Lowest p95 by level of load; a cross: not carried."""
    hatch = dict(zip(levels["kind"].unique(), ("", "..", "//", "xx", "oo"), strict=True))
    series = levels.groupby(["kind", "stages"], sort=False)
    width = 0.8 / len(series)
    for i, ((kind, n_stages), part) in enumerate(series):
        p95_ms = part.set_index("level")["p95_ms"].reindex(LEVELS)
        places = np.arange(len(LEVELS)) - 0.4 + (i + 0.5) * width
        shade = SHADES[n_stages]
        edge = {"hatch": hatch[kind], "edgecolor": "white", "linewidth": 0.3}
        heights = p95_ms.where(np.isfinite(p95_ms))
        label = f"{kind}, {n_stages}"
        axes.bar(places, heights, width * 0.9, color=shade, label=label, **edge)
        missing = places[~np.isfinite(p95_ms)]
        axes.plot(missing, np.ones(len(missing)), "x", color=shade, markersize=4)
    ticks = [f"{level} ({1000 / gap_ms:.0f} QPS or more)" for level, gap_ms in LEVELS.items()]
    axes.set_xticks(range(len(LEVELS)), ticks)
    title = "Figure 14, legend with the number of stages"
    finish(axes, "load", "lowest p95 (ms); cross: above 500", title, "y")
    legend(axes, 7, ncols=2, loc="upper right")


def run(case: ChipCase) -> dict[str, Any]:
    """The rows of all tables."""
    misses = scored_pools(case)
    scored, large = misses.pools
    with progress().step("designs") as on_fraction:
        rows = measure(scored, misses, case.n_queries, on_fraction)
    floor = KEPT_SHARE * Ndcg.of(quality_of(scored.large, scored)).ndcg
    frontier = lowest(rows[rows["rate_qps"] == FRONTIER_QPS], ["stages", "chain"])
    return {
        "at_floor": at_floor(rows, floor).to_dict("records"),
        "frontier": frontier.to_dict("records"),
        "parts": parts_of(scored),
        "figure14": figure_14(rows, floor),
        "figure13": figure_13(large, misses, case.n_queries),
    }


def by_level(levels: pd.DataFrame) -> pd.DataFrame:
    """p95 by kind and stages, a column for each level of load."""
    table = levels.pivot_table(["p95_ms"], ["kind", "stages"], "level", sort=False)
    return table["p95_ms"].reset_index()


STUDY = Study(
    "recpipe_iso_quality",
    "How fast can RPAccel rank without losing quality?",
    lambda quick, options: cases(quick, options, POOLS),
    run,
    efforts={"quick": True, "full": False},
    options=ChipOptions,
    figures={"iso_quality": View(draw, "figure14", "frontier", "figure13")},
    report={
        "Lowest p95 at the floor of quality": View(pd.DataFrame, "at_floor"),
        "Figure 14, ms; published on whole-ms gaps, RPAccel's quality assumed there": View(
            by_level, "figure14"
        ),
        f"Figure 13 at {SCALING_QPS:g} QPS": View(pd.DataFrame, "figure13"),
    },
)

if __name__ == "__main__":
    STUDY.main()
