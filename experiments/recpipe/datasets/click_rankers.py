"""DLRM rankers of three sizes as RecPipe's, trained on clicks."""

# N impressions, B of a batch, T tables, D embedding width, F dense features, V = T + 1 vectors

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from experiments.recpipe.datasets.ranked import TrainedRanker, scores
from experiments.recpipe.datasets.training import Weights, blobs, checkpoint, fit, linears
from infra.labelled_queries import Queries
from infra.progress import OnFraction
from infra.ranking import ndcg_at_k
from infra.rng import stream
from infra.settings.config import ModelConfig
from models.batch import first_rows

FloatArray = npt.NDArray[np.float32]
BATCH = 2048
VALIDATION_K = 64


@dataclass(frozen=True)
class DlrmConfig:
    """Embedding width, widths of the MLPs (the bottom's first is the dense features), passes."""

    name: str
    width: int
    bottom: tuple[int, ...]
    top: tuple[int, ...]
    epochs: int = 1
    learning_rate: float = 3e-3
    seed: int = 1

    def model_config(self, table_rows: tuple[int, ...]) -> ModelConfig:
        """The same net as one of models/."""
        return ModelConfig(
            model_type="dlrm",
            model_name=f"rm-{self.name}",
            arch_sparse_feature_size=self.width,
            arch_embedding_size="-".join(map(str, table_rows)),
            arch_mlp_bot="-".join(map(str, self.bottom)),
            arch_mlp_top="-".join(map(str, self.top)),
            arch_interaction_op="dot",
            num_indices_per_lookup=1,
            num_indices_per_lookup_fixed=True,
        )


RANKERS = (
    DlrmConfig("small", 4, (13, 64, 4), (64, 1)),
    DlrmConfig("medium", 16, (13, 64, 16), (64, 1)),
    DlrmConfig("large", 32, (13, 512, 256, 128, 64, 32), (96, 1)),
)


class TrainableDlrm(nn.Module):
    """DLRM for training; Naumov et al. 2019. (ids, dense) -> logit."""

    starts_T: Tensor
    pairs_P: Tensor

    def __init__(self, config: DlrmConfig, table_rows: tuple[int, ...]) -> None:
        super().__init__()
        starts = first_rows(table_rows)
        n_vectors = len(table_rows) + 1
        self.tables = nn.Embedding(int(starts[-1]), config.width)
        nn.init.normal_(self.tables.weight, std=0.01)
        self.register_buffer("starts_T", torch.from_numpy(starts[:-1]))
        rows, columns = torch.tril_indices(n_vectors, n_vectors, offset=-1)
        self.register_buffer("pairs_P", rows * n_vectors + columns)
        self.bottom = linears(config.bottom)
        self.top = linears((config.width + len(rows), *config.top))

    def forward(self, ids_BT: Tensor, dense_BF: Tensor) -> Tensor:
        """Logit of each example, (B,)."""
        x_BD = dense_BF
        for layer in self.bottom:
            x_BD = torch.relu(layer(x_BD))
        vectors_BVD = torch.cat((x_BD.unsqueeze(1), self.tables(ids_BT + self.starts_T)), dim=1)
        products_BVV = torch.bmm(vectors_BVD, vectors_BVD.transpose(1, 2))
        y = torch.cat((x_BD, products_BVV.flatten(1).index_select(1, self.pairs_P)), dim=1)
        for layer in self.top[:-1]:
            y = torch.relu(layer(y))
        logits: Tensor = self.top[-1](y).squeeze(1)
        return logits

    def weights(self) -> Weights:
        """A copy under the blob names of models/dlrm.py."""
        starts = [int(start) for start in self.starts_T[1:]]
        tables = np.split(self.tables.weight.detach().numpy(), starts)
        arrays = {f"param.emb.sls{t}_w": table.copy() for t, table in enumerate(tables)}
        layers = {f"bot.fc{i}": layer for i, layer in enumerate(self.bottom, start=1)}
        layers |= {f"top.fc{i}": layer for i, layer in enumerate(self.top, start=1)}
        return arrays | blobs(layers)


@dataclass(frozen=True)
class Examples:
    """What a ranker learns from; `valid`: queries that tell which pass was best.

    `ids_NT` int32 within their tables, `dense_NF`, `label_N` float32.
    """

    ids_NT: npt.NDArray[np.int32]
    dense_NF: FloatArray
    label_N: FloatArray
    table_rows: tuple[int, ...]
    valid: Queries

    @cached_property
    def digest(self) -> str:
        """Hash of everything in it."""
        digest = hashlib.sha256(repr(self.table_rows).encode())
        queries = [getattr(self.valid, field.name) for field in fields(self.valid)]
        for array in (self.ids_NT, self.dense_NF, self.label_N, *queries):
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


def train(config: DlrmConfig, data: Examples, on_fraction: OnFraction) -> Weights:
    """Weights by Adam with a learning rate that falls to 0; one thread, so it repeats exactly.

    Of several passes the one with the best validation NDCG@VALIDATION_K counts.
    """
    torch.set_num_threads(1)
    torch.manual_seed(config.seed)
    rng = stream(config.seed, "training order")
    net = TrainableDlrm(config, data.table_rows)
    optimiser = torch.optim.Adam(net.parameters(), lr=config.learning_rate)
    n_steps = config.epochs * -(-len(data.label_N) // BATCH)
    falling = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.01, n_steps)

    def validation() -> float:
        ranker = TrainedRanker(config.model_config(data.table_rows), net.weights())
        return validation_ndcg(ranker, data.valid)

    passes = (_batches(data, rng) for _ in range(config.epochs))
    return fit(net, passes, n_steps, optimiser, validation, on_fraction, falling)


def _batches(data: Examples, rng: np.random.Generator) -> Iterator[list[Tensor]]:
    order = rng.permutation(len(data.label_N))
    for first in range(0, len(order), BATCH):
        part = np.sort(order[first : first + BATCH])  # the same batch, read forwards
        yield [
            torch.from_numpy(array[part]) for array in (data.ids_NT, data.dense_NF, data.label_N)
        ]


def validation_ndcg(ranker: TrainedRanker, queries: Queries) -> float:
    """Mean NDCG@VALIDATION_K over the queries, all candidates ranked."""
    values = []
    for query, scores_N in enumerate(scores(ranker.model(), queries)):
        labels = queries.labels(query)
        ranked = labels[np.argsort(-scores_N[: len(labels)], kind="stable")]
        values.append(ndcg_at_k(ranked[:VALIDATION_K], labels, VALIDATION_K))
    return float(np.mean(values))


def trained(
    config: DlrmConfig, data: Examples, folder: Path, on_fraction: OnFraction
) -> TrainedRanker:
    """The ranker, from its checkpoint if it was trained on this data before."""
    facts = [asdict(config), data.digest, BATCH, torch.__version__]
    name = f"dlrm-{config.name}"
    weights = checkpoint(folder, name, facts, (), lambda: train(config, data, on_fraction))
    return TrainedRanker(config.model_config(data.table_rows), weights)
