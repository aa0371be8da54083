"""MovieLens for ranking: leave-one-out split by time, three NeuMF rankers trained on it, a query a
user.
"""

# U users, I items, N training samples

from __future__ import annotations

import hashlib
import itertools
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from experiments.recpipe.datasets.ranked import Queries, Ranker, checkpoint
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
class Split:
    """Every user's last item is the test, the one before it chooses when training ends, all before
    are training.

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

    def validation_ndcg(self, found: FloatArray, k: int) -> float:
        """Mean NDCG@k of the validation items among all that the user had not taken before; `found`
        (U, I).
        """
        rows = np.arange(self.n_users)
        own = found[rows, self.valid_item]
        above = (found > own[:, None]) & ~self.seen  # the validation item itself counts as seen
        places = above.sum(axis=1)
        return float(np.where(places < k, 1 / np.log2(places + 2), 0.0).mean())


def split(data: Interactions) -> Split:
    """Leave two out by time: nothing that a user took after the validation item, or at the same
    time, is trained on.

    What other users took later is trained on, as leave-one-out does.
    """
    order = np.lexsort((np.arange(len(data)), data.time, data.user))
    user = data.user[order]
    item = data.item[order]
    counts = np.bincount(user)
    kept = np.flatnonzero(counts >= 3)
    renamed = np.full(len(counts), -1)
    renamed[kept] = np.arange(len(kept))
    from_end = np.cumsum(counts)[user] - 1 - np.arange(len(user))
    known = renamed[user] >= 0
    n_items = int(item.max()) + 1
    valid_item, test_item = (item[known & (from_end == place)] for place in (1, 0))
    valid_time = np.full(len(counts), np.inf)
    valid_time[kept] = data.time[order][known & (from_end == 1)]
    train = known & (data.time[order] < valid_time[user])
    seen = np.zeros((len(kept), n_items), dtype=bool)
    before = known & (from_end >= 1)
    seen[renamed[user[before]], item[before]] = True
    seen[np.arange(len(kept)), test_item] = False  # an item taken again is a candidate like others
    return Split(renamed[user[train]], item[train], valid_item, test_item, seen)


@dataclass(frozen=True)
class RankerConfig:
    """A NeuMF: embedding width of both parts, widths of the MLP tower, passes over the data at
    most.
    """

    name: str
    width: int
    tower: tuple[int, ...]
    epochs: int = 20
    seed: int = 1

    def model_config(self, data: Split) -> ModelConfig:
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
    RankerConfig("small", 4, (8,)),
    RankerConfig("medium", 16, (32, 16)),
    RankerConfig("large", 64, (128, 64, 32)),
)


def quick(config: RankerConfig) -> RankerConfig:
    """Two passes of training."""
    return replace(config, epochs=2)


class NeuMF(nn.Module):
    """For training; He et al. 2017, sec. 3.4. (user, item) -> logit."""

    def __init__(self, config: RankerConfig, n_users: int, n_items: int) -> None:
        super().__init__()
        self.tables = nn.ModuleList([nn.Embedding(n, config.width) for n in (n_users, n_items) * 2])
        widths = (2 * config.width, *config.tower)
        self.tower = nn.ModuleList([nn.Linear(a, b) for a, b in itertools.pairwise(widths)])
        self.final = nn.Linear(config.width + widths[-1], 1)
        for table in self.tables:
            nn.init.normal_(table.weight, std=0.05)  # type: ignore[arg-type]

    def forward(self, user_N: Tensor, item_N: Tensor) -> Tensor:
        """(N,)."""
        mf_user, mf_item, mlp_user, mlp_item = (
            table(ids)
            for table, ids in zip(self.tables, (user_N, item_N, user_N, item_N), strict=True)
        )
        x = torch.cat((mlp_user, mlp_item), dim=1)
        for layer in self.tower:
            x = torch.relu(layer(x))
        logits: Tensor = self.final(torch.cat((mf_user * mf_item, x), dim=1)).squeeze(1)
        return logits

    def weights(self) -> dict[str, FloatArray]:
        """Under the blob names of models/ncf.py."""
        names = ("emb.mf_sls0", "emb.mf_sls1", "emb.mlp_sls0", "emb.mlp_sls1")
        arrays = {
            f"param.{name}_w": table.weight for name, table in zip(names, self.tables, strict=True)
        }
        for i, layer in enumerate((*self.tower, self.final), start=1):
            name = "final.fc1" if layer is self.final else f"mlpfc.fc{i}"
            arrays |= {f"param.{name}_w": layer.weight, f"param.{name}_b": layer.bias}
        return {name: weight.detach().numpy().copy() for name, weight in arrays.items()}  # type: ignore[operator]


def train(config: RankerConfig, data: Split, on_fraction: OnFraction) -> dict[str, FloatArray]:
    """Binary cross-entropy on training pairs and NEGATIVES unseen items each; one thread, so it
    repeats exactly.

    The weights are those of the pass with the best validation NDCG@VALIDATION_K.
    """
    torch.set_num_threads(1)
    torch.manual_seed(config.seed)
    rng = np.random.default_rng(config.seed)
    net = NeuMF(config, data.n_users, data.n_items)
    optimiser = torch.optim.Adam(net.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    best = -1.0
    weights = net.weights()
    for epoch in range(config.epochs):
        users = np.repeat(data.train_user, 1 + NEGATIVES)
        items, labels = _with_negatives(data, rng)
        order = rng.permutation(len(users))
        for first in range(0, len(order), BATCH):
            part = order[first : first + BATCH]
            user_N = torch.from_numpy(users[part])
            item_N = torch.from_numpy(items[part])
            loss = nn.functional.binary_cross_entropy_with_logits(
                net(user_N, item_N), torch.from_numpy(labels[part])
            )
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        ndcg = data.validation_ndcg(_all_logits(net, data), VALIDATION_K)
        if ndcg > best:
            best = ndcg
            weights = net.weights()
        on_fraction(
            (epoch + 1) / config.epochs, f"loss {loss.item():.3f}, validation NDCG {ndcg:.4f}"
        )
    return weights


@torch.no_grad()
def _all_logits(net: NeuMF, data: Split) -> FloatArray:
    """(U, I)."""
    items = torch.arange(data.n_items)
    found = np.empty((data.n_users, data.n_items), dtype=np.float32)
    for first in range(0, data.n_users, USERS_AT_ONCE):
        users = torch.arange(first, min(first + USERS_AT_ONCE, data.n_users))
        logits = net(users.repeat_interleave(data.n_items), items.repeat(len(users)))
        found[first : first + len(users)] = logits.view(len(users), -1).numpy()
    return found


def _with_negatives(data: Split, rng: np.random.Generator) -> tuple[Int64Array, FloatArray]:
    """Each training pair's item, then NEGATIVES items that its user has not taken (drawn anew until
    none is).
    """
    drawn = rng.integers(0, data.n_items, (len(data.train_user), NEGATIVES))
    users = data.train_user[:, None]
    while (bad := data.seen[users, drawn]).any():
        drawn[bad] = rng.integers(0, data.n_items, int(bad.sum()))
    items = np.concatenate((data.train_item[:, None], drawn), axis=1)
    labels = np.zeros(items.shape, dtype=np.float32)
    labels[:, 0] = 1
    return items.reshape(-1), labels.reshape(-1)


def trained(config: RankerConfig, data: Split, folder: Path, on_fraction: OnFraction) -> Ranker:
    """From its checkpoint if it was trained on this data before."""
    facts = [
        asdict(config),
        data.n_users,
        data.n_items,
        NEGATIVES,
        BATCH,
        LEARNING_RATE,
        WEIGHT_DECAY,
        torch.__version__,
    ]
    digest = hashlib.sha256(json.dumps(facts).encode())
    for array in (data.train_user, data.train_item, data.valid_item, data.seen):
        digest.update(array.tobytes())
    file = folder / f"{config.name}-{digest.hexdigest()[:12]}.npz"
    weights = checkpoint(file, lambda: train(config, data, on_fraction))
    return Ranker(config.model_config(data), weights)


def queries_of(data: Split) -> Queries:
    """A query a user: all that the user had not taken before the test, by item, for the four tables
    of NCF.
    """
    pools = [data.candidates(user) for user in range(data.n_users)]
    n_items = np.array([len(pool) for pool in pools], np.int32)
    shape = (data.n_users, int(n_items.max()))
    ids = np.zeros((*shape, 4), np.int32)
    labels = np.zeros(shape, np.uint8)
    for user, pool in enumerate(pools):
        ids[user, : len(pool), 0::2], ids[user, : len(pool), 1::2] = user, pool[:, None]
        labels[user, : len(pool)] = pool == data.test_item[user]
    return Queries(ids, np.zeros((*shape, 0), np.float32), labels, n_items)
