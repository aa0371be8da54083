#!/usr/bin/env python3
"""How often does the interval of a short run hold the tail of the endless one, and how wide is it?

python experiments/intervals/run.py [--quick]

Runs of worlds whose long run is known, each told three ways: by order statistics of independent
samples, by the effective number of queries, by virtual time (the product's). Table: intervals.
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from backends.long_run.of_run import estimator_of
from experiments.common.study import NoOptions, Study, View
from experiments.intervals.worlds import WARM_UP, WORLDS
from infra.clock import NS_PER_MS
from infra.results.figures import style
from infra.results.quantiles import Estimate, quantile
from infra.results.stats import summarize

P = 0.95
UTILISATIONS = (0.5, 0.8, 0.9)
N_QUERIES = 2_048
WALK = 1_000_000  # queries of a part of the truth
METHODS = {
    "independent": "order statistics of independent samples",
    "effective": "effective number of queries",
    "long_run": "virtual time (long_run)",
}
COLORS = {"independent": "#bbbbbb", "effective": "#2a9d8f", "long_run": "#1f77b4"}


@dataclass(frozen=True)
class Effort:
    """Runs a world and utilisation, in cases of so many; parts of the truth."""

    worlds: tuple[str, ...]
    runs: int
    runs_a_case: int
    parts: int


@dataclass(frozen=True)
class IntervalCase:
    """Runs number first .. first + runs of a world."""

    world: str
    utilisation: float
    n_queries: int
    first: int
    runs: int
    parts: int


@dataclass(frozen=True)
class IntervalRow:
    """One run: the truth, what it observed, and three intervals (infinite: no bound)."""

    case: IntervalCase
    run: int
    truth_ms: float
    truth_error: float  # relative
    observed_ms: float
    independent_low: float
    independent_high: float
    effective_low: float
    effective_high: float
    value_ms: float
    long_run_low: float
    long_run_high: float
    withheld: str
    utilisation_low: float
    utilisation_high: float
    memory_tasks: float


@functools.cache
def truth(world_name: str, utilisation: float, parts: int) -> tuple[float, float]:
    """p95 of the endless run in ms, and its relative standard error; M/M/1 by its formula."""
    world = WORLDS[world_name]
    if world_name == "M/M/1":
        return -math.log(1 - P) / (1 - utilisation), 0.0
    tails = []
    for part in range(parts):
        number = 5_000_000 + part
        schedule = world.schedule(utilisation, WALK, number)
        latency_ms = world.latencies_ms(schedule, number)[WALK // 20 :]
        tails.append(float(np.quantile(latency_ms, P)))
    error = np.std(tails, ddof=1) / math.sqrt(parts) / np.mean(tails)
    return float(np.mean(tails)), float(error)


def told(case: IntervalCase, number: int) -> IntervalRow:
    """One run, told three ways."""
    world = WORLDS[case.world]
    schedule = world.schedule(case.utilisation, case.n_queries, number, WARM_UP)
    rows = world.run(schedule, number)
    queries = rows.queries[~rows.queries["is_warmup"]]
    latency_ms = (queries["done_ns"] - queries["arrival_ns"]).to_numpy(float) / NS_PER_MS
    independent = quantile(latency_ms, P)
    effective = summarize(rows.queries, rows.tasks, math.inf).p95_ms
    rate_qps = world.rate_qps(case.utilisation)
    estimator = estimator_of(rows, world.deployment(number), world.policy, schedule, rate_qps)
    long_run = estimator.long_run([100 * P])
    withheld = long_run.withheld or estimator.check(schedule, latency_ms)
    unknown = Estimate(math.nan, -math.inf, math.inf)
    tail = unknown if withheld else long_run.percentiles[100 * P]
    busy = long_run.utilisation["cpu"]
    return IntervalRow(
        case,
        number,
        *truth(case.world, case.utilisation, case.parts),
        independent.value,
        independent.low,
        independent.high,
        effective.low,
        effective.high,
        tail.value,
        tail.low,
        tail.high,
        withheld,
        busy.low,
        busy.high,
        long_run.memory,
    )


def measure(case: IntervalCase) -> dict[str, list[IntervalRow]]:
    """All runs of a case."""
    return {"intervals": [told(case, case.first + i) for i in range(case.runs)]}


def cases(effort: Effort, _: NoOptions) -> list[IntervalCase]:
    """Blocks of runs of every world and utilisation."""
    worlds = itertools.product(effort.worlds, UTILISATIONS, [N_QUERIES])
    blocks = range(0, effort.runs, effort.runs_a_case)
    return [
        IntervalCase(*world, first, min(effort.runs_a_case, effort.runs - first), effort.parts)
        for world, first in itertools.product(worlds, blocks)
    ]


def coverage(rows: pd.DataFrame) -> pd.DataFrame:
    """Of each method: share of runs that it told, of those that held, and the median width."""
    lines = []
    for (world, utilisation), runs in rows.groupby(["world", "utilisation"], sort=False):
        line = {"world": world, "utilisation": utilisation, "runs": len(runs)}
        line["truth_ms"] = runs["truth_ms"].iloc[0]
        for method in METHODS:
            low, high = runs[f"{method}_low"], runs[f"{method}_high"]
            spoke = np.isfinite(low) & np.isfinite(high)
            held = (low <= runs["truth_ms"]) & (runs["truth_ms"] <= high)
            width = (high - low) / runs["truth_ms"]
            line[f"{method}_told"] = float(spoke.mean())
            line[f"{method}_held"] = float(held[spoke].mean()) if spoke.any() else math.nan
            line[f"{method}_width"] = float(width[spoke].median()) if spoke.any() else math.nan
        observed = runs["observed_ms"] / runs["truth_ms"] - 1
        value = runs["value_ms"] / runs["truth_ms"] - 1
        line["observed_rms"] = float(np.sqrt((observed**2).mean()))
        line["long_run_rms"] = float(np.sqrt((value**2).mean()))
        lines.append(line)
    return pd.DataFrame(lines)


def figure_coverage(rows: pd.DataFrame) -> Figure:
    """Share of runs whose interval holds, and the width, by world and utilisation."""
    table = coverage(rows)
    figure = Figure(figsize=(12.5, 6.8), layout="constrained")
    held_axes, width_axes = figure.subplots(2, 1, sharex=True)
    x = np.arange(len(table))
    for i, (method, name) in enumerate(METHODS.items()):
        at = x + (i - 1) * 0.27
        shade = COLORS[method]
        held_axes.bar(at, 100 * table[f"{method}_held"], 0.25, color=shade, label=name)
        told_share = table[f"{method}_told"]
        for left, share, held in zip(at, told_share, table[f"{method}_held"], strict=True):
            if share < 0.995:
                text = f"{share:.0%}\ntold"
                y = 100 * held if math.isfinite(held) else 0
                held_axes.annotate(text, (left, y), ha="center", va="bottom", fontsize=6)
        width_axes.bar(at, 100 * table[f"{method}_width"], 0.25, color=shade, label=name)
    held_axes.axhspan(93, 97, color="#2a9d8f", alpha=0.15, lw=0, label="93 to 97 %")
    held_axes.set_ylim(0, 118)
    style(held_axes, "", "runs whose 95 % interval\nholds the long-run p95 (%)", "")
    style(width_axes, "", "median width of the\ninterval (% of p95)", "")
    width_axes.set_yscale("log")
    names = [f"{row.world}\n{row.utilisation:g}" for row in table.itertuples()]
    width_axes.set_xticks(x, [name.replace(", ", ",\n") for name in names], fontsize=6.5)
    held_axes.legend(
        fontsize=8, frameon=False, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1)
    )
    return figure


STUDY = Study(
    "intervals",
    "How often does the interval of a short run hold the tail of the endless one?",
    cases,
    measure,
    efforts={
        "quick": Effort(("M/M/1", "production, 2 engines"), 20, 20, 8),
        "full": Effort(tuple(WORLDS), 400, 100, 20),
    },
    parallel=True,
    figures={"coverage": View(figure_coverage, "intervals")},
    report={"Coverage of p95": View(coverage, "intervals")},
    float_format="%.6g",
)

if __name__ == "__main__":
    STUDY.main()
