#!/usr/bin/env python3
"""How much do the release's gaps (whole-ms Poisson draws) understate the tail against Poisson
arrivals?

One FIFO engine with a constant service time in virtual time, the same engine under both laws.
python experiments/load_generator/legacy_gaps.py [FOLDER]     writes legacy_gaps.csv and legacy_gaps.png
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from backends.virtual.simulated import SimulatedSession
from infra.clock import NS_PER_MS
from infra.load.arrivals import draw_gaps_ns
from infra.messages import CPU
from infra.results.figures import style
from infra.results.stats import quantile
from infra.rng import stream
from infra.settings.config import LoadConfig
from loadGenerator import Schedule
from scheduler import Policy, Stage

SERVICE_MS = 20.0
UTILISATIONS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9)
N_QUERIES, N_WARMUP = 20_000, 2_000
LABELS = {
    "exponential": "exponential gaps (Poisson arrivals)",
    "legacy": "legacy: whole-ms Poisson gaps",
}


def measure() -> pd.DataFrame:
    """process, utilisation, p95_ms, low_ms, high_ms."""
    rows = []
    for process in LABELS:
        for utilisation in UTILISATIONS:
            load = LoadConfig(arrival_process=process)
            gaps_ns = draw_gaps_ns(
                load, 1000 * utilisation / SERVICE_MS, N_QUERIES, stream(1, "arrivals")
            )
            ones = np.ones(N_QUERIES, np.int32)
            schedule = Schedule(np.cumsum(gaps_ns), ones, ones, N_WARMUP)
            session = SimulatedSession({CPU: 1}, lambda _: round(SERVICE_MS * NS_PER_MS))
            queries = session.run(schedule, [Stage(Policy(1))]).queries[N_WARMUP:]
            p95 = quantile(
                (queries["done_ns"] - queries["arrival_ns"]).to_numpy(float) / NS_PER_MS, 0.95
            )
            rows.append((process, utilisation, p95.value, p95.low, p95.high))
    return pd.DataFrame(rows, columns=["process", "utilisation", "p95_ms", "low_ms", "high_ms"])


def tail_vs_utilisation(table: pd.DataFrame) -> Figure:
    """p95 by utilisation for both laws; the service time is drawn as the floor."""
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.add_subplot()
    for (process, part), shade in zip(
        table.groupby("process", sort=False), ("#1f77b4", "#d1495b"), strict=True
    ):
        axes.plot(
            part["utilisation"],
            part["p95_ms"],
            "o-",
            color=shade,
            markersize=4,
            label=LABELS[str(process)],
        )
        axes.fill_between(
            part["utilisation"],
            part["low_ms"],
            part["high_ms"],
            color=shade,
            alpha=0.2,
            linewidth=0,
        )
    axes.axhline(
        SERVICE_MS, color="#444444", linestyle=":", label=f"service time {SERVICE_MS:g} ms"
    )
    axes.set_ylim(bottom=0)
    style(
        axes,
        "utilisation of the engine",
        "p95 latency (ms)",
        "One FIFO engine, constant service time",
    )
    axes.legend(fontsize=8, frameon=False)
    return figure


def main(argv: Sequence[str]) -> int:
    """Command line; returns the exit code."""
    folder = Path(argv[0]) if argv else Path(__file__).resolve().parent
    table = measure()
    table.to_csv(folder / "legacy_gaps.csv", index=False, float_format="%.3f")
    tail_vs_utilisation(table).savefig(folder / "legacy_gaps.png", dpi=110)
    print(
        table.pivot_table(index="utilisation", columns="process", values="p95_ms")
        .round(1)
        .to_string()
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
