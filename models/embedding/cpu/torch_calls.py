"""Schedules made of PyTorch's operators.

Each takes some tables and writes their columns of the output.
"""

# B items, T tables, D width of a row, L ids, M bags, R rows, K ids of every bag, C columns

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from models.embedding.backend import Run
from models.embedding.jagged import Bags, sum_bags
from models.embedding.plan.spec import Layout


class Matrix:
    """Some tables of one width, as rows of one matrix."""

    def __init__(self, layout: Layout, weight_E: Tensor, tables: Sequence[int]) -> None:
        self.tables = tuple(tables)
        self.width = layout.specs[tables[0]].dim
        self.bag_ids = layout.specs[tables[0]].bag_ids
        n_rows = len(weight_E) // self.width
        self.weight_RD = weight_E[: n_rows * self.width].view(n_rows, self.width)
        self.rows = [layout.rows_of(table, weight_E) for table in tables]
        self.low = [int(layout.first_ids_T[table]) for table in tables]
        self.columns = [int(layout.columns[table]) for table in tables]
        first_rows = [int(layout.elements_T[table]) // self.width for table in tables]
        # an id + this = a row
        self.shifts = [first - low for first, low in zip(first_rows, self.low, strict=True)]
        self._most_row = max(self.shifts) + max(map(len, self.rows))
        self._spans = _spans(self.columns, self.width)

    def row_ids(self, bags: Bags) -> tuple[Tensor, Tensor]:
        """Rows of the matrix, table after table, and offsets of the bags."""
        ids, offsets = bags.of(self.tables)
        if len({*self.shifts}) == 1:
            return (ids + self.shifts[0] if self.shifts[0] else ids), offsets
        counts = torch.diff(offsets[:: bags.n_items]).long()
        wide = ids if self._most_row < 2**31 else ids.long()
        shifts = torch.tensor(self.shifts, dtype=wide.dtype)
        return wide + torch.repeat_interleave(shifts, counts), offsets.to(wide.dtype)

    def write(self, pooled_MD: Tensor, out_BC: Tensor) -> None:
        """Bags' sums, table after table, to the tables' columns."""
        pooled_TBD = pooled_MD.view(len(self.tables), -1, self.width)
        for first, end in self._spans:
            column = self.columns[first]
            n = end - first
            target = out_BC[:, column : column + n * self.width]
            target.view(-1, n, self.width).copy_(pooled_TBD[first:end].transpose(0, 1))

    def one_by_one(self, bags: Bags, out_BC: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Of each table: its rows, its ids from 0 on, offsets, and its columns of the output."""
        for table, rows_RD, low, column in zip(
            self.tables, self.rows, self.low, self.columns, strict=True
        ):
            ids, offsets = bags.of((table,))
            out_BD = out_BC[:, column : column + self.width]
            yield rows_RD, ids - low if low else ids, offsets, out_BD


def _spans(columns: Sequence[int], width: int) -> list[tuple[int, int]]:
    """Runs of tables whose columns lie side by side."""
    starts = [i for i in range(1, len(columns)) if columns[i] != columns[i - 1] + width]
    return list(itertools.pairwise([0, *starts, len(columns)]))


def per_table(matrix: Matrix) -> Run:
    """One embedding_bag a table."""

    def run(bags: Bags, out_BC: Tensor) -> None:
        for rows_RD, ids, offsets, out_BD in matrix.one_by_one(bags, out_BC):
            out_BD.copy_(sum_bags(rows_RD, ids, offsets))

    return run


def fused(matrix: Matrix) -> Run:
    """One embedding_bag for all."""
    return lambda bags, out_BC: matrix.write(
        sum_bags(matrix.weight_RD, *matrix.row_ids(bags)), out_BC
    )


def gather(matrix: Matrix) -> Run:
    """One index_select for all; bags of one id."""
    return lambda bags, out_BC: matrix.write(
        matrix.weight_RD.index_select(0, matrix.row_ids(bags)[0]), out_BC
    )


def fixed_length(matrix: Matrix) -> Run:
    """One embedding_bag of (bags, K) ids."""

    def run(bags: Bags, out_BC: Tensor) -> None:
        ids_MK = matrix.row_ids(bags)[0].view(-1, matrix.bag_ids or 1)
        matrix.write(F.embedding_bag(ids_MK, matrix.weight_RD, mode="sum"), out_BC)

    return run


def histogram(matrix: Matrix) -> Run:
    """How often a bag has each row, times the rows."""

    def run(bags: Bags, out_BC: Tensor) -> None:
        items = torch.arange(bags.n_items)
        for rows_RD, ids, offsets, out_BD in matrix.one_by_one(bags, out_BC):
            n_rows = len(rows_RD)
            bag = torch.repeat_interleave(items, torch.diff(offsets).long())
            counts = torch.bincount(bag * n_rows + ids, minlength=bags.n_items * n_rows)
            out_BD.copy_(counts.view(bags.n_items, n_rows).float() @ rows_RD)

    return run


def dedup(matrix: Matrix) -> Run:
    """Every distinct row read once into a small table, bags summed from there."""

    def run(bags: Bags, out_BC: Tensor) -> None:
        ids, offsets = matrix.row_ids(bags)
        distinct, place = torch.unique(ids, return_inverse=True)
        small_RD = matrix.weight_RD.index_select(0, distinct)
        if not len(small_RD):
            small_RD = matrix.weight_RD[:1]
        matrix.write(sum_bags(small_RD, place, offsets.long()), out_BC)

    return run


WRITERS: dict[str, Callable[[Matrix], Run]] = {
    "per_table": per_table,
    "fused": fused,
    "gather": gather,
    "fixed_length": fixed_length,
    "histogram": histogram,
    "dedup": dedup,
}
