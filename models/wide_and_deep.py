"""Wide & Deep: dense features and embeddings, concatenated, through one MLP.

Cheng et al. 2016, 1606.07792.
"""

# B items, T tables, D embedding width, F dense features

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from torch import Tensor

from infra.settings.config import ModelConfig
from models.base import RecModel
from models.batch import Batch
from models.layers import JoinedInput, Sigmoid, mlp


class WideAndDeep(RecModel):
    """The dense features go in unchanged. `caffe2` and `paper` are the same net."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        n_in = config.dense_width + len(config.table_rows) * config.arch_sparse_feature_size
        self.joined = JoinedInput(self.tables)
        self.top = mlp("top", (n_in, *config.top_widths), last=Sigmoid())

    def forward(self, batch: Batch) -> Tensor:
        """Click probability, (B, 1) with the released widths."""
        scores: Tensor = self.top(self.joined(batch.dense_BF, batch))
        return scores


if __name__ == "__main__":
    from models.standalone import main

    sys.exit(main(sys.argv[1:], "wnd"))
