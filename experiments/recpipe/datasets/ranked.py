"""Ranking queries of a data set, the trained rankers that score them, the files that hold both."""

# Q queries, N candidates of the largest query, T tables, F dense features

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from infra.labelled_queries import Queries
from infra.ranking import top_items
from infra.rng import stream
from infra.settings.config import ModelConfig
from models import architecture
from models.base import RecModel
from models.costs import costs
from models.inputs.query_pool import QueryPool

Int64Array = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]
ITEMS_AT_ONCE = 4096


@dataclass(frozen=True)
class TrainedRanker:
    """A trained net: its configuration, and its weights under the blob names of models/."""

    config: ModelConfig
    weights: dict[str, FloatArray]

    def model(self) -> RecModel:
        """The net, ready to score on one core."""
        with torch.inference_mode(False), torch.no_grad():
            model = architecture(self.config.model_type)(self.config)
            model.load_reference(self.weights)
            model.pack()
        return model.eval()

    @property
    def item_flops(self) -> float:
        """FLOPs of one candidate."""
        return costs(self.config, 1).flops

    def save(self, folder: Path, name: str) -> None:
        """Write <name>.json, a file that --config_file takes, and <name>.npz."""
        defaults = asdict(ModelConfig())
        stated = {
            key: value
            for key, value in asdict(self.config).items()
            if key == "model_type" or value != defaults[key]
        }
        (folder / f"{name}.json").write_text(json.dumps(stated, indent=2) + "\n")
        np.savez_compressed(folder / f"{name}.npz", **self.weights)  # type: ignore[arg-type]


@dataclass(frozen=True)
class RankedData:
    """A data set's ranking queries and its rankers, small to large, which all read them.

    `k`: length of the lists whose quality is told; `provenance`: what the queries are and how they
    came about; `known_QN`: where the labels were drawn, scores that no ranker can beat on average.
    """

    name: str
    rankers: dict[str, TrainedRanker]
    queries: Queries
    k: int
    provenance: dict[str, Any]
    known_QN: FloatArray | None = None


def sample(queries: Queries, n: int) -> Queries:
    """n queries drawn at random, always the same, in their order; all where there are no more."""
    drawn = np.sort(stream(1, "queries").permutation(len(queries))[:n])
    return Queries(*(getattr(queries, field.name)[drawn] for field in fields(Queries)))


def save_queries(queries: Queries, file: Path) -> None:
    """Write the .npz that `infra.labelled_queries` reads: ids, dense, labels, n_items."""
    names = {field.name.rpartition("_")[0]: field.name for field in fields(Queries)}
    np.savez_compressed(file, **{name: getattr(queries, names[name]) for name in names})


@torch.inference_mode()
def scores(model: RecModel, queries: Queries) -> FloatArray:
    """The ranker's score of every candidate, on one core; (Q, N), 0 in the padding."""
    torch.set_num_threads(1)
    pool = QueryPool(queries, model.config)
    scores_QN = np.zeros(queries.labels_QN.shape, dtype=np.float32)
    for query, n_items in enumerate(queries.n_items_Q.tolist()):
        for first in range(0, n_items, ITEMS_AT_ONCE):
            end = min(first + ITEMS_AT_ONCE, n_items)
            batch = pool.batch(query, first, end - first)
            scores_QN[query, first:end] = model(batch).numpy().reshape(-1)
    return scores_QN


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
        for scores_QN, keep in zip(scores_by_stage, keeps, strict=True):
            items = top_items(items, scores_QN[query, items], -(-keep // n_parts))
        kept.append(items)
    return np.concatenate(kept)


def answer(
    scores_by_stage: Sequence[FloatArray],
    query: int,
    pool: Int64Array,
    keeps: Sequence[int],
    n_parts: int = 1,
) -> Int64Array:
    """The list that a pipeline answers, best first.

    Each stage ranks what the one before handed on, the last one all of it.
    """
    items = handed_on(scores_by_stage[:-1], query, pool, keeps[:-1], n_parts)
    return top_items(items, scores_by_stage[-1][query, items], keeps[-1])
