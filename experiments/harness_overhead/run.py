#!/usr/bin/env python3
"""What does the harness itself cost? Null engines: lateness of the generator, added latency, CPU per task.

python experiments/harness_overhead/run.py [FOLDER]     writes overhead.csv; about a minute
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import time

import numpy as np
import pandas as pd
from scipy import stats

from backends.engine_process import NullEngine, PoolSpec
from backends.process import ProcessSession
from infra.config import LoadConfig
from infra.messages import CPU
from infra.rng import stream
from loadGenerator import Schedule, draw_gaps_ns
from scheduler import Policy, Stage

RATES_QPS = (100, 1_000, 5_000, 10_000)
N_ENGINES, SECONDS, ROUNDS = 2, 4, 3


def measure(session: ProcessSession, rate_qps: float, seed: int) -> dict[str, float]:
    """One run of one-task queries; times in microseconds."""
    n = round(rate_qps * SECONDS)
    gaps_ns = draw_gaps_ns(LoadConfig(), rate_qps, n, stream(seed, "arrivals"))
    schedule = Schedule(np.cumsum(gaps_ns), np.full(n, 16, np.int32), np.zeros(n, np.int32))
    cpu_s = time.process_time()
    rows = session.run(schedule, [Stage(Policy(16))])
    cpu_us = (time.process_time() - cpu_s) / n * 1e6
    queries = rows.queries.astype({"sent_ns": float, "first_start_ns": float, "done_ns": float})
    late_us = (queries["sent_ns"] - queries["arrival_ns"]) / 1e3
    added_us = (queries["done_ns"] - queries["arrival_ns"]) / 1e3  # the engine itself takes nothing
    sent_gaps = np.diff(queries["sent_ns"].to_numpy()) / 1e9 * rate_qps
    return {
        "rate_qps": rate_qps,
        "late_p50_us": float(late_us.quantile(0.5)),
        "late_p99_us": float(late_us.quantile(0.99)),
        "added_p50_us": float(added_us.quantile(0.5)),
        "added_p99_us": float(added_us.quantile(0.99)),
        "driver_cpu_us_per_task": cpu_us,
        "gaps_ks": float(stats.kstest(sent_gaps, "expon").statistic),
    }


def main(argv: Sequence[str]) -> int:
    """Command line; returns the exit code."""
    folder = Path(argv[0]) if argv else Path.cwd()
    with ProcessSession([PoolSpec(CPU, N_ENGINES, lambda _: NullEngine())]) as session:
        rows = [measure(session, rate, seed) for seed in range(ROUNDS) for rate in RATES_QPS]
    table = pd.DataFrame(rows).groupby("rate_qps").median()
    table.to_csv(folder / "overhead.csv", float_format="%.3f")
    print(f"{N_ENGINES} null engines, median of {ROUNDS} rounds of {SECONDS} s (the driver's CPU includes its spin)")
    print(table.round(3).to_string())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
