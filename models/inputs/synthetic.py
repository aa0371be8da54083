"""Random inputs: dense features uniform in [0, 1), ids uniform over a table's rows, prefix slices for tasks."""

# N inputs, B items of an input, T tables, F dense features, K ids a bag

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby

import numpy as np
import numpy.typing as npt
import torch

from infra.config import ModelConfig
from infra.rng import stream
from models.batch import Batch, first_rows

Int32Array = npt.NDArray[np.int32]
_ITEMS_A_CHUNK = 128


def draw_distinct(n_rows: int, bag_ids: int, n_bags: int, rng: np.random.Generator) -> Int32Array:
    """(n_bags, bag_ids) int32: in each bag an ascending, uniformly drawn set of different ids below n_rows.

    Bags are drawn with repetition; ids that repeat inside a bag are drawn anew until none does. Neither step tells one
    id from another, so every set is equally likely. Of a bag with most of the rows the missing ids are drawn.
    Raises ValueError if a bag has more ids than there are rows.
    """
    if bag_ids > n_rows:
        raise ValueError(f"a bag of {bag_ids} different ids does not fit a table of {n_rows} rows")
    if 2 * bag_ids > n_rows:
        present = np.ones((n_bags, n_rows), dtype=bool)
        np.put_along_axis(present, draw_distinct(n_rows, n_rows - bag_ids, n_bags, rng), values=False, axis=1)
        return np.nonzero(present)[1].reshape(n_bags, bag_ids).astype(np.int32)
    ids = rng.integers(0, n_rows, (n_bags, bag_ids), dtype=np.int32)
    if bag_ids < 2:
        return ids
    ids.sort(axis=1)
    bad = np.flatnonzero((ids[:, 1:] == ids[:, :-1]).any(axis=1))
    while len(bad):
        bags = ids[bad]
        repeats = np.zeros(bags.shape, dtype=bool)
        repeats[:, 1:] = bags[:, 1:] == bags[:, :-1]
        bags[repeats] = rng.integers(0, n_rows, int(repeats.sum()), dtype=np.int32)
        bags.sort(axis=1)
        ids[bad] = bags
        bad = bad[(bags[:, 1:] == bags[:, :-1]).any(axis=1)]
    return ids


class InputPool:
    """The distinct inputs of a run, each of `max_items` items, shared by all engines; `batch` slices without copying.

    With a fixed pooling factor the ids of a bag all differ; otherwise a bag has 1..K ids, drawn independently.
    """

    def __init__(
        self, config: ModelConfig, n_inputs: int, max_items: int, seed: int,
        on_progress: Callable[[float], None] | None = None,
    ) -> None:  # fmt: skip
        self.n_inputs, self.max_items = n_inputs, max_items
        self._n_tables = len(config.table_rows)
        self._fixed = config.num_indices_per_lookup_fixed
        self._dense, self._ids, self._offsets = [], [], []
        bags = max_items * self._n_tables
        shared = torch.arange(bags + 1, dtype=torch.int32) * config.num_indices_per_lookup
        for i in range(n_inputs):
            rng = stream(seed, "dense", i)
            dense = rng.random((max_items, config.dense_width), dtype=np.float32)
            self._dense.append(torch.from_numpy(dense) if config.dense_width else None)
            ids, offsets = _draw_ids(config, max_items, stream(seed, "ids", i))
            self._ids.append(torch.from_numpy(ids))
            self._offsets.append(shared if offsets is None else torch.from_numpy(offsets))
            if on_progress is not None:
                on_progress((i + 1) / n_inputs)

    def batch(self, input_id: int, first_item: int, n_items: int) -> Batch:
        """Items [first_item, first_item + n_items) of an input; raises IndexError outside of it."""
        end = first_item + n_items
        if not (0 <= first_item < end <= self.max_items and 0 <= input_id < self.n_inputs):
            raise IndexError(
                f"items {first_item}:{end} of input {input_id}: there are {self.n_inputs} inputs of {self.max_items}"
            )
        dense, offsets = self._dense[input_id], self._offsets[input_id]
        first_bag, end_bag = first_item * self._n_tables, end * self._n_tables
        first_id, end_id = offsets[first_bag], offsets[end_bag]
        own_offsets = offsets[: end_bag - first_bag + 1] if self._fixed else offsets[first_bag : end_bag + 1] - first_id
        return Batch(
            n_items,
            None if dense is None else dense[first_item:end],
            self._ids[input_id][first_id:end_id],
            own_offsets,
        )


def _draw_ids(config: ModelConfig, n_items: int, rng: np.random.Generator) -> tuple[Int32Array, Int32Array | None]:
    """Ids of one input (rows of the buffer of all tables) and, where bags differ in length, their offsets."""
    rows, bag_ids = config.table_rows, config.num_indices_per_lookup
    starts = first_rows(rows)
    n_tables = len(rows)
    if config.num_indices_per_lookup_fixed:
        ids_BTK = np.empty((n_items, n_tables, bag_ids), dtype=np.int32)
        runs = [(n_rows, [t for t, _ in run]) for n_rows, run in groupby(enumerate(rows), key=lambda pair: pair[1])]
        for first in range(0, n_items, _ITEMS_A_CHUNK):  # chunks stay in cache
            part = ids_BTK[first : first + _ITEMS_A_CHUNK]
            for n_rows, tables in runs:
                drawn = draw_distinct(n_rows, bag_ids, len(part) * len(tables), rng)
                offset_T1 = starts[tables].astype(np.int32)[:, None]
                np.add(
                    drawn.reshape(len(part), len(tables), bag_ids), offset_T1, out=part[:, tables[0] : tables[-1] + 1]
                )
        return ids_BTK.reshape(-1), None
    lengths_BT = rng.integers(1, bag_ids + 1, (n_items, n_tables))
    offsets = np.concatenate(([0], np.cumsum(lengths_BT.reshape(-1)))).astype(np.int32)
    tables_L = np.repeat(np.tile(np.arange(n_tables), n_items), lengths_BT.reshape(-1))
    ids_L = starts[tables_L] + rng.integers(0, np.asarray(rows)[tables_L])
    return ids_L.astype(np.int32), offsets
