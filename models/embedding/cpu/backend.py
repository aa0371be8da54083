"""The CPU as a backend: plans become compiled jobs and PyTorch calls."""

# B items, T tables, E elements of all tables

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from infra.provenance import cpu_name, package_versions, usable_cores
from models.embedding.backend import Choice, Cluster, FloatArray, Run
from models.embedding.cpu import kernels
from models.embedding.cpu.candidates import choices, neighbours, seconds
from models.embedding.cpu.jobs import Job, Jobs, bits_of, call_of
from models.embedding.cpu.one_width import pooling
from models.embedding.cpu.storage import store
from models.embedding.cpu.torch_calls import WRITERS, Tables, Write
from models.embedding.jagged import Bags
from models.embedding.plan.catalogue import SCHEDULES, SETTINGS, Params, complete
from models.embedding.plan.plan import Bucket, Group, Plan, params
from models.embedding.plan.spec import Layout, TableSpec

Int64Array = npt.NDArray[np.int64]
_SMALL_BATCH = 64  # from here on, most rows of the usual tables are read by a batch
_STREAM_BYTES = 4 << 20  # tables beyond this are not worth asking for as a whole


class CpuRun:
    """One bucket on the CPU: all compiled groups in one call, then the others one after the other."""

    def __init__(self, layout: Layout, weight_E: Tensor, bucket: Bucket, *, checked: bool) -> None:
        self._layout = layout
        self._checked = checked
        settings = complete(SETTINGS["cpu"], bucket.settings)
        jobs = []
        self._others = []
        for group in bucket.groups:
            if group.schedule == "one_width":
                self._others.append(one_width(layout, weight_E, group))
                continue
            own = {
                dim: tuple(table for table in group.tables if layout.specs[table].dim == dim)
                for dim in sorted({layout.specs[table].dim for table in group.tables})
            }
            for dim, tables in own.items():
                if group.schedule in WRITERS:
                    self._others += _writers(group.schedule, layout, weight_E, tables)
                else:
                    jobs.append(_job(group, dim, tables, layout, weight_E))
        self._jobs = Jobs(layout, jobs, int(settings["threads"])) if jobs else None
        self._bag_ids_T = np.array([spec.bag_ids or -1 for spec in layout.specs], dtype=np.int64)

    def __call__(self, bags: Bags, out_BC: Tensor) -> None:
        """Write the columns of the bucket's tables; raises ValueError for wrong ids or offsets if
        checked.
        """
        if not bags.n_items:
            return
        if self._checked:
            self._check_offsets(bags, out_BC)
        right = self._jobs is None or self._jobs(bags, out_BC, checked=self._checked)
        if self._checked and (self._others or not right):
            check_ids(self._layout, bags)
        for write in self._others:
            write(bags, out_BC)

    def _check_offsets(self, bags: Bags, out_BC: Tensor) -> None:
        call = call_of(bags, out_BC, checked=True)
        n_tables = bags.n_tables
        bag = kernels.first_wrong_bag(bits_of(bags))(
            ctypes.addressof(call),
            self._bag_ids_T.ctypes.data,
            n_tables,
            bags.n_items,
            len(bags.ids_L),
        )
        if bag < 0:
            return
        table, item = (
            (bag % n_tables, bag // n_tables) if bags.item_major else divmod(bag, bags.n_items)
        )
        first, end = bags.offsets[bag : bag + 2].tolist()
        expected = self._bag_ids_T[table]
        if first < 0 or end < first or end > len(bags.ids_L):
            raise ValueError(
                f"table {table}, item {item}: offsets {first} to {end} of {len(bags.ids_L)} ids"
            )
        raise ValueError(
            f"table {table}, item {item}: {end - first} ids; every bag of this table has {expected}"
        )


def one_width(layout: Layout, weight_E: Tensor, group: Group) -> Write:
    """The models' own kernel: all tables as one matrix, item-major bags of int32; raises ValueError
    for others.
    """
    width = layout.specs[0].dim
    joined = Layout.joined(layout.specs)
    same = np.array_equal(layout.elements_T, joined.elements_T) and np.array_equal(
        layout.first_ids_T, joined.first_ids_T
    )
    if (
        len(group.tables) != len(layout.specs)
        or {spec.dim for spec in layout.specs} != {width}
        or not same
    ):
        raise ValueError(
            "one_width needs all tables, of one width, with ids that count through all of them"
        )
    pool = pooling(width)
    weight_RD = weight_E[: joined.n_elements].view(-1, width).numpy()

    def run(bags: Bags, out_BC: Tensor) -> None:
        if not bags.item_major or bags.ids_L.dtype != torch.int32:
            raise ValueError("one_width reads item-major bags of int32")
        out_BTD = out_BC.view(bags.n_items, bags.n_tables, width)
        pool(weight_RD, bags.ids_L.numpy(), bags.offsets.numpy(), out_BTD.numpy())

    return run


def _writers(schedule: str, layout: Layout, weight_E: Tensor, tables: Sequence[int]) -> list[Write]:
    """A call for tables of one width, or for those of them with the same number of ids."""
    if schedule != "fixed_length":
        return [WRITERS[schedule](Tables(layout, weight_E, tables))]
    by_ids: dict[int | None, list[int]] = {}
    for table in tables:
        by_ids.setdefault(layout.specs[table].bag_ids, []).append(table)
    return [WRITERS[schedule](Tables(layout, weight_E, own)) for own in by_ids.values()]


def _job(group: Group, dim: int, tables: tuple[int, ...], layout: Layout, weight_E: Tensor) -> Job:
    knobs = complete(SCHEDULES["cpu"][group.schedule], group.params)
    stored = store(layout, weight_E, tables, str(knobs["storage"]))
    unroll = int(knobs.get("unroll", 0))
    order = str(knobs.get("order", "table"))
    return Job(dim, tables, stored, str(knobs["ahead"]), int(knobs["distance"]), unroll, order)


def check_ids(layout: Layout, bags: Bags) -> None:
    """Raise ValueError naming the first id that is no row of its table."""
    for table, spec in enumerate(layout.specs):
        ids = bags.of((table,))[0]
        low = int(layout.first_ids_T[table])
        wrong = torch.nonzero((ids < low) | (ids >= low + spec.rows))
        if len(wrong):
            rows = f"{spec.rows} rows" if low == 0 else f"rows {low} to {low + spec.rows - 1}"
            raise ValueError(f"table {table}: id {int(ids[wrong[0, 0]])}; the table has {rows}")


class CpuBackend:
    """See models.embedding.backend.Backend."""

    name = "cpu"

    def versions(self) -> dict[str, str]:
        """The processor, the cores and PyTorch."""
        return {
            "cpu": cpu_name(),
            "cores": str(len(usable_cores())),
            "torch": package_versions()["torch"],
        }

    def default_plan(self, specs: Sequence[TableSpec], *, joined: bool = False) -> Plan:
        """Compiled throughout; whole tables are asked for where a batch reads most of their rows.

        `joined`: the models' own kernel.
        """
        if joined:
            whole = Group("one_width", (), tuple(range(len(specs))))
            return Plan(
                "cpu", tuple(specs), (Bucket(None, (whole,)),), {"source": "rule, not tuned"}
            )
        one = tuple(table for table, spec in enumerate(specs) if spec.bag_ids == 1)
        small = tuple(
            table
            for table, spec in enumerate(specs)
            if spec.bag_ids != 1 and spec.rows * spec.dim * 4 <= _STREAM_BYTES
        )
        large = tuple(sorted({*range(len(specs))} - {*one, *small}))
        by_ids = params(ahead="ids", distance=64)
        few = (
            Group("copy", params(ahead="none"), one),
            Group("compiled", params(ahead="none"), small),
            Group("compiled", by_ids, large),
        )
        many = (
            Group("copy", params(ahead="none"), one),
            Group("compiled", params(ahead="table"), small),
            Group("compiled", by_ids, large),
        )
        buckets = (Bucket(_SMALL_BATCH, _filled(few)), Bucket(None, _filled(many)))
        return Plan("cpu", tuple(specs), buckets, {"source": "rule, not tuned"})

    def build(self, layout: Layout, weight_E: Tensor, bucket: Bucket, *, checked: bool) -> Run:
        """See Backend."""
        return CpuRun(layout, weight_E, bucket, checked=checked)

    def prepare(
        self,
        layout: Layout,
        weight_E: Tensor,
        buckets: Sequence[Bucket],
        bags: Bags,
        seconds: float,
    ) -> None:
        """Nothing: what is compiled here takes no time worth sharing."""
        del layout, weight_E, buckets, bags, seconds

    def uniform(
        self, specs: Sequence[TableSpec], settings: Params, *, joined: bool
    ) -> Sequence[tuple[Group, ...]]:
        """See Backend."""
        del settings
        every = tuple(range(len(specs)))
        knobs = [
            params(ahead=ahead, unroll=unroll) for ahead in ("none", "table") for unroll in (1, 4)
        ]
        knobs += [params(ahead="ids", distance=distance) for distance in (16, 64)]
        found = [
            (Group("compiled", own, every),)
            for own in (*knobs, *([params(ahead="none", order="item")] * joined))
        ]
        if joined:
            found.append((Group("one_width", (), every),))
        return [*found, (Group("fused", (), every),)]

    def settings(self, specs: Sequence[TableSpec]) -> Sequence[Params]:
        """One thread, beside busy neighbours, as engines run: one a core."""
        del specs
        return [params(threads=1)]

    def candidates(self, cluster: Cluster, settings: Params, max_error: float) -> Sequence[Choice]:
        """See Backend."""
        del settings
        return choices(cluster, max_error)

    def contended(self, settings: Params) -> AbstractContextManager[None]:
        """See Backend."""
        return neighbours(int(complete(SETTINGS["cpu"], settings)["threads"]))

    def seconds(self, calls: Sequence[Callable[[int], object]], n_rounds: int) -> FloatArray:
        """See Backend."""
        return seconds(calls, n_rounds)


def _filled(groups: Sequence[Group]) -> tuple[Group, ...]:
    return tuple(group for group in groups if group.tables)


def make_backend() -> CpuBackend:
    """For models.embedding.backend."""
    return CpuBackend()
