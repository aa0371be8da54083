"""Programs in the order of what they read in this very batch: the rival of one map a batch size.

The product's map (models/embedding/gpu/task_map.py) is made once for each batch size. This one is
ordered anew for every batch, on the device, without waiting for it; it holds the same programs.
"""

# N tasks, M = T * B bags

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.embedding.gpu.look_up import TritonBags
from models.embedding.gpu.schedules import Branch
from models.embedding.gpu.task_map import Int32Array


class LengthMap:
    """Task map of one launch at one batch size, for bags that lie table after table."""

    def __init__(
        self, tasks: Int32Array, branches: Sequence[Branch], n_items: int, device: torch.device
    ) -> None:
        branch_N, table_N, tile_N = tasks.astype(np.int64).T
        parts = np.array([b.parts if b.schedule == "split" else 1 for b in branches])
        tiles_a_bag = np.array([-(-b.dim // b.tile_lanes) for b in branches]) * parts
        bags_N = np.array([b.tile_bags for b in branches])[branch_N]
        first_N = tile_N // tiles_a_bag[branch_N] * bags_N
        end_N = np.minimum(first_N + bags_N, n_items)
        without_ids = np.array([b.cost(0.0) for b in branches])
        an_id = np.array([(b.cost(1.0) - b.cost(0.0)) / b.tile_bags for b in branches])
        self._tasks = torch.from_numpy(tasks).to(device)
        self._first_N, self._end_N = (
            torch.from_numpy(table_N * n_items + bag_N).to(device) for bag_N in (first_N, end_N)
        )
        self._without_ids_N, self._an_id_N = (
            torch.from_numpy(cost[branch_N].astype(np.float32)).to(device)
            for cost in (without_ids, an_id)
        )

    def tasks(self, offsets: Tensor) -> Tensor:
        """(N, 3), those that read most first."""
        n_ids = offsets[self._end_N] - offsets[self._first_N]
        costs_N = self._without_ids_N + self._an_id_N * n_ids
        return self._tasks[torch.argsort(costs_N, descending=True)]


class LengthOrderedBags(TritonBags):
    """The look-up with a LengthMap for every batch, made in each call or beforehand."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._by_size: dict[int, list[LengthMap]] = {}
        self._made: Sequence[Tensor] | None = None

    def maps_of(self, offsets: Tensor, *, item_major: bool = False) -> Sequence[Tensor]:
        """The task map of every launch for this batch.

        Raises ValueError for bags that lie item after item.
        """
        if self._made is not None:
            return self._made
        if item_major:
            raise ValueError("programs are ordered by bags that lie table after table")
        n_items = (len(offsets) - 1) // len(self.layout.specs)
        if n_items not in self._by_size:
            usual = super().maps_of(offsets)
            self._by_size[n_items] = [
                LengthMap(tasks.cpu().numpy(), launch.branches, n_items, tasks.device)
                for tasks, launch in zip(usual, self.launches, strict=True)
            ]
        return [length_map.tasks(offsets) for length_map in self._by_size[n_items]]

    def with_maps(
        self, values: Tensor, offsets: Tensor, maps: Sequence[Tensor], out: Tensor | None = None
    ) -> Tensor:
        """(B, S), by maps that `maps_of` has made before."""
        self._made = maps
        try:
            return self(values, offsets, out)
        finally:
            self._made = None
