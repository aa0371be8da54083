"""Queueing theory judges the Dispatcher in virtual time: closed forms within standard errors of
batch means.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
from helpers import MS, close, erlang_c, latencies_ms, poisson_schedule
from scipy import stats

from accelerator.service import table_of_law
from backends.virtual.simulated import SimulatedSession
from infra.messages import ACCEL, CPU
from infra.results.stats import summarize
from scheduler import ONE_STAGE, Policy, Stage

N = 60_000


def simulate(rate_qps, draw_ms, n_engines=1, stages=ONE_STAGE, n_items=1, n=N, seed=0):
    rng = np.random.default_rng(seed + 1000)
    engines = {CPU: n_engines, ACCEL: 1}
    session = SimulatedSession(engines, lambda _: int(draw_ms(rng) * MS), stages)
    return session.run(poisson_schedule(rate_qps, n, n_items, seed), Policy(1))


def exponential(mean_ms):
    return lambda rng: rng.exponential(mean_ms)


@pytest.mark.parametrize("rho", [0.3, 0.7])
@pytest.mark.parametrize("p", [0.5, 0.95])
def test_mm1_sojourn_quantile(rho, p):
    latency = latencies_ms(simulate(1000 * rho, exponential(1.0)))
    close(latency, lambda batch: np.quantile(batch, p), math.log(1 / (1 - p)) / (1 - rho))


@pytest.mark.parametrize(("c", "rho"), [(2, 0.6), (4, 0.7), (16, 0.8)])
def test_mmc_mean_wait_is_erlang_c(c, rho):
    latency = latencies_ms(simulate(1000 * rho * c, exponential(1.0), n_engines=c))
    close(latency, np.mean, 1.0 + erlang_c(c, rho * c) / (c - rho * c))


def test_mg1_pollaczek_khinchine_lognormal():
    # log-mean 0, log-sd 0.8
    mean = math.exp(0.32)
    second = math.exp(1.28)
    latency = latencies_ms(simulate(400, lambda rng: rng.lognormal(0.0, 0.8)))
    close(latency, np.mean, mean + 0.4 * second / (2 * (1 - 0.4 * mean)))


def test_md1_mean_wait():
    latency = latencies_ms(simulate(700, lambda _: 1.0))
    close(latency, np.mean, 1.0 + 0.7 / (2 * 0.3))


def test_split_query_on_idle_engines_waits_for_the_slowest_part():
    latency = latencies_ms(simulate(1.0, exponential(1.0), n_engines=8, n_items=8, n=8000))
    close(latency, np.mean, sum(1 / k for k in range(1, 9)))


def test_two_stages_serve_every_query_twice():
    stages = [Stage(keep_items=1), Stage()]
    rows = simulate(1.0, exponential(1.0), n_engines=50, stages=stages, n=8000)
    close(latencies_ms(rows), np.mean, 2.0)
    assert rows.tasks["stage"].value_counts().to_dict() == {0: 8000, 1: 8000}


def test_offloaded_queries_see_an_mm1_queue_of_their_own():
    rng = np.random.default_rng(3)
    session = SimulatedSession({CPU: 1, ACCEL: 1}, lambda _: int(rng.exponential(1.0) * MS))
    rows = session.run(poisson_schedule(600, N, n_items=9), Policy(4, offload_items=9))
    assert set(rows.tasks["pool"]) == {ACCEL}
    close(latencies_ms(rows), np.mean, 1 / 0.4)


def by_law(rate_qps, law="exponential", cv=1.0, n_engines=1, n=400_000, gaps=None):
    """The compiled server on a table of a law, mean service 1 ms."""
    table = table_of_law(law, 1.0, cv, 1, 1, seed=4)
    schedule = poisson_schedule(rate_qps, n, seed=8)
    if gaps is not None:
        schedule = replace(schedule, arrival_ns=np.cumsum(gaps * 1e9 / rate_qps).astype(np.int64))
    rows = SimulatedSession({CPU: n_engines, ACCEL: 1}, table, keep_tasks=False).run(
        schedule, Policy(1)
    )
    return (rows.queries["first_start_ns"] - rows.queries["arrival_ns"]).to_numpy(
        np.int64
    ) / MS, latencies_ms(rows)


@pytest.mark.parametrize("rho", [0.5, 0.9])
def test_compiled_mm1_sojourn_quantiles(rho):
    _, latency = by_law(1000 * rho)
    close(latency, np.mean, 1 / (1 - rho))
    close(latency, lambda batch: np.quantile(batch, 0.99), math.log(100) / (1 - rho))


@pytest.mark.parametrize(("c", "rho"), [(2, 0.8), (40, 0.95)])
def test_compiled_mmc_waits_are_erlang_c_and_exponential(c, rho):
    wait, _ = by_law(1000 * rho * c, n_engines=c)
    p_wait = erlang_c(c, rho * c)
    close(wait, lambda batch: (batch > 0).mean(), p_wait)
    t = 1.5 / (c * (1 - rho))
    close(wait, lambda batch: (batch > t).mean(), p_wait * math.exp(-c * (1 - rho) * t))


def test_compiled_md1_waits_have_erlangs_distribution():
    """P(W <= t) in M/D/1, service 1 (Erlang 1909)."""
    wait, _ = by_law(700, "deterministic")
    for t in (0.5, 2.0, 5.0):
        terms = [
            (-0.7 * (t - k)) ** k / math.factorial(k) * math.exp(0.7 * (t - k))
            for k in range(int(t) + 1)
        ]
        close(wait, lambda batch, t=t: (batch <= t).mean(), 0.3 * sum(terms))


def test_compiled_mg1_mean_wait_is_pollaczek_khinchine():
    wait, _ = by_law(700, "lognormal", cv=1.5)
    close(wait, np.mean, 0.7 * (1 + 1.5**2) / (2 * 0.3))


def test_heavy_traffic_is_kingmans_exponential():
    """GI/G/1 near saturation (Kingman 1961): exponential waits, mean rho / (1 - rho) (ca^2 + cs^2)
    / 2.
    """
    rho, n = 0.97, 3_000_000
    gaps = np.random.default_rng(2).gamma(0.5, 2.0, n)  # ca^2 = 2
    wait, _ = by_law(1000 * rho, "lognormal", 1.0, n=n, gaps=gaps)
    expected = rho / (1 - rho) * (2 + 1) / 2
    close(wait, np.mean, expected)
    assert np.quantile(wait, 0.95) == pytest.approx(expected * math.log(20), rel=0.15)


def test_two_stages_in_tandem_are_independent_queues():
    """Burke (1956): the second M/M/1 sees Poisson arrivals too, so the time in both is Erlang of
    order 2.
    """
    rng = np.random.default_rng(9)
    session = SimulatedSession(
        {CPU: 1, ACCEL: 1},
        lambda _: int(rng.exponential(1.0) * MS),
        [Stage(keep_items=1, offloads=False), Stage()],
    )
    latency = latencies_ms(session.run(poisson_schedule(600, 2 * N), Policy(9, offload_items=1)))
    close(latency, np.mean, 2 / 0.4)
    close(latency, lambda batch: np.quantile(batch, 0.95), stats.gamma.ppf(0.95, 2) / 0.4)


def test_an_overload_of_two_percent_is_reported_by_the_compiled_server():
    rows = SimulatedSession({CPU: 4}, table_of_law("exponential", 1.0, 1.0, 1, 0, 0)).run(
        poisson_schedule(4200, 40_000, n_warmup=200), Policy(1)
    )
    summary = summarize(rows.queries, rows.tasks, sla_ms=10.0)
    assert any("growing" in reason for reason in summary.invalid_reasons)


@pytest.mark.parametrize("stop_at", [0, 5000])
def test_an_interruption_keeps_what_was_served(stop_at):
    def interrupt(n_served):
        if n_served >= stop_at:
            raise KeyboardInterrupt

    for service in (table_of_law("exponential", 1.0, 1.0, 1, 0, 0), lambda _: MS):
        session = SimulatedSession({CPU: 1}, service)
        rows = session.run(poisson_schedule(500, 20_000), Policy(1), interrupt)
        assert session.interrupted
        assert stop_at <= len(rows.queries) < 20_000
        answered = rows.queries["done_ns"].notna()
        assert answered.sum() >= stop_at
        assert set(rows.queries["query_id"][answered]) == set(rows.tasks["query_id"])


def test_littles_law_holds_between_the_rows():
    rows = simulate(700, exponential(1.0), n=20_000)
    queries = rows.queries
    events = np.concatenate(
        [queries["arrival_ns"].to_numpy(np.int64), queries["done_ns"].to_numpy(np.int64)]
    )
    steps = np.repeat([1, -1], len(queries))
    order = np.argsort(events, kind="stable")
    times = events[order]
    in_system = np.cumsum(steps[order])
    mean_in_system = (in_system[:-1] * np.diff(times)).sum() / (times[-1] - times[0])
    rate_per_ms = len(queries) / ((times[-1] - times[0]) / MS)
    assert mean_in_system == pytest.approx(rate_per_ms * latencies_ms(rows).mean(), rel=1e-9)


def test_a_pool_is_served_first_in_first_out():
    tasks = simulate(900, exponential(1.0), n_engines=3, n_items=3, n=3000).tasks.sort_values(
        ["query_id", "part"]
    )
    assert (np.diff(tasks["start_ns"]) >= 0).all()


def test_no_engine_idles_while_its_pool_has_work():
    rows = simulate(2500, exponential(1.0), n_engines=3, n=5000)
    waited = rows.tasks[rows.tasks["start_ns"] > rows.tasks["enqueued_ns"]]
    ends = set(rows.tasks["end_ns"])
    assert len(waited) > 100
    assert set(waited["start_ns"]) <= ends  # whoever waited began when an engine became free


def test_a_simulated_overload_is_reported_as_such():
    rows = simulate(1300, exponential(1.0), n=4000)
    s = summarize(rows.queries, rows.tasks, sla_ms=10.0)
    assert any("growing" in reason for reason in s.invalid_reasons)


def test_equal_seeds_give_equal_rows():
    a = simulate(700, exponential(1.0), n=500)
    b = simulate(700, exponential(1.0), n=500)
    assert a.queries.equals(b.queries)
    assert a.tasks.equals(b.tasks)
