"""Criteo's click logs for ranking: the rows' order is time, so the last ones are the test.

A pool is a run of unrelated impressions of many users, a click its label: what RecPipe's release
ranks, and no user's query. Unlike the release's, no row of a pool is trained on.
"""

# N rows, T categories, Q pools, C rows of a pool

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from experiments.recpipe.datasets.click_rankers import Examples
from infra.labelled_queries import Queries
from models.inputs.datasets import Criteo

MOST_ROWS = 10_000  # of a table; more different values share rows by their hashes
TEST_SHARE = 0.1  # of the rows, and as many for validation


def table_rows(data: Criteo) -> tuple[int, ...]:
    """Rows of each table: as many as there are different values, at most MOST_ROWS."""
    return tuple(min(len(np.unique(column)), MOST_ROWS) for column in data.sparse_NC.T)


def split(data: Criteo, n_candidates: int) -> tuple[Examples, Queries]:
    """Training examples with pools that tell when training ends, and the test's pools.

    A pool has `n_candidates` rows. Raises ValueError if the last tenth of the rows is no pool, or
    no test has a click.
    """
    n_test = round(TEST_SHARE * len(data))
    if n_test < n_candidates:
        raise ValueError(
            f"{len(data)} rows: the last tenth is {n_test}, less than a pool of {n_candidates}; "
            f"expected {round(n_candidates / TEST_SHARE)} rows or more, or smaller pools"
        )
    n_train = len(data) - 2 * n_test
    rows = table_rows(data)
    ids_NT = (data.sparse_NC % np.array(rows, np.uint64)).astype(np.int32)
    valid, test = (
        _pools(data, ids_NT, first, n_test, n_candidates) for first in (n_train, n_train + n_test)
    )
    if not test.labels_QN.any():
        raise ValueError(f"none of the last {n_test} rows is a click; nothing can be ranked")
    train = Examples(ids_NT[:n_train], data.dense_NF[:n_train], data.label_N[:n_train], rows, valid)
    return train, test


def _pools(
    data: Criteo, ids_NT: npt.NDArray[np.int32], first: int, n: int, n_candidates: int
) -> Queries:
    """Rows first : first + n, one pool after the other; the rest is left out."""
    n_pools = n // n_candidates
    part = slice(first, first + n_pools * n_candidates)
    shape = (n_pools, n_candidates)
    return Queries(
        ids_NT[part].reshape(*shape, -1),
        data.dense_NF[part].reshape(*shape, -1),
        data.label_N[part].reshape(shape).astype(np.uint8),
        np.full(n_pools, n_candidates, np.int32),
    )
