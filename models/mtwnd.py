"""Multi-task Wide & Deep: a shared MLP, then one MLP per task. Zhao et al., RecSys 2019."""

# B items, T tables, D embedding width, G tasks

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import itertools

import torch
from torch import Tensor, nn

from infra.settings.config import ModelConfig
from models.base import RecModel
from models.batch import Batch
from models.layers import GroupedFC, JoinedInput, Relu, Sigmoid, Stack, mlp


class TaskTowers(nn.Module):
    """One MLP a task, all of the same widths: as batched products, or packed one task after the
    other.
    """

    def __init__(self, n_tasks: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i, (n_from, n_to) in enumerate(itertools.pairwise(widths), start=1):
            layers += [GroupedFC([f"task_{g}.fc{i}" for g in range(n_tasks)], n_from, n_to), Relu()]
        self.n_tasks = n_tasks
        self.together = nn.Sequential(*layers[:-1], Sigmoid())
        self.packed: list[Stack] = []

    def pack(self, dtype: torch.dtype) -> None:
        """From now on a packed stack for each task."""
        self.packed = [
            Stack(
                *(
                    layer.single(g) if isinstance(layer, GroupedFC) else layer
                    for layer in self.together
                )
            )
            for g in range(self.n_tasks)
        ]
        self.packed_layers = nn.ModuleList(self.packed)
        for tower in self.packed:
            tower.pack(dtype)

    def forward(self, shared_BI: Tensor) -> Tensor:
        """(G, B, last width)."""
        if self.packed:
            return torch.stack([tower(shared_BI) for tower in self.packed])
        scores: Tensor = self.together(shared_BI.expand(self.n_tasks, -1, -1))
        return scores


class MultiTaskWideAndDeep(RecModel):
    """`caffe2` and `paper` are the same net."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        n_in = config.dense_width + len(config.table_rows) * config.arch_sparse_feature_size
        self.joined = JoinedInput(self.tables)
        self.top = mlp("top", (n_in, *config.top_widths))
        self.tasks = TaskTowers(config.num_multi_tasks, config.task_widths)

    def forward(self, batch: Batch) -> Tensor:
        """(G, B, last width of arch_mlp_tasks)."""
        shared_BI = self.top(self.joined(batch.dense_BF, batch))
        scores: Tensor = self.tasks(shared_BI)
        return scores


if __name__ == "__main__":
    from models.standalone import main

    sys.exit(main(sys.argv[1:], "mtwnd"))
