"""Tables that are alike are tuned together."""

# B items, T tables

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from models.embedding.backend import Cluster
from models.embedding.jagged import Bags
from models.embedding.plan.spec import Layout

_SAMPLED_IDS = 20_000


def clusters(layout: Layout, batches: Sequence[Bags], most: int = 48) -> list[Cluster]:
    """Tables with the same width and number of ids, rows and ids a bag within a factor of two, as
    often empty.

    At most `most`: then factors of four, of sixteen and so on.
    """
    coarse = 1
    while True:
        found = _clusters(layout, batches, coarse)
        if len(found) <= most or coarse > 64:
            return found
        coarse *= 2


def _clusters(layout: Layout, batches: Sequence[Bags], coarse: int) -> list[Cluster]:
    n_tables = len(layout.specs)
    n_items = batches[0].n_items
    lengths = [_lengths(bags) for bags in batches]
    lengths_TN = np.concatenate(lengths, axis=1)
    mean_T = lengths_TN.mean(1)
    empty_T = (lengths_TN == 0).mean(1)
    by_key: dict[tuple[object, ...], list[int]] = {}
    for table, spec in enumerate(layout.specs):
        length = math.log2(max(mean_T[table], 0.5)) if spec.bag_ids is None else 0.0
        key = (
            spec.dim,
            spec.bag_ids,
            round(math.log2(spec.rows) / coarse),
            round(length / coarse),
            round(empty_T[table] * 2 / coarse),
        )
        by_key.setdefault(key, []).append(table)
    assert sum(map(len, by_key.values())) == n_tables
    return [
        Cluster(
            tuple(tables),
            layout.specs[tables[0]],
            float(mean_T[tables].mean()),
            int(lengths_TN[tables].max()),
            float(empty_T[tables].mean()),
            _distinct_frac(batches[0], tables[0]),
            n_items,
            batches[0].item_major,
        )
        for tables in by_key.values()
    ]


def _lengths(bags: Bags) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    lengths = np.diff(bags.offsets.cpu().numpy()).astype(np.int64)
    if bags.item_major:
        return np.ascontiguousarray(lengths.reshape(bags.n_items, -1).T)
    return lengths.reshape(-1, bags.n_items)


def _distinct_frac(bags: Bags, table: int) -> float:
    ids = bags.of((table,))[0][:_SAMPLED_IDS].cpu().numpy()
    return len(np.unique(ids)) / len(ids) if len(ids) else 1.0
