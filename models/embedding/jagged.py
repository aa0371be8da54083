"""Jagged ids of many tables, in either order."""

# B items, T tables, L ids

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Bags:
    """Ids of B items in T tables; bag m holds ids_L[offsets[m] : offsets[m + 1]].

    The bag of table t and item b is t * B + b, or b * T + t if `item_major`. int32 or int64.
    """

    ids_L: Tensor
    offsets: Tensor  # (T * B + 1,)
    n_tables: int
    item_major: bool = False

    def __post_init__(self) -> None:
        n_bags = len(self.offsets) - 1
        if n_bags < 0 or (n_bags and not self.n_tables) or (self.n_tables and n_bags % self.n_tables):
            raise ValueError(f"{len(self.offsets)} offsets for {self.n_tables} tables; expected tables x items + 1")

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
