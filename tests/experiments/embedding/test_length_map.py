"""Task maps from the lengths of a batch's own bags."""

import numpy as np
import pytest
import torch

from experiments.embedding.length_map import LengthMap
from models.embedding.gpu.schedules import Branch
from models.embedding.gpu.task_map import task_map


@pytest.mark.parametrize("lengths", [[[0, 1, 90], [4, 0, 500]], [[9, 9, 0], [500, 0, 0]]])
def test_programs_are_ordered_by_the_ids_of_this_batch(lengths):
    branches = [Branch("bags", 8, 0, 2, 1, 8, 1, 4, 1), Branch("split", 16, 0, 1, 1, 8, 2, 4, 1)]
    usual = task_map([0, 1], [branch.tiles(3) for branch in branches], [1, 2])
    offsets = torch.tensor(np.concatenate(([0], np.cumsum(lengths))))  # 3 bags in each of 2 tables
    tasks = LengthMap(usual, branches, 3, torch.device("cpu")).tasks(offsets).tolist()
    assert sorted(map(tuple, tasks)) == sorted(map(tuple, usual.tolist()))
    # 8 lanes x (ids / parts + bags + 4) of a tile: two bags; or a bag in two parts and two blocks
    # of columns
    of_bags = [8 * (sum(lengths[0][:2]) + 6), 8 * (lengths[0][2] + 6)]
    of_split = [8 * (n / 2 + 5) for n in lengths[1]]
    costs = [of_split[tile // 4] if branch else of_bags[tile] for branch, _, tile in tasks]
    assert costs == sorted(costs, reverse=True)
    assert costs[0] == max(of_split)
