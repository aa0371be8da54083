"""Fleets: a single server is the session, routing does what it says, theory judges queues."""

import numpy as np
import pytest
from helpers import MS, close, latencies_ms, poisson_schedule, schedule_at
from hypothesis import given, settings
from hypothesis import strategies as st

from accelerator.service import Overhead, ServiceTable, table_of_law
from backends.virtual.fleet import ROUTES, Fleet, ServerKind
from backends.virtual.simulated import SimulatedSession
from infra.messages import ACCEL, CPU
from scheduler import Policy


def mm1(mean_ms=1.0, seed=0, **more):
    table = table_of_law("exponential", mean_ms, 1.0, 9, 0, seed)
    return ServerKind("mm1", 1, table, Policy(9), **more)


def constant():
    table = table_of_law("deterministic", 1.0, 1.0, 9, 0, 0)
    return ServerKind("constant", 1, table, Policy(9))


BLIND_TO_SIZE = st.sampled_from(sorted(set(ROUTES) - {"size_aware"}))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 6), BLIND_TO_SIZE)
def test_a_fleet_of_one_is_the_session(seed, n_cpu, route):
    rng = np.random.default_rng(seed)
    schedule = schedule_at(np.cumsum(rng.integers(0, 4000, 200)), rng.integers(1, 41, 200))
    table = ServiceTable(
        rng.integers(1, 5000, (2, 41)),
        rng.integers(1, 5000, (2, 41)),
        rng.lognormal(0, 0.3, (2, 20)),
        rng.integers(-1, 2, 41),
        rng.integers(-1, 2, 41),
        Overhead(3, 5),
        Overhead(7, 11),
        seed=9,
    )
    kind = ServerKind("single", n_cpu, table, Policy(8, 30), 2)
    rows = SimulatedSession({CPU: n_cpu, ACCEL: 2}, table).run(schedule, kind.policy)
    run = Fleet([(kind, 1)]).run(schedule, route)
    assert run.latency_ms == pytest.approx(latencies_ms(rows), rel=1e-12)


def test_random_routing_makes_independent_mm1_queues():
    run = Fleet([(mm1(), 20)]).run(poisson_schedule(14_000, 400_000), "random")
    close(run.latency_ms, np.mean, 1 / 0.3)
    close(run.latency_ms, lambda x: np.quantile(x, 0.95), np.log(20) / 0.3)


def test_weights_share_the_load_and_equalise_the_queues():
    fleet = Fleet([(mm1(1.0), 10), (mm1(0.5, weight=2.0), 10)])
    for route in ("random", "round_robin"):
        run = fleet.run(poisson_schedule(15_000, 300_000), route)
        assert (run.server >= 10).mean() == pytest.approx(2 / 3, abs=0.01)


def test_round_robin_takes_turns():
    run = Fleet([(mm1(), 7)]).run(poisson_schedule(1000, 70), "round_robin")
    assert run.server.tolist() == list(range(7)) * 10


def test_power_of_two_has_the_queue_lengths_of_its_theory():
    """At load r the share of servers with at least k queries tends to r^(2^k - 1).

    Source: Mitzenmacher (2001).
    """
    rho = 0.9
    n = 500
    schedule = poisson_schedule(1000 * rho * n, 1_500_000, seed=5)
    run = Fleet([(mm1(), n)]).run(schedule, "power_of_two")
    mean_ms = sum(rho ** (2**k - 2) for k in range(1, 12))
    assert np.mean(run.latency_ms[500_000:]) == pytest.approx(mean_ms, rel=0.02)


def test_the_shortest_queue_of_two_servers_is_nearly_one_shared_queue():
    schedule = poisson_schedule(20_000 * 0.9, 400_000, seed=3)
    fleet = Fleet([(mm1(), 20)])
    alone_ms, of_two_ms, of_all_ms = (
        fleet.run(schedule, route).latency_ms[40_000:].mean()
        for route in ("random", "power_of_two", "shortest_queue")
    )
    shared = SimulatedSession({CPU: 20}, table_of_law("exponential", 1.0, 1.0, 9, 0, 0))
    bound_ms = latencies_ms(shared.run(schedule, Policy(9)))[40_000:].mean()
    assert bound_ms < of_all_ms < of_two_ms < alone_ms / 2


def test_the_shortest_queue_always_takes_an_idle_server_and_knows_who_has_left():
    schedule = schedule_at([0, 1, 2, 3 * MS], 1)
    run = Fleet([(constant(), 3)]).run(schedule, "shortest_queue")
    assert sorted(run.server[:3]) == [0, 1, 2]
    assert run.latency_ms == pytest.approx(np.ones(4))


def test_size_aware_sends_large_queries_to_servers_that_offload():
    items = np.full((1, 9), MS)
    table = ServiceTable(items, items)
    plain = ServerKind("plain", 2, table, Policy(8))
    offloads = ServerKind("gpu", 2, table, Policy(8, 4), 1)
    sizes = np.tile(np.arange(1, 9), 50)
    schedule = schedule_at(np.arange(400) * MS, sizes)
    run = Fleet([(plain, 3), (offloads, 2)]).run(schedule, "size_aware", large_items=4)
    assert (run.server[sizes >= 4] >= 3).all()
    assert set(run.server[sizes < 4]) == set(range(5))
    with pytest.raises(ValueError, match="size_aware"):
        Fleet([(plain, 2)]).run(schedule, "size_aware")


def test_more_open_queries_than_the_heap_holds_at_first():
    schedule = schedule_at(np.zeros(150_000), 1)
    run = Fleet([(constant(), 10)]).run(schedule, "shortest_queue")
    assert np.bincount(run.server).tolist() == [15_000] * 10
    assert run.latency_ms.max() == pytest.approx(15_000)


def routed(route, n_items=1):
    return Fleet([(mm1(), 1)]).run(schedule_at([1], n_items), route)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Fleet([]), "a fleet needs a server"),
        (lambda: Fleet([(mm1(), 0)]), "a fleet needs a server"),
        (lambda: mm1(weight=0.0), "weight"),
        (lambda: ServerKind("x", 1, mm1().table, Policy(9, 3)), "without an accelerator"),
        (lambda: routed("by_luck"), "unknown route 'by_luck'"),
        (lambda: routed("random", n_items=10), "10 items"),
    ],
)
def test_what_makes_no_sense_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
