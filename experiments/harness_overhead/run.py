#!/usr/bin/env python3
"""What does the harness itself cost? Null engines: lateness, latency, CPU a task, rate, idle gaps.

python experiments/harness_overhead/run.py [--quick]     6 minutes

Beside it, in turn and on the same schedules: multiprocessing.Queue, and LoadGen's Server scenario
over our engines (left out with a line where mlcommons-loadgen is not installed, see
build/bench_requirements.txt). Tables: burst, rounds (a run a row) and overhead (their medians).
"""

from __future__ import annotations

import importlib.util
import sys
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure
from scipy import stats

from backends.processes.engine import NullEngine, PoolSpec
from backends.processes.process import ProcessSession
from experiments.common.servers import ROUNDS, SECONDS, schedule_at
from experiments.common.study import NoOptions, Study, View
from experiments.harness_overhead import peers
from infra.messages import CPU
from infra.results.rows import Rows
from loadGenerator import Schedule
from scheduler import Policy

OURS = "ours"
QUEUE = "multiprocessing.Queue"
LOADGEN = "LoadGen"
ITEMS = 16  # of a query, one task
N_WORK = 20_000
BUSY_NS = 100_000  # for the idle gaps: N_BURST tasks of 0.1 ms that all wait from the start
N_BURST = 2_000
KEYS = ["who", "engines", "rate_qps"]


@dataclass(frozen=True)
class OverheadEffort:
    """What is run: all rounds at all rates with so many engines each."""

    engines: tuple[int, ...] = (1, 2, 4, 8)
    rates_qps: tuple[int, ...] = (100, 1_000, 5_000, 10_000, 20_000)
    rounds: int = ROUNDS
    seconds: float = SECONDS


@dataclass(frozen=True)
class OverheadCase:
    """A round at one rate with all peers in turn; without a rate, the burst."""

    engines: int
    rate_qps: int | None
    round: int
    seconds: float
    loadgen: bool


@dataclass(frozen=True)
class BurstRow:
    """What the driver does without any waiting, and how long engines idle while work waits."""

    engines: int
    cpu_us_per_task: float
    tasks_per_s: float
    idle_gap_p50_us: float
    idle_gap_p99_us: float


@dataclass(frozen=True)
class OverheadRow:
    """One run: added latency, the driver's CPU, lateness, and the law of the sent gaps."""

    who: str
    engines: int
    rate_qps: int
    added_p50_us: float
    added_p99_us: float
    cpu_us_per_task: float
    late_p50_us: float | None = None
    late_p99_us: float | None = None
    gaps_ks: float | None = None  # Kolmogorov-Smirnov distance from the exponential law


def null_session(n_engines: int, busy_ns: int = 0) -> ProcessSession:
    """Engines that do nothing for some time."""
    return ProcessSession([PoolSpec(CPU, n_engines, lambda _: NullEngine(busy_ns), yields=True)])


def all_at_once(n: int) -> Schedule:
    """n queries of one task, due at once."""
    return Schedule(np.zeros(n, np.int64), np.full(n, ITEMS, np.int32), np.zeros(n, np.int32))


def run_and_count(session: ProcessSession, schedule: Schedule) -> tuple[Rows, float]:
    """The run, and the driver's CPU seconds beyond those of a run of one query.

    What both have is a garbage collection and the setting up.
    """
    marks_s = [time.process_time()]
    single = Schedule(np.zeros(1, np.int64), np.ones(1, np.int32), np.ones(1, np.int32))
    for load in (single, schedule):
        rows = session.run(load, Policy(ITEMS))
        marks_s.append(time.process_time())
    fixed_s, all_s = np.diff(marks_s)
    return rows, max(float(all_s - fixed_s), 0.0)


def burst(n_engines: int) -> BurstRow:
    """All tasks due at once: the driver's work without any waiting or spinning."""
    measured = []
    with null_session(n_engines) as session:
        for _ in range(ROUNDS):
            rows, cpu_s = run_and_count(session, all_at_once(N_WORK))
            seconds = float(rows.queries["done_ns"].max()) / 1e9
            measured.append((cpu_s / N_WORK * 1e6, N_WORK / seconds))
    gaps_us = idle_gaps_us(n_engines)
    cpu_and_rate = np.median(measured, axis=0).tolist()
    return BurstRow(n_engines, *cpu_and_rate, *np.quantile(gaps_us, (0.5, 0.99)))


def idle_gaps_us(n_engines: int) -> npt.NDArray[np.float64]:
    """Times between two tasks of an engine while more wait."""
    with null_session(n_engines, BUSY_NS) as session:
        tasks = session.run(all_at_once(N_BURST), Policy(ITEMS)).tasks
    tasks = tasks.sort_values(["engine", "start_ns"])
    gaps = tasks["start_ns"] - tasks.groupby("engine")["end_ns"].shift()
    return np.asarray(gaps.dropna(), float) / 1e3


def quantiles(values: npt.ArrayLike) -> tuple[float, float]:
    """p50 and p99."""
    p50, p99 = np.quantile(np.asarray(values), (0.5, 0.99))
    return float(p50), float(p99)


def gaps_ks(sent_ns: npt.ArrayLike, rate_qps: float) -> float:
    """How far the sent gaps are from the exponential law."""
    gaps = np.diff(np.asarray(sent_ns)) / 1e9 * rate_qps
    return float(stats.kstest(gaps, "expon").statistic)


def measure_ours(case: OverheadCase, rate_qps: int, schedule: Schedule) -> OverheadRow:
    """One run; added latency: the engine begins minus the intended arrival."""
    with null_session(case.engines) as session:
        rows, cpu_s = run_and_count(session, schedule)
    queries = rows.queries.astype({"sent_ns": float, "first_start_ns": float})
    added_us = (queries["first_start_ns"] - queries["arrival_ns"]) / 1e3
    late_us = (queries["sent_ns"] - queries["arrival_ns"]) / 1e3
    cpu_us = cpu_s / len(schedule) * 1e6
    ks = gaps_ks(queries["sent_ns"], rate_qps)
    values = (*quantiles(added_us), cpu_us, *quantiles(late_us), ks)
    return OverheadRow(OURS, case.engines, rate_qps, *values)


def measure_queue(case: OverheadCase, rate_qps: int, schedule: Schedule) -> OverheadRow:
    """The same schedule through two queues."""
    run: Any = peers.through_queues(case.engines, schedule)
    values = (*quantiles(run["added_us"]), run["cpu_us"], *quantiles(run["late_us"]))
    return OverheadRow(QUEUE, case.engines, rate_qps, *values)


def measure_loadgen(case: OverheadCase, rate_qps: int) -> OverheadRow:
    """LoadGen's latency, up to the reply: it does not tell when the engine began."""
    run: Any = peers.through_loadgen(case.engines, rate_qps, round(rate_qps * case.seconds))
    p50_us, p99_us = run["latency_us"][[0, 4]].tolist()
    ks = gaps_ks(run["sent_ns"], rate_qps)
    values = (p50_us, p99_us, run["cpu_us"], None, None, ks)
    return OverheadRow(LOADGEN, case.engines, rate_qps, *values)


def measure(case: OverheadCase) -> dict[str, list[BurstRow] | list[OverheadRow]]:
    """The burst's row, or a row for each peer on the same schedule."""
    if case.rate_qps is None:
        return {"burst": [burst(case.engines)]}
    schedule = schedule_at(case.rate_qps, case.round, case.seconds)
    rows = [
        measure_ours(case, case.rate_qps, schedule),
        measure_queue(case, case.rate_qps, schedule),
    ]
    if case.loadgen:
        rows.append(measure_loadgen(case, case.rate_qps))
    return {"rounds": rows}


def cases(effort: OverheadEffort, _: NoOptions) -> list[OverheadCase]:
    """The bursts, then all rounds at all rates."""
    loadgen = importlib.util.find_spec("mlperf_loadgen") is not None
    if not loadgen:
        sys.stderr.write("without LoadGen: mlcommons-loadgen is not installed\n")
    bursts = [OverheadCase(n, None, 0, effort.seconds, loadgen=False) for n in effort.engines]
    return bursts + [
        OverheadCase(n, rate_qps, i, effort.seconds, loadgen)
        for n in effort.engines
        for i in range(effort.rounds)
        for rate_qps in effort.rates_qps
    ]


def medians(rounds: pd.DataFrame) -> pd.DataFrame:
    """A line per peer, number of engines and rate; CPU includes the driver's spin."""
    grouped = rounds.groupby(KEYS, sort=False)
    table = grouped.median().reset_index()
    added = grouped["added_p50_us"]
    return table.assign(
        added_p50_least=added.min().to_numpy(), added_p50_most=added.max().to_numpy()
    )


def draw(table: pd.DataFrame) -> Figure:
    """Added latency and CPU per task by rate, for two engines."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    panels = figure.subplots(1, 2)
    labels = {
        "added_p50_us": "added latency, median (us)",
        "cpu_us_per_task": "CPU of the driving process per task (us)",
    }
    for axes, (column, label) in zip(panels, labels.items(), strict=True):
        for who, part in table[table["engines"] == 2].groupby("who", sort=False):
            axes.plot(part["rate_qps"], part[column], "o-", label=who)
        axes.set(xlabel="rate (queries/s)", ylabel=label, xscale="log", yscale="log")
    panels[0].legend(frameon=False)
    title = "Null engines (2), medians of the rounds; LoadGen's latency is to the reply"
    figure.suptitle(title, fontsize=10)
    return figure


STUDY = Study(
    "harness_overhead",
    "What does the harness itself cost?",
    cases,
    measure,
    efforts={"quick": OverheadEffort((1, 2), (100, 1_000), 1, 0.5), "full": OverheadEffort()},
    derived={"overhead": View(medians, "rounds")},
    figures={"overhead": View(draw, "overhead")},
    report={
        "All tasks due at once": View(pd.DataFrame, "burst"),
        "Medians of the rounds": View(pd.DataFrame, "overhead"),
    },
    float_format="%.4g",
    formats={"burst": "%.1f", "rounds": "%.9g"},
)

if __name__ == "__main__":
    STUDY.main()
