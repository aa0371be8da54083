"""Tables handed to the compiled kernels: what each thread does, laid out as the kernels read it."""

# B items, T tables, P tables of all parts

from __future__ import annotations

import ctypes
import itertools
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from models.embedding.cpu import kernels
from models.embedding.cpu.storage import Stored
from models.embedding.cpu.stored_rows import row_bytes
from models.embedding.jagged import Bags
from models.embedding.offsets import Int64Array
from models.embedding.plan.spec import Layout

_KEPT_SIZES = 64  # numbers of items whose parts are kept
_BAG_BYTES = 64.0  # a bag costs as much as so many bytes of rows
KernelCall = ctypes.c_longlong * kernels.N_CALL


def bits_of(bags: Bags) -> int:
    """Of an id and of an offset: 32 or 64."""
    return 8 * bags.ids_L.element_size()


def call_of(bags: Bags, out_BC: Tensor, *, checked: bool) -> ctypes.Array[ctypes.c_longlong]:
    """What the kernels read of one call."""
    return KernelCall(
        bags.ids_L.data_ptr(),
        bags.offsets.data_ptr(),
        bags.table_step,
        bags.item_step,
        out_BC.data_ptr(),
        4 * out_BC.stride(0),
        checked,
    )


@dataclass(frozen=True, slots=True)
class Job:
    """Tables of one width that one kernel reads. `order` "item": items outside, tables inside."""

    width: int
    tables: tuple[int, ...]
    stored: Stored
    ahead: str
    distance: int
    unroll: int  # 0: bags of one id, copied
    order: str

    def kernel(self, bits: int) -> int:
        """Its address; compiled when it is first asked for."""
        what = (self.width, self.stored.storage, bits, self.ahead)
        if self.unroll == 0:
            return int(kernels.copying(*what).address)
        return int(kernels.summing(*what, self.unroll, by_item=self.order == "item").address)


class PartList:
    """Parts in memory, and where."""

    __slots__ = ("address", "rows")

    def __init__(self, rows: Int64Array) -> None:
        self.rows = rows
        self.address = int(rows.ctypes.data)


class Jobs:
    """All compiled tables of a bucket: one call a thread, whatever the number of tables."""

    def __init__(self, layout: Layout, jobs: Sequence[Job], n_threads: int) -> None:
        self._layout = layout
        self._jobs = tuple(jobs)
        self._n_threads = n_threads
        self._records = [self._record(job) for job in jobs]
        self._driver = kernels.driver()
        self._parts: dict[tuple[int, torch.dtype, bool], PartList] = {}
        for job in jobs:
            job.kernel(32)  # before anything is timed or forked

    def _record(self, job: Job) -> Int64Array:
        tables = np.array(job.tables, dtype=np.int64)
        rows_T = np.array([self._layout.specs[table].rows for table in job.tables], dtype=np.int64)
        low_T = self._layout.first_ids_T[tables]
        columns = self._layout.columns[tables] * 4
        return np.stack((tables, job.stored.zero_T[tables], columns, low_T, low_T + rows_T), axis=1)

    def __call__(self, bags: Bags, out_BC: Tensor, *, checked: bool) -> bool:
        """Write the tables' columns of at least one item; False if an id was wrong."""
        call = call_of(bags, out_BC, checked=checked)
        key = (bags.n_items, bags.ids_L.dtype, bags.item_major)
        parts = self._parts.get(key)
        if parts is None:
            parts = self._whole(bags)
            if len(self._parts) >= _KEPT_SIZES:
                self._parts.clear()
            self._parts[key] = parts
        address = ctypes.addressof(call)
        if self._n_threads == 1:
            return bool(self._driver(address, parts.address, len(parts.rows)) < 0)
        tables = [record[:, 0] for record in self._records]
        widths = [job.width for job in self._jobs]
        pieces = split(parts.rows, tables, widths, bags, self._n_threads)
        mine, *others = (PartList(rows) for rows in pieces)
        threads = _threads(self._n_threads - 1, os.getpid())
        running = [
            threads.submit(self._driver, address, part.address, len(part.rows)) for part in others
        ]
        wrong = self._driver(address, mine.address, len(mine.rows))
        return bool(max(wrong, *(run.result() for run in running)) < 0)

    def _whole(self, bags: Bags) -> PartList:
        """A part a job, all its tables and all items."""
        rows = [
            self._part(job, record, bags)
            for job, record in zip(self._jobs, self._records, strict=True)
        ]
        return PartList(np.array(rows, dtype=np.int64).reshape(-1, kernels.N_PART))

    def _part(self, job: Job, record: Int64Array, bags: Bags) -> tuple[int, ...]:
        n_tables = len(record)
        n_items = bags.n_items
        run_bags = 1
        if job.order == "item":
            one_matrix = len({*record[:, kernels.FIRST_ROW].tolist()}) == 1
            if bags.item_major and one_matrix and n_tables == bags.n_tables:
                run_bags = n_tables * n_items  # all ids are one run
        elif bags.item_step == 1:
            run_bags = n_items
        return (
            job.kernel(bits_of(bags)),
            record.ctypes.data,
            job.distance,
            0,
            n_tables,
            0,
            n_items,
            run_bags,
            n_tables * n_items // run_bags,
            row_bytes(job.width, job.stored.storage),
        )


@cache
def _threads(n: int, pid: int) -> ThreadPoolExecutor:
    """Threads of this process: none survives a fork."""
    del pid
    return ThreadPoolExecutor(n, thread_name_prefix="look-up")


def split(
    parts: Int64Array,
    tables: Sequence[Int64Array],
    widths: Sequence[int],
    bags: Bags,
    n_threads: int,
) -> list[Int64Array]:
    """The parts cut into one contiguous range of tables and items a thread, of about equal cost.

    The cost of a bag: the bytes of its rows and a little more. Item-major bags are cut by their ids
    alone.
    """
    if bags.item_major:
        return _split_items(parts, bags, n_threads)
    offsets = bags.offsets.numpy()
    n_items = bags.n_items
    first_P = np.concatenate(tables) * n_items
    bytes_P = np.repeat(np.array(widths) * 4.0, [len(numbers) for numbers in tables])
    cost_P = n_items * _BAG_BYTES + (offsets[first_P + n_items] - offsets[first_P]) * bytes_P
    ends_P = np.cumsum(cost_P)
    cuts = [(0, 0)]
    for thread in range(1, n_threads):
        wanted = ends_P[-1] * thread / n_threads
        place = min(int(np.searchsorted(ends_P, wanted)), len(ends_P) - 1)
        first = first_P[place]
        n_ids_B1 = offsets[first : first + n_items + 1] - float(offsets[first])
        within = n_ids_B1 * bytes_P[place] + np.arange(n_items + 1) * _BAG_BYTES
        cuts.append((place, int(np.searchsorted(within, wanted - (ends_P[place] - cost_P[place])))))
    cuts.append((len(first_P), 0))
    return [
        _stacked(_between(parts, tables, start, end, n_items))
        for start, end in itertools.pairwise(cuts)
    ]


def _split_items(parts: Int64Array, bags: Bags, n_threads: int) -> list[Int64Array]:
    ends_B = bags.offsets.numpy()[:: bags.n_tables].astype(np.float64)
    ends_B += np.arange(bags.n_items + 1) * bags.n_tables
    cuts = np.searchsorted(ends_B, np.linspace(ends_B[0], ends_B[-1], n_threads + 1))
    cuts[0] = 0
    cuts[-1] = bags.n_items
    return [
        _stacked(
            _cut(part, part[kernels.FROM_TABLE], part[kernels.END_TABLE], first, end)
            for part in parts
        )
        for first, end in itertools.pairwise(np.maximum.accumulate(cuts).tolist())
    ]


def _between(
    parts: Int64Array,
    tables: Sequence[Int64Array],
    start: tuple[int, int],
    end: tuple[int, int],
    n_items: int,
) -> Iterator[Int64Array]:
    """From (table, item) to (table, item), tables counted through all parts.

    At most three pieces of a part, some of them empty.
    """
    first = 0
    for part, numbers in zip(parts, tables, strict=True):
        a, a_item = max((start[0] - first, start[1]), (0, 0))
        b, b_item = min((end[0] - first, end[1]), (len(numbers), 0))
        first += len(numbers)
        if a == b:
            yield _cut(part, a, a + 1, a_item, b_item)
        elif a < b:
            whole = a + bool(a_item)
            yield _cut(part, a, whole, a_item, n_items)
            yield _cut(part, whole, b, 0, n_items)
            yield _cut(part, b, b + 1, 0, b_item)


def _cut(
    part: Int64Array, first_table: int, end_table: int, first_item: int, end_item: int
) -> Int64Array:
    """Some tables and items of a part; runs of ids shrink with the items."""
    cut = part.copy()
    n_items = end_item - first_item
    n_tables = end_table - first_table
    whole_tables = part[kernels.END_TABLE] - part[kernels.FROM_TABLE]
    whole_items = part[kernels.END_ITEM] - part[kernels.FROM_ITEM]
    cut[kernels.FROM_TABLE : kernels.END_ITEM + 1] = first_table, end_table, first_item, end_item
    run_bags = part[kernels.RUN_BAGS]
    if run_bags == whole_items * whole_tables and whole_tables > 1 and whole_items > 0:
        cut[kernels.RUN_BAGS] = n_items * n_tables  # item after item: all ids one run
    elif run_bags > 1:
        cut[kernels.RUN_BAGS] = n_items
    cut[kernels.N_RUNS] = n_tables * n_items // max(cut[kernels.RUN_BAGS], 1)
    return cut


def _stacked(pieces: Iterator[Int64Array]) -> Int64Array:
    """The pieces that are not empty."""
    filled = [
        piece
        for piece in pieces
        if piece[kernels.END_TABLE] > piece[kernels.FROM_TABLE]
        and piece[kernels.END_ITEM] > piece[kernels.FROM_ITEM]
    ]
    return np.array(filled, dtype=np.int64).reshape(-1, kernels.N_PART)
