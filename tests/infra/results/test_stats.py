"""What a run's summary says, and what makes a run INVALID."""

import math

import numpy as np
import pandas as pd
import pytest

from infra.messages import Answer, Fail, Query, Task, TaskDone
from infra.results.long_run import LongRun
from infra.results.quantiles import Estimate
from infra.results.rows import Recorder
from infra.results.stats import queue_growth, summarize

MS = 1_000_000


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


def told(low, high):
    return LongRun({95.0: Estimate((low + high) / 2, low, high)}, {}, 1.0)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(8.0, 10.0, "met"), (9.0, 11.0, "undecided"), (10.1, 12.0, "missed")],
)
def test_the_long_run_decides_about_the_sla(low, high, verdict):
    arrival = np.arange(400) * 5.0
    judged = summary(record(arrival, np.full(400, 1.0))).with_long_run(told(low, high))
    assert judged.sla_verdict == verdict
    assert judged.as_json()["sla_verdict"] == verdict
    assert judged.as_json()["long_run"]["percentiles"]["p95"]["low"] == low


def test_without_a_long_run_the_latencies_decide_as_far_as_they_can():
    idle = summary(record(np.arange(4000) * 5.0, np.full(4000, 1.0)))
    assert idle.sla_verdict == "met"
    rng = np.random.default_rng(1)
    busy = summary(record(np.cumsum(rng.exponential(1.1, 400)), np.full(400, 1.0)))
    assert busy.p95_ms.high == math.inf  # 90 % busy, and 400 queries
    assert busy.sla_verdict == "undecided"
