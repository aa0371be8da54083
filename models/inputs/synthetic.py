"""Inputs in memory: dense features uniform in [0, 1), ids uniform over a table's rows or drawn."""

# N inputs, B items of an input, T tables, F dense features, K ids a bag, L ids

from __future__ import annotations

import itertools
from collections.abc import Callable
from itertools import groupby

import numpy as np
import numpy.typing as npt
import torch

from infra.rng import stream
from infra.settings.config import ModelConfig, RunConfig
from models.batch import first_rows
from models.embedding.offsets import starts_of
from models.inputs.pool import ItemPool
from models.inputs.sources import Source, source_of

Int32Array = npt.NDArray[np.int32]
Drawn = tuple[Int32Array, Int32Array | None]  # ids of an input, offsets where bags differ
OnProgress = Callable[[float], None]
_ITEMS_A_CHUNK = 128


def draw_distinct(n_rows: int, bag_ids: int, n_bags: int, rng: np.random.Generator) -> Int32Array:
    """(n_bags, bag_ids) int32: in each bag an ascending, uniform set of different ids below n_rows.

    Bags are drawn with repetition; ids that repeat inside a bag are drawn anew until none does.
    Neither step tells one id from another, so every set is equally likely. Of a bag with most of
    the rows the missing ids are drawn. Raises ValueError if a bag has more ids than there are rows.
    """
    if bag_ids > n_rows:
        raise ValueError(f"a bag of {bag_ids} different ids does not fit a table of {n_rows} rows")
    if 2 * bag_ids > n_rows:
        present = np.ones((n_bags, n_rows), dtype=bool)
        missing = draw_distinct(n_rows, n_rows - bag_ids, n_bags, rng)
        np.put_along_axis(present, missing, values=False, axis=1)
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


class InputPool(ItemPool):
    """The distinct inputs of a run, drawn from its seed.

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
        on_progress: OnProgress | None = None,
        source: Source | None = None,
    ) -> None:
        n_tables = len(config.table_rows)
        bags = torch.arange(max_items * n_tables + 1, dtype=torch.int32)
        shared = bags * config.num_indices_per_lookup
        drawn: list[Drawn] | None = None
        dense_NF = None
        if source is not None:
            drawn = _ids_of(source, config, n_inputs, max_items, seed, on_progress)
            dense_NF = source.dense(n_inputs * max_items)
        ids = []
        offsets = []
        dense = []
        for i in range(n_inputs):
            ids_L, bag_offsets = (
                _draw_ids(config, max_items, stream(seed, "ids", i)) if drawn is None else drawn[i]
            )
            ids.append(torch.from_numpy(ids_L))
            offsets.append(shared if bag_offsets is None else torch.from_numpy(bag_offsets))
            if dense_NF is None:
                shape = (max_items, config.dense_width)
                dense_BF = stream(seed, "dense", i).random(shape, dtype=np.float32)
            else:
                dense_BF = dense_NF[i * max_items : (i + 1) * max_items]
            dense.append(torch.from_numpy(dense_BF))
            if on_progress is not None and drawn is None:
                on_progress((i + 1) / n_inputs)
        fixed = config.num_indices_per_lookup_fixed
        super().__init__(
            max_items, n_tables, ids, offsets, dense if config.dense_width else None, fixed=fixed
        )

    @classmethod
    def of(cls, config: RunConfig, on_progress: OnProgress | None = None) -> InputPool:
        """The inputs that a run's settings ask for.

        Raises ConfigError if a file of ids cannot be used.
        """
        inputs = config.inputs
        source = source_of(config.model, inputs)
        source_of.cache_clear()
        return cls(
            config.model,
            inputs.num_batches,
            inputs.max_mini_batch_size,
            inputs.numpy_rand_seed,
            on_progress,
            source,
        )


def _draw_ids(config: ModelConfig, n_items: int, rng: np.random.Generator) -> Drawn:
    """Ids of one input (rows of the buffer of all tables) and, where bags differ, their offsets."""
    rows = config.table_rows
    bag_ids = config.num_indices_per_lookup
    starts = first_rows(rows)
    n_tables = len(rows)
    if not config.num_indices_per_lookup_fixed:
        lengths_M = rng.integers(1, bag_ids + 1, (n_items, n_tables)).reshape(-1)
        tables_L = np.repeat(np.tile(np.arange(n_tables), n_items), lengths_M)
        ids_L = starts[tables_L] + rng.integers(0, np.asarray(rows)[tables_L])
        return ids_L.astype(np.int32), starts_of(lengths_M).astype(np.int32)
    ids_BTK = np.empty((n_items, n_tables, bag_ids), dtype=np.int32)
    runs = [
        (n_rows, [t for t, _ in run])
        for n_rows, run in groupby(enumerate(rows), key=lambda pair: pair[1])
    ]
    for first in range(0, n_items, _ITEMS_A_CHUNK):  # chunks stay in cache
        part_BTK = ids_BTK[first : first + _ITEMS_A_CHUNK]
        for n_rows, tables in runs:
            shape = (len(part_BTK), len(tables), bag_ids)
            ids = draw_distinct(n_rows, bag_ids, shape[0] * shape[1], rng).reshape(shape)
            offset_T1 = starts[tables].astype(np.int32)[:, None]
            np.add(ids, offset_T1, out=part_BTK[:, tables[0] : tables[-1] + 1])
    return ids_BTK.reshape(-1), None


def _ids_of(
    source: Source,
    config: ModelConfig,
    n_inputs: int,
    n_items: int,
    seed: int,
    on_progress: OnProgress | None,
) -> list[Drawn]:
    """What `_draw_ids` gives, for all inputs.

    Each table is one stream through them, so tables are the outer loop.
    """
    starts = first_rows(config.table_rows)
    n_tables = len(config.table_rows)
    shape = (n_inputs, n_items, n_tables)
    fixed = config.num_indices_per_lookup_fixed
    bag_ids = config.num_indices_per_lookup
    lengths_NBT = (
        np.full(shape, bag_ids) if fixed else stream(seed, "bags").integers(1, bag_ids + 1, shape)
    )
    bags = starts_of(lengths_NBT.reshape(-1))
    ids_L = np.empty(bags[-1], dtype=np.int32)
    for t in range(n_tables):
        lengths = lengths_NBT[:, :, t].reshape(-1)
        ids = source.table_ids(t, lengths)
        shift = np.repeat(bags[t:-1:n_tables] - starts_of(lengths)[:-1], lengths)
        ids_L[shift + np.arange(len(ids))] = ids + starts[t]
        if on_progress is not None:
            on_progress((t + 1) / n_tables)
    offsets = [
        None if fixed else starts_of(lengths_BT.reshape(-1)).astype(np.int32)
        for lengths_BT in lengths_NBT
    ]
    edges = bags[:: n_items * n_tables]
    parts = [ids_L[begin:end] for begin, end in itertools.pairwise(edges)]
    return [*zip(parts, offsets, strict=True)]
