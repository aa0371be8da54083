"""Real candidates as the inputs of a ranker: query q of a file is input q."""

# Q queries, N candidates, T tables, F dense features

from __future__ import annotations

import numpy as np
import torch

from infra.labelled_queries import Queries
from infra.settings.config import ModelConfig
from models.batch import first_rows
from models.inputs.pool import ItemPool


class QueryPool(ItemPool):
    """The candidates of labelled queries: one id a bag.

    Raises ConfigError if the model reads other tables.
    """

    def __init__(self, queries: Queries, config: ModelConfig) -> None:
        queries.check(config)
        n_queries, n_candidates, n_tables = queries.ids_QNT.shape
        starts = first_rows(config.table_rows)[:-1].astype(np.int32)
        ids_QL = torch.from_numpy(queries.ids_QNT + starts).view(n_queries, -1)
        offsets = torch.arange(n_candidates * n_tables + 1, dtype=torch.int32)
        super().__init__(
            n_candidates,
            n_tables,
            ids_QL,
            offsets.expand(n_queries, -1),
            torch.from_numpy(queries.dense_QNF) if config.dense_width else None,
            fixed=True,
        )
