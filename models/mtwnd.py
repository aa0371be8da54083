"""Multi-task Wide & Deep: a shared MLP, then one MLP per task. Zhao et al., RecSys 2019."""

# B items, T tables, D embedding width, G tasks

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from models.standalone import main

    sys.exit(main(sys.argv[1:], "mtwnd"))

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from infra.settings.config import ModelConfig
from models.base import RecModel
from models.batch import Batch
from models.layers import GroupedFC, JoinedInput, Layer, Relu, Sigmoid, Stack, grouped, mlp


class TaskTowers(Layer):
    """One MLP a task, all of the same widths: batched products, or packed stacks in turn."""

    def __init__(self, n_tasks: int, widths: Sequence[int]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for layer in grouped([f"task_{g}" for g in range(n_tasks)], widths):
            layers += [layer, Relu()]
        self.n_tasks = n_tasks
        self.together = nn.Sequential(*layers[:-1], Sigmoid())
        self.packed: list[Stack] = []

    def pack(self, dtype: torch.dtype) -> None:
        """Compute each task by a packed stack of its own from now on."""
        self.packed = [self._tower(g) for g in range(self.n_tasks)]
        self.packed_layers = nn.ModuleList(self.packed)
        for tower in self.packed:
            tower.pack(dtype)

    def _tower(self, g: int) -> Stack:
        layers = (
            layer.single(g) if isinstance(layer, GroupedFC) else layer for layer in self.together
        )
        return Stack(*layers)

    def forward(self, shared_BI: Tensor) -> Tensor:
        """(G, B, last width)."""
        if self.packed:
            return torch.stack([tower(shared_BI) for tower in self.packed])
        scores_GBO: Tensor = self.together(shared_BI.expand(self.n_tasks, -1, -1))
        return scores_GBO


class MultiTaskWideAndDeep(RecModel):
    """`caffe2` and `paper` are the same net."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.joined = JoinedInput(self.tables)
        self.top = mlp("top", (self.joined.width(config.dense_width), *config.top_widths))
        self.tasks = TaskTowers(config.num_multi_tasks, config.task_widths)

    def forward(self, batch: Batch) -> Tensor:
        """(G, B, last width of arch_mlp_tasks)."""
        return self.tasks(self.top(self.joined(batch.dense_BF, batch)))
