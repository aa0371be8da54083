"""What plans are measured against, on the same weights and ids: all must give the same sums.

Studies of a GPU import this file, so it needs PyTorch and NumPy alone.
"""

# B items, T tables, R rows of a table, D its width, C columns = sum of D, E elements of all tables

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from experiments.common.look_up_peers import (
    by_table,
    cycled,
    embedding_bags,
    fbgemm_inference,
    feature_major,
)
from models.embedding.backend import Backend, Choice
from models.embedding.jagged import Bags
from models.embedding.plan.catalogue import Params
from models.embedding.plan.plan import Bucket, Group, params
from models.embedding.plan.spec import Layout, TableSpec
from models.embedding.tuning.clusters import clusters
from models.embedding.tuning.problem import Problem
from models.embedding.tuning.search import PlanSearch, paired, replaced, typical

Call = Callable[[int], object]  # number of a batch -> whatever
Seconds = npt.NDArray[np.float64]  # by round
AnyBackend = TypeVar("AnyBackend", bound=Backend)
_MOST_CUT = 100_000  # tables of batches cut in advance: objects of Python
_SINGLE_ROUNDS = 7
MUTATED = 8  # kinds of table
_GATHERS = {
    "none": params(ahead="none", unroll=4),
    "table": params(ahead="table", unroll=4),
    "ids": params(ahead="ids", distance=64),
}


def table_views(layout: Layout, weight_E: Tensor) -> list[Tensor]:
    """(R, D) of each table."""
    return [
        weight_E[first : first + spec.rows * spec.dim].view(spec.rows, spec.dim)
        for first, spec in zip(layout.elements_T.tolist(), layout.specs, strict=True)
    ]


def rival_batches(problem: Problem, n_items: int) -> list[Bags]:
    """The batches as rivals read them."""
    first_ids_T = problem.layout.first_ids_T
    return [
        feature_major(bags, first_ids_T) if bags.item_major else bags
        for bags in problem.batches[n_items]
    ]


def planned(problem: Problem, backend: Backend, bucket: Bucket, n_items: int) -> Call:
    """A plan's bucket; its output is new for every call, as those of the rivals are."""
    run = backend.build(problem.layout, problem.weight_E, bucket, checked=False)
    width = int(problem.layout.columns[-1])

    def look_up(bags: Bags) -> Tensor:
        out_BC = problem.weight_E.new_empty(n_items, width)
        run(bags, out_BC)
        return out_BC

    return cycled(look_up, problem.batches[n_items])


def best_single(problem: Problem, backend: Backend, n_items: int) -> Bucket:
    """The fastest schedule that serves all tables alike, measured now."""
    first = problem.batches[n_items][0]
    choices = backend.uniform(problem.layout.specs, (), joined=first.item_major)
    buckets = [Bucket(None, groups) for groups in choices]
    backend.prepare(problem.layout, problem.weight_E, buckets, first, np.inf)
    calls = [planned(problem, backend, bucket, n_items) for bucket in buckets]
    return buckets[int(np.argmin(typical(backend.seconds(calls, _SINGLE_ROUNDS))))]


class EmbeddingBagPerTable(nn.Module):
    """nn.EmbeddingBag of each table, and cat: what one writes first."""

    def __init__(self, tables_RD: Iterable[Tensor]) -> None:
        super().__init__()
        self.bags = embedding_bags(tables_RD)

    def forward(self, jagged: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """(B, C)."""
        pooled = [bag(*inputs) for bag, inputs in zip(self.bags, jagged, strict=True)]
        return torch.cat(pooled, dim=1)


def per_table(problem: Problem, batches: Sequence[Bags], *, compiled: bool = False) -> Call:
    """A call for each table; the ids of the rivals' batches are cut before the clock runs.

    Compiled: for this batch size alone where bags are fixed.
    """
    module: Any = EmbeddingBagPerTable(table_views(problem.layout, problem.weight_E))
    if compiled:
        torch._dynamo.reset()  # noqa: SLF001 (PyTorch documents it, underscore and all)
        jagged = any(spec.bag_ids is None for spec in problem.layout.specs)
        module = torch.compile(module, dynamic=jagged)
    most = max(_MOST_CUT // len(problem.layout.specs), 64)
    return cycled(module, [by_table(bags) for bags in batches[:most]])


def fbgemm_operator(problem: Problem) -> Any:
    """FBGEMM's inference operator with a copy of the weights; raises ImportError and others."""
    specs = problem.layout.specs
    operator = fbgemm_inference([(spec.rows, spec.dim) for spec in specs], row_alignment=16)
    tables = table_views(problem.layout, problem.weight_E)
    for (weight, _), table_RD in zip(operator.split_embedding_weights(), tables, strict=True):
        weight.copy_(table_RD.contiguous().view(torch.uint8).view(weight.shape))
    return operator


def fbgemm(operator: Any, batches: Sequence[Bags]) -> Call:
    """The operator on the rivals' batches."""
    return cycled(operator, [bags.ids_L for bags in batches], [bags.offsets for bags in batches])


def gathers(problem: Problem, backend: Backend, batches: Sequence[Bags]) -> dict[str, Call]:
    """The limit, in several ways: all rows that a rivals' batch reads of a table are one bag.

    Rows are read, hardly anything is written.
    """
    merged = [
        Bags(bags.ids_L, bags.offsets[:: bags.n_items].contiguous(), bags.n_tables)
        for bags in batches
    ]
    specs = tuple(TableSpec(spec.rows, spec.dim) for spec in problem.layout.specs)
    layout = replace(problem.layout, specs=specs, first_ids_T=problem.layout.first_ids_T * 0)
    tables = tuple(range(len(specs)))
    out_BC = torch.empty(1, int(layout.columns[-1]))

    def gather(knobs: Params) -> Call:
        bucket = Bucket(None, (Group("compiled", knobs, tables),))
        run = backend.build(layout, problem.weight_E, bucket, checked=False)
        return cycled(lambda bags: run(bags, out_BC), merged)

    return {f"gather {name}": gather(knobs) for name, knobs in _GATHERS.items()}


# What the ablations of CPU and GPU share.


@dataclass(frozen=True)
class PlanRatio:
    """Time of a plan over that of the two-stage plan: median of the rounds, 95 % interval."""

    model: str
    batch: int
    plan: str
    over_two_stage: float
    low: float
    high: float


def ablate(
    model: str,
    search: PlanSearch,
    idle: PlanSearch,
    measured: Problem,
    timed: Callable[[int, dict[str, Bucket]], dict[str, Seconds]],
    prefix: str = "",
) -> dict[str, list[Any]]:
    """Rows of the methods, of how far candidates lie apart, of plans with one schedule changed.

    `idle` searches with nobody beside what it times; `timed` gives the seconds of each plan in each
    round, for batches of a size, and may add plans.
    """
    plan = search.run()
    methods: list[PlanRatio] = []
    mutated: list[PlanRatio] = []
    for n_items in search.problem.batches:
        two_stage = plan.bucket(n_items)
        naive = replace(two_stage, groups=idle.winners(n_items, two_stage.settings))
        changed = changed_plans(measured, search.backend, two_stage, n_items)
        seconds = timed(n_items, {"two-stage": two_stage, "naive": naive, **changed})
        times = np.array([*seconds.values()])
        for place, label in enumerate(seconds):
            row = PlanRatio(model, n_items, label, *paired(times, place, 0))
            (mutated if label in changed else methods).append(row)
    spread = [{"model": model, **row} for row in search.spread]
    return {f"{prefix}ablations": methods, f"{prefix}spread": spread, f"{prefix}mutated": mutated}


def changed_plans(
    problem: Problem, backend: Backend, bucket: Bucket, n_items: int
) -> dict[str, Bucket]:
    """The bucket with one kind of table given its next candidate, for the kinds that read most."""
    kinds = clusters(problem.layout, problem.batches[n_items])
    kinds.sort(key=lambda kind: -kind.mean_ids * len(kind.tables))
    plans = {}
    for kind in kinds[:MUTATED]:
        group = next(group for group in bucket.groups if kind.tables[0] in group.tables)
        current = Choice(group.schedule, group.params)
        candidates = backend.candidates(kind, bucket.settings, 0.0)
        choice = next((choice for choice in candidates if choice != current), None)
        if choice is not None:
            label = f"{kind.spec}: {choice.schedule} {dict(choice.params)}"
            groups = replaced(bucket.groups, choice, kind.tables)
            plans[label] = replace(bucket, groups=groups)
    return plans


def alone(backend: AnyBackend) -> AnyBackend:
    """The backend with nobody beside what it times."""

    def contended(_settings: Any) -> AbstractContextManager[None]:
        return nullcontext()

    backend.contended = contended  # type: ignore[method-assign, assignment]
    return backend
