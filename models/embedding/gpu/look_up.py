"""The look-up on a GPU: every table by its own schedule, in one launch or a launch a group, written
by Triton.

Needs Triton (build/bench_requirements.txt), which is imported when the first kernel is made.
"""

# B items, T tables, L ids of all bags, S columns of the output (sum of all widths), E elements of
# all tables

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
import numpy.typing as npt
import torch
from torch import Tensor

from models.embedding.gpu.codegen import load_kernel
from models.embedding.gpu.schedules import Branch, branches, check_settings, combining
from models.embedding.gpu.task_map import task_map
from models.embedding.plan.plan import Bucket
from models.embedding.plan.spec import LINE_ELEMENTS, Layout

INDEX_TYPES = (torch.int32, torch.int64)
ROW_TYPES = (torch.float32, torch.float16, torch.bfloat16)
_MAPS = 64  # batch sizes whose task maps are kept
_MOST_REPEATS = 1024
FloatArray = npt.NDArray[np.float64]


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
    """Ids -> each bag's rows summed, float32 (B, S); the tables' columns in their order, empty bags
    zeros.

    `weight_E` holds the tables as `layout` says, in float32, float16 or bfloat16, on a CUDA device
    (or on the CPU where TRITON_INTERPRET=1 was set before Triton was imported). Columns of tables
    in no group of `bucket` stay as they are. `mean_bag_ids` of each table orders the programs;
    without it the first batch of each size tells. `check`: look at all ids and offsets first and
    raise ValueError; this waits for the device. `fill_elements`: do everything over and over until
    as many elements of rows are read as by all tables of the layout, or so many; then few tables
    load a device as the whole does.
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
        self._places = torch.from_numpy(
            np.stack((_lines(layout), layout.columns[:-1], bases_T), axis=1)
        )
        self._places = self._places.to(weight_E.device)
        self._options = {"maxnreg": settings["max_registers"]} if settings["max_registers"] else {}
        parts = [group.tables for group in bucket.groups]
        if settings["launch"] != "grouped":
            parts = _parts(of_table, by_schedule=settings["launch"] == "by_schedule")
        self.launches = [self._launch(of_table, tables) for tables in parts if tables]
        split = {
            table: combining(own) for table, own in of_table.items() if own.schedule == "split"
        }
        if split:
            self.launches.append(self._launch(split, tuple(split)))
        self._maps: OrderedDict[int, Maps] = OrderedDict()

    def _launch(self, of_table: Mapping[int, Branch], tables: Sequence[int]) -> Launch:
        distinct = tuple(sorted({of_table[table] for table in tables}))
        numbers = {branch: i for i, branch in enumerate(distinct)}
        kernel = load_kernel(distinct, self._cache)
        branch_of = tuple(numbers[of_table[table]] for table in tables)
        return Launch(
            kernel, distinct, tuple(tables), branch_of, max(branch.warps for branch in distinct)
        )

    def __call__(
        self,
        values: Tensor,
        offsets: Tensor,
        out: Tensor | None = None,
        *,
        item_major: bool = False,
    ) -> Tensor:
        """(B, S). `values` (L,) are the ids, int32 or int64; `offsets` (T * B + 1,) tell the bags,
        table after table.

        Bag b of table t has values[offsets[m] : offsets[m + 1]], m = t * B + b, or b * T + t if
        `item_major`. `out` takes the result; its rows may be parts of longer ones.
        """
        return self._forward(values, offsets, out, None, item_major)

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
        """How often each element of the output was written; int32 (B, S), ones where all is well."""
        counts = torch.zeros(
            self._n_items(offsets), self.width, dtype=torch.int32, device=self.weight_E.device
        )
        self._forward(values, offsets, None, counts, item_major)
        return counts

    def compiling(
        self, values: Tensor, offsets: Tensor, *, item_major: bool = False
    ) -> dict[object, Callable[[], object]]:
        """What compiles each kernel for ids of this kind and launches none; equal kernels have
        equal keys.
        """
        index = values.new_empty(1, dtype=torch.int32)
        rows = self.weight_E.new_empty(1, dtype=torch.float32)
        found: dict[object, Callable[[], object]] = {}
        for launch in self.launches:
            key = (id(launch.kernel), launch.warps, *self._options.items())
            own = partial(
                self._run,
                launch,
                index,
                values,
                offsets,
                rows,
                rows,
                None,
                2,
                self.width,
                item_major,
            )
            found[key] = partial(own, compile_only=True)
        return found

    def _run(
        self,
        launch: Launch,
        tasks: Tensor,
        values: Tensor,
        offsets: Tensor,
        out: Tensor,
        scratch: Tensor,
        counts: Tensor | None,
        n_items: int,
        stride: int,
        item_major: bool,
        *,
        compile_only: bool = False,
    ) -> None:
        with self._on_device():
            launch.kernel.run(
                tasks,
                self._places,
                values,
                offsets,
                self.weight_E,
                out,
                scratch,
                tasks if counts is None else counts,
                n_items,
                stride,
                len(self.layout.specs),
                COUNT=counts is not None,
                ITEM_MAJOR=item_major,
                num_warps=launch.warps,
                grid=(len(tasks),),
                warmup=compile_only,
                **self._options,
            )

    def _forward(
        self,
        values: Tensor,
        offsets: Tensor,
        out: Tensor | None,
        counts: Tensor | None,
        item_major: bool,
    ) -> Tensor:
        n_items = self._n_items(offsets)
        self._check_tensors(values, offsets)
        if self._check:
            check_ids(self.layout, values, offsets, item_major=item_major)
        if out is None:
            out = self.weight_E.new_empty(n_items, self.width, dtype=torch.float32)
        self._check_out(out, n_items)
        if n_items == 0:
            return out
        scratch = out if self._scratch == 0 else out.new_empty(self._scratch * n_items)
        maps = self.maps_of(offsets, item_major=item_major)
        for launch, own in zip(self.launches, maps, strict=True):
            self._run(
                launch,
                own,
                values,
                offsets,
                out,
                scratch,
                counts,
                n_items,
                out.stride(0),
                item_major,
            )
        return out

    def _on_device(self) -> AbstractContextManager[object]:
        return torch.cuda.device(self.weight_E.device) if self.weight_E.is_cuda else nullcontext()

    def _make_maps(self, offsets: Tensor, n_items: int, item_major: bool) -> Maps:
        mean_T = self._mean_bag_ids
        if mean_T is None:
            mean_T = mean_ids(offsets, len(self.layout.specs), item_major=item_major)
        repeats = self._repeats(mean_T, n_items)
        device = self.weight_E.device
        tasks = []
        for launch in self.launches:
            own = [launch.branches[i] for i in launch.branch_of]
            tiles = [branch.tiles(n_items) for branch in own]
            cost = [branch.cost(mean_T[t]) for branch, t in zip(own, launch.tables, strict=True)]
            once = task_map(launch.branch_of, tiles, cost, launch.tables)
            tasks.append(torch.from_numpy(np.tile(once, (repeats, 1))).to(device))
        return Maps(tasks, repeats)

    def _repeats(self, mean_T: FloatArray, n_items: int) -> int:
        own = [*{table for launch in self.launches for table in launch.tables}]
        read_T = mean_T * [spec.dim for spec in self.layout.specs]  # an item
        enough = min(read_T.sum(), self._fill_elements / max(n_items, 1))
        return int(min(max(round(enough / max(read_T[own].sum(), 1e-9)), 1), _MOST_REPEATS))

    def repeats(self, n_items: int) -> int:
        """How often a batch of so many items is looked up by one call; it must have been called
        with one.
        """
        return self._maps[n_items].repeats if n_items in self._maps else 1

    def _n_items(self, offsets: Tensor) -> int:
        n_tables = len(self.layout.specs)
        n_items, rest = divmod(len(offsets) - 1, n_tables)
        if rest or len(offsets) == 0:
            raise ValueError(f"{len(offsets)} offsets; expected {n_tables} tables x items + 1")
        return n_items

    def _check_tensors(self, values: Tensor, offsets: Tensor) -> None:
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

    def _check_out(self, out: Tensor, n_items: int) -> None:
        fits = out.shape == (n_items, self.width) and out.dtype == torch.float32
        dense = out.numel() == 0 or (
            out.stride(1) == 1 and (n_items == 1 or out.stride(0) >= self.width)
        )
        if (
            not fits
            or not dense
            or out.device != self.weight_E.device
            or out.stride(0) % self._align
        ):
            raise ValueError(
                f"out is {out.dtype} {tuple(out.shape)} of strides {out.stride()} on "
                f"{out.device}; expected float32 {(n_items, self.width)} on "
                f"{self.weight_E.device}, dense rows a multiple of {self._align} apart"
            )


def check_ids(layout: Layout, values: Tensor, offsets: Tensor, *, item_major: bool = False) -> None:
    """Raise ValueError, in one line, for offsets or ids that do not fit the tables; reads all of
    them.
    """
    specs = layout.specs
    device = offsets.device
    lengths_M = torch.diff(offsets.long())
    if int(offsets[0]) < 0 or int(offsets[-1]) > len(values) or bool((lengths_M < 0).any()):
        raise ValueError(f"offsets do not ascend within 0 to {len(values)}, the number of ids")
    bag_M = torch.arange(len(lengths_M), device=device)
    table_M = bag_M % len(specs) if item_major else bag_M // max(len(lengths_M) // len(specs), 1)
    fixed_T = torch.tensor(
        [-1 if spec.bag_ids is None else spec.bag_ids for spec in specs], device=device
    )
    wrong = ((lengths_M != fixed_T[table_M]) & (fixed_T[table_M] >= 0)).nonzero()
    if len(wrong):
        table = int(table_M[wrong[0]])
        n_ids = int(lengths_M[wrong[0]])
        raise ValueError(f"table {table} ({specs[table]}): bag {int(wrong[0])} has {n_ids} ids")
    first = torch.from_numpy(layout.first_ids_T).to(device)
    rows = torch.tensor([spec.rows for spec in specs], device=device)
    table_L = torch.repeat_interleave(table_M, lengths_M)
    ids_L = values[int(offsets[0]) : int(offsets[-1])].long() - first[table_L]
    outside = ((ids_L < 0) | (ids_L >= rows[table_L])).nonzero()
    if len(outside):
        at = int(outside[0])
        table = int(table_L[at])
        raise ValueError(
            f"table {table}: id {int(ids_L[at])} at {at + int(offsets[0])}; it has "
            f"{specs[table].rows} rows"
        )


def mean_ids(offsets: Tensor, n_tables: int, *, item_major: bool = False) -> FloatArray:
    """(T,), ids of a bag of each table, empty bags included; waits for the device."""
    lengths = np.diff(offsets.cpu().numpy()).reshape(
        (-1, n_tables) if item_major else (n_tables, -1)
    )
    return np.asarray(lengths.mean(axis=0 if item_major else 1))


def _check_weight(weight_E: Tensor, n_elements: int) -> None:
    if (
        weight_E.dtype not in ROW_TYPES
        or weight_E.dim() != 1
        or not weight_E.is_contiguous()
        or len(weight_E) < n_elements
    ):
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
    found: dict[tuple[int, str], list[int]] = {}
    for table, branch in of_table.items():
        found.setdefault((branch.warps, branch.schedule if by_schedule else ""), []).append(table)
    return [tuple(found[key]) for key in sorted(found)]


def _lines(layout: Layout) -> np.ndarray[Any, np.dtype[np.int64]]:
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
