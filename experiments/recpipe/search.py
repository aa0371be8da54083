#!/usr/bin/env python3
"""Co-design of pipelines: rankers x items kept x mapping x engines x sub-arrays, in virtual time.

python experiments/recpipe/search.py [--data clicks|movielens] [--sla_ms 25] [--rate_qps 200]
    [--floor 0.99] [--cores 32] [--quick] [--out FOLDER]

Every design's quality (NDCG, the lists of its own filters), p95 at the rate, highest rate under the
SLA and power. search_<data>.parquet: all designs; pareto_<data>.csv: those that no other beats in
all four; search_<data>.png. `real.py --search FOLDER` runs the best on the engines of this machine.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import pandas as pd
from matplotlib.figure import Figure

from accelerator.rpaccel import sub_array_splits
from experiments.common.case_log import PARQUET
from experiments.common.panels import finish, legend
from experiments.common.study import Study
from experiments.recpipe.chains import Ndcg, all_chains, pareto
from experiments.recpipe.datasets.rankers import DATA
from experiments.recpipe.design_studies import DesignCase, GoalOptions, goals_and_designs, rows_of
from experiments.recpipe.drawing import front, views
from experiments.recpipe.world import ARRAYS, GPU, RankingWorld, RunTail, SystemDesign
from infra.messages import CPU
from infra.settings.fields import flag

KEPT = {
    "movielens": (20, 50, 100, 200, 400, 800),
    "clicks": (128, 192, 256, 384, 512, 768, 1024, 2048),
    "criteo": (128, 192, 256, 384, 512, 768, 1024, 2048),
}
TABLES = ("search_{}", "search_goal_{}")
BATCHES = (64, 256, 1024)


@dataclass(frozen=True)
class SearchOptions(GoalOptions):
    """The study's flags."""

    sla_ms: float = flag(25.0, "p95 that is allowed", above=0)
    rate_qps: float = flag(200.0, "at which p95 is compared", above=0)
    floor: float = flag(0.99, "share of the large ranker's NDCG that is enough", above=0)
    cores: int = flag(32, "of the server in virtual time, a quarter for each stage", low=4)


@dataclass(frozen=True)
class SearchRow:
    """What a design gives and costs."""

    chain: str
    stages: int
    mapping: str
    kind: str
    batch_items: int
    quality: Ndcg
    tail: RunTail
    max_qps: float
    watts: float
    qps_per_watt: float


def designs(kept: Sequence[int], k: int, n_cores: int) -> Iterator[SystemDesign]:
    """All chains on shared cores, cores by stage, a GPU in front, behind or alone, RPAccel."""
    for chain in all_chains(kept, k):
        n = len(chain.rankers)
        # Quarters of the cores to each stage; one stage would have all.
        quarters = [q for q in itertools.product(range(1, 4), repeat=n) if sum(q) == 4]
        for batch in BATCHES:
            yield SystemDesign(chain, (CPU,) * n, batch)
            for split in quarters:
                cores = tuple(quarter * n_cores // 4 for quarter in split)
                yield SystemDesign(chain, (CPU,) * n, batch, cores)
            for i in range(1, n):
                yield SystemDesign(chain, (GPU,) * i + (CPU,) * (n - i), batch)
                yield SystemDesign(chain, (CPU,) * i + (GPU,) * (n - i), batch)
        yield SystemDesign(chain, (GPU,) * n)
        for arrays in sub_array_splits(n):
            yield SystemDesign(chain, (ARRAYS,) * n, sub_arrays=arrays)


def cases(quick: bool, options: SearchOptions) -> list[DesignCase]:
    """The goal and all designs of each data set."""
    kept = {data: kept[1::3] if quick else kept for data, kept in KEPT.items()}
    all_designs = partial(designs, n_cores=options.cores)
    return goals_and_designs(options, kept, all_designs, quick=quick, sla_ms=options.sla_ms)


def evaluate(world: RankingWorld, design: SystemDesign, case: DesignCase) -> list[SearchRow]:
    """The design's row."""
    max_qps = world.max_qps(design, case.sla_ms)
    watts = world.watts(design)
    row = SearchRow(
        design.chain.label,
        len(design.devices),
        design.mapping,
        design.kind,
        design.cpu_batch,
        world.quality(design.chain),
        world.run(design, case.rate_qps),
        max_qps,
        watts,
        max_qps / watts,
    )
    return [row]


def not_beaten(rows: pd.DataFrame) -> pd.DataFrame:
    """Designs that carry the rate, unbeaten in quality, p95, highest rate and power together."""
    able = rows[rows["carried"] & (rows["max_qps"] > 0)]
    return pareto(able, ["ndcg", "max_qps"], ["p95_ms", "watts"]).sort_values(["kind", "ndcg"])


def best_by_kind(rows: pd.DataFrame, goals: pd.DataFrame) -> pd.DataFrame:
    """The design of the highest rate of each kind and number of stages, of enough quality."""
    enough = rows[rows["ndcg"] >= goals["floor"].iloc[0]]
    ordered = enough.sort_values("max_qps", ascending=False)
    best = ordered.groupby(["kind", "stages"], as_index=False).first()
    columns = "kind stages chain mapping batch_items ndcg p95_ms max_qps watts qps_per_watt"
    return best[columns.split()]


def draw(rows: pd.DataFrame, goals: pd.DataFrame) -> Figure:
    """Left: quality against p95 at the rate; right: against the highest rate; fronts by kind."""
    (goal,) = goals.itertuples()
    figure = Figure(figsize=(12, 4.8), layout="constrained")
    tails, rates = figure.subplots(1, 2, sharey=True)
    for kind, part in rows.groupby("kind", sort=False):
        front(tails, part[part["carried"]], "p95_ms", kind, more=False)
        front(rates, part[part["max_qps"] > 0], "max_qps", kind, more=True)
    for axes in (tails, rates):
        axes.axhline(goal.floor, color="#c1121f", linestyle="--", linewidth=1)
    x = f"p95 at {goal.rate_qps:g} QPS (ms)"
    title = "Quality against tail latency; lines: not beaten"
    finish(tails, x, "NDCG", title, "x")
    x = f"highest rate with p95 <= {goal.sla_ms:g} ms (QPS)"
    finish(rates, x, "", "Quality against rate; dashed: the floor", "x")
    legend(rates)
    return figure


STUDY = Study(
    "recpipe_search",
    "Which pipelines give most, in quality, tail latency, rate and power?",
    cases,
    lambda case: rows_of("search", case, evaluate),
    efforts={"quick": True, "full": False},
    options=SearchOptions,
    formats={table.format(data): PARQUET for table in TABLES for data in DATA},
    derived=views("pareto_{}", not_beaten, TABLES[0]),
    figures=views("search_{}", draw, *TABLES),
    report=views("Highest rate under the SLA at the floor, {}", best_by_kind, *TABLES),
)

if __name__ == "__main__":
    STUDY.main()
