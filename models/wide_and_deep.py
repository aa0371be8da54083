"""Wide & Deep: dense features and embeddings, concatenated, through one MLP.

Cheng et al. 2016, 1606.07792.
"""

# B items, T tables, D embedding width, F dense features

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from models.standalone import main

    sys.exit(main(sys.argv[1:], "wnd"))

from torch import Tensor

from infra.settings.config import ModelConfig
from models.base import RecModel
from models.batch import Batch
from models.layers import JoinedInput, Sigmoid, mlp


class WideAndDeep(RecModel):
    """The dense features go in unchanged. `caffe2` and `paper` are the same net."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.joined = JoinedInput(self.tables)
        n_in = self.joined.width(config.dense_width)
        self.top = mlp("top", (n_in, *config.top_widths), last=Sigmoid())

    def forward(self, batch: Batch) -> Tensor:
        """Click probability, (B, 1) with the released widths."""
        return self.top(self.joined(batch.dense_BF, batch))
