"""Rankers with drawn weights, and queries with drawn ids and labels."""

import numpy as np

from experiments.recpipe.chains import Chain, Scored
from experiments.recpipe.chip import Misses
from experiments.recpipe.datasets.click_rankers import RANKERS
from experiments.recpipe.datasets.ranked import RankedData, TrainedRanker
from experiments.recpipe.world import SystemDesign
from infra.labelled_queries import Queries
from infra.messages import CPU
from infra.settings.config import ModelConfig

NCF = ModelConfig(
    model_type="ncf",
    model_name="tiny",
    arch_variant="paper",
    arch_embedding_size="5-9-5-9",
    arch_sparse_feature_size=4,
    arch_mlp_top="8-1",
    num_indices_per_lookup=1,
    num_indices_per_lookup_fixed=True,
)
DLRM = ModelConfig(
    model_type="dlrm",
    model_name="tiny",
    arch_embedding_size="5-9-3-7",
    arch_sparse_feature_size=4,
    arch_mlp_bot="3-8-4",
    arch_mlp_top="6-1",
    num_indices_per_lookup=1,
    num_indices_per_lookup_fixed=True,
)


def drawn_weights(config, seed):
    """Weights as blobs, of the shapes that the model has."""
    rng = np.random.default_rng(seed)
    n_vectors = len(config.table_rows) + 1
    width = config.arch_sparse_feature_size
    if config.model_type == "ncf":
        shapes = {"mlpfc.fc1": (8, 2 * width), "final.fc1": (1, width + 8)}
        tables = ["emb.mf_sls0", "emb.mf_sls1", "emb.mlp_sls0", "emb.mlp_sls1"]
    else:
        n_top = width + n_vectors * (n_vectors - 1) // 2
        shapes = {
            "bot.fc1": (8, 3),
            "bot.fc2": (width, 8),
            "top.fc1": (6, n_top),
            "top.fc2": (1, 6),
        }
        tables = [f"emb.sls{t}" for t in range(len(config.table_rows))]
    weights = {
        f"param.{blob}_w": rng.normal(size=(rows, width))
        for blob, rows in zip(tables, config.table_rows, strict=True)
    }
    for blob, shape in shapes.items():
        weights[f"param.{blob}_w"] = rng.normal(size=shape)
        weights[f"param.{blob}_b"] = rng.normal(size=shape[:1])
    return {name: array.astype(np.float32) for name, array in weights.items()}


def drawn_queries(config, n_items, seed):
    """Queries of so many items each, padded to the longest."""
    rng = np.random.default_rng(seed)
    shape = (len(n_items), max(n_items))
    ids = np.stack([rng.integers(0, rows, shape) for rows in config.table_rows], axis=2)
    dense = rng.normal(size=(*shape, config.dense_width)).astype(np.float32)
    labels = rng.integers(0, 2, shape).astype(np.uint8)
    return Queries(ids.astype(np.int32), dense, labels, np.array(n_items, np.int32))


def full_queries(ids_QNT, labels_QN, n_dense=0):
    """Queries without padding, whose dense features are 0."""
    n_queries, n_items = labels_QN.shape
    return Queries(
        ids_QNT.astype(np.int32),
        np.zeros((n_queries, n_items, n_dense), np.float32),
        labels_QN.astype(np.uint8),
        np.full(n_queries, n_items, np.int32),
    )


def drawn_scores(name, ids_QNT, table_rows, rng, k=64):
    """Queries with these ids and drawn labels, which three rankers have scored at random."""
    shape = ids_QNT.shape[:2]
    queries = full_queries(ids_QNT, rng.integers(0, 2, shape), n_dense=13)
    rankers = {c.name: TrainedRanker(c.model_config(table_rows), {}) for c in RANKERS}
    scores = {name: rng.random(shape, np.float32) for name in rankers}
    return Scored(RankedData(name, rankers, queries, k, {}), scores)


def drawn_misses(n_queries=6, n_items=400, seed=1, rows=(50, 300, 7)):
    """Caches of three tables, two of them with a few popular rows; scores drawn."""
    rng = np.random.default_rng(seed)
    shape = (n_queries, n_items)
    ids = np.stack([np.minimum(rng.zipf(1.3, shape) - 1, n - 1) for n in rows], axis=2)
    ids[:, :, 1] = rng.integers(0, rows[1], shape)
    return Misses((drawn_scores("drawn", ids, rows, rng),))


K = 4  # items of an answer
ONE = SystemDesign(Chain(("large",), (K,)), (CPU,), 10)
TWO = SystemDesign(Chain(("small", "large"), (8, K)), (CPU, CPU), 10)
