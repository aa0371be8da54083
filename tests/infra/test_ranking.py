"""Ranked lists: the best items against a full sort, measures against scikit-learn and records."""

import json

import numpy as np
import pytest
from helpers import ROOT
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import ndcg_score

from infra import ranking

GOLDEN = json.loads((ROOT / "tests/data/recpipe_golden.json").read_text())
QUALITY = {case["id"]: case for case in GOLDEN["quality"]}


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=60), st.integers(1, 70))
def test_the_best_items_are_those_of_a_full_sort_with_ties_by_id(scores, k):
    ids = np.random.default_rng(len(scores)).permutation(len(scores))
    best = ranking.top_items(ids, np.array(scores, dtype=np.float32), k)
    ordered = sorted((-score, i) for score, i in zip(scores, ids, strict=True))
    assert list(best) == [i for _, i in ordered][:k]


@pytest.mark.parametrize(
    ("scores", "k", "message"),
    [([1.0, np.nan], 1, "NaN"), ([1.0], 0, "best 0"), ([1.0, 2.0, 3.0], 1, "3 scores")],
)
def test_a_list_that_cannot_be_ranked_is_refused(scores, k, message):
    with pytest.raises(ValueError, match=message):
        ranking.top_items(np.arange(2 if len(scores) > 1 else 1), scores, k)


@pytest.mark.parametrize("k", [1, 5, 20, 100])
def test_ndcg_is_scikit_learn_s(k):
    rng = np.random.default_rng(k)
    for _ in range(50):
        gains = rng.integers(0, 4, 60).astype(float)
        scores = rng.permutation(60).astype(float)
        ours = ranking.ndcg_at_k(gains[np.argsort(-scores)], gains, k)
        assert ours == pytest.approx(ndcg_score([gains], [scores], k=k), abs=1e-9)


def test_scores_of_any_type_rank_the_best_first():
    assert list(ranking.top_items([1, 2, 3], np.array([0, 5, 9], np.uint8), 2)) == [3, 2]
    assert list(ranking.top_items([1, 2, 3], [True, False, True], 2)) == [1, 3]


def test_ndcg_of_a_list_without_gains_is_zero():
    assert ranking.ndcg_at_k([0, 0, 0], [0, 0, 0, 0], 3) == 0


def test_ndcg_counts_what_an_earlier_stage_dropped():
    assert ranking.ndcg_at_k([1, 0], [1, 1, 0, 0], 2) == pytest.approx(1 / (1 + 1 / np.log2(3)))


@pytest.mark.parametrize("case", ["Q01", "Q05"])
def test_the_released_measure_is_the_release_s(case):
    golden = QUALITY[case]
    assert ranking.ndcg_released(golden["input"], 64) == pytest.approx(golden["output"], rel=1e-12)


def test_the_released_measure_of_ones_after_zeros():
    late = ranking.ndcg_released([0] * 16 + [1] * 48, 64)
    assert late == pytest.approx(QUALITY["Q03"]["output"], rel=1e-12)


def test_hits_and_reciprocal_ranks():
    assert ranking.hit_rate_at_k([0, 0, 1], 2) == 0
    assert ranking.hit_rate_at_k([0, 0, 1], 3) == 1
    assert ranking.reciprocal_rank([0, 0, 1, 1]) == pytest.approx(1 / 3)
    assert ranking.reciprocal_rank([0, 0]) == 0


def test_the_interval_of_a_mean_covers_as_often_as_it_says():
    rng = np.random.default_rng(3)
    inside = 0
    for _ in range(1000):
        mean = ranking.mean_with_interval(rng.normal(2.0, 1.0, 30), 0.9)
        inside += mean.low <= 2.0 <= mean.high
    assert inside == pytest.approx(900, abs=4 * np.sqrt(1000 * 0.9 * 0.1))


def test_pairing_sees_a_difference_that_the_spread_over_queries_hides():
    rng = np.random.default_rng(4)
    base = rng.normal(0, 10, 200)
    better = base + 0.2 + rng.normal(0, 0.1, 200)
    pair = ranking.paired(better, base)
    assert pair.differs
    assert pair.p_value == pytest.approx(stats.ttest_rel(better, base).pvalue)
    assert pair.difference.value == pytest.approx(0.2, abs=0.03)
    few = base[:12]
    apart = rng.normal(0, 10, 12)
    assert ranking.paired(few, apart).p_value == pytest.approx(stats.ttest_rel(few, apart).pvalue)
    assert ranking.paired([3.0, 5.0, 7.0], [2.0, 4.0, 6.0]).p_value == 0
    assert np.isnan(ranking.paired([3.0], [2.0]).p_value)
    same = ranking.paired(base, base)
    assert not same.differs
    assert same.p_value == 1
    with pytest.raises(ValueError, match="cannot be paired"):
        ranking.paired(base, base[1:])
    with pytest.raises(ValueError, match="no finite number"):
        ranking.paired([np.nan, 1.0], [1.0, 1.0])
