"""Samples as a quiet and as a disturbed machine gives them; what is judged is known beforehand."""

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
from helpers import MS

from infra.procfs import MachineTimes, ProcessTimes
from infra.results import figures
from infra.results.disturbance import (
    EngineSamples,
    Outage,
    RunSamples,
    disturbance_of,
    engine_steps,
    repeat_disturbed,
)
from infra.results.rows import Rows, query_table
from infra.results.stats import summarize

SECOND = 1000 * MS
START = 5 * SECOND  # the run's, on the machine's clock
SLA_MS = 100.0
NO_TASKS = pd.DataFrame({"pool": [], "engine": [], "start_ns": [], "end_ns": []})


def engine(n_s, ran, waited, *, index=0, on_cores=True, step_ms=100):
    """Samples of an engine that runs and waits for these shares of each step."""
    steps = np.arange(int(n_s * 1000 / step_ms) + 1) * step_ms * MS
    times = [
        ProcessTimes(START + t, 7 + index, int(ran * t), int(waited * t), 0, False)
        for t in steps.tolist()
    ]
    return EngineSamples("cpu", index, on_cores, times)


def machine(n_s, busy, steal=0.0, throttled=0.0):
    """Samples of 2 cores, of which so much is in use, stolen, over the limit (of a core)."""
    at = [START + t * SECOND for t in range(n_s + 1)]
    return [
        MachineTimes(t, int(busy * t), int(steal * t), int(throttled * (t - START))) for t in at
    ]


def run_samples(n_s, engines, ours, outages=(), **use):
    """A run of n_s seconds; `ours`: cores that our processes use."""
    times = machine(n_s, **use)
    ours_ns = [int(ours * sample.at_ns) for sample in times]
    return RunSamples(START, engines, times, ours_ns, outages)


def query_rows(n, n_s, latency_ms=10, n_warmup=0):
    arrival = np.linspace(0, n_s * SECOND, n, endpoint=False).astype(np.int64)
    zeros = np.zeros(n, np.int64)
    done = arrival + latency_ms * MS
    columns = [zeros, zeros + 1, zeros + 1, arrival, arrival, arrival, done]
    return query_table(np.arange(n), np.column_stack(columns), n_warmup)


def task_rows(*spans_ms):
    spans = np.array(spans_ms, np.int64).reshape(-1, 2) * MS
    return pd.DataFrame(
        {"pool": "cpu", "engine": 0, "start_ns": spans[:, 0], "end_ns": spans[:, 1]}
    )


def two(ran, waited, n_s=4):
    return [engine(n_s, ran, waited, index=0), engine(n_s, ran, waited, index=1)]


def seen(samples, n=400, tasks=NO_TASKS, **rows):
    return disturbance_of(samples, query_rows(n, len(samples.machine) - 1, **rows), tasks)


def test_waits_for_the_driver_and_for_each_other_are_no_robbery():
    quiet = seen(run_samples(4, two(0.43, 0.15), ours=1.2, busy=1.2))
    assert quiet.by_second["waited_ms"].sum() == pytest.approx(2 * 4 * 150)
    assert quiet.robbed_share == pytest.approx(0.0, abs=1e-9)
    assert quiet.reasons(SLA_MS, 95.0) == ()


def test_waits_beside_busy_programs_are():
    busy = seen(run_samples(4, two(0.1, 0.8), ours=0.3, busy=2.0))
    assert busy.robbed_share == pytest.approx(0.8)
    (reason,) = busy.reasons(SLA_MS, 95.0)
    assert "other programs took 80.0% of the engines' time (at most 2%)" in reason


def test_no_more_is_robbed_than_others_have_used():
    little = seen(run_samples(4, two(0.4, 0.4), ours=1.0, busy=1.02))
    assert little.robbed_share == pytest.approx(0.01)
    assert little.reasons(SLA_MS, 95.0) == ()


def test_others_on_idle_cores_rob_nobody():
    beside = seen(run_samples(4, two(0.3, 0.0), ours=0.7, busy=1.7))
    assert beside.by_second["foreign_ms"].max() == pytest.approx(1000)
    assert beside.robbed_share == 0.0


@pytest.mark.parametrize(
    ("use", "cause"),
    [
        ({"steal": 0.5}, "other virtual machines took"),
        ({"throttled": 0.5}, "the CPU limit of the container took"),
    ],
)
def test_the_hypervisor_and_the_cpu_limit_rob_too(use, cause):
    robbed = seen(run_samples(4, two(0.5, 0.3), ours=1.0, busy=1.0, **use))
    assert cause in robbed.reasons(SLA_MS, 95.0)[0]


def test_the_warm_up_is_not_judged():
    queries = query_rows(400, 4, n_warmup=200)
    samples = run_samples(4, two(0.4, 0.4), ours=1.0, busy=1.0)
    foreign = [0, SECOND, SECOND, SECOND, SECOND]  # in the first second only
    ours = [ours - other for ours, other in zip(samples.ours_ns, foreign, strict=True)]
    told = disturbance_of(dataclasses.replace(samples, ours_ns=ours), queries, NO_TASKS)
    assert told.by_second["robbed_ms"].iloc[0] == pytest.approx(400)
    assert told.robbed_share == 0.0


def test_rows_by_second_add_up_whatever_the_samples_times_are():
    odd = [engine(2.3, 0.4, 0.2, step_ms=70)]
    times = [*machine(2, 1.0), MachineTimes(START + 2300 * MS, int(1.0 * 7300 * MS), 0, 0)]
    samples = RunSamples(START, odd, times, [0] * 4)
    table = disturbance_of(samples, query_rows(10, 2), NO_TASKS).by_second
    assert table["second"].tolist() == [0, 1, 2]
    assert table["span_ms"].tolist() == pytest.approx([1000, 1000, 300])
    assert table["ran_ms"].sum() == pytest.approx(0.4 * 2240, rel=1e-6)


def stopped_between(samples, begin_ms, end_ms):
    """The same engine, seen stopped between the two; it does not run then."""
    changed, lost = [], 0
    for before, now in zip([None, *samples.times], samples.times, strict=False):
        t_ms = (now.at_ns - START) / MS
        is_stopped = begin_ms <= t_ms <= end_ms
        if before is not None and is_stopped:
            lost += now.ran_ns - before.ran_ns
        changed.append(now._replace(ran_ns=now.ran_ns - lost, is_stopped=is_stopped))
    return dataclasses.replace(samples, times=changed)


@pytest.mark.parametrize("on_cores", [True, False])
def test_an_idle_engine_that_is_stopped_for_good_is_noticed(on_cores):
    halted = stopped_between(engine(4, 0.1, 0.0, on_cores=on_cores), 1000, 4000)
    told = seen(run_samples(4, [halted], ours=0.2, busy=0.2))
    assert told.longest_still_ms == pytest.approx(3050, abs=60)
    (reason,) = told.reasons(SLA_MS, 95.0)
    assert "cpu engine 0 stood still for 30" in reason
    assert "(at most 10 ms)" in reason


def test_an_engine_that_stands_still_in_a_task_is_noticed_though_no_sample_met_it():
    times = [
        ProcessTimes(START + i * 100 * MS, 7, ran * MS, 0, 0, False)
        for i, ran in enumerate([0, 100, 160, 260, 360, 460, 560, 660, 760, 860, 960])
    ]
    working = EngineSamples("cpu", 0, True, times)
    told = disturbance_of(
        run_samples(1, [working], ours=1, busy=1), query_rows(10, 1), task_rows((0, 1000))
    )
    assert told.longest_still_ms == pytest.approx(40)
    assert told.reasons(399.0, 95.0)
    assert told.reasons(401.0, 95.0) == ()
    resting = disturbance_of(
        run_samples(1, [working], ours=1, busy=1), query_rows(10, 1), task_rows((0, 160))
    )
    assert resting.longest_still_ms == 0  # it had nothing to do


def test_what_cannot_be_told_from_the_samples_is_not_held_against_a_small_sla():
    times = [ProcessTimes(START + i * 100 * MS, 7, i * 96 * MS, 0, 0, False) for i in range(11)]
    nearly = EngineSamples("cpu", 0, True, times)
    told = disturbance_of(
        run_samples(1, [nearly], ours=1, busy=1), query_rows(10, 1), task_rows((0, 1000))
    )
    assert told.reasons(5.0, 95.0) == ()


def test_a_wait_that_is_booked_when_it_is_over_is_no_standing_still():
    waited = [0, 0, 0, 0, 330, 330]  # it began in the first step
    ran = [0, 70, 70, 70, 170 - 100, 170]
    times = [
        ProcessTimes(START + i * 100 * MS, 7, ran[i] * MS, waited[i] * MS, 0, False)
        for i in range(6)
    ]
    steps = engine_steps(EngineSamples("cpu", 0, True, times), task_rows((0, 500)), START)
    assert steps["waited_ms"].tolist() == pytest.approx([30, 100, 100, 100, 0])
    assert steps["stopped_ms"].sum() == pytest.approx(0)


def test_a_short_wait_that_is_booked_one_step_late_is_no_standing_still():
    times = [
        ProcessTimes(START, 7, 0, 0, 0, False),
        ProcessTimes(START + 100 * MS, 7, 80 * MS, 0, 0, False),  # waits since 20 ms
        ProcessTimes(START + 200 * MS, 7, 130 * MS, 30 * MS, 0, False),  # 10 ms more, then rests
    ]
    steps = engine_steps(EngineSamples("cpu", 0, True, times), task_rows((0, 160)), START)
    assert steps["stopped_ms"].tolist() == pytest.approx([0, 0])


def test_nothing_is_told_across_the_death_of_a_process():
    first = ProcessTimes(START, 7, 900 * MS, 0, 0, False)
    second = ProcessTimes(START + 100 * MS, 8, 10 * MS, 0, 0, False)
    third = second._replace(at_ns=START + 200 * MS, ran_ns=30 * MS)
    steps = engine_steps(EngineSamples("cpu", 0, True, [first, second, third]), NO_TASKS, START)
    assert steps["ran_ms"].tolist() == [20.0]


def outages(*spans_ms):
    return [Outage("cpu", 0, START + a * MS, START + b * MS) for a, b in spans_ms]


def test_deaths_that_meet_more_queries_than_the_tail_has_are_too_many():
    samples = run_samples(4, two(0.4, 0.0), 1.0, outages((500, 700), (2500, 2700)), busy=1.0)
    told = seen(samples, n=400)  # one each 10 ms, answered 10 ms later
    assert told.n_deaths == 2
    assert told.n_disturbed == 40
    (reason,) = told.reasons(SLA_MS, 95.0)
    assert reason.startswith("engines died 2 times; an engine was missing for 40 of 400 queries")
    assert told.reasons(SLA_MS, 90.0) == ()
    deaths = told.by_second.query("engine == 0")["deaths"].tolist()
    assert deaths == [1, 0, 1, 0]


def test_a_query_without_an_answer_was_in_the_system_to_the_end():
    samples = run_samples(4, two(0.4, 0.0), 1.0, outages((3000, 3001)), busy=1.0)
    queries = query_rows(400, 4)
    queries.loc[:99, "done_ns"] = pd.NA
    assert disturbance_of(samples, queries, NO_TASKS).n_disturbed == 101


def test_rows_say_why_their_run_should_be_repeated():
    queries = query_rows(400, 4)
    disturbed = seen(run_samples(4, two(0.1, 0.8), ours=0.3, busy=2.0))
    rows = Rows(queries, NO_TASKS, ("interrupted",), disturbance=disturbed)
    assert "other programs" in rows.disturbed_by(math.inf, 95.0)[0]
    assert rows.faults(SLA_MS, 95.0) == ("interrupted", *disturbed.reasons(SLA_MS, 95.0))
    quiet = seen(run_samples(4, two(0.4, 0.1), ours=1.0, busy=1.0))
    assert not dataclasses.replace(rows, disturbance=quiet).disturbed_by(math.inf, 95.0)
    virtual = dataclasses.replace(rows, disturbance=None)
    assert not virtual.disturbed_by(math.inf, 95.0)


def test_too_few_samples_tell_nothing():
    samples = run_samples(0, two(0.1, 0.1), ours=0.3, busy=1.0)
    assert disturbance_of(samples, query_rows(4, 1), NO_TASKS) is None


def test_a_disturbed_measurement_is_repeated_at_most_three_times():
    calls = []

    def measure():
        calls.append(len(calls))
        return calls[-1]

    assert repeat_disturbed(measure, lambda n: "noise" if n < 1 else "") == (1, "")
    assert repeat_disturbed(measure, lambda n: f"noise {n}") == (4, "noise 4")
    assert len(calls) == 5


def test_the_figure_shows_latency_above_and_lost_time_below():
    queries = query_rows(400, 4)
    told = seen(run_samples(4, two(0.1, 0.8), 0.3, outages((2500, 2700)), busy=1.5))
    tasks = queries[["query_id", "n_items"]].assign(pool="cpu", engine=0)
    tasks[["start_ns", "end_ns"]] = queries[["arrival_ns", "done_ns"]].astype(np.int64)
    summary = summarize(queries, tasks, SLA_MS, 95.0, told.reasons(SLA_MS, 95.0))
    top, bottom = figures.disturbed_seconds(queries, told, summary).axes
    assert "robbed; the run is INVALID" in top.get_title(loc="left")
    shares = [bar.get_height() for bar in bottom.patches[:4]]
    robbed = told.by_second.groupby("second")["robbed_ms"].sum() / 2000
    assert shares == pytest.approx(robbed.tolist())
    assert [text.get_text() for text in bottom.texts] == ["1 died"]
