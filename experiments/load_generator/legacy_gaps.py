#!/usr/bin/env python3
"""How much do the release's gaps (whole-ms Poisson draws) understate the tail?

One FIFO engine with a constant service time in virtual time, under both laws.
python experiments/load_generator/legacy_gaps.py [--out FOLDER]   writes legacy_gaps.csv and .png
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from backends.virtual.simulated import SimulatedSession
from experiments.common.panels import finish, legend, panels
from experiments.common.study import Study, View
from experiments.common.tails import P95, p95_of, warm_ms
from infra.clock import NS_PER_MS
from infra.load.arrivals import draw_gaps_ns
from infra.messages import CPU
from infra.rng import stream
from infra.settings.config import LoadConfig
from loadGenerator import Schedule
from scheduler import Policy

SERVICE_MS = 20.0
UTILISATIONS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9)
N_QUERIES = 20_000
N_WARMUP = 2_000
LAWS = {
    "exponential": ("exponential gaps (Poisson arrivals)", "#1f77b4"),
    "legacy": ("legacy: whole-ms Poisson gaps", "#d1495b"),
}


@dataclass(frozen=True)
class GapsCase:
    """One law of the gaps at one load."""

    process: str
    utilisation: float


@dataclass(frozen=True)
class GapsRow:
    """The tail of a case."""

    case: GapsCase
    p95: P95


def cases(*_: object) -> list[GapsCase]:
    """Both laws at all loads."""
    return [GapsCase(law, load) for law in LAWS for load in UTILISATIONS]


def simulate(case: GapsCase) -> dict[str, list[GapsRow]]:
    """The case's row."""
    load = LoadConfig(arrival_process=case.process)
    rate_qps = 1000 * case.utilisation / SERVICE_MS
    gaps_ns = draw_gaps_ns(load, rate_qps, N_QUERIES, stream(1, "arrivals"))
    ones = np.ones(N_QUERIES, np.int32)
    schedule = Schedule(np.cumsum(gaps_ns), ones, ones, N_WARMUP)
    session = SimulatedSession({CPU: 1}, lambda _: round(SERVICE_MS * NS_PER_MS))
    return {"legacy_gaps": [GapsRow(case, p95_of(warm_ms(session, schedule, Policy(1))))]}


def tail_vs_utilisation(rows: pd.DataFrame) -> Figure:
    """p95 by utilisation for both laws; the service time is drawn as the floor."""
    figure, (axes,) = panels(1, 6.4, 3.8)
    for process, part in rows.groupby("process", sort=False):
        label, shade = LAWS[process]
        x = part["utilisation"]
        axes.plot(x, part["p95_ms"], "o-", color=shade, markersize=4, label=label)
        axes.fill_between(x, part["low_ms"], part["high_ms"], color=shade, alpha=0.2, linewidth=0)
    label = f"service time {SERVICE_MS:g} ms"
    axes.axhline(SERVICE_MS, color="#444444", linestyle=":", label=label)
    axes.set_ylim(bottom=0)
    title = "One FIFO engine, constant service time"
    finish(axes, "utilisation of the engine", "p95 latency (ms)", title)
    legend(axes)
    return figure


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """p95 by utilisation, a column a law."""
    return rows.pivot_table("p95_ms", index="utilisation", columns="process")


STUDY = Study(
    "legacy_gaps",
    "How much do the release's gaps understate the tail against Poisson arrivals?",
    cases,
    simulate,
    efforts={"quick": None, "full": None},  # it takes some seconds
    parallel=True,
    figures={"legacy_gaps": View(tail_vs_utilisation, "legacy_gaps")},
    report={"p95 (ms) by the law of the gaps": View(summary, "legacy_gaps")},
    float_format="%.3f",
)

if __name__ == "__main__":
    STUDY.main()
