"""Neural collaborative filtering: matrix factorisation beside an MLP tower.

He et al. 2017, 1708.05031.
"""

# B items, D embedding width

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from torch import Tensor, nn

from infra.settings.config import ModelConfig
from models.base import RecModel
from models.batch import Batch
from models.layers import Concat, Relu, Sigmoid, mlp


class Factors(nn.Module):
    """The two factors of matrix factorisation, joined: the release ADDS them, the paper multiplies
    them.
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
        width, (*tower, n_out) = config.arch_sparse_feature_size, config.top_widths
        published = config.arch_variant == "paper"
        self.factors = Factors(multiply=published)
        self.concat = Concat()
        self.tower = mlp("mlpfc", (2 * width, *tower))
        n_final = width + tower[-1]
        self.final = mlp(
            "final", (n_final, 1 if published else n_out), last=Sigmoid() if published else Relu()
        )

    @property
    def table_blobs(self) -> list[str]:
        """Names of the tables in the released net."""
        return ["emb.mf_sls0", "emb.mf_sls1", "emb.mlp_sls0", "emb.mlp_sls1"]

    def forward(self, batch: Batch) -> Tensor:
        """(B, last width of arch_mlp_top); `paper`: click probability, (B, 1)."""
        if self.tables.one_by_one is not None:
            user_BD, item_BD, *mlp = self.tables.pooled(batch)
            joined_BI = self.concat(*mlp)
        else:
            rows_B4D = self.tables(batch)
            user_BD = rows_B4D[:, 0]
            item_BD = rows_B4D[:, 1]
            joined_BI = rows_B4D[:, 2:].flatten(1)
        scores: Tensor = self.final(
            self.concat(self.factors(user_BD, item_BD), self.tower(joined_BI))
        )
        return scores


if __name__ == "__main__":
    from models.standalone import main

    sys.exit(main(sys.argv[1:], "ncf"))
