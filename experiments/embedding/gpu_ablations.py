#!/usr/bin/env python3
"""Which parts of the method matter on a GPU?

As in RecFlex's own ablations, and the task map from actual lengths.

python experiments/embedding/gpu_ablations.py [--models A,C] [--batches 64,512] [--quick]

naive: candidates are timed on an idle device, every kind of table gets its winner, nothing is tried
in the whole. map from lengths: the same plan, its programs ordered for every batch by the ids they
read in it (in each call, and beforehand), against one map a batch size. gpu_mutated.csv: the final
plan with the schedule of one kind of table changed. gpu_spread.csv: how far the candidates of each
kind lie apart. gpu_ablations.csv, gpu_ablations.png. Device times by events, rows not in L2; needs
what gpu.py needs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from experiments.common.study import Study, View, flags_of, of_models, progress
from experiments.embedding import contenders, gpu_setup, plot
from experiments.embedding.gpu_peers import Input, Ours, PerTable
from experiments.embedding.gpu_setup import MODELS
from experiments.embedding.length_map import LengthOrderedBags
from infra.settings.fields import flag
from models.embedding.plan.plan import Bucket, params
from models.embedding.tuning.search import PlanSearch

KNOBS = (params(launch="fused", warps=4),)  # all methods get the same
BY_LENGTH = "map from lengths"


@dataclass(frozen=True)
class GpuAblationCase:
    """One model at several batch sizes. `tune_s`: for all of them and both ways of tuning."""

    model: str
    batches: tuple[int, ...] = flag((64, 512), "batch sizes")
    tables_frac: float = flag(1.0, "part of every kind's tables", low=0.0)
    tune_s: float = 240.0
    rounds: int = 30


def quick_case(
    model: str, batches: tuple[int, ...] = (512,), tables_frac: float = 1.0
) -> GpuAblationCase:
    """A minute of tuning."""
    return GpuAblationCase(model, batches, tables_frac, tune_s=60.0, rounds=10)


def beforehand(bags: LengthOrderedBags, inputs: Sequence[Input]) -> Callable[[int], Tensor]:
    """The look-up with its maps from lengths made for each input before the clock runs."""
    made = []
    for batch in inputs:
        bags(batch.ids_L, batch.offsets)
        made.append(bags.maps_of(batch.offsets))

    def call(i: int) -> Tensor:
        batch = inputs[i % len(inputs)]
        return bags.with_maps(batch.ids_L, batch.offsets, made[i % len(made)])

    return call


@torch.no_grad()
def ablate(case: GpuAblationCase) -> dict[str, list[Any]]:
    """Rows of the methods, of the spread of candidates, of the mutations.

    Raises ValueError where sums differ.
    """
    problem, inputs = gpu_setup.work_of(case.model, case.batches, case.tables_frac)
    layout = problem.layout
    weight_E = problem.weight_E
    bench = gpu_setup.BENCH
    backend = bench.backend(KNOBS)

    def timed(n_items: int, plans: dict[str, Bucket]) -> dict[str, contenders.Seconds]:
        first = problem.batches[n_items][0]
        backend.prepare(layout, weight_E, [*plans.values()], first, float("inf"))
        common = (layout, weight_E, inputs[n_items])
        methods = {label: Ours(*common, bucket) for label, bucket in plans.items()}
        ordered = LengthOrderedBags(layout, plans["two-stage"], weight_E)
        methods[BY_LENGTH] = Ours(*common, plans["two-stage"])
        methods[BY_LENGTH].bags = ordered
        gpu_setup.check({"per table": PerTable(*common), **methods}, len(inputs[n_items]))
        calls: dict[str, Callable[[int], Tensor]] = {
            label: method.call for label, method in methods.items()
        }
        calls[f"{BY_LENGTH}, made before"] = beforehand(ordered, inputs[n_items])
        bench.device_seconds([*calls.values()], gpu_setup.WARM_UPS, True)
        times = bench.device_seconds([*calls.values()], case.rounds, True)
        return dict(zip(calls, times, strict=True))

    with progress().step(f"{case.model}: ablations") as on_fraction:
        share_s = case.tune_s / 2
        search = PlanSearch(problem, backend, share_s, on_fraction=on_fraction)
        idle_share_s = share_s / len(case.batches)
        idle = PlanSearch(problem, contenders.alone(bench.backend(KNOBS)), idle_share_s)
        return contenders.ablate(case.model, search, idle, problem, timed, "gpu_")


def draw(methods: pd.DataFrame, spread: pd.DataFrame, mutated: pd.DataFrame) -> Figure:
    """Rivals over two-stage; worst over best candidate of a kind of table; one schedule changed."""
    rivals = methods[methods["plan"] != "two-stage"]
    title = "Naive tuning; maps from actual lengths"
    return plot.draw_ablations(rivals, spread, mutated, by="plan", title=title)


FIGURES = {"gpu_ablations": View(draw, "gpu_ablations", "gpu_spread", "gpu_mutated")}
REPORT = plot.ablation_report("gpu_")


STUDY = Study(
    "embedding_gpu_ablations",
    "Which parts of the method matter on a GPU?",
    of_models,
    ablate,
    efforts={
        "quick": [quick_case(model) for model in ("A", "C")],
        "full": [GpuAblationCase(model) for model in ("A", "C")],
    },
    options=flags_of(GpuAblationCase, MODELS),
    figures=FIGURES,
    report=REPORT,
    float_format="%.4g",
    check_machine=gpu_setup.check_machine,
)

if __name__ == "__main__":
    STUDY.main()
