"""What a kind of device must offer so that plans run on it and the tuner can choose among its
schedules.
"""

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
from models.embedding.plan.catalogue import Params
from models.embedding.plan.plan import Bucket, Group, Plan
from models.embedding.plan.spec import Layout, TableSpec

FloatArray = npt.NDArray[np.float64]
Run = Callable[[Bags, Tensor], None]  # looks up and writes all columns of (B, sum of D)
_FACTORIES = {
    "cpu": "models.embedding.cpu.backend",
    "cuda": "models.embedding.gpu.backend",
}  # module with `make_backend()`


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
        """The bucket as one call; `checked`: a wrong id raises ValueError before memory is read
        (CPU).

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
        """Compile at once what `build` would compile one by one, the first buckets first, for about
        so long at most.
        """

    def uniform(
        self, specs: Sequence[TableSpec], settings: Params, *, joined: bool
    ) -> Sequence[tuple[Group, ...]]:
        """One schedule for all tables, with several parameters: what a mix must beat.

        `joined`: the tables are one matrix and the bags item-major, as in the eight models.
        """

    def settings(self, specs: Sequence[TableSpec]) -> Sequence[Params]:
        """Values of the common resource knob; the local stage is done for each, the global stage
        chooses.
        """

    def candidates(self, cluster: Cluster, settings: Params, max_error: float) -> Sequence[Choice]:
        """Those worth timing, the best guess first; a cost model has left the others out.

        `max_error` of an element, relative to the largest weight, allows narrower storage; 0:
        float32 only.
        """

    def contended(self, settings: Params) -> AbstractContextManager[None]:
        """Within it the rest of the device is as busy with gathers as when the whole model is
        looked up.
        """

    def seconds(self, calls: Sequence[Callable[[int], object]], n_rounds: int) -> FloatArray:
        """(calls, rounds), at least so many: call(i) for rising i, in turn in a round; done when
        the clock stops.
        """


def backend(device: str) -> Backend:
    """The backend of "cpu" or "cuda"; imports what it needs."""
    found: Backend = import_module(_FACTORIES[device]).make_backend()
    return found
