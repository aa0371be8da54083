"""Filters keep exactly the best; a sample is of different queries; queries fit each other."""

import numpy as np
import pytest
from drawn_rankers import NCF, drawn_queries

from experiments.recpipe.datasets.ranked import answer, handed_on, sample
from infra.labelled_queries import Queries


def test_a_chain_keeps_exactly_the_best_of_each_stage():
    rng = np.random.default_rng(2)
    first, second = rng.integers(0, 5, (2, 3, 40)).astype(np.float32)
    pool = rng.permutation(40)[:30]
    for user in range(3):
        kept = sorted(pool, key=lambda i, user=user: (-first[user, i], i))[:10]
        expected = sorted(kept, key=lambda i, user=user: (-second[user, i], i))[:4]
        assert list(answer([first, second], user, pool, (10, 4))) == expected
        # A filter that keeps all is no filter.
        everything = answer([first, second], user, pool, (30, 4))
        assert list(everything) == list(answer([second], user, pool, (4,)))


@pytest.mark.parametrize("n_parts", [1, 3])
def test_filters_that_work_in_parts_keep_their_share_of_each_part(n_parts):
    rng = np.random.default_rng(3)
    scores = rng.integers(0, 9, (3, 2, 50)).astype(np.float32)
    pool = rng.permutation(50)[:41]
    bounds = {1: [(0, 41)], 3: [(0, 14), (14, 28), (28, 41)]}[n_parts]

    def best(items, stage, query, n):
        return sorted(items, key=lambda i: (-scores[stage][query, i], i))[:n]

    for query in range(2):
        kept = []
        for begin, end in bounds:
            first = best(pool[begin:end], 0, query, -(-20 // n_parts))
            kept += best(first, 1, query, -(-10 // n_parts))
        assert list(handed_on(scores[:2], query, pool, (20, 10), n_parts)) == kept
        expected = best(kept, 2, query, 5)
        assert list(answer(scores, query, pool, (20, 10, 5), n_parts)) == expected


def test_a_sample_is_of_different_queries_always_the_same_and_no_more_than_there_are():
    queries = drawn_queries(NCF, [*range(1, 31)], 3)
    few = sample(queries, 10)
    assert len(set(few.n_items_Q)) == 10
    assert (few.n_items_Q == sample(queries, 10).n_items_Q).all()
    assert list(few.n_items_Q) != [*range(1, 11)]
    assert (sample(queries, 99).n_items_Q == queries.n_items_Q).all()


@pytest.mark.parametrize(
    ("field", "shape"), [("labels_QN", (2, 4)), ("dense_QNF", (3, 5, 0)), ("n_items_Q", (3,))]
)
def test_arrays_of_other_queries_are_refused(field, shape):
    arrays = {
        "ids_QNT": np.zeros((2, 5, 4), np.int32),
        "dense_QNF": np.zeros((2, 5, 0), np.float32),
        "labels_QN": np.zeros((2, 5), np.uint8),
        "n_items_Q": np.full(2, 5, np.int32),
    }
    Queries(**arrays)
    with pytest.raises(ValueError, match="do not belong"):
        Queries(**arrays | {field: np.ones(shape, arrays[field].dtype)})


@pytest.mark.parametrize("n", [0, 6])
def test_a_query_without_items_or_with_more_than_its_rows_is_refused(n):
    shape = (1, 5)
    dense = np.zeros((*shape, 0), np.float32)
    with pytest.raises(ValueError, match="items of 5"):
        Queries(
            np.zeros((*shape, 4), np.int32),
            dense,
            np.zeros(shape, np.uint8),
            np.array([n], np.int32),
        )
