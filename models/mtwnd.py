"""Multi-task Wide & Deep: a shared MLP, then one MLP per task. Zhao et al., RecSys 2019."""

# B items, T tables, D embedding width, G tasks

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from torch import Tensor, nn

from infra.config import ModelConfig
from models.base import RecModel
from models.batch import Batch
from models.layers import Concat, GroupedFC, Relu, Sigmoid, mlp


class MultiTaskWideAndDeep(RecModel):
    """The task MLPs have equal widths and are computed together. `caffe2` and `paper` are the same net."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        n_in = config.dense_width + len(config.table_rows) * config.arch_sparse_feature_size
        self.concat = Concat()
        self.top = mlp("top", (n_in, *config.top_widths))
        layers: list[nn.Module] = []
        for i, (n_from, n_to) in enumerate(zip(config.task_widths, config.task_widths[1:], strict=False), start=1):
            layers += [GroupedFC([f"task_{g}.fc{i}" for g in range(config.num_multi_tasks)], n_from, n_to), Relu()]
        self.tasks = nn.Sequential(*layers[:-1], Sigmoid())

    def forward(self, batch: Batch) -> Tensor:
        """(G, B, last width of arch_mlp_tasks)."""
        shared_BI = self.top(self.concat(batch.dense_BF, self.tables(batch)))
        scores: Tensor = self.tasks(shared_BI.expand(self.config.num_multi_tasks, -1, -1))
        return scores


if __name__ == "__main__":
    from models.standalone import main

    sys.exit(main(sys.argv[1:], "mtwnd"))
