"""The long run of a run: against theory, with an interval that holds, and silent where it must."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from accelerator.service import Overhead, ServiceTable, TaskFactors, law_factors
from backends.long_run.of_run import estimator_of, long_run_of, unknown
from backends.virtual.simulated import SimulatedSession
from infra.deployment import resolve
from infra.messages import ACCEL, CPU
from infra.results.rows import Rows
from infra.settings.cli import parse
from loadGenerator import draw_schedule
from scheduler import Policy

WORDS = (
    "--queue --backend simulated --num_batches 16 --max_mini_batch_size 8 --avg_mini_batch_size 8 "
    "--target_latency 10 --inference_engines {} --arrival_process {} --numpy_rand_seed {}"
)
WHOLE = Policy(8)


def deployed(engines=1, seed=0, arrivals="exponential", more=""):
    words = WORDS.format(engines, arrivals, seed).split()
    return resolve(parse([*words, *more.split()]))


def table(law="exponential", ms=1.0, seed=0):
    ns = np.full((1, 9), round(ms * 1e6), np.int64)
    row = np.zeros(9, np.int64)
    return ServiceTable(ns, ns, law_factors(law), row, row, seed=seed)


def run(deployment, rate_qps, n=2048, service=None, policy=WHOLE, engines=None):
    schedule = draw_schedule(deployment.config, n, n // 10, rate_qps)
    engines = engines or {pool.name: pool.engines for pool in deployment.pools}
    seed = deployment.config.inputs.numpy_rand_seed
    session = SimulatedSession(engines, service or table(seed=seed))
    return session.run(schedule, policy), schedule


def told(deployment, rate_qps, n=2048, service=None):
    rows, schedule = run(deployment, rate_qps, n, service)
    return long_run_of(rows, deployment, WHOLE, schedule, rate_qps)


def test_intervals_hold_the_tail_of_an_mm1_as_often_as_they_claim():
    truth = math.log(20) / (1 - 0.6)  # ms
    estimates = []
    for seed in range(30):
        deployment = deployed(seed=seed)
        rows, schedule = run(deployment, 600.0)
        estimator = estimator_of(rows, deployment, WHOLE, schedule, 600.0)
        estimates.append(estimator.long_run([95.0]).percentiles[95.0])
    held = sum(x.low <= truth <= x.high for x in estimates)
    assert held >= 26  # fewer in 1 of 100 tests if it is 95 %
    width = np.median([x.high / x.low for x in estimates])
    assert 1.02 < width < 1.5
    error = np.sqrt(np.mean([(x.value / truth - 1) ** 2 for x in estimates]))
    assert error < 0.08  # 2,048 latencies alone: some 10 %


def test_constant_service_leaves_only_the_walks_own_error():
    long_run = told(deployed(), 800.0, service=table("deterministic"))
    tail = long_run.percentiles[95.0]
    # M/D/1 at 0.8 by Erlang's series, service 1 ms
    assert tail.low <= 7.29 <= tail.high
    assert tail.high / tail.low < 1.15
    assert long_run.utilisation["cpu"].value == pytest.approx(0.8, rel=0.01)
    assert [*long_run.percentiles] == [50.0, 95.0, 99.0, 99.9]


def test_the_highest_rate_is_the_closed_form_and_lies_on_the_curve():
    curve = told(deployed(), 600.0, n=20_000).curve
    best = 1000 * (1 - math.log(20) / 10)
    assert curve.highest_qps.low <= best <= curve.highest_qps.high
    assert curve.highest_qps.value == pytest.approx(best, rel=0.03)
    values = [tail.value for tail in curve.tail_ms]
    assert values == sorted(values)
    at_best = np.interp(curve.highest_qps.value, curve.rate_qps, values)
    assert at_best == pytest.approx(10.0, rel=0.05)
    for rate, tail in zip(curve.rate_qps, curve.tail_ms, strict=True):
        if rate < 850:
            assert tail.value == pytest.approx(1000 * math.log(20) / (1000 - rate), rel=0.15)


def test_no_rate_meets_an_sla_below_the_service_time():
    curve = told(deployed(more="--target_latency 0.5"), 300.0).curve
    assert curve.highest_qps.value == 0.0


@pytest.mark.parametrize("n", [100, 1000])
def test_a_rate_above_capacity_is_seen_however_short_the_run(n):
    deployment = deployed(arrivals="constant")
    long_run = told(deployment, 104.0, n, table("deterministic", 10.0))
    assert long_run.is_above_capacity
    assert long_run.utilisation["cpu"].value == pytest.approx(1.04, rel=0.01)
    assert not long_run.percentiles
    assert "above capacity" in long_run.withheld
    below = told(deployment, 95.0, n, table("deterministic", 10.0))
    assert not below.is_above_capacity


def test_few_tasks_give_the_utilisation_and_nothing_else():
    long_run = told(deployed(), 500.0, n=100)
    assert "too few" in long_run.withheld
    assert long_run.utilisation["cpu"].value == pytest.approx(0.5, rel=0.3)
    assert not long_run.percentiles


def test_times_that_depend_on_the_load_are_noticed():
    """Tasks take three times as long while many queries are near: no law of tasks alone."""
    deployment = deployed()
    schedule = draw_schedule(deployment.config, 6000, 100, 400.0)
    gaps = np.diff(schedule.arrival_ns, append=schedule.arrival_ns[-1] + 2_500_000)
    crowded = np.convolve(gaps, np.ones(9), "same") < 9 * 1_500_000
    factors = TaskFactors(np.arange(6001), np.where(crowded, 2.5, 0.7))
    ns = np.full((1, 9), 1_000_000, np.int64)
    service = ServiceTable(ns, task_factors=factors)
    rows = SimulatedSession({CPU: 1}, service).run(schedule, WHOLE)
    long_run = long_run_of(rows, deployment, WHOLE, schedule, 400.0)
    assert "depend on something" in long_run.withheld
    assert not long_run.percentiles
    assert long_run.utilisation


def test_parts_that_start_together_are_not_taken_for_alike():
    """In the order of their ends, the times of parts on idle engines would be sorted."""
    deployment = deployed(engines=40)
    noise = np.random.default_rng(4).lognormal(0, 0.05, 3000)
    first = np.arange(0, 3001, 4)
    ns = np.full((1, 9), 1_000_000, np.int64)
    service = ServiceTable(ns, task_factors=TaskFactors(first, noise))
    schedule = draw_schedule(deployment.config, 700, 0, 1000.0)
    policy = Policy(2)  # four parts of two items
    rows = SimulatedSession({CPU: 40}, service).run(schedule, policy)
    estimator = estimator_of(rows, deployment, policy, schedule, 1000.0)
    assert not estimator.fits[0, False].law.alike
    observed = (rows.queries["done_ns"] - rows.queries["arrival_ns"]).to_numpy(float) / 1e6
    assert estimator.check(schedule, observed) == ""
    median = estimator.long_run([50.0]).percentiles[50.0]
    truth = np.exp(0.05 * stats.norm.ppf(0.5**0.25))  # of the largest of four
    assert median.value == pytest.approx(truth, rel=0.003)


def test_an_engine_that_was_idle_takes_longer_and_at_high_load_none_is():
    deployment = deployed()
    slow_start = replace(table("deterministic"), cpu_overhead=Overhead(wake_ns=300_000))
    rows, schedule = run(deployment, 300.0, 4000, slow_start)
    arrival_ns = rows.tasks["query_id"].map(rows.queries.set_index("query_id")["arrival_ns"])
    idle = (rows.tasks["start_ns"] - arrival_ns) == 300_000
    tasks = rows.tasks.assign(start_ns=rows.tasks["start_ns"] - 300_000 * idle)  # part of the work
    cold = replace(rows, tasks=tasks)
    estimator = estimator_of(cold, deployment, WHOLE, schedule, 300.0)
    fitted = estimator.fits[0, False]
    assert fitted.cold_ns == pytest.approx(300_000, rel=0.05)
    long_run = long_run_of(cold, deployment, WHOLE, schedule, 300.0)
    assert long_run.percentiles[50.0].value == pytest.approx(1.3, rel=0.01)
    assert long_run.utilisation["cpu"].value == pytest.approx(0.3, rel=0.03)


def test_what_was_not_answered_or_was_merged_is_not_walked():
    deployment = deployed()
    rows, schedule = run(deployment, 500.0, 400)
    assert unknown(rows, deployment, WHOLE, schedule) == ""
    lost = rows.queries.assign(done_ns=rows.queries["done_ns"].where(rows.queries.index != 7))
    assert "answered" in unknown(replace(rows, queries=lost), deployment, WHOLE, schedule)
    half = Rows(rows.queries[:200], rows.tasks)
    assert "answered" in unknown(half, deployment, WHOLE, schedule)
    none = replace(rows, tasks=rows.tasks[:0])
    assert "no rows" in unknown(none, deployment, WHOLE, schedule)
    first = rows.tasks["start_ns"].iloc[0]
    merged = rows.tasks.assign(start_ns=rows.tasks["start_ns"].where(rows.tasks.index > 1, first))
    assert "merged" in unknown(replace(rows, tasks=merged), deployment, WHOLE, schedule)


def test_offloaded_queries_take_the_accelerators_times():
    deployment = deployed(more="--model_accel --accel_request_size_thres 8 --use_accel true")
    slow = np.full((1, 9), 1_000_000, np.int64)
    fast = np.full((1, 9), 100_000, np.int64)
    service = ServiceTable(slow, fast)
    policy = Policy(8, 8)  # every query
    rows, schedule = run(deployment, 500.0, 1000, service, policy, {CPU: 1, ACCEL: 1})
    long_run = long_run_of(rows, deployment, policy, schedule, 500.0)
    assert long_run.utilisation[ACCEL].value == pytest.approx(0.05, rel=0.05)
    assert long_run.utilisation[CPU].value == 0.0
    assert long_run.percentiles[50.0].value == pytest.approx(0.1, rel=0.05)


def test_bursts_have_a_long_run_and_no_curve():
    deployment = deployed(arrivals="mmpp")
    long_run = told(deployment, 300.0, 20_000)
    assert long_run.curve is None
    assert "mmpp" in long_run.no_curve
    poisson = told(deployed(), 300.0, 20_000)
    assert long_run.percentiles[99.0].value > 1.2 * poisson.percentiles[99.0].value


def test_a_trace_is_the_load_itself(tmp_path):
    file = tmp_path / "gaps.txt"
    rng = np.random.default_rng(1)
    file.write_text("\n".join(f"{gap:.4f}" for gap in np.cumsum(rng.exponential(2.0, 1100))))
    deployment = deployed(arrivals="file", more=f"--arrival_file {file}")
    rows, schedule = run(deployment, 500.0, 1000, table("deterministic"))
    long_run = long_run_of(rows, deployment, WHOLE, schedule, schedule.rate_qps)
    queries = rows.queries
    observed = np.quantile((queries["done_ns"] - queries["arrival_ns"]) / 1e6, 0.95)
    tail = long_run.percentiles[95.0]
    assert tail.value == pytest.approx(observed, rel=0.02)
    assert tail.high - tail.low < 0.01 * tail.value  # neither the load nor the times are in doubt
    assert "recorded" in long_run.no_curve
