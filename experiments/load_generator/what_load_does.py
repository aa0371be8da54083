#!/usr/bin/env python3
"""What the arrival process and the query sizes do to p95 and to the best policy, in virtual time.

python experiments/load_generator/what_load_does.py [--quick] [--models wnd,rm1] [--out FOLDER]

Two cores and a GTX 1080 Ti. All size laws have the mean of `production`. p95 at 70 % of the rate
that the hill climb finds for Poisson arrivals and that size law; best policy and rate by the hill
climb. Writes what_load_does.csv, .png.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from backends.tuning.probe import Sla, latencies_ms, max_rate_qps
from backends.virtual.simulated import SimulatedSession
from experiments.common.panels import finish, legend, panels
from experiments.common.servers import LARGEST, MEDIUM_SLA_MS, best_of, ladder, service_table
from experiments.common.study import Study, View, names
from experiments.common.tails import P95, p95_of
from infra.messages import ACCEL, CPU
from infra.settings.cli import parse
from loadGenerator import CommonLoad, draw_sizes
from scheduler import Goal, HillClimb, Policy

POISSON = "Poisson"
ARRIVALS = {
    POISSON: "--arrival_process exponential",
    "legacy gaps": "--arrival_process legacy",
    "bursty (gamma, k = 0.25)": "--arrival_process gamma --arrival_gamma_shape 0.25",
}
SHADES = dict(zip(ARRIVALS, ("#1f77b4", "#aaaaaa", "#d1495b"), strict=True))
SIZES = ("fixed", "normal", "lognormal", "production")
SIGMA = 0.7  # of the logarithm, for the lognormal sizes
N_ENGINES = 2
LOAD = 0.7
BAR = 0.27  # from one bar to the next


@dataclass(frozen=True)
class LoadEffort:
    """How much is simulated."""

    models: tuple[str, ...] = ("wnd", "rm1")
    n_queries: int = 40_000


@dataclass(frozen=True)
class LoadOptions:
    """Flags of the study."""

    models: tuple[str, ...] = names((), "models (default: the effort's)", MEDIUM_SLA_MS)


@dataclass(frozen=True)
class LoadCase:
    """One model under one law of sizes and all arrival processes."""

    model: str
    sizes: str
    mean_items: float
    n_queries: int


@dataclass(frozen=True)
class LoadRow:
    """p95 at the rate that is 70 % of Poisson arrivals' best; the best policy and its rate."""

    model: str
    sizes: str
    arrivals: str
    rate_qps: float
    p95: P95
    policy: Policy
    best_qps: float
    poisson_policy_qps: float


def cases(effort: LoadEffort, options: LoadOptions) -> list[LoadCase]:
    """A case a model and law."""
    production = parse(["--num_batches", "1", "--batch_size_distribution", "production"]).load
    sizes = draw_sizes(production, LARGEST, 100_000, np.random.default_rng(1))
    settings = float(sizes.mean()), effort.n_queries
    models = options.models or effort.models
    return [LoadCase(model, law, *settings) for model in models for law in SIZES]


def size_flags(law: str, mean_items: float) -> str:
    """Flags of a size law with this mean."""
    spread = 0.1 * mean_items
    location = mean_items
    if law == "lognormal":
        spread = SIGMA
        location = math.log(mean_items) - SIGMA**2 / 2
    moments = f"--avg_mini_batch_size {location:.4f} --var_mini_batch_size {spread:.4f}"
    return f"--batch_size_distribution {law} {moments}"


def simulate(case: LoadCase) -> dict[str, list[LoadRow]]:
    """A row per arrival process."""
    words = f"--queue --num_batches 16 --max_mini_batch_size {LARGEST}"
    words = f"{words} {size_flags(case.sizes, case.mean_items)}"
    n = case.n_queries
    loads = {
        name: CommonLoad(parse(f"{words} {flags}".split()), n, 3)
        for name, flags in ARRIVALS.items()
    }
    table = service_table(case.model)
    session = SimulatedSession({CPU: N_ENGINES, ACCEL: 1}, table, keep_tasks=False)
    sla = Sla(MEDIUM_SLA_MS[case.model], max_queries=n)
    start_qps = N_ENGINES * 5e8 / float(table.cpu_ns[0, round(case.mean_items)])
    knobs: dict[str, Sequence[int | None]] = {
        "batch_items": ladder(2),
        "offload_items": [*ladder(2), None],
    }
    best = {}
    for name, load in loads.items():
        climb = HillClimb(knobs, Policy(LARGEST // N_ENGINES), Goal(start_qps, 0.02))
        best[name] = best_of(climb, session, load, sla)
    poisson = best[POISSON]
    rate_qps = LOAD * poisson.qps.value
    rows = []
    for name, load in loads.items():
        latency_ms = latencies_ms(session.run(load.at(rate_qps), poisson.policy))
        p95 = p95_of(latency_ms[n // 10 :])
        kept = max_rate_qps(session, load, poisson.policy, sla, poisson.qps.value, 0.02)
        rates = best[name].qps.value, kept.value
        what = case.model, case.sizes, name
        rows.append(LoadRow(*what, rate_qps, p95, best[name].policy, *rates))
    return {"what_load_does": rows}


def draw_bars(axes: Axes, rows: pd.DataFrame, column: str) -> None:
    """Groups of bars by sizes, a bar an arrival process."""
    bars = rows.pivot_table(column, index="sizes", columns="arrivals", sort=False)
    bars.plot.bar(ax=axes, width=3 * BAR, color=SHADES, legend=False, rot=0)


def write_policies(axes: Axes, rows: pd.DataFrame) -> None:
    """The best policy into the foot of each bar: batch, threshold."""
    for row in rows.itertuples():
        x = SIZES.index(row.sizes) + BAR * ([*SHADES].index(row.arrivals) - 1)
        offload = "-" if pd.isna(row.offload_items) else f"{row.offload_items:.0f}"
        text = f"{row.batch_items:.0f}\n{offload}"
        axes.text(x, 0, text, ha="center", va="bottom", fontsize=6)


def draw(rows: pd.DataFrame) -> Figure:
    """p95 at one rate, and the highest rate under the SLA: two panels a model."""
    models = rows.groupby("model", sort=False)
    figure, all_axes = panels(2 * len(models), 4.75, 3.1, n_columns=2)
    for tail, rate, (model, part) in zip(all_axes[::2], all_axes[1::2], models, strict=True):
        sla_ms = MEDIUM_SLA_MS[model]
        draw_bars(tail, part, "p95_ms")
        tail.axhline(sla_ms, color="#c1121f", linestyle="--", linewidth=1, label="SLA")
        title = f"{model}: at 70 % of what Poisson arrivals allow"
        finish(tail, "", "p95 (ms)", title, log="y")
        tail.set_ylim(top=3 * max(part["p95_ms"].max(), sla_ms))
        legend(tail, 7, ncols=2, loc="upper left")
        draw_bars(rate, part, "best_qps")
        write_policies(rate, part)
        finish(rate, "", "QPS under the SLA", "best policy (in the bars: batch, threshold)")
    return figure


STUDY = Study(
    "what_load_does",
    "What do arrivals and query sizes do to p95 and to the best policy?",
    cases,
    simulate,
    efforts={"quick": LoadEffort(("wnd",), 10_000), "full": LoadEffort()},
    options=LoadOptions,
    parallel=True,
    figures={"what_load_does": View(draw, "what_load_does")},
    report={"p95 at one rate, and the best policy": View(pd.DataFrame, "what_load_does")},
)

if __name__ == "__main__":
    STUDY.main()
