"""Rankers with drawn weights and queries with drawn labels, for tests of files, pipelines and
designs.
"""

import numpy as np

from experiments.recpipe.datasets.ranked import Queries
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
    """As blobs, of the shapes that the model has."""
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
    found = {
        f"param.{blob}_w": rng.normal(size=(rows, width))
        for blob, rows in zip(tables, config.table_rows, strict=True)
    }
    for blob, shape in shapes.items():
        found |= {
            f"param.{blob}_w": rng.normal(size=shape),
            f"param.{blob}_b": rng.normal(size=shape[:1]),
        }
    return {name: array.astype(np.float32) for name, array in found.items()}


def drawn_queries(config, n_items, seed):
    rng = np.random.default_rng(seed)
    shape = (len(n_items), max(n_items))
    ids = np.stack([rng.integers(0, rows, shape) for rows in config.table_rows], axis=2).astype(
        np.int32
    )
    dense = rng.normal(size=(*shape, config.dense_width)).astype(np.float32)
    return Queries(
        ids, dense, rng.integers(0, 2, shape).astype(np.uint8), np.array(n_items, np.int32)
    )
