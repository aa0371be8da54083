"""The compiled pipeline serves every query exactly as the event loop around the Dispatcher does."""

import numpy as np
import pandas as pd
import pytest
from helpers import poisson_schedule, schedule_at
from hypothesis import given, settings
from hypothesis import strategies as st

from accelerator.service import Overhead, ServiceTable, ServiceTimes, law_factors
from backends.virtual.pipeline_kernel import serve_pipeline
from backends.virtual.simulated import SimulatedSession
from scheduler import Policy, Stage

MAX_ITEMS = 40


AT_ONCE = Overhead()


def table(rng, levels, law=None, overhead=AT_ONCE, stolen_ns=0):
    """Times with neighbours; a `law` makes them grow with the items, and vary."""
    base = np.full(MAX_ITEMS + 1, 1000)
    more = {}
    if law is not None:
        base = np.cumsum(rng.integers(1, 3000, MAX_ITEMS + 1)) + 1000
        row = np.zeros(MAX_ITEMS + 1, np.int64)
        more = {"factors": law_factors(law, 0.7)[:, :999], "cpu_row": row}
    ns = np.array([base * (1 + 0.4 * level) for level in range(levels)]).astype(np.int64)
    return ServiceTable(ns, cpu_overhead=overhead, stolen_ns=stolen_ns, seed=7, **more)


LAWS = st.sampled_from([None, "deterministic", "exponential", "lognormal"])
OVERHEADS = st.just(AT_ONCE) | st.builds(Overhead, st.integers(0, 899), st.integers(0, 299))


@st.composite
def cases(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    n_pools = draw(st.integers(1, 3))
    pools = {f"p{i}": draw(st.integers(1, 3)) for i in range(n_pools)}
    stages = []
    tables = []
    for i in range(n_stages := draw(st.integers(1, 4))):
        keep = draw(st.integers(1, 12)) if i < n_stages - 1 or draw(st.booleans()) else None
        batch = draw(st.integers(1, 15))
        stages.append(Stage(keep, batch_items=batch, pool=draw(st.sampled_from([*pools]))))
        levels = draw(st.integers(1, 3))
        stolen_ns = draw(st.sampled_from([0, 50]))
        tables.append(table(rng, levels, draw(LAWS), draw(OVERHEADS), stolen_ns))
    cores = frozenset(draw(st.sets(st.sampled_from([*pools]))))
    filters = draw(st.sampled_from([(0, 0.0), (2500, 0.0), (700, 31.5)]))
    n = draw(st.integers(1, 40))
    gaps = rng.integers(0, draw(st.sampled_from([2, 4000, 60_000])), n)  # bursts, and at leisure
    if draw(st.booleans()):
        gaps = gaps // 1000 * 1000  # arrivals at the very moment of an end
    schedule = schedule_at(np.cumsum(gaps), rng.integers(1, MAX_ITEMS + 1, n), 2)
    return schedule, stages, pools, ServiceTimes(tuple(tables), cores, *filters)


@settings(max_examples=150, deadline=None)
@given(cases())
def test_it_serves_as_the_event_loop_does(case):
    schedule, stages, pools, service = case
    loop = SimulatedSession(pools, service, stages).run(schedule, Policy(1))
    compiled = SimulatedSession(pools, service, stages, keep_tasks=False).run(schedule, Policy(1))
    pd.testing.assert_frame_equal(loop.queries, compiled.queries)
    assert len(compiled.tasks) == 0
    assert list(compiled.tasks.columns) == list(loop.tasks.columns)


def test_busy_time_is_that_of_the_tasks():
    times = table(np.random.default_rng(1), 2, "lognormal", Overhead(400, 150))
    service = ServiceTimes((times, times), frozenset({"a", "b"}))
    stages = [Stage(7, "a"), Stage(pool="b", batch_items=3)]
    engines = {"a": 2, "b": 1}
    schedule = poisson_schedule(20_000, 300, n_items=20)
    rows = SimulatedSession(engines, service, stages).run(schedule, Policy(4))
    took = (rows.tasks["end_ns"] - rows.tasks["start_ns"]).groupby(rows.tasks["pool"]).sum()
    served = serve_pipeline(schedule, Policy(4), stages, engines, service)
    assert served.busy_ns == took.to_dict()


def test_a_task_larger_than_its_stage_s_times_is_refused():
    service = ServiceTimes((table(np.random.default_rng(1), 1),))
    session = SimulatedSession({"cpu": 1}, service, [Stage(keep_items=50)], keep_tasks=False)
    with pytest.raises(ValueError, match="stage 0 has tasks of 41 items, but its times end at 40"):
        session.run(poisson_schedule(10, 3, n_items=41), Policy(99))
