"""Ids by Zipf's law against the law."""

import numpy as np
import pytest
from scipy import stats

from models.inputs.zipf import draw_ranks, draw_rows

P_LIMIT = 1e-3  # a right law fails once in a thousand seeds; the seeds are fixed


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.8, 1.0, 1.0 + 1e-12, 1.05, 3.0])
@pytest.mark.parametrize("n_rows", [1, 2, 40, 5000])
def test_ranks_follow_zipf_s_law(alpha, n_rows):
    n = 40_000
    ranks = draw_ranks(n_rows, alpha, n, np.random.default_rng(5))
    expected = np.arange(1, n_rows + 1) ** -alpha
    expected *= n / expected.sum()
    group = np.minimum((np.cumsum(expected) // 20).astype(int), n // 20)
    observed = np.bincount(group[ranks - 1], minlength=group[-1] + 1)
    wanted = np.bincount(group, expected)
    kept = wanted > 10
    if kept.sum() > 1:
        chi2 = ((observed[kept] - wanted[kept]) ** 2 / wanted[kept]).sum()
        assert stats.chi2.sf(chi2, kept.sum() - 1) > P_LIMIT
    else:
        assert (ranks == 1).mean() == pytest.approx(expected[0] / n, abs=1e-3)


@pytest.mark.parametrize("n_rows", [1, 2, 3, 6, 100, 997, 4096])
def test_ranks_become_different_rows(n_rows):
    rng = np.random.default_rng(4)
    assert len(np.unique(draw_rows(n_rows, 0.0, 40 * n_rows, rng))) == n_rows


@pytest.mark.parametrize(("n_rows", "alpha"), [(0, 1.0), (5, -0.1), (5, np.nan)])
def test_no_law_without_rows_or_with_a_negative_alpha(n_rows, alpha):
    with pytest.raises(ValueError, match="Zipf's law needs"):
        draw_ranks(n_rows, alpha, 5, np.random.default_rng(1))
