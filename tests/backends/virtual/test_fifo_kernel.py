"""The compiled server is the event loop: equal rows for any schedule, policy and service times."""

import numpy as np
import pandas as pd
import pytest
from helpers import schedule_at
from hypothesis import given, settings
from hypothesis import strategies as st

from accelerator.service import Overhead, Recording, ServiceTable, ServiceTimes
from backends.virtual.event_loop import EventLoop
from backends.virtual.simulated import SimulatedSession
from infra.messages import ACCEL, CPU
from scheduler import ONE_STAGE, Policy, split

ITEMS = 40


@st.composite
def worlds(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    n = draw(st.integers(1, 80))
    n_cpu = draw(st.integers(1, 5))
    n_accel = draw(st.integers(1, 3))
    gaps = rng.integers(0, draw(st.sampled_from([3, 3_000, 300_000])), n)
    arrival_ns = np.cumsum(gaps * draw(st.sampled_from([1, 1009])))
    schedule = schedule_at(arrival_ns, rng.integers(1, ITEMS + 1, n), n // 10)
    scale = draw(st.sampled_from([1, 97, 1_000_003]))  # 1: ends coincide to the ns
    cpu_ns = rng.integers(1, 50, (draw(st.integers(1, n_cpu)), ITEMS + 1)) * scale
    accel_ns = rng.integers(1, 50, (n_accel, ITEMS + 1)) * scale
    policy = Policy(draw(st.integers(1, ITEMS)), draw(st.none() | st.integers(1, ITEMS + 5)))
    overheads = [Overhead(*(int(x) for x in rng.integers(0, 20 * scale, 2))) for _ in range(2)]
    if draw(st.booleans()):
        n_tasks = [len(split(int(size), policy)) for size in schedule.n_items]
        first = np.concatenate([[0], np.cumsum(n_tasks)])
        recording = Recording(first, *(rng.integers(k, 90, first[-1]) * scale for k in (1, 0)))
        table = ServiceTable(cpu_ns, accel_ns, recording=recording)
    else:
        factors = rng.lognormal(0, 0.3, (3, draw(st.sampled_from([1, 20, 1000]))))
        rows = [rng.integers(-1, 3, ITEMS + 1) for _ in range(2)]
        stolen_ns = draw(st.sampled_from([0, 3 * scale]))
        seed = draw(st.integers(0, 2**31))
        table = ServiceTable(cpu_ns, accel_ns, factors, *rows, *overheads, stolen_ns, seed)
    return {CPU: n_cpu, ACCEL: n_accel}, table, schedule, policy


@settings(max_examples=200, deadline=None)
@given(worlds())
def test_the_kernel_gives_the_rows_of_the_event_loop_to_the_nanosecond(world):
    engines, table, schedule, policy = world
    quick = SimulatedSession(engines, table).run(schedule, policy)
    loop = EventLoop(schedule, policy, ONE_STAGE, engines, ServiceTimes((table,)))
    *_, n_answered = loop.steps()
    assert n_answered == len(schedule)
    slow = loop.rows()
    pd.testing.assert_frame_equal(quick.queries, slow.queries)
    key = ["query_id", "part"]
    ours, theirs = (rows.tasks.sort_values(key).reset_index(drop=True) for rows in (quick, slow))
    pd.testing.assert_frame_equal(ours, theirs)


class Stop:
    """Ends a run after `n` latencies."""

    def __init__(self, n):
        self.n = n
        self.seen = []

    def observe(self, latency_ms, busy_frac):
        assert 0 <= busy_frac <= 1
        self.seen.extend(latency_ms)
        return len(self.seen) >= self.n


@pytest.mark.parametrize("service", [ServiceTable(np.full((1, 9), 800_000)), lambda _: 800_000])
def test_a_watch_sees_latencies_in_order_of_arrival_and_ends_the_run(service):
    schedule = schedule_at(np.arange(9000) * 1_000_000, 8)
    watch = Stop(5000)
    rows = SimulatedSession({CPU: 1}, service).run(schedule, Policy(8), None, watch)
    assert 5000 <= len(watch.seen) < 9000
    assert watch.seen == pytest.approx([0.8] * len(watch.seen))
    assert len(rows.queries) < 9000


@pytest.mark.parametrize("shape", [(1, 5), (0, 5)])
def test_a_table_that_makes_no_sense_is_refused(shape):
    with pytest.raises(ValueError, match="service"):
        ServiceTable(np.zeros(shape, np.int64))


def test_a_table_of_the_wrong_shape_is_refused():
    with pytest.raises(ValueError, match="service"):
        ServiceTable(np.ones(5, np.int64))


def test_what_the_table_does_not_cover_is_refused():
    session = SimulatedSession({CPU: 1}, ServiceTable(np.full((1, 5), 1000)))
    with pytest.raises(ValueError, match="9 items"):
        session.run(schedule_at([0], 9), Policy(8))
    with pytest.raises(ValueError, match="no accelerator"):
        session.run(schedule_at([0], 4), Policy(8, offload_items=2))
    with pytest.raises(ValueError, match="1 accelerators"):
        SimulatedSession({CPU: 1, ACCEL: 1}, ServiceTable(np.full((1, 5), 1000)))


def test_a_recording_is_replayed_under_its_own_policy_only():
    recording = Recording(np.array([0, 2]), np.array([5, 6]), np.array([0, 0]))
    table = ServiceTable(np.ones((1, 2), np.int64), recording=recording)
    session = SimulatedSession({CPU: 1}, table)
    schedule = schedule_at([0], 8)
    assert session.run(schedule, Policy(4)).queries["done_ns"].tolist() == [11]
    with pytest.raises(ValueError, match="split its queries otherwise"):
        session.run(schedule, Policy(8))
    with pytest.raises(ValueError, match="2 queries, but recorded times of 1"):
        session.run(schedule_at([0, 0], 8), Policy(4))
