"""Tables that are alike are tuned together."""

# B items, N items of all batches, T tables

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from models.embedding.backend import Cluster
from models.embedding.jagged import Bags
from models.embedding.plan.spec import Layout

_SAMPLED_IDS = 20_000


def clusters(layout: Layout, batches: Sequence[Bags], most: int = 48) -> list[Cluster]:
    """Tables of the same width and number of ids, that are about as large, as full and as empty.

    Rows and ids a bag are within a factor of two. At most `most`: then factors of four, of sixteen
    and so on.
    """
    coarse = 1
    while True:
        kinds = _clusters(layout, batches, coarse)
        if len(kinds) <= most or coarse > 64:
            return kinds
        coarse *= 2


def _clusters(layout: Layout, batches: Sequence[Bags], coarse: int) -> list[Cluster]:
    lengths_TN = np.concatenate([bags.lengths().cpu().numpy() for bags in batches], axis=1)
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
    return [
        Cluster(
            tuple(tables),
            layout.specs[tables[0]],
            float(mean_T[tables].mean()),
            int(lengths_TN[tables].max()),
            float(empty_T[tables].mean()),
            _distinct_frac(batches[0], tables[0]),
            batches[0].n_items,
            batches[0].item_major,
        )
        for tables in by_key.values()
    ]


def _distinct_frac(bags: Bags, table: int) -> float:
    ids = bags.of((table,))[0][:_SAMPLED_IDS].cpu().numpy()
    return len(np.unique(ids)) / len(ids) if len(ids) else 1.0
