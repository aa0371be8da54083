"""What a model scores: dense features and jagged ids, items first."""

# B items, T tables, F dense features, L ids in all, M = B * T bags

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """`dense_BF` float32 (None for nets that read none); `ids_L` and `offsets` int32.

    Bags lie item after item, and within an item table after table; bag m holds ids offsets[m] : offsets[m + 1], so the
    items of a query are neighbours in memory and a task is a slice. Ids are rows of the one buffer that holds all
    tables (a table's rows start at `EmbeddingTables.first_rows[t]`).
    """

    n_items: int
    dense_BF: Tensor | None
    ids_L: Tensor
    offsets: Tensor  # (M + 1,)

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device; from pinned memory without waiting for the copy."""
        dense_BF = None if self.dense_BF is None else self.dense_BF.to(device, non_blocking=True)
        ids_L, offsets = (tensor.to(device, non_blocking=True) for tensor in (self.ids_L, self.offsets))
        return Batch(self.n_items, dense_BF, ids_L, offsets)

    def pinned(self) -> Batch:
        """A copy in page-locked memory, from which a GPU copies by itself."""
        dense_BF = None if self.dense_BF is None else self.dense_BF.pin_memory()
        return Batch(self.n_items, dense_BF, self.ids_L.pin_memory(), self.offsets.pin_memory())


def first_rows(table_rows: Sequence[int]) -> npt.NDArray[np.int64]:
    """Where each table's rows start in the buffer of all tables; (T + 1,), the last = rows in all."""
    return np.concatenate(([0], np.cumsum(table_rows))).astype(np.int64)


def from_tables(
    dense_BF: npt.NDArray[np.float32] | None, ids_TL: Sequence[npt.NDArray[np.int64]],
    lengths_TB: npt.NDArray[np.int64], table_rows: Sequence[int],
) -> Batch:  # fmt: skip
    """Batch from table-major ids (one array a table, sample after sample, counted from the table's first row)."""
    starts = first_rows(table_rows)
    n_tables, n_items = lengths_TB.shape
    bags = [np.split(ids, np.cumsum(lengths)[:-1]) for ids, lengths in zip(ids_TL, lengths_TB, strict=True)]
    ids_L = np.concatenate([bags[t][b] + starts[t] for b in range(n_items) for t in range(n_tables)])
    offsets = np.concatenate(([0], np.cumsum(lengths_TB.T.reshape(-1))))
    return Batch(
        n_items,
        None if dense_BF is None else torch.from_numpy(np.ascontiguousarray(dense_BF, dtype=np.float32)),
        torch.from_numpy(ids_L.astype(np.int32)),
        torch.from_numpy(offsets.astype(np.int32)),
    )
