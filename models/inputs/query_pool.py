"""Real candidates as the inputs of a ranker: query q of a file is input q."""

# Q queries, N candidates, T tables, F dense features, B items of a task

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from infra.labelled_queries import Queries
from infra.settings.config import ModelConfig
from models.batch import Batch, first_rows


class QueryPool:
    """What InputPool is, of given queries: one id a bag.

    Raises ConfigError if the model reads other tables.
    """

    def __init__(self, queries: Queries, config: ModelConfig) -> None:
        queries.check(config)
        n_tables = queries.ids_QNT.shape[2]
        self.n_inputs, self.max_items = queries.ids_QNT.shape[:2]
        starts = first_rows(config.table_rows)[:-1].astype(np.int32)
        self._ids_QNT = torch.from_numpy(queries.ids_QNT + starts)
        self._dense_QNF = torch.from_numpy(queries.dense_QNF) if config.dense_width else None
        self._offsets = torch.arange(self.max_items * n_tables + 1, dtype=torch.int32)

    def batch(self, input_id: int, first_item: int, n_items: int) -> Batch:
        """Candidates [first_item, first_item + n_items) of a query, not copied; raises IndexError
        outside of it.
        """
        end = first_item + n_items
        if not (0 <= first_item < end <= self.max_items and 0 <= input_id < self.n_inputs):
            raise IndexError(
                f"items {first_item}:{end} of input {input_id}: there are {self.n_inputs} inputs "
                f"of {self.max_items}"
            )
        dense = None if self._dense_QNF is None else self._dense_QNF[input_id, first_item:end]
        return self._batch(self._ids_QNT[input_id, first_item:end], dense)

    def gather(self, input_id: int, items_B: npt.NDArray[np.int32]) -> Batch:
        """Any candidates of a query in the order given; raises IndexError outside of it."""
        if not (0 <= input_id < self.n_inputs and len(items_B)):
            raise IndexError(
                f"{len(items_B)} items of input {input_id}: there are {self.n_inputs} inputs"
            )
        chosen = torch.from_numpy(items_B.astype(np.int64))
        dense = (
            None if self._dense_QNF is None else self._dense_QNF[input_id].index_select(0, chosen)
        )
        return self._batch(self._ids_QNT[input_id].index_select(0, chosen), dense)

    def _batch(self, ids_BT: torch.Tensor, dense_BF: torch.Tensor | None) -> Batch:
        ids_L = ids_BT.reshape(-1)
        return Batch(len(ids_BT), dense_BF, ids_L, self._offsets[: len(ids_L) + 1])
