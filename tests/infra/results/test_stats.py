"""Quantiles with intervals, and what makes a run INVALID."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from infra.messages import Answer, Fail, Query, Task, TaskDone
from infra.results.rows import Recorder
from infra.results.stats import Estimate, quantile, queries_needed, queue_growth, summarize

MS = 1_000_000


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


def record(arrival_ms, service_ms, *, n_warmup=0, late_ms=0.0, pools=None):
    """Rows of a single FIFO server, computed by hand."""
    recorder = Recorder(n_warmup)
    free = 0
    for i, (arrival, service) in enumerate(zip(arrival_ms, service_ms, strict=True)):
        query = Query(i, round(arrival * MS), 10, 0)
        recorder.sent(query, query.arrival_ns + round(late_ms * MS))
        start = max(free, query.arrival_ns)
        free = start + round(service * MS)
        task = Task(i, 0, 0, 0, 10, pools[i] if pools else "cpu")
        recorder.done(TaskDone(task, 0, start, free), query.arrival_ns)
        recorder.answered(Answer(query, free))
    return recorder


def summary(recorder, sla_ms=10.0, **settings):
    rows = recorder.rows()
    return summarize(rows.queries, rows.tasks, sla_ms, extra=rows.notes, **settings)


def test_a_steady_run_is_valid_and_its_numbers_are_those_of_its_rows():
    pools = ["accel"] * 75 + ["cpu"] * 125
    s = summary(record(np.arange(200) * 10.0, [4.0] * 200, n_warmup=50, pools=pools))
    assert s.valid
    assert s.n_queries == 150
    assert s.p50_ms.value == s.p95_ms.value == s.p99_ms.value == 4.0
    assert s.offered_qps == pytest.approx(100.0)
    assert s.achieved_qps == pytest.approx(150 / (149 * 0.010 + 0.004))
    assert s.mean_latency_ms == pytest.approx(s.mean_queue_ms + s.mean_compute_ms)
    assert s.mean_queue_ms == 0.0
    assert s.accel_query_share == pytest.approx(25 / 150)  # the first 50 are warm-up
    assert s.accel_item_share == pytest.approx(25 / 150)
    assert s.meets_sla


def test_latency_runs_from_the_intended_arrival():
    s = summary(record(np.repeat(np.arange(100) * 20.0, 2), [4.0] * 200, late_ms=0.5))
    assert s.p50_ms.value == 4.0  # the first of each pair
    assert s.p95_ms.value == 8.0  # the second waits for it
    assert s.mean_queue_ms == pytest.approx(2.0)
    assert s.mean_compute_ms == pytest.approx(4.0)
    assert s.mean_latency_ms == pytest.approx(6.0)


def test_the_sla_is_judged_at_its_percentile():
    services = [1.0] * 180 + [30.0] * 20
    recorder = record(np.arange(200) * 100.0, services)
    assert not summary(recorder, sla_ms=10.0, sla_percentile=95.0).meets_sla
    assert summary(recorder, sla_ms=10.0, sla_percentile=80.0).meets_sla


def test_an_overloaded_run_is_invalid_because_its_queue_grows():
    s = summary(record(np.arange(400) * 10.0, [13.0] * 400))
    assert not s.valid
    assert "still growing" in " ".join(s.invalid_reasons)


@pytest.mark.parametrize("seed", range(20))
def test_a_busy_but_stable_run_is_not_called_growing(seed):
    rng = np.random.default_rng(seed)
    s = summary(record(np.cumsum(rng.exponential(10.0, 2000)), rng.exponential(8.0, 2000)))
    assert not any("growing" in reason for reason in s.invalid_reasons)


def test_growth_counts_the_queries_that_are_left_at_the_last_arrival():
    arrival = np.arange(10) * 10
    assert queue_growth(arrival, arrival + 5) == 0
    # Of 9, those at 5, 25, 45, 65, 85 were answered by 90.
    assert queue_growth(arrival, arrival * 2 + 5) == 4


def test_a_late_generator_makes_a_run_invalid():
    s = summary(record(np.arange(200) * 10.0, [4.0] * 200, late_ms=2.0))
    assert s.lateness_p99_ms == pytest.approx(2.0)
    assert "late" in " ".join(s.invalid_reasons)


def test_too_few_queries_make_a_run_invalid():
    s = summary(record(np.arange(40) * 10.0, [4.0] * 40))
    assert "too few queries" in " ".join(s.invalid_reasons)


def test_lost_and_failed_queries_make_a_run_invalid():
    recorder = record(np.arange(200) * 10.0, [4.0] * 200)
    lost = Query(200, 2000 * MS, 10, 0)
    recorder.sent(lost, lost.arrival_ns)
    recorder.failed(Fail(lost, "its task failed 2 times"))
    s = summary(recorder)
    assert s.n_lost == 1
    reasons = " ".join(s.invalid_reasons)
    assert "1 of 201 queries were lost" in reasons
    assert "query 200 failed" in reasons


def test_a_run_without_any_answer_has_a_summary():
    recorder = Recorder(0)
    recorder.sent(Query(0, 0, 1, 0), 0)
    s = summary(recorder)
    assert not s.valid
    assert s.as_json()["p95_ms"]["value"] is None


def test_rows_have_nulls_where_nothing_happened():
    recorder = record([0.0], [1.0])
    recorder.sent(Query(1, 5 * MS, 3, 2), 6 * MS)
    queries = recorder.rows().queries
    names = "query_id input_id n_items n_tasks arrival_ns sent_ns first_start_ns done_ns is_warmup"
    assert list(queries.columns) == names.split()
    assert pd.isna(queries["done_ns"][1])
    assert pd.isna(queries["first_start_ns"][1])
    assert queries["sent_ns"][1] == 6 * MS
    assert queries["n_tasks"].tolist() == [1, 0]


def test_a_query_starts_with_its_earliest_task_in_whatever_order_they_are_reported():
    recorder = Recorder(0)
    query = Query(0, 0, 20, 0)
    recorder.sent(query, 0)
    for part, start_ns in ((1, 70), (0, 40), (2, 90)):
        recorder.done(TaskDone(Task(0, 0, part, 0, 10, "cpu"), part, start_ns, 100), 5)
    recorder.answered(Answer(query, 100))
    queries = recorder.rows().queries
    assert queries["first_start_ns"].tolist() == [40]
    assert queries["n_tasks"].tolist() == [3]
