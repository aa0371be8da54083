"""Schedules made of PyTorch's operators.

Each is given some tables and writes their columns of the output.
"""

# B items, T tables, D width of a row, L ids, R rows, K ids of every bag

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from models.embedding.jagged import Bags
from models.embedding.plan.spec import Layout

Write = Callable[[Bags, Tensor], None]


class Tables:
    """Some tables of one width, as rows of one matrix."""

    def __init__(self, layout: Layout, weight_E: Tensor, tables: Sequence[int]) -> None:
        self.tables = tuple(tables)
        self.width = layout.specs[tables[0]].dim
        self.bag_ids = layout.specs[tables[0]].bag_ids
        self.rows = [layout.specs[table].rows for table in tables]
        n_rows = len(weight_E) // self.width
        self.weight_RD = weight_E[: n_rows * self.width].view(n_rows, self.width)
        firsts = [int(layout.elements_T[table]) // self.width for table in tables]
        self.low = [int(layout.first_ids_T[table]) for table in tables]
        self.shifts = [
            first - low for first, low in zip(firsts, self.low, strict=True)
        ]  # an id + this = a row
        self.first_rows = firsts
        self.columns = [int(layout.columns[table]) for table in tables]
        self._spans = list(_spans(self.columns, self.width))

    def own(self, place: int) -> Tensor:
        """The rows of one of the tables."""
        return self.weight_RD[self.first_rows[place] : self.first_rows[place] + self.rows[place]]

    def row_ids(self, bags: Bags) -> tuple[Tensor, Tensor]:
        """Rows of the matrix, table after table, and offsets of the bags."""
        ids, offsets = bags.of(self.tables)
        if len({*self.shifts}) == 1:
            return (ids + self.shifts[0] if self.shifts[0] else ids), offsets
        counts = torch.diff(offsets[:: bags.n_items]).long()
        wide = ids if max(self.shifts) + max(self.rows) < 2**31 else ids.long()
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


def _spans(columns: Sequence[int], width: int) -> list[tuple[int, int]]:
    """Runs of tables whose columns lie side by side."""
    edges = [
        0,
        *(i for i in range(1, len(columns)) if columns[i] != columns[i - 1] + width),
        len(columns),
    ]
    return list(itertools.pairwise(edges))


def _pooled(weight_RD: Tensor, ids: Tensor, offsets: Tensor) -> Tensor:
    return F.embedding_bag(ids, weight_RD, offsets, mode="sum", include_last_offset=True)


def per_table(own: Tables) -> Write:
    """One embedding_bag a table."""

    def run(bags: Bags, out_BC: Tensor) -> None:
        for place, table in enumerate(own.tables):
            ids, offsets = bags.of((table,))
            column = own.columns[place]
            low = own.low[place]
            out_BC[:, column : column + own.width] = _pooled(
                own.own(place), ids - low if low else ids, offsets
            )

    return run


def fused(own: Tables) -> Write:
    """One embedding_bag for all."""
    return lambda bags, out_BC: own.write(_pooled(own.weight_RD, *own.row_ids(bags)), out_BC)


def gather(own: Tables) -> Write:
    """One index_select for all; bags of one id."""
    return lambda bags, out_BC: own.write(
        own.weight_RD.index_select(0, own.row_ids(bags)[0]), out_BC
    )


def fixed_length(own: Tables) -> Write:
    """One embedding_bag of (bags, K) ids."""

    def run(bags: Bags, out_BC: Tensor) -> None:
        ids_MK = own.row_ids(bags)[0].view(-1, own.bag_ids or 1)
        own.write(F.embedding_bag(ids_MK, own.weight_RD, mode="sum"), out_BC)

    return run


def histogram(own: Tables) -> Write:
    """How often a bag has each row, times the rows."""

    def run(bags: Bags, out_BC: Tensor) -> None:
        for place, table in enumerate(own.tables):
            ids, offsets = bags.of((table,))
            n_rows = own.rows[place]
            n_bags = len(offsets) - 1
            bag = torch.repeat_interleave(torch.arange(n_bags), torch.diff(offsets).long())
            cells = bag * n_rows + (ids - own.low[place])
            counts_BR = (
                torch.bincount(cells, minlength=n_bags * n_rows).view(n_bags, n_rows).float()
            )
            column = own.columns[place]
            out_BC[:, column : column + own.width] = counts_BR @ own.own(place)

    return run


def dedup(own: Tables) -> Write:
    """Every distinct row read once into a small table, bags summed from there."""

    def run(bags: Bags, out_BC: Tensor) -> None:
        ids, offsets = own.row_ids(bags)
        distinct, place = torch.unique(ids, return_inverse=True)
        small_RD = own.weight_RD.index_select(0, distinct)
        if not len(small_RD):
            small_RD = own.weight_RD[:1]
        own.write(_pooled(small_RD, place, offsets.long()), out_BC)

    return run


WRITERS: dict[str, Callable[[Tables], Write]] = {
    "per_table": per_table,
    "fused": fused,
    "gather": gather,
    "fixed_length": fixed_length,
    "histogram": histogram,
    "dedup": dedup,
}
