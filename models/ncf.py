"""Neural collaborative filtering: matrix factorisation beside an MLP tower.

He et al. 2017, 1708.05031.
"""

# B items, D embedding width

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from models.standalone import main

    sys.exit(main(sys.argv[1:], "ncf"))

from torch import Tensor

from infra.settings.config import ModelConfig
from models.base import RecModel
from models.batch import Batch
from models.layers import Concat, Layer, Relu, Sigmoid, mlp


class Factors(Layer):
    """The two factors of matrix factorisation, joined.

    The release ADDS them, the paper multiplies them.
    """

    def __init__(self, multiply: bool) -> None:
        super().__init__()
        self.operator = "Mul" if multiply else "Sum"
        self.multiply = multiply

    def forward(self, user_BD: Tensor, item_BD: Tensor) -> Tensor:
        """(B, D)."""
        return user_BD * item_BD if self.multiply else user_BD + item_BD


class NCF(RecModel):
    """Tables mf0, mf1, mlp0, mlp1.

    `paper`: element-wise product, one sigmoid output (no ReLU at the end).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        width = config.arch_sparse_feature_size
        *tower, n_out = config.top_widths
        self.factors = Factors(multiply=self.published)
        self.concat = Concat()
        self.tower = mlp("mlpfc", (2 * width, *tower))
        n_joined = width + tower[-1]
        self.final = (
            mlp("final", (n_joined, 1), last=Sigmoid())
            if self.published
            else mlp("final", (n_joined, n_out), last=Relu())
        )

    @property
    def table_blobs(self) -> list[str]:
        """Names of the tables in the released net."""
        return ["emb.mf_sls0", "emb.mf_sls1", "emb.mlp_sls0", "emb.mlp_sls1"]

    def forward(self, batch: Batch) -> Tensor:
        """(B, last width of arch_mlp_top); `paper`: click probability, (B, 1)."""
        if self.tables.one_by_one is not None:
            user_BD, item_BD, *rest_BD = self.tables.pooled(batch)
            joined_BI = self.concat(*rest_BD)
        else:
            rows_B4D = self.tables(batch)
            user_BD = rows_B4D[:, 0]
            item_BD = rows_B4D[:, 1]
            joined_BI = rows_B4D[:, 2:].flatten(1)
        return self.final(self.concat(self.factors(user_BD, item_BD), self.tower(joined_BI)))
