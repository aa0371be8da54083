"""Bisection and the release's walk on verdicts that are known."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.search.rate_search import RateBisection, RateWalk, log_grid_qps

GRID = log_grid_qps(1.0, 20.0, 50)


def bisect(limit_qps, start_qps, width, blur=0.0):
    """The bisection and the rates tried; verdicts are undecided within `blur` of the limit."""
    bisection = RateBisection(start_qps, width)
    tried = []
    while (rate_qps := bisection.propose()) is not None:
        tried.append(rate_qps)
        sure = abs(rate_qps / limit_qps - 1) > blur
        verdict = "undecided" if not sure else "met" if rate_qps <= limit_qps else "missed"
        bisection.observe(verdict, leans_met=rate_qps <= limit_qps)
    return bisection, tried


WIDTHS = st.sampled_from([0.01, 0.05, 0.2])
BLURS = st.sampled_from([0.0, 0.03, 0.1])


@given(st.floats(1, 1e5), st.floats(0.05, 20), WIDTHS, BLURS)
def test_the_limit_is_found_to_the_width_from_anywhere(limit_qps, start_share, width, blur):
    bisection, tried = bisect(limit_qps, limit_qps * start_share, width, blur)
    estimate = bisection.estimate
    assert estimate.value == pytest.approx(limit_qps, rel=width)
    assert estimate.low <= limit_qps <= estimate.high
    assert bisection.carried_qps <= limit_qps
    assert len(tried) < 25


def test_undecided_rates_widen_the_interval_and_not_the_bracket():
    sharp, _ = bisect(100.0, 50.0, 0.02)
    blurred, _ = bisect(100.0, 50.0, 0.02, blur=0.1)
    assert sharp.estimate.high / sharp.estimate.low < 1.021
    assert blurred.estimate.value == pytest.approx(100, rel=0.02)
    assert blurred.estimate.low < 90.1
    assert blurred.estimate.high > 109.9


def test_where_nothing_meets_the_sla_the_limit_is_zero_after_a_few_rates():
    bisection, tried = bisect(1e-9, 100.0, 0.05)
    assert bisection.estimate.value == bisection.carried_qps == 0.0
    assert bisection.estimate.high == min(tried)
    assert len(tried) < 10


@pytest.mark.parametrize("bad", [(0.0, 0.1), (10.0, 0.0), (math.inf, 0.1)])
def test_settings_that_make_no_sense_are_refused(bad):
    with pytest.raises(ValueError, match="above 0"):
        RateBisection(*bad)


def test_nothing_is_observed_that_was_not_proposed():
    bisection, _ = bisect(100.0, 50.0, 0.5)
    with pytest.raises(ValueError, match="proposed"):
        bisection.observe("met", leans_met=True)


def walk(tail_ms, max_updates=200, start_step=0):
    search = RateWalk(GRID, 25.0, 0.1, max_updates, start_step)
    while (rate_qps := search.propose()) is not None:
        search.observe(tail_ms(rate_qps))
    return search


def mm1_tail_ms(rate_qps, mu_qps=400):
    return 1000 * math.log(20) / (mu_qps - rate_qps) if rate_qps < mu_qps else math.inf


def test_the_walk_finds_the_fastest_step_under_the_sla():
    carried_qps = GRID[walk(mm1_tail_ms).limit_step]
    limit_qps = 400 - math.log(20) / 0.025
    assert carried_qps <= limit_qps
    # It holds inside the dead band, so it may stop below the limit by the band's width, and no
    # more.
    assert carried_qps >= 400 - math.log(20) / (0.025 * 0.9) - (limit_qps * 0.07)


def test_the_walk_climbs_one_step_an_update_from_where_it_starts():
    steps = walk(mm1_tail_ms, start_step=3).steps
    assert steps[0] == 3
    assert all(abs(b - a) <= 1 for a, b in itertools.pairwise(steps))


@pytest.mark.parametrize(("tail", "step"), [(1.0, len(GRID) - 1), (99.0, -1)])
def test_the_walk_ends_at_the_ends_of_the_grid(tail, step):
    search = walk(lambda _: tail, max_updates=500)
    assert search.limit_step == step
    assert len(search.steps) <= len(GRID)


def test_a_step_that_met_the_sla_less_often_than_not_is_not_carried():
    # Step 2 is tried three times and fails three times.
    tails = iter([1.0, 1.0, 99.0, 1.0, 99.0, 1.0, 99.0])
    search = walk(lambda _: next(tails), max_updates=7)
    assert search.steps == [0, 1, 2, 1, 2, 1]
    assert search.limit_step == 1
    search = RateWalk(GRID, 25.0, 0.1, 100)
    search.TURNS = 99
    for tail in [1.0, 1.0, 99.0, 1.0, 99.0, 99.0, 1.0]:
        search.observe(tail)
    assert search.steps == [0, 1, 2, 1, 2, 1, 0]
    search.observe(99.0)  # step 1: met twice, missed twice
    assert search.limit_step == 1
    search.observe(1.0)
    search.observe(99.0)  # step 1: met twice, missed three times
    assert search.limit_step == 0


def test_the_walk_is_bounded():
    assert len(walk(lambda _: 1.0, max_updates=7).steps) == 7


def test_the_rate_grid_is_logarithmic_between_the_two_gaps():
    assert len(GRID) == 50
    assert GRID[0] == pytest.approx(50)
    assert GRID[-1] == pytest.approx(1000)
    ratios = [b / a for a, b in itertools.pairwise(GRID)]
    assert max(ratios) == pytest.approx(min(ratios))
