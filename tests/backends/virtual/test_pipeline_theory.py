"""Pipelines in virtual time before queueing theory: tandems of exponential stages, choosing,
neighbours.
"""

import math

import numpy as np
import pytest
from helpers import MS, close, erlang_c, latencies_ms, poisson_schedule

from accelerator.service import ServiceTable, ServiceTimes, table_of_law
from backends.virtual.simulated import SimulatedSession
from infra.results.stages import stage_table
from loadGenerator import Schedule
from scheduler import Policy, Stage


def tandem(rates_per_ms, engines, rho_qps, n=60_000, **how):
    tables = tuple(
        table_of_law("exponential", 1 / rate, 1.0, 1, 0, seed)
        for seed, rate in enumerate(rates_per_ms)
    )
    pools = [f"p{i}" for i in range(len(rates_per_ms))]
    session = SimulatedSession(
        dict(zip(pools, engines, strict=True)),
        ServiceTimes(tables, frozenset(), **how),
        [Stage(1, pool) for pool in pools],
    )
    return session.run(poisson_schedule(rho_qps, n), Policy(1))


def test_a_tandem_of_exponential_stages_is_a_sum_of_independent_queues():
    """Burke: what leaves an M/M/1 is Poisson, and a query's times in the two queues are
    independent.
    """
    # rates of the two exponential sojourns, per ms
    a = 1.0 - 0.6
    b = 1.4 - 0.6
    latency = latencies_ms(tandem((1.0, 1.4), (1, 1), 600))
    close(latency, np.mean, 1 / a + 1 / b)

    def beyond(t):
        return (b * math.exp(-a * t) - a * math.exp(-b * t)) / (b - a)

    low, high = 0.0, 100.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if beyond(middle) > 0.05 else (low, middle)
    close(latency, lambda batch: np.quantile(batch, 0.95), low)


def test_three_stages_of_several_engines_have_erlang_s_mean():
    latency = latencies_ms(tandem((1.0, 1.0, 0.5), (1, 2, 3), 700))
    expected = (
        1 / (1 - 0.7) + (1 + erlang_c(2, 0.7) / (2 - 0.7)) + (2 + erlang_c(3, 1.4) * 2 / (3 - 1.4))
    )
    close(latency, np.mean, expected)


def test_choosing_takes_its_time_in_virtual_time():
    plain, slower = (
        tandem((1.0, 1.0), (4, 4), 1, n=50, filter_ns=ns, filter_item_ns=item)
        for ns, item in ((0, 0.0), (3 * MS, 0.25 * MS))
    )
    added = latencies_ms(slower) - latencies_ms(plain)
    assert added == pytest.approx(
        np.full(50, 2 * 3.25)
    )  # after each of the two stages, one item in both
    table = stage_table(slower)
    assert ((table["next_ns"] - table["end_ns"]) == int(3.25 * MS)).all()


def test_engines_on_the_same_cores_are_neighbours_whatever_their_pool():
    ns = np.array([[1, 1000], [1, 3000]])  # alone; beside one other

    def spans(cores):
        service = ServiceTimes((ServiceTable(ns), ServiceTable(ns)), cores)
        schedule = Schedule(np.array([0, 1000]), np.ones(2, np.int32), np.zeros(2, np.int32))
        session = SimulatedSession({"a": 1, "b": 1}, service, [Stage(1, "a"), Stage(pool="b")])
        tasks = session.run(schedule, Policy(1)).tasks
        return sorted((tasks["end_ns"] - tasks["start_ns"]).tolist())

    assert spans(frozenset()) == [1000, 1000, 1000, 1000]
    assert max(spans(frozenset({"a", "b"}))) == 3000
