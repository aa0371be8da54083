"""MovieLens for ranking: a split by time, three NeuMF rankers trained on it, a query a user."""

# U users, I items, N training samples

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from experiments.recpipe.datasets.ranked import TrainedRanker
from experiments.recpipe.datasets.training import Weights, blobs, checkpoint, fit, linears
from infra.labelled_queries import Queries
from infra.progress import OnFraction
from infra.settings.config import ModelConfig
from models.inputs.datasets import Interactions

Int64Array = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]
NEGATIVES = 4
BATCH = 1024
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 1e-5
VALIDATION_K = 10
USERS_AT_ONCE = 16


@dataclass(frozen=True)
class LeaveOneOut:
    """Every user's last item is the test, the one before it ends training, all before are training.

    Users with fewer than 3 items are left out. `train_user`, `train_item` int64[N]; `valid_item`,
    `test_item` int64[U]; `seen` bool[U, I]: what a user took before the test.
    """

    train_user: Int64Array
    train_item: Int64Array
    valid_item: Int64Array
    test_item: Int64Array
    seen: npt.NDArray[np.bool_]

    @property
    def n_users(self) -> int:
        """Users with a test item."""
        return len(self.test_item)

    @property
    def n_items(self) -> int:
        """Items of the catalogue."""
        return int(self.seen.shape[1])

    def candidates(self, user: int) -> Int64Array:
        """What the user had not taken before the test, the test item among it."""
        return np.flatnonzero(~self.seen[user])

    def validation_ndcg(self, scores_UI: FloatArray, k: int) -> float:
        """Mean NDCG@k of the validation items among all that the user had not taken before."""
        sought_U = scores_UI[np.arange(self.n_users), self.valid_item]
        above_UI = (scores_UI > sought_U[:, None]) & ~self.seen  # validation items count as seen
        places_U = above_UI.sum(axis=1)
        return float(np.where(places_U < k, 1 / np.log2(places_U + 2), 0.0).mean())


def split(data: Interactions) -> LeaveOneOut:
    """Leave two out by time.

    Nothing that a user took after the validation item, or at the same time, is trained on; what
    other users took later is, as leave-one-out does.
    """
    order = np.lexsort((np.arange(len(data)), data.time, data.user))
    user = data.user[order]
    item = data.item[order]
    time = data.time[order]
    counts = np.bincount(user)
    kept = np.flatnonzero(counts >= 3)
    renamed = np.full(len(counts), -1)
    renamed[kept] = np.arange(len(kept))
    from_end = np.cumsum(counts)[user] - 1 - np.arange(len(user))
    is_kept = renamed[user] >= 0
    is_valid = is_kept & (from_end == 1)
    test_item = item[is_kept & (from_end == 0)]
    valid_time = np.full(len(counts), np.inf)
    valid_time[kept] = time[is_valid]
    train = is_kept & (time < valid_time[user])
    before = is_kept & (from_end >= 1)
    seen = np.zeros((len(kept), int(item.max()) + 1), dtype=bool)
    seen[renamed[user[before]], item[before]] = True
    seen[np.arange(len(kept)), test_item] = False  # an item taken again is a candidate like others
    return LeaveOneOut(renamed[user[train]], item[train], item[is_valid], test_item, seen)


@dataclass(frozen=True)
class NeuMFConfig:
    """Embedding width of both parts, widths of the MLP tower, passes over the data at most."""

    name: str
    width: int
    tower: tuple[int, ...]
    epochs: int = 20
    seed: int = 1

    def model_config(self, data: LeaveOneOut) -> ModelConfig:
        """The same net as one of models/: NCF as published."""
        rows = "-".join(str(n) for n in (data.n_users, data.n_items) * 2)
        return ModelConfig(
            model_type="ncf",
            model_name=f"neumf-{self.name}",
            arch_variant="paper",
            arch_embedding_size=rows,
            arch_sparse_feature_size=self.width,
            arch_mlp_top="-".join(map(str, (*self.tower, 1))),
            num_indices_per_lookup=1,
            num_indices_per_lookup_fixed=True,
        )


RANKERS = (
    NeuMFConfig("small", 4, (8,)),
    NeuMFConfig("medium", 16, (32, 16)),
    NeuMFConfig("large", 64, (128, 64, 32)),
)


class NeuMF(nn.Module):
    """NeuMF for training; He et al. 2017, sec. 3.4. (user, item) -> logit."""

    def __init__(self, config: NeuMFConfig, n_users: int, n_items: int) -> None:
        super().__init__()
        self.tables = nn.ModuleList([nn.Embedding(n, config.width) for n in (n_users, n_items) * 2])
        widths = (2 * config.width, *config.tower)
        self.tower = linears(widths)
        self.final = nn.Linear(config.width + widths[-1], 1)
        for table in self.tables:
            nn.init.normal_(table.get_parameter("weight"), std=0.05)

    def forward(self, user_N: Tensor, item_N: Tensor) -> Tensor:
        """Logit of each pair, (N,)."""
        ids = (user_N, item_N, user_N, item_N)
        mf_user, mf_item, x_user, x_item = (
            table(rows) for table, rows in zip(self.tables, ids, strict=True)
        )
        x = torch.cat((x_user, x_item), dim=1)
        for layer in self.tower:
            x = torch.relu(layer(x))
        logits: Tensor = self.final(torch.cat((mf_user * mf_item, x), dim=1)).squeeze(1)
        return logits

    def weights(self) -> Weights:
        """A copy under the blob names of models/ncf.py."""
        names = ("emb.mf_sls0", "emb.mf_sls1", "emb.mlp_sls0", "emb.mlp_sls1")
        modules = dict(zip(names, self.tables, strict=True))
        modules |= {f"mlpfc.fc{i}": layer for i, layer in enumerate(self.tower, start=1)}
        return blobs(modules | {"final.fc1": self.final})


def train(config: NeuMFConfig, data: LeaveOneOut, on_fraction: OnFraction) -> Weights:
    """Weights by Adam, on training pairs and NEGATIVES unseen items each; one thread: it repeats.

    Of all passes the one with the best validation NDCG@VALIDATION_K counts.
    """
    torch.set_num_threads(1)
    torch.manual_seed(config.seed)
    rng = np.random.default_rng(config.seed)
    net = NeuMF(config, data.n_users, data.n_items)
    optimiser = torch.optim.Adam(net.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    n_steps = config.epochs * -(-len(data.train_user) * (1 + NEGATIVES) // BATCH)

    def validation() -> float:
        return data.validation_ndcg(_all_logits(net, data), VALIDATION_K)

    passes = (_batches(data, rng) for _ in range(config.epochs))
    return fit(net, passes, n_steps, optimiser, validation, on_fraction)


def _batches(data: LeaveOneOut, rng: np.random.Generator) -> Iterator[list[Tensor]]:
    users = np.repeat(data.train_user, 1 + NEGATIVES)
    items, labels = _with_negatives(data, rng)
    order = rng.permutation(len(users))
    for first in range(0, len(order), BATCH):
        part = order[first : first + BATCH]
        yield [torch.from_numpy(array[part]) for array in (users, items, labels)]


@torch.no_grad()
def _all_logits(net: NeuMF, data: LeaveOneOut) -> FloatArray:
    """Logit of every pair, (U, I)."""
    items = torch.arange(data.n_items)
    logits_UI = np.empty((data.n_users, data.n_items), dtype=np.float32)
    for first in range(0, data.n_users, USERS_AT_ONCE):
        users = torch.arange(first, min(first + USERS_AT_ONCE, data.n_users))
        logits = net(users.repeat_interleave(data.n_items), items.repeat(len(users)))
        logits_UI[first : first + len(users)] = logits.view(len(users), -1).numpy()
    return logits_UI


def _with_negatives(data: LeaveOneOut, rng: np.random.Generator) -> tuple[Int64Array, FloatArray]:
    """Each training pair's item, then NEGATIVES items that its user has not taken; their labels."""
    drawn = rng.integers(0, data.n_items, (len(data.train_user), NEGATIVES))
    users = data.train_user[:, None]
    while (taken := data.seen[users, drawn]).any():
        drawn[taken] = rng.integers(0, data.n_items, int(taken.sum()))
    items = np.concatenate((data.train_item[:, None], drawn), axis=1)
    labels = np.zeros(items.shape, dtype=np.float32)
    labels[:, 0] = 1
    return items.reshape(-1), labels.reshape(-1)


def trained(
    config: NeuMFConfig, data: LeaveOneOut, folder: Path, on_fraction: OnFraction
) -> TrainedRanker:
    """The ranker, from its checkpoint if it was trained on this data before."""
    settings = [NEGATIVES, BATCH, LEARNING_RATE, WEIGHT_DECAY, torch.__version__]
    facts = [asdict(config), data.n_users, data.n_items, *settings]
    arrays = (data.train_user, data.train_item, data.valid_item, data.seen)
    weights = checkpoint(
        folder, config.name, facts, arrays, lambda: train(config, data, on_fraction)
    )
    return TrainedRanker(config.model_config(data), weights)


def queries_of(data: LeaveOneOut) -> Queries:
    """A query a user: what the user had not taken before the test, by item, for NCF's tables."""
    pools = [data.candidates(user) for user in range(data.n_users)]
    n_items = np.array([len(pool) for pool in pools], np.int32)
    shape = (data.n_users, int(n_items.max()))
    ids = np.zeros((*shape, 4), np.int32)
    labels = np.zeros(shape, np.uint8)
    for user, pool in enumerate(pools):
        ids[user, : len(pool), 0::2] = user
        ids[user, : len(pool), 1::2] = pool[:, None]
        labels[user, : len(pool)] = pool == data.test_item[user]
    return Queries(ids, np.zeros((*shape, 0), np.float32), labels, n_items)
