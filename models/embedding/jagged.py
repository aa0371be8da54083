"""Jagged ids of many tables, in either order."""

# B items, T tables, L ids

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


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
        if self.ids_L.dtype != self.offsets.dtype or self.ids_L.dtype not in (
            torch.int32,
            torch.int64,
        ):
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

    def of(self, tables: Sequence[int]) -> tuple[Tensor, Tensor]:
        """(ids, offsets) of some tables, table after table, offsets from 0; neighbours in memory
        are not copied.
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
        starts = self.offsets[bag]
        lengths = self.offsets[bag + 1] - self.offsets[bag]
        offsets = torch.cat((lengths.new_zeros(1), torch.cumsum(lengths, 0, dtype=lengths.dtype)))
        shift = torch.repeat_interleave(starts - offsets[:-1], lengths.long())
        place = shift + torch.arange(int(offsets[-1]), device=device)
        return self.ids_L[place], offsets
