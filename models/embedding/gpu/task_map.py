"""Which program of a GPU launch does what: a list of (branch, table, tile), heaviest first."""

# T tables, N tasks

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Int32Array = npt.NDArray[np.int32]


def task_map(
    branch_T: npt.ArrayLike,
    tiles_T: npt.ArrayLike,
    cost_T: npt.ArrayLike,
    tables: npt.ArrayLike | None = None,
) -> Int32Array:
    """(N, 3): branch, table and tile of every program; each of a table's tiles exactly once.

    `cost_T`: what one tile of each table costs, in any unit. Programs start in this order, so that
    the cheap ones fill the end; a table's tiles stay together, as they read the same rows.
    `tables`: numbers of the T tables where they are not 0 .. T - 1.
    """
    branches = np.asarray(branch_T)
    tiles = np.asarray(tiles_T, np.int64)
    costs = np.asarray(cost_T, np.float64)
    numbers = np.arange(len(tiles)) if tables is None else np.asarray(tables)
    if not len(branches) == len(tiles) == len(costs) == len(numbers):
        raise ValueError(
            f"{len(branches)} branches, {len(tiles)} tile counts, {len(costs)} costs, "
            f"{len(numbers)} tables"
        )
    order = np.argsort(-costs, kind="stable")
    n_tiles = tiles[order]
    n_tasks = int(n_tiles.sum())
    if n_tasks >= 2**31:
        raise ValueError(
            f"{n_tasks} programs in one launch; at most 2^31 - 1: take a smaller batch or larger "
            "tiles"
        )
    first = np.repeat(np.cumsum(n_tiles) - n_tiles, n_tiles)
    which = np.repeat(order, n_tiles)
    tasks_N3 = np.stack((branches[which], numbers[which], np.arange(n_tasks) - first), axis=1)
    return tasks_N3.astype(np.int32)
