"""Inputs in memory: dense features uniform in [0, 1), ids uniform over a table's rows or from a
source.
"""

# N inputs, B items of an input, T tables, F dense features, K ids a bag

from __future__ import annotations

import itertools
from collections.abc import Callable
from itertools import groupby

import numpy as np
import numpy.typing as npt
import torch

from infra.rng import stream
from infra.settings.config import ModelConfig, RunConfig
from models.batch import Batch, first_rows
from models.inputs.sources import Source, source_of

Int32Array = npt.NDArray[np.int32]
_ITEMS_A_CHUNK = 128


def draw_distinct(n_rows: int, bag_ids: int, n_bags: int, rng: np.random.Generator) -> Int32Array:
    """(n_bags, bag_ids) int32: in each bag an ascending, uniformly drawn set of different ids below
    n_rows.

    Bags are drawn with repetition; ids that repeat inside a bag are drawn anew until none does.
    Neither step tells one id from another, so every set is equally likely. Of a bag with most of
    the rows the missing ids are drawn. Raises ValueError if a bag has more ids than there are rows.
    """
    if bag_ids > n_rows:
        raise ValueError(f"a bag of {bag_ids} different ids does not fit a table of {n_rows} rows")
    if 2 * bag_ids > n_rows:
        present = np.ones((n_bags, n_rows), dtype=bool)
        np.put_along_axis(
            present, draw_distinct(n_rows, n_rows - bag_ids, n_bags, rng), values=False, axis=1
        )
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
    """The distinct inputs of a run, each of `max_items` items, shared by all engines; `batch`
    slices without copying.

    With a fixed pooling factor the uniformly drawn ids of a bag all differ; otherwise a bag has
    1..K ids, drawn independently. A `source` gives ids with locality instead, and may give dense
    features (models/inputs/sources.py).
    """

    def __init__(
        self,
        config: ModelConfig,
        n_inputs: int,
        max_items: int,
        seed: int,
        on_progress: Callable[[float], None] | None = None,
        source: Source | None = None,
    ) -> None:
        self.n_inputs = n_inputs
        self.max_items = max_items
        self._n_tables = len(config.table_rows)
        self._fixed = config.num_indices_per_lookup_fixed
        self._dense = []
        self._ids = []
        self._offsets = []
        bags = max_items * self._n_tables
        shared = torch.arange(bags + 1, dtype=torch.int32) * config.num_indices_per_lookup
        given = (
            None
            if source is None
            else _ids_of_source(source, config, n_inputs, max_items, seed, on_progress)
        )
        own_dense = None if source is None else source.dense(n_inputs * max_items)
        for i in range(n_inputs):
            dense = stream(seed, "dense", i).random(
                (max_items, config.dense_width), dtype=np.float32
            )
            if own_dense is not None:
                dense = own_dense[i * max_items : (i + 1) * max_items]
            self._dense.append(torch.from_numpy(dense) if config.dense_width else None)
            ids, offsets = (
                _draw_ids(config, max_items, stream(seed, "ids", i)) if given is None else given[i]
            )
            self._ids.append(torch.from_numpy(ids))
            self._offsets.append(shared if offsets is None else torch.from_numpy(offsets))
            if on_progress is not None and given is None:
                on_progress((i + 1) / n_inputs)

    @classmethod
    def of(cls, config: RunConfig, on_progress: Callable[[float], None] | None = None) -> InputPool:
        """The inputs that a run's settings ask for; raises ConfigError if a file of ids cannot be
        used.
        """
        n_inputs = config.inputs.num_batches
        max_items = config.inputs.max_mini_batch_size
        source = source_of(config.model, config.inputs)
        source_of.cache_clear()
        return cls(
            config.model, n_inputs, max_items, config.inputs.numpy_rand_seed, on_progress, source
        )

    def batch(self, input_id: int, first_item: int, n_items: int) -> Batch:
        """Items [first_item, first_item + n_items) of an input; raises IndexError outside of it."""
        end = first_item + n_items
        if not (0 <= first_item < end <= self.max_items and 0 <= input_id < self.n_inputs):
            raise IndexError(
                f"items {first_item}:{end} of input {input_id}: there are {self.n_inputs} inputs "
                f"of {self.max_items}"
            )
        dense = self._dense[input_id]
        offsets = self._offsets[input_id]
        first_bag = first_item * self._n_tables
        end_bag = end * self._n_tables
        first_id = offsets[first_bag]
        end_id = offsets[end_bag]
        own_offsets = (
            offsets[: end_bag - first_bag + 1]
            if self._fixed
            else offsets[first_bag : end_bag + 1] - first_id
        )
        return Batch(
            n_items,
            None if dense is None else dense[first_item:end],
            self._ids[input_id][first_id:end_id],
            own_offsets,
        )

    def gather(self, input_id: int, items_B: npt.NDArray[np.int32]) -> Batch:
        """Any items of an input in the order given; raises IndexError outside of it."""
        if not (0 <= input_id < self.n_inputs and len(items_B)):
            raise IndexError(
                f"{len(items_B)} items of input {input_id}: there are {self.n_inputs} inputs"
            )
        chosen = torch.from_numpy(items_B.astype(np.int64))
        dense = self._dense[input_id]
        dense_BF = None if dense is None else dense.index_select(0, chosen)
        ids = self._ids[input_id]
        offsets = self._offsets[input_id]
        if self._fixed:
            ids_L = ids.view(self.max_items, -1).index_select(0, chosen).reshape(-1)
            return Batch(
                len(items_B), dense_BF, ids_L, offsets[: len(items_B) * self._n_tables + 1]
            )
        ends_BT = offsets[1:].view(self.max_items, -1).index_select(0, chosen).numpy()
        lengths_BT = torch.diff(offsets).view(self.max_items, -1).index_select(0, chosen).numpy()
        own = np.concatenate(([0], np.cumsum(lengths_BT.reshape(-1))))
        first_M = (ends_BT - lengths_BT).reshape(-1)
        places_L = np.arange(own[-1]) + np.repeat(first_M - own[:-1], lengths_BT.reshape(-1))
        return Batch(
            len(items_B),
            dense_BF,
            ids.index_select(0, torch.from_numpy(places_L)),
            torch.from_numpy(own.astype(np.int32)),
        )


def _draw_ids(
    config: ModelConfig, n_items: int, rng: np.random.Generator
) -> tuple[Int32Array, Int32Array | None]:
    """Ids of one input (rows of the buffer of all tables) and, where bags differ in length, their
    offsets.
    """
    rows = config.table_rows
    bag_ids = config.num_indices_per_lookup
    starts = first_rows(rows)
    n_tables = len(rows)
    if config.num_indices_per_lookup_fixed:
        ids_BTK = np.empty((n_items, n_tables, bag_ids), dtype=np.int32)
        runs = [
            (n_rows, [t for t, _ in run])
            for n_rows, run in groupby(enumerate(rows), key=lambda pair: pair[1])
        ]
        for first in range(0, n_items, _ITEMS_A_CHUNK):  # chunks stay in cache
            part = ids_BTK[first : first + _ITEMS_A_CHUNK]
            for n_rows, tables in runs:
                drawn = draw_distinct(n_rows, bag_ids, len(part) * len(tables), rng)
                offset_T1 = starts[tables].astype(np.int32)[:, None]
                np.add(
                    drawn.reshape(len(part), len(tables), bag_ids),
                    offset_T1,
                    out=part[:, tables[0] : tables[-1] + 1],
                )
        return ids_BTK.reshape(-1), None
    lengths_BT = rng.integers(1, bag_ids + 1, (n_items, n_tables))
    offsets = np.concatenate(([0], np.cumsum(lengths_BT.reshape(-1)))).astype(np.int32)
    tables_L = np.repeat(np.tile(np.arange(n_tables), n_items), lengths_BT.reshape(-1))
    ids_L = starts[tables_L] + rng.integers(0, np.asarray(rows)[tables_L])
    return ids_L.astype(np.int32), offsets


def _ids_of_source(
    source: Source,
    config: ModelConfig,
    n_inputs: int,
    n_items: int,
    seed: int,
    on_progress: Callable[[float], None] | None,
) -> list[tuple[Int32Array, Int32Array | None]]:
    """What `_draw_ids` gives, for all inputs: every table is one stream through them, so tables are
    the outer loop.
    """
    starts = first_rows(config.table_rows)
    n_tables = len(config.table_rows)
    shape = (n_inputs, n_items, n_tables)
    fixed = config.num_indices_per_lookup_fixed
    bag_ids = config.num_indices_per_lookup
    lengths_NBT = (
        stream(seed, "bags").integers(1, bag_ids + 1, shape)
        if not fixed
        else np.full(shape, bag_ids)
    )
    ends = np.cumsum(lengths_NBT.reshape(-1))
    ids_L = np.empty(ends[-1], dtype=np.int32)
    for t in range(n_tables):
        lengths = lengths_NBT[:, :, t].reshape(-1)
        ids = source.table_ids(t, lengths)
        begins = ends[t::n_tables] - lengths
        within = np.arange(len(ids)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        ids_L[np.repeat(begins, lengths) + within] = ids + starts[t]
        if on_progress is not None:
            on_progress((t + 1) / n_tables)
    inputs: list[tuple[Int32Array, Int32Array | None]] = []
    per_input = np.concatenate(([0], ends[n_items * n_tables - 1 :: n_items * n_tables]))
    for i, (begin, end) in enumerate(itertools.pairwise(per_input)):
        offsets = np.concatenate(([0], np.cumsum(lengths_NBT[i].reshape(-1)))).astype(np.int32)
        inputs.append((ids_L[begin:end], None if fixed else offsets))
    return inputs
