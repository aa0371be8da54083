"""Jagged ids of many tables, in either order, and the sum of their rows by PyTorch."""

# B items, T tables, L ids, M bags, R rows, D width of a row

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

INDEX_TYPES = (torch.int32, torch.int64)


def sum_bags(weight_RD: Tensor, ids_L: Tensor, offsets: Tensor) -> Tensor:
    """(M, D): each bag's rows summed; bag m holds ids_L[offsets[m] : offsets[m + 1]]."""
    return F.embedding_bag(ids_L, weight_RD, offsets, mode="sum", include_last_offset=True)


def offsets_of(lengths_M: Tensor) -> Tensor:
    """(M + 1,): where bags of these lengths begin; the last number is their end."""
    ends_M = torch.cumsum(lengths_M, 0, dtype=lengths_M.dtype)
    return torch.cat((lengths_M.new_zeros(1), ends_M))


def lengths_of(offsets: Tensor, n_tables: int, *, item_major: bool) -> Tensor:
    """(T, B): ids of each table's and item's bag."""
    lengths_M = torch.diff(offsets)
    return lengths_M.view(-1, n_tables).T if item_major else lengths_M.view(n_tables, -1)


def picked(ids_L: Tensor, starts_M: Tensor, lengths_M: Tensor) -> tuple[Tensor, Tensor]:
    """(ids, offsets) of bags that begin at `starts_M`, one behind the other."""
    offsets = offsets_of(lengths_M)
    shift_L = torch.repeat_interleave(starts_M - offsets[:-1], lengths_M.long())
    return ids_L[shift_L + torch.arange(int(offsets[-1]), device=ids_L.device)], offsets


class Bags:
    """Ids of B items in T tables; bag m holds ids_L[offsets[m] : offsets[m + 1]].

    The bag of table t and item b is t * B + b, or b * T + t if `item_major`. A plain class: every
    batch makes one.
    """

    __slots__ = ("ids_L", "item_major", "n_items", "n_tables", "offsets")

    def __init__(
        self, ids_L: Tensor, offsets: Tensor, n_tables: int, item_major: bool = False
    ) -> None:
        self.ids_L = ids_L
        self.offsets = offsets
        self.n_tables = n_tables
        self.item_major = item_major
        self.n_items = (offsets.shape[0] - 1) // n_tables if n_tables else 0

    def check(self) -> Bags:
        """Itself; raises ValueError if the tensors are not what the look-ups read."""
        if self.offsets.shape != (self.n_tables * self.n_items + 1,) or self.ids_L.dim() != 1:
            raise ValueError(
                f"offsets {tuple(self.offsets.shape)} for {self.n_tables} tables; expected tables "
                "x items + 1 of them"
            )
        if self.ids_L.dtype != self.offsets.dtype or self.ids_L.dtype not in INDEX_TYPES:
            raise ValueError(
                f"ids are {self.ids_L.dtype}, offsets {self.offsets.dtype}; expected both int32 "
                "or both int64"
            )
        if not (self.ids_L.is_contiguous() and self.offsets.is_contiguous()):
            raise ValueError("ids or offsets have gaps in memory; pass them contiguous()")
        return self

    @property
    def table_step(self) -> int:
        """Bags from one table to the next."""
        return 1 if self.item_major else self.n_items

    @property
    def item_step(self) -> int:
        """Bags from one item to the next."""
        return self.n_tables if self.item_major else 1

    def lengths(self) -> Tensor:
        """(T, B): ids of each table's and item's bag."""
        return lengths_of(self.offsets, self.n_tables, item_major=self.item_major)

    def of(self, tables: Sequence[int]) -> tuple[Tensor, Tensor]:
        """(ids, offsets) of some tables, table after table, offsets from 0 on.

        Neighbours in memory are not copied.
        """
        n_items = self.n_items
        if not self.item_major and list(tables) == list(range(tables[0], tables[0] + len(tables))):
            offsets = self.offsets[tables[0] * n_items : (tables[-1] + 1) * n_items + 1]
            first = int(offsets[0])
            end = int(offsets[-1])
            return self.ids_L[first:end], offsets - first if first else offsets
        device = self.offsets.device
        items = torch.arange(n_items, device=device) * self.item_step
        bag = (torch.tensor(tables, device=device)[:, None] * self.table_step + items).reshape(-1)
        starts_M = self.offsets[bag]
        return picked(self.ids_L, starts_M, self.offsets[bag + 1] - starts_M)
