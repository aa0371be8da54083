#!/usr/bin/env python3
"""What a tuned plan does to the product: p95 and the rate under the SLA, on real engines, with it
and without.

python experiments/embedding/product.py [--models rm1,rm2,wnd,din] [--quick] [--out FOLDER] [flags of DeepRecSys.py]

One engine, the released production sizes, tasks of at most 128 items, Poisson load at fractions of
what the engine carries without a plan; both at every fraction, in turn. Plans are those of run.py
(plans/MODEL.json). product.csv gets a line a run; product.png is made of it. Some 5 minutes,
--quick one.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from accelerator.devices import model_configs
from backends.opening import open_session
from backends.tuning.probe import capacity_qps, latencies_ms
from experiments.common.servers import MEDIUM_SLA_MS
from infra.progress import Progress
from infra.results.figures import color, plain_log, style
from infra.results.report import console, frame
from infra.results.stats import quantile
from infra.settings.cli import parse
from infra.settings.config import RunConfig
from loadGenerator import draw_schedule
from scheduler import Policy, Stage

HERE = Path(__file__).resolve().parent
MODELS = ("rm1", "rm2", "wnd", "din")
FRACTIONS = (0.5, 0.7, 0.8, 0.9, 1.0)
QUICK_FRACTIONS = (0.6, 0.9)
SECONDS = 5.0
QUICK_SECONDS = 2.0
BATCH = 128
LARGEST = 1024
WITH, WITHOUT = "tuned plan", "no plan"
COMMON = [
    "--queue",
    "--inference_engines",
    "1",
    "--num_batches",
    "8",
    "--max_mini_batch_size",
    str(LARGEST),
    "--batch_size_distribution",
    "production",
    "--batch_configs",
    str(BATCH),
    "--progress",
    "none",
]


def config_of(name: str, plan: Path | None, flags: Sequence[str]) -> RunConfig:
    """One engine of one model."""
    own = ["--embedding_plan", str(plan)] if plan else []
    sla = ["--target_latency", str(MEDIUM_SLA_MS[name])]
    return parse(["--config_file", str(model_configs()[name]), *COMMON, *sla, *own, *flags])


def rows_of(
    name: str, plan: Path, fractions: Sequence[float], seconds: float, flags: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """A row a run; both sessions are open, the one that does not run is idle."""
    configs = {WITHOUT: config_of(name, None, flags), WITH: config_of(name, plan, flags)}
    stages = [Stage(Policy(BATCH))]
    with ExitStack() as stack:
        progress = stack.enter_context(Progress("none"))
        opened = {
            label: stack.enter_context(open_session(config, progress))
            for label, config in configs.items()
        }
        capacity = {
            label: float(
                np.median(
                    [capacity_qps(own.session, configs[label], Policy(BATCH), 1) for _ in range(3)]
                )
            )
            for label, own in opened.items()
        }
        for round_id, fraction in enumerate(fractions):
            rate_qps = fraction * capacity[WITHOUT]
            for label in (WITHOUT, WITH) if round_id % 2 == 0 else (WITH, WITHOUT):
                config = configs[label]
                n = max(int(rate_qps * seconds), 200)
                schedule = draw_schedule(config, n, n // 10, rate_qps, round_id)
                rows = opened[label].session.run(schedule, stages)
                latency = latencies_ms(rows)[schedule.n_warmup :]
                p95 = quantile(latency, 0.95)
                yield {
                    "model": name,
                    "plan": label,
                    "fraction": fraction,
                    "rate_qps": rate_qps,
                    "queries": len(latency),
                    "capacity_qps": capacity[label],
                    "p50_ms": float(np.median(latency)),
                    "p95_ms": p95.value,
                    "p95_low": p95.low,
                    "p95_high": p95.high,
                    "sla_ms": MEDIUM_SLA_MS[name],
                }


def rate_under_sla(own: pd.DataFrame) -> float:
    """Where the line through log p95 by rate meets the SLA; the last rate if all meet it, none if
    none does.
    """
    rates = own["rate_qps"].to_numpy()
    p95_ms = own["p95_ms"].to_numpy()
    sla_ms = own["sla_ms"].iloc[0]
    late = np.flatnonzero(p95_ms > sla_ms)
    if not len(late):
        return float(rates[-1])
    if late[0] == 0:
        return float("nan")
    k = late[0]
    share = np.log(sla_ms / p95_ms[k - 1]) / np.log(p95_ms[k] / p95_ms[k - 1])
    return float(rates[k - 1] + share * (rates[k] - rates[k - 1]))


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """A line a model: without and with the plan."""
    lines = []
    for model, own in rows.groupby("model", sort=False):
        without, tuned = (
            own[own["plan"] == label].sort_values("fraction") for label in (WITHOUT, WITH)
        )
        middle = without["fraction"].iloc[len(without) // 2]
        p95 = [part.loc[part["fraction"] == middle, "p95_ms"].iloc[0] for part in (without, tuned)]
        rates = [rate_under_sla(part) for part in (without, tuned)]
        lines.append(
            {
                "model": model,
                "load": middle,
                "p95 ms": p95[0],
                "p95 ms, plan": p95[1],
                "p95 over": p95[1] / p95[0],
                "capacity over": tuned["capacity_qps"].iloc[0] / without["capacity_qps"].iloc[0],
                "QPS under SLA": rates[0],
                "QPS, plan": rates[1],
            }
        )
    return pd.DataFrame(lines)


def draw(rows: pd.DataFrame) -> Figure:
    """A panel a model: p95 by rate, with its interval."""
    models = list(dict.fromkeys(rows["model"]))
    figure = Figure(figsize=(3.4 * len(models), 3.6), layout="constrained")
    panels = figure.subplots(1, len(models), squeeze=False)[0]
    for axes, model in zip(panels, models, strict=True):
        for plan, own in (
            rows[rows["model"] == model].sort_values("fraction").groupby("plan", sort=False)
        ):
            line = "o-" if plan == WITH else "o--"
            axes.plot(
                own["rate_qps"],
                own["p95_ms"],
                line,
                color=color(model),
                markersize=4,
                label=str(plan),
            )
            axes.fill_between(
                own["rate_qps"],
                own["p95_low"],
                own["p95_high"].clip(upper=10 * own["p95_ms"].max()),
                color=color(model),
                alpha=0.12,
            )
        axes.axhline(
            rows.loc[rows["model"] == model, "sla_ms"].iloc[0],
            color="#c1121f",
            linestyle=":",
            label="SLA",
        )
        plain_log(axes, "y")
        style(axes, "offered rate (QPS)", "p95 (ms)" if model == models[0] else "", model)
        axes.legend(fontsize=7, frameon=False)
    return figure


def main(argv: Sequence[str]) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--quick", action="store_true", help="wnd, two rates, short runs")
    parser.add_argument("--out", type=Path, default=HERE)
    args, flags = parser.parse_known_args(argv)
    names = ["wnd"] if args.quick else args.models.split(",")
    fractions, seconds = (QUICK_FRACTIONS, QUICK_SECONDS) if args.quick else (FRACTIONS, SECONDS)
    plans = {name: HERE / "plans" / f"{name}.json" for name in names}
    if missing := [name for name, plan in plans.items() if not plan.is_file()]:
        parser.error(
            f"no plan for {', '.join(missing)}; run.py --models {','.join(missing)} makes it"
        )
    for name in names:
        config_of(name, plans[name], flags)  # bad flags end here
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "product.csv"
    rows = []
    kept = pd.read_csv(file) if file.is_file() else pd.DataFrame(columns=["model"])
    with Progress("auto") as progress, progress.step("engines") as on_fraction:
        for name in names:
            for row in rows_of(name, plans[name], fractions, seconds, flags):
                rows.append(row)
                on_fraction(len(rows) / len(names) / len(fractions) / 2, name)
                fresh = pd.concat(
                    [kept[~kept["model"].isin(names)], pd.DataFrame(rows)], ignore_index=True
                )
                fresh.to_csv(file, index=False, float_format="%.4g")
            gc.collect()
    draw(fresh).savefig(args.out / "product.png", dpi=110)
    console().print(frame("One engine, with and without the plan", summary(fresh)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
