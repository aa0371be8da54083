"""DLRM (RM1, RM2, RM3): bottom MLP, embedding tables, feature interaction, top MLP.

Naumov et al. 2019, 1906.00091.
"""

# B items, T tables, D embedding width, F dense features, N = T + 1 vectors, P pairs

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from models.standalone import main

    sys.exit(main(sys.argv[1:], "dlrm"))

import torch
from torch import Tensor

from infra.settings.config import ModelConfig
from models.base import RecModel
from models.batch import Batch
from models.layers import Concat, JoinedInput, Layer, Sigmoid, mlp


class DotInteraction(Layer):
    """Products of all pairs of vectors i > j, row after row of the lower triangle.

    With `itself`: i >= j.
    """

    operator = "BatchMatMul"
    pairs_P: Tensor

    def __init__(self, n_vectors: int, itself: bool) -> None:
        super().__init__()
        self.n_vectors = n_vectors
        rows, columns = torch.tril_indices(n_vectors, n_vectors, offset=0 if itself else -1)
        self.register_buffer("pairs_P", rows * n_vectors + columns, persistent=False)

    def forward(self, vectors_BI: Tensor) -> Tensor:
        """(B, N * D) -> (B, P)."""
        vectors_BND = vectors_BI.view(len(vectors_BI), self.n_vectors, -1)
        products_BNN = torch.bmm(vectors_BND, vectors_BND.transpose(1, 2))
        return products_BNN.flatten(1).index_select(1, self.pairs_P)


class DLRM(RecModel):
    """`caffe2` and `paper` are the same net."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        n_tables = len(config.table_rows)
        self.bot = mlp("bot", config.bot_widths)
        self.joined = JoinedInput(self.tables)
        self.concat = Concat()
        self.interaction: DotInteraction | None = None
        n_interactions = n_tables * config.arch_sparse_feature_size
        if config.arch_interaction_op == "dot":
            self.interaction = DotInteraction(n_tables + 1, config.arch_interaction_itself)
            n_interactions = len(self.interaction.pairs_P)
        widths = (config.bot_widths[-1] + n_interactions, *config.top_widths)
        self.top = mlp("top", widths, last=Sigmoid())

    def forward(self, batch: Batch) -> Tensor:
        """Click probability, (B, 1) with the released widths."""
        dense_BD = self.bot(batch.dense_BF)
        vectors_BI = self.joined(dense_BD, batch)
        if self.interaction is not None:
            vectors_BI = self.concat(dense_BD, self.interaction(vectors_BI))
        return self.top(vectors_BI)
