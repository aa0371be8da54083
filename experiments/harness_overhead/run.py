#!/usr/bin/env python3
"""What does the harness itself cost?

Null engines: lateness, added latency, CPU per task, the largest rate, idle gaps.

python experiments/harness_overhead/run.py [FOLDER]     writes overhead.csv, burst.csv and overhead.png; 6 minutes
Beside it, in turn and on the same schedules: multiprocessing.Queue, and LoadGen's Server scenario over our engines
(skipped with a line where mlcommons-loadgen is not installed, see build/bench_requirements.txt).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import time

import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure
from scipy import stats

from backends.processes.engine import NullEngine, PoolSpec
from backends.processes.process import ProcessSession
from experiments.common.servers import ROUNDS, SECONDS, schedule_at
from experiments.harness_overhead import peers
from infra.messages import CPU
from infra.results.rows import Rows
from loadGenerator import Schedule
from scheduler import Policy, Stage

OURS, QUEUE, LOADGEN = "ours", "multiprocessing.Queue", "LoadGen"
ENGINES = (1, 2, 4, 8)
RATES_QPS = (100, 1_000, 5_000, 10_000, 20_000)
N_WORK = 20_000
BUSY_NS, N_BURST = 100_000, 2_000  # for the idle gaps: tasks of 0.1 ms that all wait from the start
Row = dict[str, float | str]


def row(who: str, n_engines: int, rate_qps: float, added_us: Any, cpu_us: float) -> Row:
    """Quantiles of the added latency."""
    p50, p99 = np.quantile(added_us, (0.5, 0.99))
    return {
        "who": who,
        "engines": n_engines,
        "rate_qps": rate_qps,
        "added_p50_us": float(p50),
        "added_p99_us": float(p99),
        "cpu_us_per_task": cpu_us,
    }


def run_and_count(session: ProcessSession, schedule: Schedule) -> tuple[Rows, float]:
    """The run, and the driver's CPU seconds beyond those of a run of one query (a garbage
    collection, setting up).
    """
    marks_s = [time.process_time()]
    one = Schedule(np.zeros(1, np.int64), *(np.ones(1, np.int32),) * 2)
    for own in (one, schedule):
        rows = session.run(own, [Stage(Policy(16))])
        marks_s.append(time.process_time())
    fixed_s, all_s = np.diff(marks_s)
    return rows, max(float(all_s - fixed_s), 0.0)


def burst(n_engines: int) -> Row:
    """All tasks due at once: the driver's work without any waiting or spinning."""
    due = Schedule(
        np.zeros(N_WORK, np.int64), np.full(N_WORK, 16, np.int32), np.zeros(N_WORK, np.int32)
    )
    found = []
    with ProcessSession([PoolSpec(CPU, n_engines, lambda _: NullEngine(), yields=True)]) as session:
        for _ in range(ROUNDS):
            rows, cpu_s = run_and_count(session, due)
            found.append(
                (cpu_s / N_WORK * 1e6, N_WORK / (float(rows.queries["done_ns"].max()) / 1e9))
            )
    cpu_us, rate = np.median(found, axis=0)
    return {"engines": n_engines, "cpu_us_per_task": float(cpu_us), "tasks_per_s": float(rate)}


def measure_ours(
    session: ProcessSession, n_engines: int, rate_qps: float, schedule: Schedule
) -> Row:
    """One run; added latency: the engine begins minus the intended arrival."""
    rows, cpu_s = run_and_count(session, schedule)
    queries = rows.queries
    cpu_us = cpu_s / len(schedule) * 1e6
    queries = queries.astype({"sent_ns": float, "first_start_ns": float})
    late_us = (queries["sent_ns"] - queries["arrival_ns"]) / 1e3
    found = row(
        OURS, n_engines, rate_qps, (queries["first_start_ns"] - queries["arrival_ns"]) / 1e3, cpu_us
    )
    gaps = np.diff(queries["sent_ns"].to_numpy()) / 1e9 * rate_qps
    return {
        **found,
        "late_p50_us": float(late_us.quantile(0.5)),
        "late_p99_us": float(late_us.quantile(0.99)),
        "gaps_ks": float(stats.kstest(gaps, "expon").statistic),
    }


def measure_queue(n_engines: int, rate_qps: float, schedule: Schedule) -> Row:
    """The same schedule through two queues."""
    found = peers.through_queues(n_engines, schedule)
    late_p50_us, late_p99_us = np.quantile(found["late_us"], (0.5, 0.99))
    return {
        **row(QUEUE, n_engines, rate_qps, found["added_us"], float(found["cpu_us"])),
        "late_p50_us": float(late_p50_us),
        "late_p99_us": float(late_p99_us),
    }


def measure_loadgen(n_engines: int, rate_qps: float) -> Row:
    """LoadGen's own latency, up to the reply: it does not tell when the engine began."""
    found = peers.through_loadgen(n_engines, rate_qps, round(rate_qps * SECONDS))
    p50_us, p99_us = np.asarray(found["latency_us"])[[0, 4]]
    gaps = np.diff(np.asarray(found["sent_ns"])) / 1e9 * rate_qps
    return {
        "who": LOADGEN,
        "engines": n_engines,
        "rate_qps": rate_qps,
        "added_p50_us": float(p50_us),
        "added_p99_us": float(p99_us),
        "cpu_us_per_task": float(found["cpu_us"]),
        "gaps_ks": float(stats.kstest(gaps, "expon").statistic),
    }


def idle_gaps_us(n_engines: int) -> npt.NDArray[np.float64]:
    """Between two tasks of an engine while more wait."""
    burst = Schedule(
        np.zeros(N_BURST, np.int64), np.full(N_BURST, 16, np.int32), np.zeros(N_BURST, np.int32)
    )
    with ProcessSession(
        [PoolSpec(CPU, n_engines, lambda _: NullEngine(BUSY_NS), yields=True)]
    ) as session:
        tasks = session.run(burst, [Stage(Policy(16))]).tasks.sort_values(["engine", "start_ns"])
    gaps = tasks["start_ns"] - tasks.groupby("engine")["end_ns"].shift()
    return np.asarray(gaps.dropna(), float) / 1e3


def sweep() -> pd.DataFrame:
    """All engine counts, rates and peers, in turn."""
    rows: list[Row] = []
    skipped = ""
    for n_engines in ENGINES:
        for round_id in range(ROUNDS):
            for rate_qps in RATES_QPS:
                schedule = schedule_at(rate_qps, round_id)
                with ProcessSession(
                    [PoolSpec(CPU, n_engines, lambda _: NullEngine(), yields=True)]
                ) as session:
                    rows.append(measure_ours(session, n_engines, rate_qps, schedule))
                rows.append(measure_queue(n_engines, rate_qps, schedule))
                if not skipped:
                    try:
                        rows.append(measure_loadgen(n_engines, rate_qps))
                    except ImportError as error:
                        skipped = str(error)
        print(f"{n_engines} engines done", file=sys.stderr)
    if skipped:
        print(f"LoadGen skipped: {skipped}", file=sys.stderr)
    return pd.DataFrame(rows)


def draw(table: pd.DataFrame) -> Figure:
    """Added latency and CPU per task by rate, for two engines."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for who, own in table[table["engines"] == 2].groupby("who", sort=False):
        for axis, column in zip(axes, ("added_p50_us", "cpu_us_per_task"), strict=True):
            axis.plot(own["rate_qps"], own[column], "o-", label=who)
    for axis, label in zip(
        axes,
        ("added latency, median (us)", "CPU of the driving process per task (us)"),
        strict=True,
    ):
        axis.set(xlabel="rate (queries/s)", ylabel=label, xscale="log", yscale="log")
    axes[0].legend(frameon=False)
    figure.suptitle(
        "Null engines (2), medians of the rounds; LoadGen's latency is to the reply", fontsize=10
    )
    return figure


def main(argv: Sequence[str]) -> int:
    """Command line; returns the exit code."""
    folder = Path(argv[0]) if argv else Path.cwd()
    gaps = [
        {
            **burst(n),
            "idle_gap_p50_us": np.median(found),
            "idle_gap_p99_us": np.quantile(found, 0.99),
        }
        for n in ENGINES
        for found in [idle_gaps_us(n)]
    ]
    pd.DataFrame(gaps).to_csv(folder / "burst.csv", index=False, float_format="%.1f")
    print(pd.DataFrame(gaps).round(1).to_string(index=False))
    rounds = sweep()
    table = rounds.groupby(["who", "engines", "rate_qps"], sort=False).median().reset_index()
    spread = rounds.groupby(["who", "engines", "rate_qps"], sort=False)["added_p50_us"]
    table["added_p50_least"], table["added_p50_most"] = (
        spread.min().to_numpy(),
        spread.max().to_numpy(),
    )
    table.to_csv(folder / "overhead.csv", index=False, float_format="%.4g")
    print(f"medians of {ROUNDS} rounds of {SECONDS} s (CPU includes the driver's spin)")
    print(table.round(3).to_string(index=False))
    draw(table).savefig(folder / "overhead.png")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
