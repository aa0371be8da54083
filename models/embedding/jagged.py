"""Jagged ids of many tables, in either order."""

# B items, T tables, L ids

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Bags:
    """Ids of B items in T tables; bag m holds ids_L[offsets[m] : offsets[m + 1]].

    The bag of table t and item b is t * B + b, or b * T + t if `item_major`. Dense, both int32 or both int64.
    """

    ids_L: Tensor
    offsets: Tensor  # (T * B + 1,)
    n_tables: int
    item_major: bool = False

    def __post_init__(self) -> None:
        n_bags = len(self.offsets) - 1
        if n_bags < 0 or (n_bags and not self.n_tables) or (self.n_tables and n_bags % self.n_tables):
            raise ValueError(f"{len(self.offsets)} offsets for {self.n_tables} tables; expected tables x items + 1")
        if self.ids_L.dtype != self.offsets.dtype or self.ids_L.dtype not in (torch.int32, torch.int64):
            raise ValueError(
                f"ids are {self.ids_L.dtype}, offsets {self.offsets.dtype}; expected both int32 or both int64"
            )
        if not (self.ids_L.is_contiguous() and self.offsets.is_contiguous()):
            raise ValueError("ids or offsets have gaps in memory; pass them contiguous()")

    @property
    def n_items(self) -> int:
        """B."""
        return (len(self.offsets) - 1) // self.n_tables if self.n_tables else 0

    @property
    def table_step(self) -> int:
        """Bags from one table to the next."""
        return 1 if self.item_major else self.n_items

    @property
    def item_step(self) -> int:
        """Bags from one item to the next."""
        return self.n_tables if self.item_major else 1

    def of(self, tables: Sequence[int]) -> tuple[Tensor, Tensor]:
        """(ids, offsets) of some tables, table after table, offsets from 0; neighbours in memory are not copied."""
        n_items = self.n_items
        if not self.item_major and list(tables) == list(range(tables[0], tables[0] + len(tables))):
            offsets = self.offsets[tables[0] * n_items : (tables[-1] + 1) * n_items + 1]
            first, end = int(offsets[0]), int(offsets[-1])
            return self.ids_L[first:end], offsets - first if first else offsets
        items = torch.arange(n_items) * self.item_step
        bag = (torch.tensor(tables)[:, None] * self.table_step + items).reshape(-1)
        starts, lengths = self.offsets[bag], self.offsets[bag + 1] - self.offsets[bag]
        offsets = torch.cat((lengths.new_zeros(1), torch.cumsum(lengths, 0, dtype=lengths.dtype)))
        place = torch.repeat_interleave(starts - offsets[:-1], lengths.long()) + torch.arange(int(offsets[-1]))
        return self.ids_L[place], offsets
