"""Which program of a GPU launch does what."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.embedding.gpu.task_map import task_map

TABLES = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 20), st.floats(0, 100)), max_size=12)


@given(tables=TABLES)
def test_every_tile_of_every_table_is_in_the_map_exactly_once(tables):
    branch, tiles, cost = (
        (list(column) for column in zip(*tables, strict=True)) if tables else ([], [], [])
    )
    tasks = task_map(branch, tiles, cost)
    assert tasks.dtype == np.int32
    assert tasks.flags["C_CONTIGUOUS"]
    assert sorted(map(tuple, tasks.tolist())) == sorted(
        (branch[table], table, tile) for table in range(len(tables)) for tile in range(tiles[table])
    )


@given(tables=TABLES.filter(bool))
def test_heavy_tasks_come_first_and_a_tables_tiles_together(tables):
    branch, tiles, cost = (list(column) for column in zip(*tables, strict=True))
    _, which, tile = task_map(branch, tiles, cost).T
    costs = np.array(cost)[which]
    assert (np.diff(costs) <= 0).all()
    for table in set(which.tolist()):
        (at,) = np.nonzero(which == table)
        assert (np.diff(at) == 1).all()
        assert tile[at].tolist() == list(range(tiles[table]))


def test_a_map_of_some_tables_names_them_by_their_own_numbers():
    assert task_map([0, 1], [2, 1], [1, 2], [7, 3]).tolist() == [[1, 3, 0], [0, 7, 0], [0, 7, 1]]
    assert task_map([], [], [], []).shape == (0, 3)
    with pytest.raises(ValueError, match="1 branches, 2 tile counts"):
        task_map([0], [2, 1], [1, 2])
    with pytest.raises(ValueError, match="take a smaller batch or larger tiles"):
        task_map([0], [1 << 31], [1.0])
