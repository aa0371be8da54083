#!/usr/bin/env python3
"""What locality does to the look-up's time and to p95: uniform ids against Zipf's law, full tables.

python experiments/locality/look_ups.py [--models rm1,rm2] [--quick] [--out FOLDER]
    [flags of DeepRecSys.py]

look_ups.csv: SparseLengthsSum's and the whole model's time with ids of each law, in turn, over the
time with uniform ids. p95.csv: the real engines at the same rate and schedule with each law. Some 7
minutes, --quick (one model) some 2.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from backends.opening import open_session
from backends.tuning.probe import capacity_qps, latencies_ms
from experiments.common.core_limits import median_s
from experiments.common.fresh_calls import SEED
from experiments.common.panels import finish, legend, model_line, panels
from experiments.common.released import (
    LARGEST_ITEMS,
    MODELS,
    ONE_ENGINE,
    ModelCase,
    config_of,
    model_cases,
)
from experiments.common.study import Study, View, names, passed_on, progress
from experiments.common.tails import load_for
from experiments.locality.hit_rates import ALPHAS, law_name
from infra.deployment import resolve
from infra.progress import Progress
from infra.results.figures import color
from infra.results.quantiles import quantile
from infra.settings.config import RunConfig
from infra.settings.fields import flag
from models import build
from models.batch import Batch
from models.inputs.synthetic import InputPool
from scheduler import Policy

ITEMS = 256
N_INPUTS = 8
POLICY = Policy(128)
LOAD = 0.6
LOOK_UP = "SparseLengthsSum"


@dataclass(frozen=True)
class LookUpsEffort:
    """How much is measured."""

    models: tuple[str, ...] = ("rm1", "rm2", "wnd")
    rounds: int = 9
    seconds: float = 8.0  # of a run on engines
    p95_rounds: int = 2


@dataclass(frozen=True)
class LookUpsOptions:
    """Flags of the study."""

    models: tuple[str, ...] = names((), "models (default: the effort's)", MODELS)
    seconds: float = flag(0.0, "length of a run on engines; 0: the effort's", low=0)
    flags: tuple[str, ...] = passed_on()


@dataclass(frozen=True)
class LookUpsRow:
    """Median time of a part with ids of a law; median, least and largest ratio of paired rounds."""

    model: str
    law: str
    part: str
    ms: float
    over_uniform: float
    least: float
    most: float


@dataclass(frozen=True)
class ServedRow:
    """A run on engines with ids of a law."""

    model: str
    law: str
    round: int
    rate_qps: float
    queries: int
    service_ms: float
    p50_ms: float
    p95_ms: float
    p95_low: float
    p95_high: float


def cases(effort: LookUpsEffort, options: LookUpsOptions) -> list[ModelCase]:
    """A case a model. Bad flags end the program here."""
    chosen = model_cases(effort, options)
    for case in chosen:
        config_with(0, case)
    return chosen


def config_with(alpha: float, case: ModelCase) -> RunConfig:
    """The model with ids by Zipf's law; 0: uniform, drawn as ever."""
    law = f"--data_generation zipf --zipf_alpha {alpha}" if alpha else ""
    return config_of(case.model, f"{ONE_ENGINE} --num_batches {N_INPUTS} {law}", case.options.flags)


def batches_of(config: RunConfig) -> list[Batch]:
    """All items of the inputs, some at a time."""
    pool = InputPool.of(config)
    starts = range(0, LARGEST_ITEMS, ITEMS)
    return [pool.batch(i, first, ITEMS) for first in starts for i in range(N_INPUTS)]


def median_ms(call: Callable[[Batch], object], batches: Sequence[Batch]) -> float:
    """Median time of a call over all batches."""
    return median_s(lambda i: call(batches[i]), len(batches)) * 1e3


@torch.inference_mode()
def look_ups(case: ModelCase) -> list[LookUpsRow]:
    """A row a law and part: the look-up alone and the whole model, in turn."""
    config = config_with(0, case)
    model = build(config.model, SEED, device=torch.device("cpu"))
    batches = {law_name(alpha): batches_of(config_with(alpha, case)) for alpha in ALPHAS}
    parts = {LOOK_UP: model.tables, "model": model}
    calls = [(law, part) for law in batches for part in parts]
    rounds = [
        [median_ms(parts[part], batches[law]) for law, part in calls]
        for _ in range(1 + case.effort.rounds)
    ]
    times = pd.DataFrame(rounds[1:], columns=calls)
    rows = []
    for law, part in calls:
        ms = times[law, part]
        ratios = ms / times[law_name(0), part]
        spread = ratios.median(), ratios.min(), ratios.max()
        rows.append(LookUpsRow(case.model, law, part, ms.median(), *spread))
    return rows


def serve(case: ModelCase) -> list[ServedRow]:
    """A row a law and round, at LOAD of what the engines carry with uniform ids."""
    rows: list[ServedRow] = []
    seconds = case.options.seconds or case.effort.seconds
    rate_qps = 0.0
    for round_id in range(case.effort.p95_rounds):
        for alpha in ALPHAS if round_id % 2 == 0 else ALPHAS[::-1]:
            config = config_with(alpha, case)
            with Progress("none") as quiet, open_session(resolve(config), quiet) as opened:
                n_engines = config.engines.inference_engines
                rate_qps = rate_qps or LOAD * capacity_qps(
                    opened.session, config, POLICY, n_engines
                )
                schedule = load_for(seconds, config, rate_qps, round_id, fewest=200)
                answered = opened.session.run(schedule, POLICY)
            latency_ms = latencies_ms(answered)[schedule.n_warmup :]
            service_ms = (answered.tasks["end_ns"] - answered.tasks["start_ns"]).mean() / 1e6
            run = law_name(alpha), round_id, rate_qps, len(latency_ms), service_ms
            tail = float(np.median(latency_ms)), *astuple(quantile(latency_ms, 0.95))
            rows.append(ServedRow(case.model, *run, *tail))
            gc.collect()
    return rows


def measure(case: ModelCase) -> dict[str, list[Any]]:
    """Both tables' rows."""
    with progress().step(case.model) as on_fraction:
        on_fraction(0.0, "on engines")
        served = serve(case)
        on_fraction(0.5, "look-ups")
        return {"look_ups": look_ups(case), "p95": served}


def draw(rows: pd.DataFrame, served: pd.DataFrame) -> Figure:
    """Time of look-up (solid) and model (dashed), and p95, both over those with uniform ids."""
    figure, (left, right) = panels(2, 5.5, 4.4)
    laws = [law_name(alpha) for alpha in ALPHAS]
    x = range(len(laws))
    for (model, part), lines in rows.groupby(["model", "part"], sort=False):
        line = lines.set_index("law").reindex(laws)
        dash = "o-" if part == LOOK_UP else "o--"
        model_line(left, model, x, line["over_uniform"], dash, f"{model} {part}")
        left.fill_between(x, line["least"], line["most"], color=color(model), alpha=0.08)
    for model, runs in served.groupby("model", sort=False):
        p95_ms = runs.groupby("law")["p95_ms"].median().reindex(laws)
        model_line(right, model, x, p95_ms / p95_ms.iloc[0])
    finish(left, "ids", "over uniform ids", f"Time of one call, {ITEMS} items")
    title = f"p95 at the same rate ({LOAD:.0%} load when uniform)"
    finish(right, "ids", "over uniform ids", title)
    for axes in (left, right):
        axes.set_xticks(x, laws)
        axes.axhline(1, color="grey", linewidth=0.8)
        legend(axes, 7)
    return figure


STUDY = Study(
    "look_ups",
    "What does locality do to the look-up's time and to p95?",
    cases,
    measure,
    efforts={"quick": LookUpsEffort(("rm2",), 5, 4.0, 1), "full": LookUpsEffort()},
    options=LookUpsOptions,
    figures={"look_ups": View(draw, "look_ups", "p95")},
    report={
        f"Time of one call of {ITEMS} items over the time with uniform ids": View(
            pd.DataFrame, "look_ups"
        ),
        "On engines, same rate": View(pd.DataFrame, "p95"),
    },
    float_format="%.4g",
)

if __name__ == "__main__":
    STUDY.main()
