#!/usr/bin/env python3
"""Does the interval of a real run hold its long run? On two engines that take a known time.

python experiments/intervals/real.py [--quick]

Engines sleep for as long as the world of two engines has it (experiments/intervals/worlds.py): all
but the computing is real. The truth is a long walk in virtual time with the noise that is known,
the mean times and what the harness adds as all runs together measured them. Table: real.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from accelerator.replay import overheads_of
from accelerator.service import Overhead
from backends.long_run.of_run import estimator_of
from backends.processes.engine import PoolSpec
from backends.processes.process import ProcessSession
from experiments.common.study import NoOptions, Study, View, progress
from experiments.intervals.worlds import NOISE, WARM_UP, WORLDS, lognormal
from infra.clock import NS_PER_MS, monotonic_ns, wait_until_ns
from infra.messages import CPU, WireTask
from infra.results.figures import style
from infra.results.rows import Rows

P = 0.95
WORLD = WORLDS["production, 2 engines"]
SPIN_NS = 100_000
WALK = 1_000_000
PARTS = 8


@dataclass(frozen=True)
class PacedEngine:
    """Answers after the world's time for a task, with its noise."""

    index: int
    random: np.random.Generator = field(
        default_factory=np.random.default_rng, compare=False, repr=False
    )

    def warm_up(self) -> None:
        """Nothing to prepare."""

    def score(self, task: WireTask) -> None:
        """Sleep, and spin for the rest."""
        begun = monotonic_ns()
        noise = float(lognormal(self.random.normal(0, NOISE, 1), NOISE)[0])
        took_ns = round(float(WORLD.mean_ms[task.n_items]) * noise * NS_PER_MS)
        wait_until_ns(begun + took_ns, SPIN_NS)


@dataclass(frozen=True)
class PacedEffort:
    """Runs at each utilisation."""

    runs: int
    n_queries: int


@dataclass(frozen=True)
class PacedCase:
    """So many runs at a utilisation."""

    utilisation: float
    runs: int
    n_queries: int


@dataclass(frozen=True)
class PacedRow:
    """One run: what it observed, and what it told of the long run."""

    case: PacedCase
    run: int
    truth_ms: float
    observed_ms: float
    value_ms: float
    low_ms: float
    high_ms: float
    withheld: str


@dataclass(frozen=True)
class PacedRun:
    """A run's p95 in ms, and what it tells of the long run (all 0 where it is withheld)."""

    observed_ms: float
    value_ms: float
    low_ms: float
    high_ms: float
    withheld: str


def one_run(session: ProcessSession, case: PacedCase, number: int) -> tuple[Rows, PacedRun]:
    """A fresh load on the engines, told as the product tells it."""
    schedule = WORLD.schedule(case.utilisation, case.n_queries, number, WARM_UP)
    rows = session.run(schedule, WORLD.policy)
    queries = rows.queries[~rows.queries["is_warmup"]]
    latency_ms = (queries["done_ns"] - queries["arrival_ns"]).to_numpy(float) / NS_PER_MS
    rate_qps = WORLD.rate_qps(case.utilisation)
    estimator = estimator_of(rows, WORLD.deployment(number), WORLD.policy, schedule, rate_qps)
    long_run = estimator.long_run([100 * P])
    withheld = long_run.withheld or estimator.check(schedule, latency_ms)
    observed_ms = float(np.quantile(latency_ms, P))
    if withheld:
        return rows, PacedRun(observed_ms, 0.0, 0.0, 0.0, withheld)
    tail = long_run.percentiles[100 * P]
    return rows, PacedRun(observed_ms, tail.value, tail.low, tail.high, "")


def truth_ms(runs: list[Rows], utilisation: float) -> float:
    """p95 of the endless run: the known noise, mean times and overheads of all runs together."""
    tasks = pd.concat([rows.tasks for rows in runs])
    nominal_ns = WORLD.mean_ms[tasks["n_items"].to_numpy()] * NS_PER_MS
    longer = float((tasks["end_ns"] - tasks["start_ns"]).sum() / nominal_ns.sum())
    overheads = [overheads_of(rows)[CPU] for rows in runs]
    overhead = Overhead(
        round(float(np.mean([x.wake_ns for x in overheads]))),
        round(float(np.mean([x.gap_ns for x in overheads]))),
    )
    tails = []
    for part in range(PARTS):
        schedule = WORLD.schedule(utilisation, WALK, 6_000_000 + part)
        session = WORLD.session(schedule, np.random.default_rng(part), longer, overhead)
        latency_ms = session.answers(schedule, WORLD.policy).latencies_ms(schedule)
        tails.append(np.quantile(latency_ms[WALK // 20 :], P))
    return float(np.mean(tails))


def measure(case: PacedCase) -> dict[str, list[PacedRow]]:
    """All runs of a case on the same engines."""
    told = []
    runs = []
    with (
        ProcessSession([PoolSpec(CPU, WORLD.engines, PacedEngine)]) as session,
        progress().step(f"{case.runs} runs at {case.utilisation:g}") as on_fraction,
    ):
        for number in range(case.runs):
            rows, line = one_run(session, case, number)
            runs.append(rows)
            told.append(line)
            on_fraction((number + 1) / case.runs)
    truth = truth_ms(runs, case.utilisation)
    return {
        "real": [
            PacedRow(case, i, truth, x.observed_ms, x.value_ms, x.low_ms, x.high_ms, x.withheld)
            for i, x in enumerate(told)
        ]
    }


def cases(effort: PacedEffort, _: NoOptions) -> list[PacedCase]:
    """Two utilisations."""
    return [PacedCase(utilisation, effort.runs, effort.n_queries) for utilisation in (0.5, 0.8)]


def held(rows: pd.DataFrame) -> pd.DataFrame:
    """How many intervals held the truth, and how far off values and observations were."""
    lines = []
    for utilisation, runs in rows.groupby("utilisation", sort=False):
        told = runs[runs["withheld"].isna() | (runs["withheld"] == "")]
        truth = told["truth_ms"]
        lines.append(
            {
                "utilisation": utilisation,
                "runs": len(runs),
                "told": len(told),
                "held": int(((told["low_ms"] <= truth) & (truth <= told["high_ms"])).sum()),
                "truth_ms": runs["truth_ms"].iloc[0],
                "median_width": ((told["high_ms"] - told["low_ms"]) / truth).median(),
                "median_error": (told["value_ms"] / truth - 1).abs().median(),
                "median_error_observed": (runs["observed_ms"] / runs["truth_ms"] - 1)
                .abs()
                .median(),
            }
        )
    return pd.DataFrame(lines)


def figure_real(rows: pd.DataFrame) -> Figure:
    """Every run: its own p95, what it told of the long run, and the truth."""
    groups = [*rows.groupby("utilisation", sort=False)]
    figure = Figure(figsize=(9.0, 3.0 * len(groups)), layout="constrained")
    for axes, (utilisation, runs) in zip(
        figure.subplots(len(groups), 1, squeeze=False)[:, 0], groups, strict=True
    ):
        told = runs[runs["value_ms"] > 0]
        spread = [told["value_ms"] - told["low_ms"], told["high_ms"] - told["value_ms"]]
        axes.errorbar(
            told["run"], told["value_ms"], yerr=spread, fmt="s", ms=3, label="long run, told by it"
        )
        axes.plot(runs["run"], runs["observed_ms"], "x", color="#888888", label="observed")
        axes.axhline(runs["truth_ms"].iloc[0], color="#c1121f", label="truth")
        style(axes, "run", "p95 (ms)", f"two real engines at {utilisation:g} of the capacity")
        axes.legend(fontsize=8, frameon=False, ncols=3)
    return figure


STUDY = Study(
    "intervals_real",
    "Does the interval of a real run hold its long run?",
    cases,
    measure,
    efforts={"quick": PacedEffort(3, 512), "full": PacedEffort(40, 2048)},
    figures={"real": View(figure_real, "real")},
    report={"Real runs on paced engines": View(held, "real")},
    float_format="%.6g",
)

if __name__ == "__main__":
    STUDY.main()
