"""The look-up on a GPU: every table by its own schedule, in one launch or more, written by Triton.

Needs Triton (build/bench_requirements.txt), which is imported when the first kernel is made.
"""

# B items, T tables, L ids of all bags, M bags, S columns of the output (sum of all widths),
# E elements of all tables

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.embedding.backend import FloatArray
from models.embedding.gpu.codegen import load_kernel
from models.embedding.gpu.schedules import Branch, branches, check_settings, combining
from models.embedding.gpu.task_map import task_map
from models.embedding.jagged import INDEX_TYPES, Bags, lengths_of
from models.embedding.offsets import Int64Array
from models.embedding.plan.plan import Bucket
from models.embedding.plan.spec import LINE_ELEMENTS, Layout

ROW_TYPES = (torch.float32, torch.float16, torch.bfloat16)
_MAPS = 64  # batch sizes whose task maps are kept
_MOST_REPEATS = 1024


@dataclass(frozen=True, slots=True)
class Launch:
    """One kernel over some tables, table i of `tables` by branch `branch_of[i]`."""

    kernel: Any
    branches: tuple[Branch, ...]
    tables: tuple[int, ...]
    branch_of: tuple[int, ...]
    warps: int


@dataclass(frozen=True, slots=True)
class Maps:
    """The task maps of all launches at one batch size, and how often a call looks its batch up."""

    tasks: list[Tensor]
    repeats: int


class TritonBags:
    """Ids -> each bag's rows summed, float32 (B, S); the tables' columns in their order.

    Empty bags give zeros. `weight_E` holds the tables as `layout` says, in float32, float16 or
    bfloat16, on a CUDA device (or on the CPU where TRITON_INTERPRET=1 was set before Triton was
    imported). Columns of tables in no group of `bucket` stay as they are. `mean_bag_ids` of each
    table orders the programs; without it the first batch of each size tells. `check`: look at all
    ids and offsets first and raise ValueError; this waits for the device. `fill_elements`: do
    everything over and over until as many elements of rows are read as by all tables of the layout,
    or so many; then few tables load a device as the whole does.
    """

    def __init__(
        self,
        layout: Layout,
        bucket: Bucket,
        weight_E: Tensor,
        *,
        mean_bag_ids: Sequence[float] | None = None,
        check: bool = False,
        cache: Path | None = None,
        fill_elements: int = 0,
    ) -> None:
        _check_weight(weight_E, layout.n_elements)
        settings = check_settings(bucket)
        of_table = branches(layout.specs, bucket.groups, int(settings["warps"]))
        self.layout = layout
        self.weight_E = weight_E
        self.width = int(layout.columns[-1])
        self._check = check
        self._cache = cache
        self._fill_elements = fill_elements
        self._align = max((branch.column_align for branch in of_table.values()), default=1)
        self._mean_bag_ids = None if mean_bag_ids is None else np.asarray(mean_bag_ids, np.float64)
        bases_T, self._scratch = _scratch_bases(len(layout.specs), of_table)
        places_T3 = np.stack((_lines(layout), layout.columns[:-1], bases_T), axis=1)
        self._places = torch.from_numpy(places_T3).to(weight_E.device)
        self._options = {"maxnreg": settings["max_registers"]} if settings["max_registers"] else {}
        parts = [group.tables for group in bucket.groups]
        if settings["launch"] != "grouped":
            parts = _parts(of_table, by_schedule=settings["launch"] == "by_schedule")
        self.launches = [self._launch(of_table, tables) for tables in parts if tables]
        split = {t: branch for t, branch in of_table.items() if branch.schedule == "split"}
        if split:
            sums = {t: combining(branch) for t, branch in split.items()}
            self.launches.append(self._launch(sums, tuple(sums)))
        self._maps: OrderedDict[int, Maps] = OrderedDict()

    def _launch(self, of_table: Mapping[int, Branch], tables: Sequence[int]) -> Launch:
        distinct = tuple(sorted({of_table[table] for table in tables}))
        numbers = {branch: i for i, branch in enumerate(distinct)}
        branch_of = tuple(numbers[of_table[table]] for table in tables)
        warps = max(branch.warps for branch in distinct)
        return Launch(load_kernel(distinct, self._cache), distinct, tuple(tables), branch_of, warps)

    def __call__(
        self,
        values: Tensor,
        offsets: Tensor,
        out: Tensor | None = None,
        *,
        item_major: bool = False,
    ) -> Tensor:
        """(B, S). `values` (L,) are the ids, `offsets` (T * B + 1,) tell the bags.

        Both int32 or int64. Bag m has values[offsets[m] : offsets[m + 1]]; that of table t and item
        b is t * B + b, or b * T + t if `item_major`. `out` takes the result; its rows may be parts
        of longer ones.
        """
        return self._look_up(self._bags(values, offsets, item_major), out)

    def maps_of(self, offsets: Tensor, *, item_major: bool = False) -> Sequence[Tensor]:
        """The task map of every launch for this batch's size; kept.

        The first batch of a size waits for the device.
        """
        n_items = self._n_items(offsets)
        maps = self._maps.get(n_items)
        if maps is None:
            maps = self._maps[n_items] = self._make_maps(offsets, n_items, item_major)
            if len(self._maps) > _MAPS:
                self._maps.popitem(last=False)
        self._maps.move_to_end(n_items)
        return maps.tasks

    def count_writes(self, values: Tensor, offsets: Tensor, *, item_major: bool = False) -> Tensor:
        """How often each element of the output was written: int32 (B, S), ones if all is well."""
        bags = self._bags(values, offsets, item_major)
        counts = torch.zeros(
            bags.n_items, self.width, dtype=torch.int32, device=self.weight_E.device
        )
        self._look_up(bags, counts=counts)
        return counts

    def repeats(self, n_items: int) -> int:
        """How often a call looks a batch of so many items up; there must have been one."""
        return self._maps[n_items].repeats if n_items in self._maps else 1

    def compiling(
        self, values: Tensor, offsets: Tensor, *, item_major: bool = False
    ) -> dict[object, Callable[[], object]]:
        """What compiles each kernel for ids of this kind and launches none.

        Equal kernels have equal keys.
        """
        bags = self._bags(values, offsets, item_major)
        tasks = values.new_empty(1, dtype=torch.int32)
        rows = self.weight_E.new_empty(1, self.width, dtype=torch.float32)
        return {
            (id(launch.kernel), launch.warps, *self._options.items()): partial(
                self._run, launch, tasks, bags, rows, rows, None, compile_only=True
            )
            for launch in self.launches
        }

    def _look_up(
        self, bags: Bags, out: Tensor | None = None, counts: Tensor | None = None
    ) -> Tensor:
        n_items = bags.n_items
        if self._check:
            check_ids(self.layout, bags)
        if out is None:
            out = self.weight_E.new_empty(n_items, self.width, dtype=torch.float32)
        self._check_out(out, n_items)
        if n_items == 0:
            return out
        scratch = out if self._scratch == 0 else out.new_empty(self._scratch * n_items)
        maps = self.maps_of(bags.offsets, item_major=bags.item_major)
        for launch, tasks in zip(self.launches, maps, strict=True):
            self._run(launch, tasks, bags, out, scratch, counts)
        return out

    def _run(
        self,
        launch: Launch,
        tasks: Tensor,
        bags: Bags,
        out: Tensor,
        scratch: Tensor,
        counts: Tensor | None,
        *,
        compile_only: bool = False,
    ) -> None:
        with self._on_device():
            launch.kernel.run(
                tasks,
                self._places,
                bags.ids_L,
                bags.offsets,
                self.weight_E,
                out,
                scratch,
                tasks if counts is None else counts,
                bags.n_items,
                out.stride(0),
                bags.n_tables,
                COUNT=counts is not None,
                ITEM_MAJOR=bags.item_major,
                num_warps=launch.warps,
                grid=(len(tasks),),
                warmup=compile_only,
                **self._options,
            )

    def _on_device(self) -> AbstractContextManager[object]:
        return torch.cuda.device(self.weight_E.device) if self.weight_E.is_cuda else nullcontext()

    def _make_maps(self, offsets: Tensor, n_items: int, item_major: bool) -> Maps:
        mean_T = self._mean_bag_ids
        if mean_T is None:
            n_tables = len(self.layout.specs)
            lengths_TB = lengths_of(offsets.cpu(), n_tables, item_major=item_major)
            mean_T = np.asarray(lengths_TB.numpy().mean(axis=1))
        repeats = self._repeats(mean_T, n_items)
        tasks = []
        for launch in self.launches:
            used = [launch.branches[i] for i in launch.branch_of]
            tiles = [branch.tiles(n_items) for branch in used]
            cost = [branch.cost(mean_T[t]) for branch, t in zip(used, launch.tables, strict=True)]
            once = task_map(launch.branch_of, tiles, cost, launch.tables)
            repeated = torch.from_numpy(np.tile(once, (repeats, 1)))
            tasks.append(repeated.to(self.weight_E.device))
        return Maps(tasks, repeats)

    def _repeats(self, mean_T: FloatArray, n_items: int) -> int:
        tables = [*{table for launch in self.launches for table in launch.tables}]
        read_T = mean_T * [spec.dim for spec in self.layout.specs]  # an item
        enough = min(read_T.sum(), self._fill_elements / max(n_items, 1))
        return int(min(max(round(enough / max(read_T[tables].sum(), 1e-9)), 1), _MOST_REPEATS))

    def _n_items(self, offsets: Tensor) -> int:
        n_tables = len(self.layout.specs)
        n_items, rest = divmod(len(offsets) - 1, n_tables)
        if rest or len(offsets) == 0:
            raise ValueError(f"{len(offsets)} offsets; expected {n_tables} tables x items + 1")
        return n_items

    def _bags(self, values: Tensor, offsets: Tensor, item_major: bool) -> Bags:
        """Raises ValueError for tensors that the kernels do not read."""
        self._n_items(offsets)
        for name, tensor in (("values", values), ("offsets", offsets)):
            if tensor.dtype not in INDEX_TYPES or tensor.dim() != 1 or not tensor.is_contiguous():
                raise ValueError(
                    f"{name} are {tensor.dtype} {tuple(tensor.shape)}; expected a dense row of "
                    "int32 or int64"
                )
            if tensor.device != self.weight_E.device:
                raise ValueError(
                    f"{name} are on {tensor.device}, the tables on {self.weight_E.device}"
                )
        return Bags(values, offsets, len(self.layout.specs), item_major)

    def _check_out(self, out: Tensor, n_items: int) -> None:
        shape = (n_items, self.width)
        device = self.weight_E.device
        apart = n_items == 1 or out.stride(0) >= self.width
        dense = out.numel() == 0 or (out.stride(1) == 1 and apart)
        fits = (out.shape, out.dtype, out.device) == (shape, torch.float32, device)
        if not fits or not dense or out.stride(0) % self._align:
            raise ValueError(
                f"out is {out.dtype} {tuple(out.shape)} of strides {out.stride()} on "
                f"{out.device}; expected float32 {shape} on "
                f"{device}, dense rows a multiple of {self._align} apart"
            )


def check_ids(layout: Layout, bags: Bags) -> None:
    """Raise ValueError, in one line, for offsets or ids that do not fit the tables; reads all."""
    specs = layout.specs
    offsets = bags.offsets
    n_ids = len(bags.ids_L)
    device = offsets.device
    lengths_M = torch.diff(offsets.long())
    first = int(offsets[0])
    end = int(offsets[-1])
    if first < 0 or end > n_ids or bool((lengths_M < 0).any()):
        raise ValueError(f"offsets do not ascend within 0 to {n_ids}, the number of ids")
    bag_M = torch.arange(len(lengths_M), device=device)
    table_M = bag_M % len(specs) if bags.item_major else bag_M // max(bags.n_items, 1)
    fixed_M = torch.tensor([spec.bag_ids or -1 for spec in specs], device=device)[table_M]
    wrong = ((lengths_M != fixed_M) & (fixed_M >= 0)).nonzero()
    if len(wrong):
        bag = int(wrong[0])
        table = int(table_M[bag])
        raise ValueError(f"table {table} ({specs[table]}): bag {bag} has {int(lengths_M[bag])} ids")
    low_T = torch.from_numpy(layout.first_ids_T).to(device)
    rows_T = torch.tensor([spec.rows for spec in specs], device=device)
    table_L = torch.repeat_interleave(table_M, lengths_M)
    ids_L = bags.ids_L[first:end].long() - low_T[table_L]
    outside = ((ids_L < 0) | (ids_L >= rows_T[table_L])).nonzero()
    if len(outside):
        at = int(outside[0])
        table = int(table_L[at])
        raise ValueError(
            f"table {table}: id {int(ids_L[at])} at {at + first}; it has {specs[table].rows} rows"
        )


def _check_weight(weight_E: Tensor, n_elements: int) -> None:
    dense = weight_E.dim() == 1 and weight_E.is_contiguous() and len(weight_E) >= n_elements
    if weight_E.dtype not in ROW_TYPES or not dense:
        raise ValueError(
            f"weights are {weight_E.dtype} {tuple(weight_E.shape)}; expected float32, float16 or "
            f"bfloat16, a dense row of {n_elements} elements"
        )
    if not weight_E.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(
            f"the tables are on {weight_E.device}; Triton's kernels need a CUDA device"
        )


def _parts(of_table: Mapping[int, Branch], *, by_schedule: bool) -> list[tuple[int, ...]]:
    """Tables that may share a launch."""
    tables_of: dict[tuple[int, str], list[int]] = {}
    for table, branch in of_table.items():
        key = (branch.warps, branch.schedule if by_schedule else "")
        tables_of.setdefault(key, []).append(table)
    return [tuple(tables_of[key]) for key in sorted(tables_of)]


def _lines(layout: Layout) -> Int64Array:
    """Where the row of id 0 of each table would begin, in lines."""
    dims = np.array([spec.dim for spec in layout.specs])
    elements_T = layout.elements_T - layout.first_ids_T * dims
    if (elements_T % LINE_ELEMENTS).any():
        raise ValueError(
            f"tables begin at {elements_T.tolist()}; expected multiples of {LINE_ELEMENTS} elements"
        )
    return np.asarray(elements_T // LINE_ELEMENTS)


def _scratch_bases(n_tables: int, of_table: Mapping[int, Branch]) -> tuple[list[int], int]:
    """Where each table's partial sums begin, in elements an item, and how many there are."""
    bases = [0] * n_tables
    end = 0
    for table, branch in of_table.items():
        bases[table] = end
        if branch.schedule == "split":
            end += -(-branch.parts * branch.dim // 4) * 4
    return bases, end
