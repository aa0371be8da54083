"""Programs in the order of what they read in this very batch: the task map from actual lengths, for
comparison.

The usual map (task_map.py) is one a batch size. This one is ordered anew for every batch, on the
device, without waiting for it; it holds the same programs.
"""

# N tasks, M = T * B bags

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from models.embedding.gpu.schedules import Branch
from models.embedding.gpu.task_map import Int32Array


class LengthMap:
    """Of one launch at one batch size, bags lying table after table."""

    def __init__(
        self, tasks: Int32Array, branches: Sequence[Branch], n_items: int, device: torch.device
    ) -> None:
        branch_N, table_N, tile_N = tasks.astype(np.int64).T
        blocks, bags, parts = (
            np.array(column)[branch_N]
            for column in zip(
                *(
                    (
                        -(-own.dim // own.tile_lanes),
                        own.tile_bags,
                        own.parts if own.schedule == "split" else 1,
                    )
                    for own in branches
                ),
                strict=True,
            )
        )
        first_N = tile_N // (blocks * parts) * bags
        end_N = np.minimum(first_N + bags, n_items)
        a_bag = np.array([own.cost(0.0) for own in branches])[branch_N]  # of a tile without ids
        an_id = np.array([(own.cost(1.0) - own.cost(0.0)) / own.tile_bags for own in branches])[
            branch_N
        ]
        self._tasks = torch.from_numpy(tasks).to(device)
        self._first_N, self._end_N = (
            torch.from_numpy(table_N * n_items + at).to(device) for at in (first_N, end_N)
        )
        self._a_bag, self._an_id = (
            torch.from_numpy(own.astype(np.float32)).to(device) for own in (a_bag, an_id)
        )

    def tasks(self, offsets: Tensor) -> Tensor:
        """(N, 3), those that read most first."""
        n_ids = offsets[self._end_N] - offsets[self._first_N]
        return self._tasks[torch.argsort(self._a_bag + self._an_id * n_ids, descending=True)]
