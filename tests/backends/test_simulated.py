"""Queueing theory judges the Dispatcher in virtual time: closed forms within standard errors of batch means."""

import math

import numpy as np
import pytest
from helpers import MS, close, latencies_ms, poisson_schedule

from backends.simulated import SimulatedSession
from infra.messages import ACCEL, CPU
from infra.stats import summarize
from scheduler import Policy, Stage

N = 60_000


def simulate(rate_qps, draw_ms, n_engines=1, stages=None, n_items=1, n=N, seed=0):
    rng = np.random.default_rng(seed + 1000)
    session = SimulatedSession({CPU: n_engines, ACCEL: 1}, lambda _: int(draw_ms(rng) * MS))
    return session.run(poisson_schedule(rate_qps, n, n_items, seed), stages or [Stage(Policy(1))])


def erlang_c(n_servers, load):
    inverse_b = 1.0
    for k in range(1, n_servers + 1):
        inverse_b = 1 + inverse_b * k / load
    b = 1 / inverse_b
    return b / (1 - (load / n_servers) * (1 - b))


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
    mean, second = math.exp(0.32), math.exp(1.28)  # log-mean 0, log-sd 0.8
    latency = latencies_ms(simulate(400, lambda rng: rng.lognormal(0.0, 0.8)))
    close(latency, np.mean, mean + 0.4 * second / (2 * (1 - 0.4 * mean)))


def test_md1_mean_wait():
    latency = latencies_ms(simulate(700, lambda _: 1.0))
    close(latency, np.mean, 1.0 + 0.7 / (2 * 0.3))


def test_split_query_on_idle_engines_waits_for_the_slowest_part():
    latency = latencies_ms(simulate(1.0, exponential(1.0), n_engines=8, n_items=8, n=8000))
    close(latency, np.mean, sum(1 / k for k in range(1, 9)))


def test_two_stages_serve_every_query_twice():
    stages = [Stage(Policy(1), keep_items=1), Stage(Policy(1))]
    rows = simulate(1.0, exponential(1.0), n_engines=50, stages=stages, n=8000)
    close(latencies_ms(rows), np.mean, 2.0)
    assert rows.tasks["stage"].value_counts().to_dict() == {0: 8000, 1: 8000}


def test_offloaded_queries_see_an_mm1_queue_of_their_own():
    rng = np.random.default_rng(3)
    session = SimulatedSession({CPU: 1, ACCEL: 1}, lambda _: int(rng.exponential(1.0) * MS))
    rows = session.run(poisson_schedule(600, N, n_items=9), [Stage(Policy(4, offload_items=9))])
    assert set(rows.tasks["pool"]) == {ACCEL}
    close(latencies_ms(rows), np.mean, 1 / 0.4)


def test_littles_law_holds_between_the_rows():
    rows = simulate(700, exponential(1.0), n=20_000)
    queries = rows.queries
    events = np.concatenate([queries["arrival_ns"].to_numpy(np.int64), queries["done_ns"].to_numpy(np.int64)])
    steps = np.repeat([1, -1], len(queries))
    order = np.argsort(events, kind="stable")
    times, in_system = events[order], np.cumsum(steps[order])
    mean_in_system = (in_system[:-1] * np.diff(times)).sum() / (times[-1] - times[0])
    rate_per_ms = len(queries) / ((times[-1] - times[0]) / MS)
    assert mean_in_system == pytest.approx(rate_per_ms * latencies_ms(rows).mean(), rel=1e-9)


def test_a_pool_is_served_first_in_first_out():
    tasks = simulate(900, exponential(1.0), n_engines=3, n_items=3, n=3000).tasks.sort_values(["query_id", "part"])
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
    a, b = simulate(700, exponential(1.0), n=500), simulate(700, exponential(1.0), n=500)
    assert a.queries.equals(b.queries)
    assert a.tasks.equals(b.tasks)
