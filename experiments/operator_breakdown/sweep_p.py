#!/usr/bin/env python3
"""Which operators take the time? Shares of run time by operator and batch, beside the published.

python experiments/operator_breakdown/sweep_p.py [--models rm1,wnd] [--quick] [--device cuda]
    [--out FOLDER]

Two executions of every model on the same tables, in turn: as released (operator by operator, one
look-up a table) and ours (packed). breakdown.csv gets a line an operator, model by model;
breakdown.png and agreement.csv are made of it (plot.py). Full tables, one thread; some 5 minutes,
--quick (three batches) some 2.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # PyTorch's profiler says when it begins and ends

import numpy as np
import pandas as pd
import torch

from experiments.common.fresh_calls import N_INPUTS, SEED, FreshCalls
from experiments.common.released import LARGEST_ITEMS, ModelCase, ModelOptions, model_cases, net_of
from experiments.common.study import Study, View, progress
from experiments.operator_breakdown import plot
from experiments.operator_breakdown.plot import AS_RELEASED, BETWEEN, OURS
from infra.settings.config import ModelConfig
from infra.settings.fields import flag
from models import build
from models.base import RecModel
from models.inputs.synthetic import InputPool
from models.operator_times import OTHER, RELEASED, library_times, operator_times, released_name
from models.standalone import choose_device

LIBRARY = "PyTorch's profiler"  # of the execution as released


@dataclass(frozen=True)
class BreakdownEffort:
    """How much is measured."""

    batches: tuple[int, ...] = (1, 4, 16, 64, 256, 1024)
    round_s: float = 0.25
    rounds: int = 5


@dataclass(frozen=True)
class BreakdownOptions(ModelOptions):
    """Flags of the study."""

    device: str = flag("cpu", "where the models run", ("cpu", "cuda"))


@dataclass(frozen=True)
class ShareRow:
    """An operator's share of an execution's time: mean, least and most of the rounds."""

    device: str
    model: str
    batch: int
    execution: str
    operator: str
    share: float
    least: float
    most: float
    ms: float  # of the whole


def cases(effort: BreakdownEffort, options: BreakdownOptions) -> list[ModelCase]:
    """A case a model; raises ValueError where there is no such device."""
    choose_device(options.device == "cuda")
    return model_cases(effort, options)


class Execution:
    """One model in one execution, on fresh items call after call."""

    def __init__(self, model: RecModel, inputs: InputPool, device: torch.device) -> None:
        self.model = model
        self._on_cuda = device.type == "cuda"
        to_device = (lambda batch: model(batch.to(device))) if self._on_cuda else model
        self.call = FreshCalls(to_device, inputs)

    def ms(self, n_items: int, n_calls: int) -> float:
        """Mean of some calls."""
        start = time.perf_counter()
        for _ in range(n_calls):
            self.call(n_items)
        if self._on_cuda:
            torch.cuda.synchronize()
        return (time.perf_counter() - start) * 1e3 / n_calls

    def sample(self, n_items: int, round_s: float) -> dict[str, float]:
        """Shares by operator and ms a call, in one round."""
        n_calls = int(np.clip(round_s * 1e3 / 2 / self.ms(n_items, 2), 2, 400))
        whole_ms = self.ms(n_items, n_calls)
        with operator_times(self.model) as sums_ms:
            self.ms(n_items, n_calls)
        operator_ms = {name: ms / n_calls for name, ms in sums_ms.items()}
        return {"ms": whole_ms, **shares(by_released_name(operator_ms), whole_ms)}

    def library_sample(self, n_items: int) -> dict[str, float]:
        """The same by PyTorch's profiler, of one call."""
        times = by_released_name(library_times(lambda: self.call(n_items)))
        whole_ms = sum(times.values())
        return {"ms": whole_ms, **shares(times, whole_ms)}


def by_released_name(times: Mapping[str, float]) -> dict[str, float]:
    """The same times, added up under the release's names and Other."""
    named: dict[str, float] = defaultdict(float)
    for name, ms in times.items():
        named[released_name(name)] += ms
    return named


def shares(operator_ms: Mapping[str, float], whole_ms: float) -> dict[str, float]:
    """Share of the run time for each of OPERATORS; they add up to 1.

    `whole_ms` is timed without hooks, so that what hooks take is in nobody's share.
    """
    named = {name: operator_ms.get(name, 0.0) for name in (*RELEASED, OTHER)}
    inside_ms = sum(named.values())
    whole_ms = max(whole_ms, inside_ms)
    parts = {name: ms / whole_ms for name, ms in named.items()}
    return {**parts, BETWEEN: 1 - inside_ms / whole_ms}


def executions(config: ModelConfig, device: torch.device) -> dict[str, Execution]:
    """The model as released and ours, on the same tables and inputs."""
    inputs = InputPool(config, N_INPUTS, LARGEST_ITEMS, SEED)
    ours = build(config, SEED)
    released = build(replace(config, fused="off"), SEED, tables_of=ours)
    if device.type == "cpu":
        ours.pack()
    else:
        released.tables.weight_RD = ours.to(device).tables.weight_RD
        released.to(device)
    models = {AS_RELEASED: released, OURS: ours}
    return {label: Execution(model, inputs, device) for label, model in models.items()}


@torch.inference_mode()
def measure(case: ModelCase) -> dict[str, list[ShareRow]]:
    """Every batch and execution of one model, its rounds in turn."""
    torch.set_num_threads(1)
    device = choose_device(case.options.device == "cuda")
    both = executions(net_of(case.model, case.options.table_scale), device)
    rows = []
    with progress().step(case.model) as on_fraction:
        for i, n_items in enumerate(case.effort.batches):
            on_fraction(i / len(case.effort.batches), f"batch {n_items}")
            samples: list[dict[str, Any]] = []
            for round_id in range(-1, case.effort.rounds):  # the first is not counted
                for name, execution in both.items():
                    sample = execution.sample(n_items, case.effort.round_s)
                    samples += [{"execution": name, **sample}] * (round_id >= 0)
            if device.type == "cpu":
                sample = both[AS_RELEASED].library_sample(n_items)
                samples.append({"execution": LIBRARY, **sample})
            for name, rounds in pd.DataFrame(samples).groupby("execution", sort=False):
                for operator in plot.OPERATORS:
                    what = device.type, case.model, n_items, name, operator
                    share = rounds[operator]
                    spread = share.mean(), share.min(), share.max()
                    rows.append(ShareRow(*what, *spread, rounds["ms"].median()))
    return {"breakdown": rows}


STUDY = Study(
    "operator_breakdown",
    "Which operators take the time?",
    cases,
    measure,
    efforts={"quick": BreakdownEffort((1, 64, 1024), 0.1), "full": BreakdownEffort()},
    options=BreakdownOptions,
    derived={"agreement": View(plot.agreement, "breakdown")},
    figures={"breakdown": View(plot.draw, "breakdown")},
    report={"Dominant operator, published and here": View(pd.DataFrame, "agreement")},
    float_format="%.4g",
    formats={"agreement": "%.3g"},
)

if __name__ == "__main__":
    STUDY.main()
