"""What a kind of device must offer so that plans run on it and the tuner can choose among them."""

# B items, C columns of the output, E elements of all tables

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import import_module
from typing import Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from models.embedding.jagged import Bags
from models.embedding.plan.catalogue import Params, in_words
from models.embedding.plan.plan import Bucket, Group, Groups, Plan
from models.embedding.plan.spec import Layout, TableSpec

FloatArray = npt.NDArray[np.float64]
Run = Callable[[Bags, Tensor], None]  # looks up and writes all columns of (B, C)
Call = Callable[[int], object]  # call(i) works on input i
_BACKENDS = {  # device: module and class
    "cpu": ("models.embedding.cpu.backend", "CpuBackend"),
    "cuda": ("models.embedding.gpu.backend", "CudaBackend"),
}


@dataclass(frozen=True, slots=True)
class Cluster:
    """Tables that are alike, with what their bags were in the tuner's batches."""

    tables: tuple[int, ...]
    spec: TableSpec  # of the first; rows of the others are within a factor of two
    mean_ids: float  # of a bag, empty ones included
    most_ids: int
    empty_frac: float
    distinct_frac: float  # distinct ids over ids, within a table and batch
    n_items: int
    item_major: bool = False


@dataclass(frozen=True, slots=True)
class Choice:
    """One way to look up a cluster."""

    schedule: str
    params: Params

    def __str__(self) -> str:
        return f"{self.schedule} {in_words(self.params)}".rstrip()

    def group(self, tables: Sequence[int]) -> Group:
        """These tables looked up so."""
        return Group(self.schedule, self.params, tuple(tables))


class Refused(Exception):  # noqa: N818 (a finding, not a fault)
    """The device cannot run this: the text says why."""


class Backend(Protocol):
    """A kind of device."""

    name: str

    def versions(self) -> dict[str, str]:
        """What a measurement depends on: the device's model, libraries and their versions."""

    def default_plan(self, specs: Sequence[TableSpec], *, joined: bool = False) -> Plan:
        """What a rule picks where nothing was tuned.

        `joined`: the tables are one matrix, the bags item-major.
        """

    def build(self, layout: Layout, weight_E: Tensor, bucket: Bucket, *, checked: bool) -> Run:
        """The bucket as one call; `checked`: a wrong id raises ValueError before it is read (CPU).

        Compiles what is to be compiled. The groups of `bucket` need not cover all tables: others'
        columns stay. The first call raises Refused where the device's compiler or launcher does not
        take it.
        """

    def prepare(
        self,
        layout: Layout,
        weight_E: Tensor,
        buckets: Sequence[Bucket],
        bags: Bags,
        seconds: float,
    ) -> None:
        """Compile at once what `build` would compile one by one, for about so long at most.

        The first buckets come first. Nothing where compiling takes no time worth sharing.
        """
        del layout, weight_E, buckets, bags, seconds

    def uniform(
        self, specs: Sequence[TableSpec], settings: Params, *, joined: bool
    ) -> Sequence[Groups]:
        """One schedule for all tables, with several parameters: what a mix must beat.

        `joined`: the tables are one matrix and the bags item-major, as in the eight models.
        """

    def settings(self, specs: Sequence[TableSpec]) -> Sequence[Params]:
        """Values of the common resource knob.

        The local stage is done for each; the global stage chooses.
        """

    def candidates(self, cluster: Cluster, settings: Params, max_error: float) -> Sequence[Choice]:
        """Those worth timing, the best guess first; a cost model has left the others out.

        `max_error` of an element, relative to the largest weight, allows narrower storage; 0:
        float32 only.
        """

    def contended(self, settings: Params) -> AbstractContextManager[None]:
        """Within it the rest of the device is as busy as when the whole model is looked up."""

    def seconds(self, calls: Sequence[Call], n_rounds: int) -> FloatArray:
        """(calls, rounds), at least so many; what a call does is done when the clock stops.

        call(i) for rising i, the calls in turn in a round.
        """


def backend(device: str) -> Backend:
    """The backend of "cpu" or "cuda"; imports what it needs."""
    module, name = _BACKENDS[device]
    made: Backend = getattr(import_module(module), name)()
    return made


def rule_plan(device: str, specs: Sequence[TableSpec], *buckets: Bucket) -> Plan:
    """A plan that a rule picked."""
    return Plan(device, tuple(specs), buckets, {"source": "rule, not tuned"})


class Planned:
    """A plan made runnable on some weights: each batch goes to the bucket for its size."""

    def __init__(self, layout: Layout, weight_E: Tensor, plan: Plan, *, checked: bool) -> None:
        plan.check_specs(layout.specs)
        device = backend(plan.device)
        self._runs: list[tuple[int | None, Run]] = []
        built: dict[tuple[object, ...], Run] = {}
        for bucket in plan.buckets:
            key = (bucket.groups, bucket.settings)
            if key not in built:
                built[key] = device.build(layout, weight_E, bucket, checked=checked)
            self._runs.append((bucket.max_batch, built[key]))

    def __call__(self, bags: Bags, out_BC: Tensor) -> None:
        """Write all columns of (B, C)."""
        n_items = bags.n_items
        for max_batch, run in self._runs:
            if max_batch is None or n_items <= max_batch:
                run(bags, out_BC)
                return
