#!/usr/bin/env python3
"""What does a tuned plan do to the product: p95 and the rate under the SLA, on real engines?

python experiments/embedding/product.py [--models rm1,rm2,wnd,din] [--quick] [flags of the product]

One engine, the released production sizes, tasks of at most 128 items, Poisson load at fractions of
what the engine carries without a plan; with and without one at every fraction, in turn. Plans are
those of run.py (data/plans/MODEL.json, or another folder by --plans). product.csv gets a line a
run; product.png is made of it. Some 5 minutes, --quick one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from backends.opening import open_session
from backends.tuning.probe import capacity_qps
from experiments.common.panels import finish, legend, model_line, panels
from experiments.common.released import MODELS, PRODUCTION, config_of
from experiments.common.servers import MEDIUM_SLA_MS
from experiments.common.study import Study, View, flags_of, of_models, passed_on, progress
from experiments.common.tails import load_for, warm_ms
from infra.deployment import resolve
from infra.progress import Progress
from infra.results.figures import color
from infra.results.quantiles import quantile
from infra.settings.config import RunConfig
from infra.settings.fields import flag
from scheduler import Policy

PLANS = Path(__file__).resolve().parent / "data" / "plans"
BATCH = 128
WITH = "tuned plan"
WITHOUT = "no plan"
COMMON = (
    f"{PRODUCTION} --inference_engines 1 --num_batches 8 --batch_configs {BATCH} --progress none"
)


@dataclass(frozen=True)
class ProductCase:
    """One model, with and without its plan, at these fractions of its capacity."""

    model: str
    fractions: tuple[float, ...] = (0.5, 0.7, 0.8, 0.9, 1.0)
    seconds: float = 5.0  # of a run
    plans: str = flag("", "folder of the plans, MODEL.json (empty: the published ones)")
    plan_sha256: str = ""
    flags: tuple[str, ...] = passed_on()

    @property
    def plan(self) -> Path:
        """The model's plan."""
        return Path(self.plans or PLANS) / f"{self.model}.json"


@dataclass(frozen=True)
class ProductRow:
    """One run of one engine."""

    model: str
    plan: str
    fraction: float
    rate_qps: float
    queries: int
    capacity_qps: float
    p50_ms: float
    p95_ms: float
    p95_low: float
    p95_high: float
    sla_ms: float


def config_with(case: ProductCase, label: str) -> RunConfig:
    """One engine of one model, with or without the plan."""
    plan = ["--embedding_plan", str(case.plan)] if label == WITH else []
    sla = f"--target_latency {MEDIUM_SLA_MS[case.model]}"
    return config_of(case.model, f"{COMMON} {sla}", [*plan, *case.flags])


def drive(case: ProductCase) -> dict[str, list[ProductRow]]:
    """A row a run; both sessions are open, the one that does not run is idle."""
    configs = {label: config_with(case, label) for label in (WITHOUT, WITH)}
    rows = []
    with ExitStack() as stack:
        silent = stack.enter_context(Progress("none"))
        on_fraction = stack.enter_context(progress().step(case.model))
        sessions = {
            label: stack.enter_context(open_session(resolve(config), silent)).session
            for label, config in configs.items()
        }
        capacities = {
            label: [capacity_qps(session, configs[label], Policy(BATCH), 1) for _ in range(3)]
            for label, session in sessions.items()
        }
        capacity = {label: float(np.median(rates)) for label, rates in capacities.items()}
        for round_id, fraction in enumerate(case.fractions):
            on_fraction(round_id / len(case.fractions), f"at {fraction:.0%}")
            rate_qps = fraction * capacity[WITHOUT]
            for label in (WITHOUT, WITH) if round_id % 2 == 0 else (WITH, WITHOUT):
                schedule = load_for(case.seconds, configs[label], rate_qps, round_id, fewest=200)
                latency = warm_ms(sessions[label], schedule, Policy(BATCH))
                p95 = quantile(latency, 0.95)
                load = (fraction, rate_qps, len(latency), capacity[label])
                tail = (float(np.median(latency)), p95.value, p95.low, p95.high)
                rows.append(ProductRow(case.model, label, *load, *tail, MEDIUM_SLA_MS[case.model]))
    return {"product": rows}


def rate_under_sla(runs: pd.DataFrame) -> float:
    """Where the line through log p95 by rate meets the SLA.

    The last rate if all meet it, NaN if none does.
    """
    rates = runs["rate_qps"].to_numpy()
    p95_ms = runs["p95_ms"].to_numpy()
    sla_ms = runs["sla_ms"].iloc[0]
    late = np.flatnonzero(p95_ms > sla_ms)
    if not len(late):
        return float(rates[-1])
    if late[0] == 0:
        return float("nan")
    k = late[0]
    around = slice(k - 1, k + 1)
    return float(np.interp(np.log(sla_ms), np.log(p95_ms[around]), rates[around]))


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """A line a model: without and with the plan."""
    lines = []
    for model, part in rows.groupby("model", sort=False):
        without, tuned = (
            part[part["plan"] == label].sort_values("fraction") for label in (WITHOUT, WITH)
        )
        middle = without["fraction"].iloc[len(without) // 2]
        p95 = [runs.loc[runs["fraction"] == middle, "p95_ms"].iloc[0] for runs in (without, tuned)]
        lines.append(
            {
                "model": model,
                "load": middle,
                "p95 ms": p95[0],
                "p95 ms, plan": p95[1],
                "p95 over": p95[1] / p95[0],
                "capacity over": tuned["capacity_qps"].iloc[0] / without["capacity_qps"].iloc[0],
                "QPS under SLA": rate_under_sla(without),
                "QPS, plan": rate_under_sla(tuned),
            }
        )
    return pd.DataFrame(lines)


def draw(rows: pd.DataFrame) -> Figure:
    """A panel a model: p95 by rate, with its interval."""
    models = list(dict.fromkeys(rows["model"]))
    figure, axes_of = panels(len(models), 3.4, 3.6)
    for axes, model in zip(axes_of, models, strict=True):
        of_model = rows[rows["model"] == model].sort_values("fraction")
        for plan, runs in of_model.groupby("plan", sort=False):
            rates = runs["rate_qps"]
            line = "o-" if plan == WITH else "o--"
            model_line(axes, model, rates, runs["p95_ms"], line, label=plan)
            high = runs["p95_high"].clip(upper=10 * runs["p95_ms"].max())
            axes.fill_between(rates, runs["p95_low"], high, color=color(model), alpha=0.12)
        axes.axhline(of_model["sla_ms"].iloc[0], color="#c1121f", linestyle=":", label="SLA")
        finish(axes, "offered rate (QPS)", "p95 (ms)", model, log="y")
        legend(axes, 7)
    return figure


def cases(effort: Sequence[ProductCase], options: Any) -> list[ProductCase]:
    """A case for each model; raises ValueError for a missing plan and for bad flags."""
    chosen: list[ProductCase] = of_models(effort, options)
    if missing := ",".join(case.model for case in chosen if not case.plan.is_file()):
        raise ValueError(f"no plan for {missing}; run.py --models {missing} --publish makes it")
    for case in chosen:
        config_with(case, WITH)
    return [
        replace(case, plan_sha256=hashlib.sha256(case.plan.read_bytes()).hexdigest())
        for case in chosen
    ]


STUDY = Study(
    "embedding_product",
    "What does a tuned plan do to the product: p95 and the rate under the SLA, on real engines?",
    cases,
    drive,
    efforts={
        "quick": [ProductCase("wnd", (0.6, 0.9), seconds=2.0)],
        "full": [ProductCase(model) for model in ("rm1", "rm2", "wnd", "din")],
    },
    options=flags_of(ProductCase, MODELS),
    figures={"product": View(draw, "product")},
    report={"One engine, with and without the plan": View(summary, "product")},
    float_format="%.4g",
)

if __name__ == "__main__":
    STUDY.main()
