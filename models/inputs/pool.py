"""Distinct inputs in memory, shared by all engines: tasks are slices of them."""

# B items of an input, T tables, F dense features, M = B * T bags, L ids

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.batch import Batch
from models.embedding.offsets import starts_of

Tensors = list[Tensor] | Tensor  # one of each input, or stacked


class ItemPool:
    """`n_inputs` inputs of `max_items` items; `batch` slices one without copying.

    `ids`: (L,) rows of the buffer of all tables; `offsets`: (M + 1,); `dense`: (B, F); of each
    input. `fixed`: all bags have as many ids.
    """

    def __init__(
        self,
        max_items: int,
        n_tables: int,
        ids: Tensors,
        offsets: Tensors,
        dense: Tensors | None,
        *,
        fixed: bool,
    ) -> None:
        self.n_inputs = len(ids)
        self.max_items = max_items
        self._n_tables = n_tables
        self._ids = ids
        self._offsets = offsets
        self._dense = dense
        self._fixed = fixed

    def batch(self, input_id: int, first_item: int, n_items: int) -> Batch:
        """Items [first_item, first_item + n_items) of an input; raises IndexError outside of it."""
        end = first_item + n_items
        if not (0 <= first_item < end <= self.max_items and 0 <= input_id < self.n_inputs):
            raise IndexError(
                f"items {first_item}:{end} of input {input_id}: there are {self.n_inputs} inputs "
                f"of {self.max_items}"
            )
        dense_BF = None if self._dense is None else self._dense[input_id][first_item:end]
        offsets = self._offsets[input_id]
        first_bag = first_item * self._n_tables
        end_bag = end * self._n_tables
        first_id = offsets[first_bag]
        ids_L = self._ids[input_id][first_id : offsets[end_bag]]
        if self._fixed:
            offsets = offsets[: end_bag - first_bag + 1]
        else:
            offsets = offsets[first_bag : end_bag + 1] - first_id
        return Batch(n_items, dense_BF, ids_L, offsets)

    def gather(self, input_id: int, items_B: npt.NDArray[np.int32]) -> Batch:
        """Any items of an input in this order; raises IndexError outside of it."""
        n_items = len(items_B)
        if not (0 <= input_id < self.n_inputs and n_items):
            raise IndexError(
                f"{n_items} items of input {input_id}: there are {self.n_inputs} inputs"
            )
        chosen = torch.from_numpy(items_B.astype(np.int64))
        dense_BF = None if self._dense is None else self._dense[input_id].index_select(0, chosen)
        ids = self._ids[input_id]
        offsets = self._offsets[input_id]
        if self._fixed:
            ids_L = ids.view(self.max_items, -1).index_select(0, chosen).reshape(-1)
            return Batch(n_items, dense_BF, ids_L, offsets[: n_items * self._n_tables + 1])
        firsts_BT = offsets[:-1].view(self.max_items, -1).index_select(0, chosen).numpy()
        lengths_BT = torch.diff(offsets).view(self.max_items, -1).index_select(0, chosen).numpy()
        lengths_M = lengths_BT.reshape(-1)
        starts = starts_of(lengths_M)
        shift_L = np.repeat(firsts_BT.reshape(-1) - starts[:-1], lengths_M)
        places_L = torch.from_numpy(np.arange(starts[-1]) + shift_L)
        offsets = torch.from_numpy(starts.astype(np.int32))
        return Batch(n_items, dense_BF, ids.index_select(0, places_L), offsets)
