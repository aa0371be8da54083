"""The compiled pipeline serves every query exactly as the event loop around the Dispatcher does."""

import numpy as np
import pandas as pd
import pytest
from helpers import poisson_schedule
from hypothesis import given, settings
from hypothesis import strategies as st

from accelerator.service import Overhead, ServiceTable, ServiceTimes, law_factors
from backends.virtual.pipeline_kernel import serve_pipeline
from backends.virtual.simulated import SimulatedSession
from loadGenerator import Schedule
from scheduler import Policy, Stage

MAX_ITEMS = 40


def table(rng, levels, law, overhead, stolen_ns):
    base = (
        np.cumsum(rng.integers(1, 3000, MAX_ITEMS + 1)) + 1000
        if law != "none"
        else np.full(MAX_ITEMS + 1, 1000)
    )
    ns = np.array([base * (1 + 0.4 * level) for level in range(levels)]).astype(np.int64)
    row = np.zeros(MAX_ITEMS + 1, np.int64) if law != "none" else None
    factors = law_factors(law, 0.7)[:, :999] if law != "none" else np.ones((0, 1))
    overheads = (
        Overhead(int(rng.integers(0, 900)), int(rng.integers(0, 300))) if overhead else Overhead()
    )
    return ServiceTable(
        ns, factors=factors, cpu_row=row, cpu_overhead=overheads, stolen_ns=stolen_ns, seed=7
    )


@st.composite
def cases(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    n_pools = draw(st.integers(1, 3))
    pools = {f"p{i}": draw(st.integers(1, 3)) for i in range(n_pools)}
    stages = []
    tables = []
    for i in range(n_stages := draw(st.integers(1, 4))):
        keep = draw(st.integers(1, 12)) if i < n_stages - 1 or draw(st.booleans()) else None
        stages.append(
            Stage(keep, batch_items=draw(st.integers(1, 15)), pool=draw(st.sampled_from([*pools])))
        )
        law = draw(st.sampled_from(["none", "deterministic", "exponential", "lognormal"]))
        tables.append(
            table(
                rng,
                draw(st.integers(1, 3)),
                law,
                draw(st.booleans()),
                draw(st.sampled_from([0, 50])),
            )
        )
    cores = frozenset(draw(st.sets(st.sampled_from([*pools]))))
    filters = draw(st.sampled_from([(0, 0.0), (2500, 0.0), (700, 31.5)]))
    n = draw(st.integers(1, 40))
    gaps = rng.integers(0, draw(st.sampled_from([2, 4000, 60_000])), n)  # bursts, and at leisure
    if draw(st.booleans()):
        gaps = gaps // 1000 * 1000  # arrivals at the very moment of an end
    schedule = Schedule(
        np.cumsum(gaps),
        rng.integers(1, MAX_ITEMS + 1, n).astype(np.int32),
        np.zeros(n, np.int32),
        2,
    )
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

    rng = np.random.default_rng(1)
    service = ServiceTimes(
        (table(rng, 2, "lognormal", overhead=True, stolen_ns=0),) * 2, frozenset({"a", "b"})
    )
    stages = [Stage(7, "a"), Stage(pool="b", batch_items=3)]
    schedule = poisson_schedule(20_000, 300, n_items=20)
    rows = SimulatedSession({"a": 2, "b": 1}, service, stages).run(schedule, Policy(4))
    took = (rows.tasks["end_ns"] - rows.tasks["start_ns"]).groupby(rows.tasks["pool"]).sum()
    assert (
        serve_pipeline(schedule, Policy(4), stages, {"a": 2, "b": 1}, service).busy_ns
        == took.to_dict()
    )


def test_a_task_larger_than_its_stage_s_times_is_refused():
    rng = np.random.default_rng(1)
    service = ServiceTimes((table(rng, 1, "none", overhead=False, stolen_ns=0),))
    session = SimulatedSession({"cpu": 1}, service, [Stage(keep_items=50)], keep_tasks=False)
    with pytest.raises(ValueError, match="stage 0 has tasks of 41 items, but its times end at 40"):
        session.run(poisson_schedule(10, 3, n_items=41), Policy(99))
