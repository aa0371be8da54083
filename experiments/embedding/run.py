#!/usr/bin/env python3
"""How much faster is a schedule for each table than one for all, and how far from the limit?

python experiments/embedding/run.py [--models A,B,rm1] [--tables_frac 0.5] [--budget_s 60] [--quick]

For every model a plan is tuned on some ids (plans/MODEL.json), then measured on others, in turn
with its rivals on one core. speed.csv gets a row for each model, batch, contender and round;
speed.png is made of it. One to three minutes a model.
"""

from __future__ import annotations

import gc
import sys
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from experiments.common.released import net_of
from experiments.common.study import Study, View, flags_of, of_models, out_folder, progress
from experiments.embedding import contenders, plot
from infra.memory import keep_freed_memory
from infra.settings.fields import flag
from models.embedding.backend import Backend, backend
from models.embedding.plan.plan import Plan
from models.embedding.synthesis import BENCHMARKS, draw
from models.embedding.tuner import configs
from models.embedding.tuning.problem import Problem, of_model, of_recorded
from models.embedding.tuning.search import PlanSearch

MODELS = ("A", "B", "C", "D", "E", *configs())
TUNED = (1, 8, 64, 512)
SIZES = (*TUNED, 1024)
COMPILED_TABLES = 64  # torch.compile takes minutes for hundreds
ROUND_S = 0.05
MOST_CALLS = 512
SEED_TUNE = 1
SEED_MEASURE = 2


@dataclass(frozen=True)
class PlanCase:
    """One model, tuned and measured."""

    model: str
    tables_frac: float = flag(0.5, "part of the tables of A to E", low=0.0)
    budget_s: float = flag(60.0, "seconds of tuning a model", low=0.0)
    rounds: int = flag(15, "paired rounds", low=1)
    compile: bool = flag(False, "torch.compile for hundreds of tables too: minutes")


@dataclass(frozen=True)
class ContenderTime:
    """Time of one call of a contender, the mean of a round."""

    model: str
    batch: int
    contender: str
    round: int
    ms: float


def problem_of(name: str, sizes: tuple[int, ...], seed: int, tables_frac: float) -> Problem:
    """A benchmark's tables, or a model's at full size; the seed changes the ids, not the tables."""
    if name not in BENCHMARKS:
        return of_model(net_of(name), sizes, seed)
    n_samples = max(4 * max(sizes), 1024)
    recorded = draw(name, [n_samples], SEED_TUNE, tables_frac=tables_frac)
    if seed != SEED_TUNE:  # the same lines of the same tables; widths stay those of the tuned ones
        fresh = draw(name, [n_samples], SEED_TUNE + seed, tables_frac=tables_frac)
        recorded = replace(recorded, batches=fresh.batches)
    return of_recorded(replace(recorded, batches=recorded.batches[:1]), sizes)


def calls_of(
    problem: Problem, backend: Backend, plan: Plan, n_items: int, *, fbgemm: Any, compiled: bool
) -> dict[str, contenders.Call]:
    """The contenders, their sums checked; the gathers of the limit write something else.

    `fbgemm`: its operator, or None. Raises AssertionError where sums differ.
    """
    joined = problem.batches[n_items][0].item_major
    rule = backend.default_plan(problem.layout.specs, joined=joined)
    turned = contenders.rival_batches(problem, n_items)
    buckets = {
        "tuned": plan.bucket(n_items),
        "untuned": rule.bucket(n_items),
        "best single": contenders.best_single(problem, backend, n_items),
    }
    calls = {
        name: contenders.planned(problem, backend, bucket, n_items)
        for name, bucket in buckets.items()
    }
    calls["per table"] = contenders.per_table(problem, turned)
    if fbgemm is not None:
        calls["FBGEMM"] = contenders.fbgemm(fbgemm, turned)
    if compiled:
        calls["torch.compile"] = contenders.per_table(problem, turned, compiled=True)
    expected = calls["per table"](0)
    for name, call in calls.items():
        if not torch.equal(call(0), expected):  # type: ignore[arg-type]
            raise AssertionError(f"batch {n_items}: {name} gives other sums")
    return calls | contenders.gathers(problem, backend, turned)


def measure(calls: dict[str, contenders.Call], rounds: int) -> dict[str, list[float]]:
    """Milliseconds a call of each contender in each round.

    In turn, in another order in every round (whoever runs behind a large one finds the machine
    otherwise), each on the batches behind those of the one before it, so that nobody finds rows in
    the cache which another has just read.
    """
    names = [*calls]
    times = {name: list[float]() for name in calls}
    once_ms = {name: _timed(call, 2 * k, 2) for k, (name, call) in enumerate(calls.items())}
    turn = 2 * len(names)
    rng = np.random.default_rng(len(names))
    for _ in range(rounds):
        for k in rng.permutation(len(names)):
            name = names[k]
            n_calls = int(min(max(ROUND_S * 1e3 / once_ms[name], 2), MOST_CALLS))
            times[name].append(_timed(calls[name], turn, n_calls))
            turn += n_calls
    return times


def _timed(call: contenders.Call, first: int, n_calls: int) -> float:
    start = time.perf_counter()
    for i in range(first, first + n_calls):
        call(i)
    return (time.perf_counter() - start) / n_calls * 1e3


def fbgemm_or_none(problem: Problem) -> Any:
    """FBGEMM's operator; None, and a line on stderr, where it is not installed."""
    try:
        return contenders.fbgemm_operator(problem)
    except (ImportError, OSError) as error:
        sys.stderr.write(f"FBGEMM left out: {error}\n")
        return None


@torch.inference_mode()
def compare(case: PlanCase) -> dict[str, list[Any]]:
    """Tune one model, then measure it."""
    torch.set_num_threads(1)
    keep_freed_memory()
    cpu = backend("cpu")
    tuned_on = problem_of(case.model, TUNED, SEED_TUNE, case.tables_frac)
    joined = tuned_on.batches[TUNED[0]][0].item_major
    with progress().step(f"{case.model}: tuning") as tell:
        plan = PlanSearch(tuned_on, cpu, case.budget_s, joined=joined, on_fraction=tell).run()
    plan.save(out_folder() / "plans" / f"{case.model}.json")
    del tuned_on
    gc.collect()
    problem = problem_of(case.model, SIZES, SEED_MEASURE, case.tables_frac)
    compiled = case.compile or len(problem.layout.specs) <= COMPILED_TABLES
    fbgemm = fbgemm_or_none(problem)
    rows = []
    with progress().step(f"{case.model}: measuring") as on_fraction:
        for place, n_items in enumerate(SIZES):
            on_fraction(place / len(SIZES), f"batch {n_items}")
            calls = calls_of(problem, cpu, plan, n_items, fbgemm=fbgemm, compiled=compiled)
            rows += [
                ContenderTime(case.model, n_items, contender, round_id, ms)
                for contender, times in measure(calls, case.rounds).items()
                for round_id, ms in enumerate(times)
            ]
    return {"speed": rows}


STUDY = Study(
    "embedding",
    "How much faster is a schedule for each table than one for all, and how far from the limit?",
    of_models,
    compare,
    efforts={
        "quick": [PlanCase(model, 0.05, budget_s=6.0, rounds=3) for model in ("B", "ncf")],
        "full": [PlanCase(model) for model in MODELS],
    },
    options=flags_of(PlanCase, MODELS),
    figures={"speed": View(plot.draw, "speed")},
    report={"Time over that of the tuned plan, medians": View(plot.summary, "speed")},
    other_files="plans/*.json",
)

if __name__ == "__main__":
    STUDY.main()
