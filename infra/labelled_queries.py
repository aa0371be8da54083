"""Real queries for rankers: candidates with ids, dense features and labels, in one .npz file."""

# Q queries, N candidates of the largest, T tables, F dense features

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from infra.ranking import (
    hit_rate_at_k,
    mean_with_interval,
    ndcg_at_k,
    ndcg_released,
    reciprocal_rank,
)
from infra.results.quantiles import Estimate
from infra.settings.config import ConfigError
from infra.settings.model_config import ModelConfig

_SHAPES = {"ids": 3, "dense": 3, "labels": 2, "n_items": 1}


@dataclass(frozen=True)
class Queries:
    """Candidates of every query: one id a table, counted from that table's first row; label
    1 = what should be found.

    `ids_QNT` int32, `dense_QNF` float32 (F may be 0), `labels_QN` uint8, `n_items_Q` int32: from
    there on a query's rows are padding, ids 0. Raises ValueError if the shapes do not fit each
    other.
    """

    ids_QNT: npt.NDArray[np.int32]
    dense_QNF: npt.NDArray[np.float32]
    labels_QN: npt.NDArray[np.uint8]
    n_items_Q: npt.NDArray[np.int32]

    def __post_init__(self) -> None:
        shape = self.ids_QNT.shape[:2]
        if (
            self.dense_QNF.shape[:2] != shape
            or self.labels_QN.shape != shape
            or self.n_items_Q.shape != shape[:1]
        ):
            shapes = [f"{field.name} {getattr(self, field.name).shape}" for field in fields(self)]
            raise ValueError(f"the arrays do not belong to the same queries: {', '.join(shapes)}")
        if len(self) and not 1 <= self.n_items_Q.min() <= self.n_items_Q.max() <= shape[1]:
            raise ValueError(
                f"queries have {self.n_items_Q.min()} to {self.n_items_Q.max()} items of {shape[1]}"
            )

    def __len__(self) -> int:
        return len(self.n_items_Q)

    def labels(self, query: int) -> npt.NDArray[np.uint8]:
        """Labels of the query's true candidates."""
        return self.labels_QN[query, : self.n_items_Q[query]]

    def check(self, model: ModelConfig) -> None:
        """Raise ConfigError if the model reads other tables or features, or several ids a bag."""
        rows = np.asarray(model.table_rows)
        largest = self.ids_QNT.max(axis=(0, 1))
        if len(largest) != len(rows) or self.dense_QNF.shape[2] != model.dense_width:
            problem = (
                f"reads {len(rows)} tables and {model.dense_width} dense features, the queries "
                f"have {len(largest)} and {self.dense_QNF.shape[2]}"
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
        """Quality of the first k places of {query: its list, best first}, with intervals.

        `ndcg` has the true ideal order of all candidates; `ndcg_released` assumes k clicks in every
        pool.
        """
        by_query: dict[str, list[float]] = {
            name: [] for name in ("ndcg", "ndcg_released", "hit_rate", "mrr")
        }
        for query, items in lists.items():
            pool = self.labels(query)
            gains = pool[items]
            by_query["ndcg"].append(ndcg_at_k(gains, pool, k))
            by_query["ndcg_released"].append(ndcg_released(gains, k))
            by_query["hit_rate"].append(hit_rate_at_k(gains, k))
            by_query["mrr"].append(reciprocal_rank(gains[:k]))
        means = {name: mean_with_interval(values) for name, values in by_query.items()}
        return {
            name: Estimate(mean.value, max(mean.low, 0.0), min(mean.high, 1.0))
            for name, mean in means.items()
        }


def _check_arrays(path: str, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    for name, n_axes in _SHAPES.items():
        if arrays[name].ndim != n_axes:
            raise _wrong(path, f"{name} has {arrays[name].ndim} axes; expected {n_axes}")
        kind = arrays[name].dtype.kind
        expected = "iu" if name in ("ids", "n_items") else "iufb"
        if kind not in expected:
            raise _wrong(
                path,
                f"{name} is {arrays[name].dtype}; expected "
                f"{'whole ' if len(expected) == 2 else ''}numbers",
            )


@lru_cache(maxsize=2)
def read_queries(path: str) -> Queries:
    """The queries in an .npz file; raises ConfigError in one line if they cannot be used."""
    try:
        with np.load(path) as file:
            arrays = {name: file[name] for name in _SHAPES}
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        EOFError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise _wrong(
            path, f"expected an .npz file with {', '.join(_SHAPES)}: {' '.join(str(error).split())}"
        ) from error
    _check_arrays(path, arrays)
    ids, dense, labels, n_items = (arrays[name] for name in _SHAPES)
    if not len(ids):
        raise _wrong(path, "has no query")
    if ids.max() > np.iinfo(np.int32).max:
        raise _wrong(path, f"an id is {ids.max()}; ids are int32")
    if ids.min() < 0 or not np.isfinite(dense).all() or not np.isin(labels, (0, 1)).all():
        raise _wrong(
            path,
            "an id is negative, a dense feature is no finite number, or a label is neither 0 nor 1",
        )
    kinds = (np.int32, np.float32, np.uint8, np.int32)
    try:
        return Queries(
            *(
                array.astype(kind)
                for array, kind in zip((ids, dense, labels, n_items), kinds, strict=True)
            )
        )
    except ValueError as error:
        raise _wrong(path, str(error)) from error


def _wrong(path: str, problem: str) -> ConfigError:
    return ConfigError("pipeline", f"{path}: {problem}")
