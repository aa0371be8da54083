#!/usr/bin/env python3
"""Which parts of the method matter?

As in RecFlex's own ablations: where candidates are timed, and one schedule changed.

python experiments/embedding/ablations.py [--models A,B] [--tables_frac 0.25] [--quick]

naive: candidates are timed on an idle machine, every kind of table gets its winner, nothing is
tried in the whole. two-stage: candidates beside a busy neighbour, then the whole. Both are then
timed in turn beside a busy neighbour. spread.csv: how far the candidates of each kind of table lie
apart. mutated.csv: the final plan with the schedule of one kind of table changed for another one.
ablations.png shows all three. Some 4 minutes, --quick half a minute.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure

from experiments.common.study import Study, View, flags_of, of_models, progress
from experiments.embedding import contenders, plot
from experiments.embedding.run import SEED_MEASURE, SEED_TUNE, problem_of
from infra.memory import keep_freed_memory
from infra.settings.fields import flag
from models.embedding.cpu.backend import CpuBackend
from models.embedding.plan.plan import Bucket, params
from models.embedding.synthesis import BENCHMARKS
from models.embedding.tuning.search import PlanSearch

ALONE = params(threads=1)


@dataclass(frozen=True)
class AblationCase:
    """One model at several batch sizes."""

    model: str
    sizes: tuple[int, ...]
    rounds: int
    tables_frac: float = flag(1.0, "part of the models' tables", low=0.0)
    budget_s: float = flag(60.0, "seconds of tuning a model", low=0.0)


@torch.inference_mode()
def ablate(case: AblationCase) -> dict[str, list[Any]]:
    """Rows of the methods, of the spread of candidates, of the mutations."""
    torch.set_num_threads(1)
    keep_freed_memory()
    cpu = CpuBackend()
    tuned_on, problem = (
        problem_of(case.model, case.sizes, seed, case.tables_frac)
        for seed in (SEED_TUNE, SEED_MEASURE)
    )
    plain = Bucket(None, cpu.uniform(problem.layout.specs, (), joined=False)[0], ALONE)

    def timed(n_items: int, plans: dict[str, Bucket]) -> dict[str, contenders.Seconds]:
        plans |= {"all tables compiled, nothing asked for ahead": plain}
        calls = [contenders.planned(problem, cpu, bucket, n_items) for bucket in plans.values()]
        with cpu.contended(ALONE):
            return dict(zip(plans, cpu.seconds(calls, case.rounds), strict=True))

    with progress().step(case.model) as on_fraction:
        search = PlanSearch(tuned_on, cpu, case.budget_s, on_fraction=on_fraction)
        share_s = case.budget_s / len(case.sizes)
        idle = PlanSearch(tuned_on, contenders.alone(CpuBackend()), share_s)
        return contenders.ablate(case.model, search, idle, problem, timed)


def draw(methods: pd.DataFrame, spread: pd.DataFrame, mutated: pd.DataFrame) -> Figure:
    """Naive over two-stage; worst over best candidate of a kind of table; one schedule changed."""
    naive = methods[methods["plan"] == "naive"]
    title = "Tuned alone, not tried in the whole"
    return plot.draw_ablations(naive, spread, mutated, by="model", title=title)


STUDY = Study(
    "embedding_ablations",
    "Which parts of the method matter?",
    of_models,
    ablate,
    efforts={
        "quick": [AblationCase("B", (8, 64), 3, tables_frac=0.05, budget_s=6.0)],
        "full": [
            AblationCase(model, (8, 64, 512), 9, tables_frac=0.25, budget_s=40.0) for model in "AB"
        ],
    },
    options=flags_of(AblationCase, BENCHMARKS),
    figures={"ablations": View(draw, "ablations", "spread", "mutated")},
    report=plot.ablation_report(),
    float_format="%.4g",
)

if __name__ == "__main__":
    STUDY.main()
