#!/usr/bin/env python3
"""What the arrival process and the query sizes do to p95 and to the best policy, in virtual time.

python experiments/load_generator/what_load_does.py [--quick] [--models wnd,rm1] [--out FOLDER]

Two cores and a GTX 1080 Ti. All size laws have the mean of `production`. p95 at 70 % of the rate
that the hill climb finds for Poisson arrivals and that size law; best policy and rate by the hill
climb. Writes what_load_does.csv, .png.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from backends.tuning.probe import Sla, latencies_ms, max_rate_qps, probe
from backends.virtual.simulated import SimulatedSession
from experiments.common.servers import LARGEST, MEDIUM_SLA_MS, ladder, service_table
from infra.messages import ACCEL, CPU
from infra.progress import Progress
from infra.results.figures import plain_log, style
from infra.results.stats import quantile
from infra.settings.cli import parse
from loadGenerator import CommonLoad, draw_sizes
from scheduler import Goal, HillClimb, Limit, Policy, Stage

HERE = Path(__file__).resolve().parent
ARRIVALS = {
    "Poisson": ["--arrival_process", "exponential"],
    "legacy gaps": ["--arrival_process", "legacy"],
    "bursty (gamma, k = 0.25)": ["--arrival_process", "gamma", "--arrival_gamma_shape", "0.25"],
}
SIZES = ("fixed", "normal", "lognormal", "production")
SIGMA = 0.7  # of the logarithm, for the lognormal sizes
N_ENGINES, LOAD = 2, 0.7


def size_flags(law: str, mean_items: float) -> list[str]:
    """Flags of a size law with this mean."""
    if law == "lognormal":
        spread = SIGMA
        mean = math.log(mean_items) - SIGMA**2 / 2
    else:
        spread = 0.1 * mean_items
        mean = mean_items
    flags = [
        "--batch_size_distribution",
        law,
        "--avg_mini_batch_size",
        f"{mean:.4f}",
        "--var_mini_batch_size",
    ]
    return [*flags, f"{spread:.4f}"]


def climb(session: SimulatedSession, load: CommonLoad, sla: Sla, start_qps: float) -> Limit:
    """The hill climb over both knobs."""
    knobs: dict[str, Sequence[int | None]] = {
        "batch_items": ladder(2),
        "offload_items": [*ladder(2), None],
    }
    search = HillClimb(knobs, Policy(LARGEST // N_ENGINES), Goal(start_qps, 0.02))
    while (trial := search.propose()) is not None:
        probed = probe(session, load, sla, trial)
        assert probed is not None, "virtual time is not interrupted"
        search.observe(probed.outcome)
    assert search.best is not None, "every search ends with a policy"
    return search.best


def study(model: str, law: str, mean_items: float, n_queries: int) -> list[dict[str, Any]]:
    """A row per arrival process."""
    base = [
        "--queue",
        "--num_batches",
        "16",
        "--max_mini_batch_size",
        str(LARGEST),
        *size_flags(law, mean_items),
    ]
    session = SimulatedSession({CPU: N_ENGINES, ACCEL: 1}, service_table(model), keep_tasks=False)
    sla = Sla(MEDIUM_SLA_MS[model], max_queries=n_queries)
    loads = {
        name: CommonLoad(parse([*base, *flags]), n_queries, 3) for name, flags in ARRIVALS.items()
    }
    start_qps = N_ENGINES * 5e8 / float(session_time_ns(model, mean_items))
    poisson = climb(session, loads["Poisson"], sla, start_qps)
    rate_qps = LOAD * poisson.qps.value
    rows = []
    for name, load in loads.items():
        best = poisson if name == "Poisson" else climb(session, load, sla, start_qps)
        at_rate = latencies_ms(session.run(load.at(rate_qps), [Stage(poisson.policy)]))
        p95 = quantile(at_rate[n_queries // 10 :], 0.95)
        kept = max_rate_qps(session, load, poisson.policy, sla, poisson.qps.value, 0.02)
        rows.append(
            {
                "model": model,
                "sizes": law,
                "arrivals": name,
                "rate_qps": rate_qps,
                "p95_ms": p95.value,
                "low_ms": p95.low,
                "high_ms": p95.high,
                "batch_items": best.policy.batch_items,
                "offload_items": best.policy.offload_items,
                "best_qps": best.qps.value,
                "poisson_policy_qps": kept.value,
            }
        )
    return rows


def session_time_ns(model: str, n_items: float) -> int:
    """CPU time of a query of that many items."""
    return int(service_table(model).cpu_ns[0, round(n_items)])


def figure(rows: pd.DataFrame) -> Figure:
    """p95 at one rate, and the highest rate under the SLA, by sizes and arrivals; a row of panels
    per model.
    """
    models = list(dict.fromkeys(rows["model"]))
    out = Figure(figsize=(9.5, 3.1 * len(models)), layout="constrained")
    shades = dict(zip(ARRIVALS, ("#1f77b4", "#aaaaaa", "#d1495b"), strict=True))
    for line, model in zip(out.subplots(len(models), 2, squeeze=False), models, strict=True):
        own = rows[rows["model"] == model]
        for axes, column in zip(line, ("p95_ms", "best_qps"), strict=True):
            for i, (name, shade) in enumerate(shades.items()):
                part = own[own["arrivals"] == name].set_index("sizes").loc[list(SIZES)]
                axes.bar(
                    np.arange(len(SIZES)) + 0.27 * (i - 1),
                    part[column],
                    0.25,
                    color=shade,
                    label=name,
                )
                if column == "best_qps":
                    for x, (_, row) in enumerate(part.iterrows()):
                        offload = (
                            "-" if pd.isna(row["offload_items"]) else f"{row['offload_items']:.0f}"
                        )
                        axes.annotate(
                            f"{row['batch_items']:.0f}\n{offload}",
                            (x + 0.27 * (i - 1), 0),
                            fontsize=6,
                            ha="center",
                            xytext=(0, 3),
                            textcoords="offset points",
                        )
            axes.set_xticks(range(len(SIZES)), SIZES)
        line[0].axhline(
            MEDIUM_SLA_MS[model], color="#c1121f", linestyle="--", linewidth=1, label="SLA"
        )
        plain_log(line[0], "y")
        line[0].set_ylim(top=3 * max(own["p95_ms"].max(), MEDIUM_SLA_MS[model]))
        style(line[0], "", "p95 (ms)", f"{model}: at 70 % of what Poisson arrivals allow")
        style(line[1], "", "QPS under the SLA", "best policy (in the bars: batch, threshold)")
        line[0].legend(fontsize=7, frameon=False, ncols=2, loc="upper left")
    return out


def main(argv: Sequence[str]) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--quick", action="store_true", help="one model, fewer queries")
    parser.add_argument("--models", default="wnd,rm1", help="comma-separated")
    parser.add_argument("--out", type=Path, default=HERE)
    given = parser.parse_args(argv)
    models = ["wnd"] if given.quick else given.models.split(",")
    if unknown := set(models) - set(MEDIUM_SLA_MS):
        sys.stderr.write(
            f"what_load_does.py: --models: {', '.join(unknown)}; expected "
            f"{', '.join(MEDIUM_SLA_MS)}\n"
        )
        return 2
    production = parse(["--num_batches", "1", "--batch_size_distribution", "production"]).load
    mean_items = float(draw_sizes(production, LARGEST, 100_000, np.random.default_rng(1)).mean())
    rows = []
    cases = [(model, law) for model in models for law in SIZES]
    with Progress("auto") as progress, progress.step("searching") as on_fraction:
        for n, (model, law) in enumerate(cases):
            on_fraction(n / len(cases), f"{model}, {law} sizes")
            rows += study(model, law, mean_items, 10_000 if given.quick else 40_000)
    given.out.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame(rows)
    table.to_csv(given.out / "what_load_does.csv", index=False, float_format="%.5g")
    figure(table).savefig(given.out / "what_load_does.png", dpi=120)
    print(table.round(2).to_string(index=False))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
