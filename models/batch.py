"""What a model scores: dense features and jagged ids, items first."""

# B items, T tables, F dense features, L ids in all, M = B * T bags

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.embedding.offsets import Int64Array, starts_of


@dataclass(frozen=True, slots=True)
class Batch:
    """`dense_BF` float32 (None for nets that read none); `ids_L` and `offsets` int32.

    Bags lie item after item, and within an item table after table; bag m holds ids offsets[m] :
    offsets[m + 1], so the items of a query are neighbours in memory and a task is a slice. Ids are
    rows of the one buffer that holds all tables (a table's rows start at
    `EmbeddingTables.first_rows[t]`).
    """

    n_items: int
    dense_BF: Tensor | None
    ids_L: Tensor
    offsets: Tensor  # (M + 1,)

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device; from pinned memory without waiting for the copy."""
        dense_BF = None if self.dense_BF is None else self.dense_BF.to(device, non_blocking=True)
        ids_L = self.ids_L.to(device, non_blocking=True)
        return Batch(self.n_items, dense_BF, ids_L, self.offsets.to(device, non_blocking=True))

    @property
    def nbytes(self) -> int:
        """Bytes of all its tensors."""
        dense = 0 if self.dense_BF is None else self.dense_BF.nbytes
        return dense + self.ids_L.nbytes + self.offsets.nbytes

    def pinned(self) -> Batch:
        """A copy in page-locked memory, from which a GPU copies by itself."""
        dense_BF = None if self.dense_BF is None else self.dense_BF.pin_memory()
        return Batch(self.n_items, dense_BF, self.ids_L.pin_memory(), self.offsets.pin_memory())


class Staging:
    """Host buffers from which a GPU copies by itself; allocated once, filled for every batch.

    `like` gives the dtypes and the dense width, `n_bytes` the room in each buffer. Raises
    ValueError if a batch is larger.
    """

    def __init__(self, like: Batch, n_bytes: float, *, pinned: bool) -> None:
        n = int(n_bytes) // 4 + like.n_items + 1
        self._ids = torch.empty(n, dtype=like.ids_L.dtype, pin_memory=pinned)
        self._offsets = torch.empty(n, dtype=like.offsets.dtype, pin_memory=pinned)
        self._dense: Tensor | None = None
        if like.dense_BF is not None:
            width = like.dense_BF.shape[1]
            shape = (n // width + 1, width)
            self._dense = torch.empty(shape, dtype=like.dense_BF.dtype, pin_memory=pinned)

    def fill(self, parts: Sequence[Batch]) -> Batch:
        """The parts' items one after the other, in the buffers; valid until the next call."""
        if sum(len(part.ids_L) for part in parts) > len(self._ids):
            raise ValueError("the batches do not fit the staging buffers")
        n_ids = n_bags = n_items = 0
        for part in parts:
            end_id = n_ids + len(part.ids_L)
            end_bag = n_bags + len(part.offsets) - 1
            end_item = n_items + part.n_items
            self._ids[n_ids:end_id] = part.ids_L
            self._offsets[n_bags : end_bag + 1] = part.offsets + n_ids
            if self._dense is not None and part.dense_BF is not None:
                self._dense[n_items:end_item] = part.dense_BF
            n_ids = end_id
            n_bags = end_bag
            n_items = end_item
        dense_BF = None if self._dense is None else self._dense[:n_items]
        return Batch(n_items, dense_BF, self._ids[:n_ids], self._offsets[: n_bags + 1])


def first_rows(table_rows: Sequence[int]) -> Int64Array:
    """(T + 1,): where each table's rows start in the buffer of all tables; the last = all rows."""
    return starts_of(table_rows)


def from_tables(
    dense_BF: npt.NDArray[np.float32] | None,
    ids_TL: Sequence[Int64Array],
    lengths_TB: Int64Array,
    table_rows: Sequence[int],
) -> Batch:
    """Batch from table-major ids: an array a table, sample after sample, from 0 on."""
    starts = first_rows(table_rows)
    n_tables, n_items = lengths_TB.shape
    bags = [
        np.split(ids, np.cumsum(lengths)[:-1])
        for ids, lengths in zip(ids_TL, lengths_TB, strict=True)
    ]
    ids_L = np.concatenate(
        [bags[t][b] + starts[t] for b in range(n_items) for t in range(n_tables)]
    )
    offsets = starts_of(lengths_TB.T.reshape(-1))
    dense = None if dense_BF is None else np.ascontiguousarray(dense_BF, dtype=np.float32)
    return Batch(
        n_items,
        None if dense is None else torch.from_numpy(dense),
        torch.from_numpy(ids_L.astype(np.int32)),
        torch.from_numpy(offsets.astype(np.int32)),
    )
