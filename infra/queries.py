"""Real queries for rankers: the candidates of each with their ids, dense features and labels, in one .npz file."""

# Q queries, N candidates of the largest, T tables, F dense features

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from infra.config import ConfigError
from infra.model_config import ModelConfig
from infra.ranking import hit_rate_at_k, mean_with_interval, ndcg_at_k, ndcg_released, reciprocal_rank
from infra.stats import Estimate

_SHAPES = {"ids": 3, "dense": 3, "labels": 2, "n_items": 1}


@dataclass(frozen=True)
class Queries:
    """`ids` int32[Q, N, T], rows within each table, one id a bag; `dense` float32[Q, N, F]; `labels` [Q, N], 0 or 1.

    Query q has `n_items` int32[Q] candidates; what lies beyond them is padding.
    """

    ids: npt.NDArray[np.int32]
    dense: npt.NDArray[np.float32]
    labels: npt.NDArray[np.float32]
    n_items: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.n_items)

    def check(self, model: ModelConfig) -> None:
        """Raise ConfigError if the model reads other tables or features, or several ids a bag."""
        rows, largest = np.asarray(model.table_rows), self.ids.max(axis=(0, 1))
        if len(largest) != len(rows) or self.dense.shape[2] != model.dense_width:
            problem = (
                f"reads {len(rows)} tables and {model.dense_width} dense features, the queries have {len(largest)} "
                f"and {self.dense.shape[2]}"
            )
        elif model.num_indices_per_lookup != 1:
            problem = f"reads {model.num_indices_per_lookup} ids a bag, the queries have one"
        elif (largest >= rows).any():
            table = int(np.argmax(largest >= rows))
            problem = f"table {table} has {rows[table]} rows, the queries have id {largest[table]}"
        else:
            return
        raise ConfigError("pipeline", f"{model.name}: {problem}")

    def quality(self, lists: Mapping[int, npt.NDArray[np.int32]], k: int) -> dict[str, Estimate]:
        """Of {query: its list, best first}: measures of the first k places with intervals over the queries.

        `ndcg` has the true ideal order of all candidates; `ndcg_released` assumes k clicks in every pool.
        """
        by_query: dict[str, list[float]] = {name: [] for name in ("ndcg", "ndcg_released", "hit_rate", "mrr")}
        for query, items in lists.items():
            pool = self.labels[query, : self.n_items[query]]
            gains = pool[items]
            by_query["ndcg"].append(ndcg_at_k(gains, pool, k))
            by_query["ndcg_released"].append(ndcg_released(gains, k))
            by_query["hit_rate"].append(hit_rate_at_k(gains, k))
            by_query["mrr"].append(reciprocal_rank(gains[:k]))
        return {name: mean_with_interval(values) for name, values in by_query.items()}


@lru_cache(maxsize=2)
def read_queries(path: str) -> Queries:
    """The queries in an .npz file; raises ConfigError in one line if they cannot be used."""
    try:
        with np.load(path) as file:
            arrays = {name: file[name] for name in _SHAPES}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise _wrong(
            path, f"expected an .npz file with {', '.join(_SHAPES)}: {' '.join(str(error).split())}"
        ) from error
    for name, n_axes in _SHAPES.items():
        if arrays[name].ndim != n_axes:
            raise _wrong(path, f"{name} has {arrays[name].ndim} axes; expected {n_axes}")
    ids, dense, labels, n_items = (arrays[name] for name in _SHAPES)
    if not (ids.shape[:2] == dense.shape[:2] == labels.shape) or len(n_items) != len(ids) or not len(ids):
        raise _wrong(path, "ids, dense, labels and n_items are not of the same queries and candidates")
    if n_items.min() < 1 or n_items.max() > ids.shape[1]:
        raise _wrong(path, f"n_items lies outside of 1 to {ids.shape[1]}, the candidates that there are")
    if ids.min() < 0 or not np.isfinite(dense).all() or not np.isin(labels, (0, 1)).all():
        raise _wrong(path, "an id is negative, a dense feature is no finite number, or a label is neither 0 nor 1")
    return Queries(ids.astype(np.int32), dense.astype(np.float32), labels.astype(np.float32), n_items.astype(np.int32))


def _wrong(path: str, problem: str) -> ConfigError:
    return ConfigError("pipeline", f"{path}: {problem}")
