"""Quantiles with intervals: of independent samples, and of a queue's latencies."""

import math

import numpy as np
import pytest
from scipy import signal, stats

from infra.results.quantiles import (
    Busy,
    Estimate,
    autocorrelation_time,
    quantile,
    queries_needed,
    queue_quantile,
)


@pytest.mark.parametrize(("p", "n"), [(0.5, 200), (0.95, 300), (0.95, 2000), (0.99, 2000)])
def test_intervals_cover_the_true_quantile_as_often_as_they_claim(p, n):
    truth = -math.log(1 - p)
    covered = 0
    for seed in range(1000):
        estimate = quantile(np.random.default_rng(seed).exponential(1.0, n), p)
        assert estimate.low <= estimate.value <= estimate.high
        covered += estimate.low <= truth <= estimate.high
    most = 980 if n < 500 else 975  # ranks are whole, so few samples cover a little more
    assert 930 <= covered <= most


def test_the_quantile_is_the_nearest_rank():
    samples = np.arange(1.0, 101.0)[::-1]
    assert quantile(samples, 0.95).value == 95.0
    assert quantile(samples, 0.5).value == 50.0
    assert quantile(np.array([3.0]), 0.99).value == 3.0


@pytest.mark.parametrize("p", [0.5, 0.95, 0.99, 0.999])
def test_the_ranks_of_the_interval_are_binomial_quantiles(p):
    for n in (1, 2, 59, 256, 2048, 100_000):
        ranks = quantile(np.arange(1.0, n + 1), p, 0.9)
        low = stats.binom.ppf(0.05, n, p)
        high = stats.binom.ppf(0.95, n, p) + 1
        assert ranks.low == (low if low >= 1 else -math.inf)
        assert ranks.high == (high if high <= n else math.inf)


def test_a_share_that_some_rank_has_exactly_takes_that_rank():
    of_two = quantile(np.array([1.0, 2.0]), 0.5, 0.5)
    assert of_two == Estimate(1.0, -math.inf, 2.0)  # P(none below) is 1/4
    of_three = quantile(np.array([1.0, 2.0, 3.0]), 0.5, 0.75)
    assert of_three == Estimate(2.0, -math.inf, 3.0)  # 1/8


def test_too_few_samples_leave_a_bound_open():
    assert quantile(np.arange(50.0), 0.95).high == math.inf
    assert quantile(np.arange(float(queries_needed(0.95))), 0.95).high < math.inf
    assert quantile(np.arange(queries_needed(0.95) - 1.0), 0.95).high == math.inf
    assert quantile(np.array([]), 0.95).as_json() == {"value": None, "low": None, "high": None}


def test_an_open_bound_becomes_null():
    assert Estimate(1.0, 0.5, math.inf).as_json() == {"value": 1.0, "low": 0.5, "high": None}


def mm1_latencies(utilisation, n, seed):
    """Of a queue whose mean service is 1, in its steady state; by Lindley's recursion."""
    rng = np.random.default_rng(seed)
    warm = 4000
    service = rng.exponential(1.0, n + warm)
    gaps = rng.exponential(1 / utilisation, n + warm)
    steps = np.concatenate([[0.0], service[:-1] - gaps[1:]])
    walk = np.cumsum(steps)
    waits = walk - np.minimum.accumulate(np.minimum(walk, 0.0))
    return (waits + service)[warm:]


@pytest.mark.parametrize(("utilisation", "n"), [(0.5, 2048), (0.7, 8192)])
def test_the_interval_of_a_queues_latencies_holds_the_long_run_quantile(utilisation, n):
    truth = math.log(20) / (1 - utilisation)  # of M/M/1
    told = [
        queue_quantile(mm1_latencies(utilisation, n, seed), 0.95, Busy(utilisation, 1.0))
        for seed in range(200)
    ]
    told = [x for x in told if math.isfinite(x.high)]  # else it says that it is too short
    held = sum(x.low <= truth <= x.high for x in told)
    independent = sum(
        x.low <= truth <= x.high
        for x in (quantile(mm1_latencies(utilisation, n, seed), 0.95) for seed in range(200))
    )
    assert len(told) > 160
    assert held >= 0.9 * len(told)  # 95 % less three standard errors
    assert independent < 140


def test_a_run_too_short_for_its_utilisation_has_no_interval():
    latency = mm1_latencies(0.4, 2048, 1)
    assert queue_quantile(latency, 0.95, Busy(0.9, 1.0)).high == math.inf
    assert queue_quantile(latency, 0.95, Busy(0.3, 1.0)).high < math.inf
    assert queue_quantile(latency, 0.95, Busy(1.2, 1.0)).high == math.inf
    told = queue_quantile(latency, 0.95, Busy(0.9, 1.0))
    assert told.value == quantile(latency, 0.95).value


def test_constant_work_lets_a_run_be_shorter():
    latency = mm1_latencies(0.4, 3000, 2)
    assert math.isfinite(queue_quantile(latency, 0.95, Busy(0.6, 0.0)).high)
    assert not math.isfinite(queue_quantile(latency, 0.95, Busy(0.6, 3.0)).high)


@pytest.mark.parametrize("phi", [0.0, 0.5, 0.9])
def test_the_autocorrelation_time_is_that_of_an_autoregression(phi):
    noise = np.random.default_rng(3).normal(size=200_000)
    x = signal.lfilter([1.0], [1.0, -phi], noise)
    assert autocorrelation_time(x) == pytest.approx((1 + phi) / (1 - phi), rel=0.1)


def test_what_never_changes_has_no_memory_and_its_value_is_its_interval():
    assert autocorrelation_time(np.full(100, 3.0)) == 1.0
    assert autocorrelation_time(np.array([])) == 1.0
    same = queue_quantile(np.full(1000, 3.0), 0.95, Busy(0.4, 0.0))
    assert same == Estimate(3.0, 3.0, 3.0)
    empty = queue_quantile(np.array([]), 0.95, None)
    assert math.isnan(empty.value)
    assert empty.high == math.inf
