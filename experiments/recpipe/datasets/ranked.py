"""Ranking queries of a data set, the trained rankers that score them, and the files that hold both."""

# Q queries, N candidates of the largest query, T tables, F dense features

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch

from infra.labelled_queries import Queries as InfraQueries
from infra.ranking import top_items
from infra.rng import stream
from infra.settings.cli import read_file
from infra.settings.config import ModelConfig
from models import architecture
from models.base import RecModel
from models.batch import Batch, first_rows
from models.costs import costs

Int64Array = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]
ITEMS_AT_ONCE = 4096


class Queries(InfraQueries):
    """Ranking queries that can be drawn from, batched and saved."""

    def sample(self, n: int) -> Queries:
        """n of them, drawn at random and always the same, in their order; all where there are no
        more.
        """
        drawn = np.sort(stream(1, "queries").permutation(len(self))[:n])
        return Queries(*(getattr(self, field.name)[drawn] for field in fields(self)))

    def batch(self, query: int, items: Int64Array, table_rows: Sequence[int]) -> Batch:
        """Those candidates as a model takes them."""
        ids_BT = self.ids_QNT[query, items] + first_rows(table_rows)[:-1]
        dense_BF = (
            torch.from_numpy(self.dense_QNF[query, items]) if self.dense_QNF.shape[2] else None
        )
        offsets = torch.arange(ids_BT.size + 1, dtype=torch.int32)
        return Batch(
            len(items), dense_BF, torch.from_numpy(ids_BT.reshape(-1).astype(np.int32)), offsets
        )

    def save(self, file: Path) -> None:
        """As queries.npz: ids, dense, labels, n_items."""
        names = (field.name.rpartition("_")[0] for field in fields(self))
        arrays = {
            name: getattr(self, field.name) for name, field in zip(names, fields(self), strict=True)
        }
        np.savez_compressed(file, **arrays)

    @classmethod
    def read(cls, file: Path) -> Self:
        """The inverse of `save`."""
        with np.load(file) as arrays:
            return cls(*(arrays[field.name.rpartition("_")[0]] for field in fields(cls)))


@dataclass(frozen=True)
class Ranker:
    """A trained net: its configuration, and its weights under the blob names of models/."""

    config: ModelConfig
    weights: dict[str, FloatArray]

    def model(self) -> RecModel:
        """Ready to score on one core."""
        with torch.inference_mode(False), torch.no_grad():
            model = architecture(self.config.model_type)(self.config)
            model.load_reference(self.weights)
            model.pack()
        return model.eval()

    @property
    def item_flops(self) -> float:
        """Of one candidate."""
        return costs(self.config, 1).flops

    def save(self, folder: Path, name: str) -> None:
        """As <name>.json, a file that --config_file takes, and <name>.npz."""
        default = ModelConfig()
        own = {field.name: getattr(self.config, field.name) for field in fields(ModelConfig)}
        kept = {
            key: value
            for key, value in own.items()
            if key == "model_type" or value != getattr(default, key)
        }
        (folder / f"{name}.json").write_text(json.dumps(kept, indent=2) + "\n")
        np.savez_compressed(folder / f"{name}.npz", **self.weights)  # type: ignore[arg-type]

    @classmethod
    def read(cls, folder: Path, name: str) -> Self:
        """The inverse of `save`."""
        with np.load(folder / f"{name}.npz") as weights:
            return cls(ModelConfig(**read_file(str(folder / f"{name}.json"))), dict(weights))


def checkpoint(file: Path, train: Callable[[], dict[str, FloatArray]]) -> dict[str, FloatArray]:
    """The weights in the file, which is written first if there is none."""
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        weights = train()
        np.savez_compressed(file, **weights)  # type: ignore[arg-type]
    with np.load(file) as arrays:
        return dict(arrays)


@dataclass(frozen=True)
class RankedData:
    """A data set's ranking queries and its rankers, small to large, which all read them.

    `k`: length of the lists whose quality is told; `provenance`: what the queries are and how they
    came about; `known_QN`: where the labels were drawn, scores that no ranker can beat on average.
    """

    name: str
    rankers: dict[str, Ranker]
    queries: Queries
    k: int
    provenance: dict[str, Any]
    known_QN: FloatArray | None = None


@torch.inference_mode()
def scores(model: RecModel, queries: Queries) -> FloatArray:
    """The ranker's score of every candidate, on one core; (Q, N), 0 in the padding."""
    torch.set_num_threads(1)
    found = np.zeros(queries.labels_QN.shape, dtype=np.float32)
    for query, n_items in enumerate(queries.n_items_Q):
        for first in range(0, int(n_items), ITEMS_AT_ONCE):
            items = np.arange(first, min(first + ITEMS_AT_ONCE, int(n_items)))
            found[query, items] = (
                model(queries.batch(query, items, model.config.table_rows)).numpy().reshape(-1)
            )
    return found


def handed_on(
    scores_by_stage: Sequence[FloatArray],
    query: int,
    pool: Int64Array,
    keeps: Sequence[int],
    n_parts: int = 1,
) -> Int64Array:
    """What filters let through, exactly, ties by place; best first.

    `pool`: places of the query's candidates that the first stage ranks, cut into `n_parts` in their
    order; of each part a stage keeps its share (rounded up), without seeing the others.
    """
    kept = []
    for part in np.array_split(pool, n_parts):
        items = part
        for own, keep in zip(scores_by_stage, keeps, strict=True):
            items = top_items(items, own[query, items], -(-keep // n_parts))
        kept.append(items)
    return np.concatenate(kept)


def chain(
    scores_by_stage: Sequence[FloatArray],
    query: int,
    pool: Int64Array,
    keeps: Sequence[int],
    n_parts: int = 1,
) -> Int64Array:
    """What a pipeline answers: each stage ranks what the one before handed on, the last one all of
    it; best first.
    """
    items = handed_on(scores_by_stage[:-1], query, pool, keeps[:-1], n_parts)
    return top_items(items, scores_by_stage[-1][query, items], keeps[-1])
