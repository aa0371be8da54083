"""The CPU as a backend: plans become compiled jobs and PyTorch calls."""

# B items, T tables, C columns of the output, E elements of all tables, R rows, D width of a row

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager

import numpy as np
import torch
from torch import Tensor

from infra.provenance import cpu_name, package_versions, usable_cores
from models.embedding.backend import (
    Backend,
    Call,
    Choice,
    Cluster,
    FloatArray,
    Run,
    rule_plan,
)
from models.embedding.cpu import kernels
from models.embedding.cpu.candidates import choices
from models.embedding.cpu.jobs import Job, Jobs, bits_of, call_of
from models.embedding.cpu.one_width import pooling
from models.embedding.cpu.storage import store
from models.embedding.cpu.timing import neighbours, seconds
from models.embedding.cpu.torch_calls import WRITERS, Matrix
from models.embedding.jagged import Bags
from models.embedding.plan.catalogue import SCHEDULES, SETTINGS, Params, complete
from models.embedding.plan.plan import Bucket, Group, Groups, Plan, params
from models.embedding.plan.spec import Layout, TableSpec

_SMALL_BATCH = 64  # from here on, most rows of the usual tables are read by a batch
_STREAM_BYTES = 4 << 20  # tables beyond this are not worth asking for as a whole


class CpuRun:
    """One bucket on the CPU: all compiled groups in one call, then the others in turn."""

    def __init__(self, layout: Layout, weight_E: Tensor, bucket: Bucket, *, checked: bool) -> None:
        self._layout = layout
        self._weight_E = weight_E
        self._checked = checked
        jobs: list[Job] = []
        self._others: list[Run] = []
        for group in bucket.groups:
            if group.schedule == "one_width":
                self._others.append(one_width(layout, weight_E, group))
            elif group.schedule in WRITERS:
                self._others += self._writers(group)
            else:
                jobs += self._compiled(group)
        threads = int(complete(SETTINGS["cpu"], bucket.settings)["threads"])
        self._jobs = Jobs(layout, jobs, threads) if jobs else None
        self._bag_ids_T = np.array([spec.bag_ids or -1 for spec in layout.specs], dtype=np.int64)

    def _by_width(self, tables: Sequence[int]) -> list[tuple[int, ...]]:
        specs = self._layout.specs
        widths = sorted({specs[table].dim for table in tables})
        return [tuple(t for t in tables if specs[t].dim == width) for width in widths]

    def _writers(self, group: Group) -> Iterator[Run]:
        """Calls for tables of one width, or for those of them with the same number of ids."""
        by_ids = group.schedule == "fixed_length"
        for tables in self._by_width(group.tables):
            parts: dict[int | None, list[int]] = {}
            for table in tables:
                bag_ids = self._layout.specs[table].bag_ids if by_ids else None
                parts.setdefault(bag_ids, []).append(table)
            for part in parts.values():
                yield WRITERS[group.schedule](Matrix(self._layout, self._weight_E, part))

    def _compiled(self, group: Group) -> Iterator[Job]:
        knobs = complete(SCHEDULES["cpu"][group.schedule], group.params)
        for tables in self._by_width(group.tables):
            yield Job(
                self._layout.specs[tables[0]].dim,
                tables,
                store(self._layout, self._weight_E, tables, str(knobs["storage"])),
                str(knobs["ahead"]),
                int(knobs["distance"]),
                int(knobs.get("unroll", 0)),
                str(knobs.get("order", "table")),
            )

    def __call__(self, bags: Bags, out_BC: Tensor) -> None:
        """Write the columns of the bucket's tables.

        Raises ValueError for wrong ids or offsets if checked.
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
        n_ids = len(bags.ids_L)
        bag = kernels.first_wrong_bag(bits_of(bags))(
            ctypes.addressof(call),
            self._bag_ids_T.ctypes.data,
            bags.n_tables,
            bags.n_items,
            n_ids,
        )
        if bag < 0:
            return
        if bags.item_major:
            item, table = divmod(bag, bags.n_tables)
        else:
            table, item = divmod(bag, bags.n_items)
        first, end = bags.offsets[bag : bag + 2].tolist()
        if first < 0 or end < first or end > n_ids:
            wrong = f"offsets {first} to {end} of {n_ids} ids"
        else:
            expected = self._bag_ids_T[table]
            wrong = f"{end - first} ids; every bag of this table has {expected}"
        raise ValueError(f"table {table}, item {item}: {wrong}")


def one_width(layout: Layout, weight_E: Tensor, group: Group) -> Run:
    """The models' own kernel: all tables as one matrix, item-major bags of int32.

    Raises ValueError for others.
    """
    width = layout.specs[0].dim
    joined = Layout.joined(layout.specs)
    same = np.array_equal(layout.elements_T, joined.elements_T) and np.array_equal(
        layout.first_ids_T, joined.first_ids_T
    )
    every_table = len(group.tables) == len(layout.specs)
    if not same or not every_table or {spec.dim for spec in layout.specs} != {width}:
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


def check_ids(layout: Layout, bags: Bags) -> None:
    """Raise ValueError naming the first id that is no row of its table."""
    for table, spec in enumerate(layout.specs):
        ids = bags.of((table,))[0]
        low = int(layout.first_ids_T[table])
        wrong = torch.nonzero((ids < low) | (ids >= low + spec.rows))
        if len(wrong):
            rows = f"{spec.rows} rows" if low == 0 else f"rows {low} to {low + spec.rows - 1}"
            raise ValueError(f"table {table}: id {int(ids[wrong[0, 0]])}; the table has {rows}")


class CpuBackend(Backend):
    """Every core an engine: one thread, beside busy neighbours."""

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
            return rule_plan("cpu", specs, Bucket(None, (whole,)))
        single: list[int] = []
        small: list[int] = []
        large: list[int] = []
        for table, spec in enumerate(specs):
            fits = spec.n_elements * 4 <= _STREAM_BYTES
            (single if spec.bag_ids == 1 else small if fits else large).append(table)

        def bucket(max_batch: int | None, ahead: str) -> Bucket:
            groups = (
                Group("copy", params(ahead="none"), tuple(single)),
                Group("compiled", params(ahead=ahead), tuple(small)),
                Group("compiled", params(ahead="ids", distance=64), tuple(large)),
            )
            return Bucket(max_batch, tuple(group for group in groups if group.tables))

        return rule_plan("cpu", specs, bucket(_SMALL_BATCH, "none"), bucket(None, "table"))

    def build(self, layout: Layout, weight_E: Tensor, bucket: Bucket, *, checked: bool) -> Run:
        """See Backend."""
        return CpuRun(layout, weight_E, bucket, checked=checked)

    def uniform(
        self, specs: Sequence[TableSpec], settings: Params, *, joined: bool
    ) -> Sequence[Groups]:
        """See Backend."""
        del settings
        knobs = [
            params(ahead=ahead, unroll=unroll) for ahead in ("none", "table") for unroll in (1, 4)
        ]
        knobs += [params(ahead="ids", distance=distance) for distance in (16, 64)]
        ways = [Choice("compiled", chosen) for chosen in knobs]
        if joined:
            ways.append(Choice("compiled", params(ahead="none", order="item")))
            ways.append(Choice("one_width", ()))
        return [(way.group(range(len(specs))),) for way in (*ways, Choice("fused", ()))]

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

    def seconds(self, calls: Sequence[Call], n_rounds: int) -> FloatArray:
        """See Backend."""
        return seconds(calls, n_rounds)
