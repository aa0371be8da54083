"""Real engines that are robbed, stopped and killed: the run says so.

That a quiet run is VALID depends on the machine: it is shown on samples of a quiet one.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest
from helpers import MS, NullFactory, poisson_schedule

from backends.processes import sampler as sampling
from backends.processes.engine import PoolSpec
from backends.processes.process import ProcessSession
from backends.processes.sampler import Sampler
from infra.messages import CPU
from infra.procfs import ProcessTimes
from scheduler import Policy

pytestmark = pytest.mark.alone
SLA_MS = 100.0
ENGINES = PoolSpec(CPU, 2, NullFactory(2 * MS), yields=True)


def run_beside(session, happening, rate_qps=100, n=150):
    """The rows of a run, `happening` in a thread beside it."""
    beside = threading.Thread(target=happening)
    beside.start()
    try:
        return session.run(poisson_schedule(rate_qps, n), Policy(16))
    finally:
        beside.join()


def reasons(rows, begin):
    told = rows.disturbance.reasons(SLA_MS, 95.0)
    return [reason for reason in told if begin in reason]


def test_rows_tell_what_each_engine_did_in_each_second():
    with ProcessSession([ENGINES]) as session:
        rows = session.run(poisson_schedule(100, 150), Policy(16))
    table = rows.disturbance.by_second
    assert list(table.columns) == [
        *("second", "span_ms", "pool", "engine", "ran_ms", "waited_ms", "robbed_ms"),
        *("stopped_ms", "major_faults", "deaths", "foreign_ms", "steal_ms", "throttled_ms"),
    ]
    assert set(table["engine"]) == {0, 1}
    lasted_ms = float(rows.queries["done_ns"].max()) / MS
    assert table.query("engine == 0")["span_ms"].sum() == pytest.approx(lasted_ms, abs=100)
    worked_ms = (rows.tasks["end_ns"] - rows.tasks["start_ns"]).sum() / MS
    assert table["ran_ms"].sum() + table["waited_ms"].sum() > 0.9 * worked_ms
    assert not rows.disturbance.n_deaths


def test_a_busy_program_beside_an_engine_makes_the_run_invalid():
    core = min(os.sched_getaffinity(0))
    pinned = PoolSpec(CPU, 1, NullFactory(2 * MS), cores=(core,), yields=True)
    spin = f"import os\nos.sched_setaffinity(0, {{{core}}})\nwhile True: pass"
    busy = subprocess.Popen([sys.executable, "-c", spin])

    def end_it():
        time.sleep(1)
        busy.kill()  # and waited for later: the time of a child that was waited for is the driver's

    with ProcessSession([pinned]) as session:
        rows = run_beside(session, end_it)
    busy.wait()
    (reason,) = reasons(rows, "of the engines' time")
    assert "end what else runs" in reason
    assert rows.disturbance.robbed_share > 0.1


def test_an_engine_that_is_stopped_makes_the_run_invalid():
    with ProcessSession([ENGINES]) as session:

        def stop():
            time.sleep(0.5)
            os.kill(session.pids[0], signal.SIGSTOP)
            time.sleep(0.5)
            os.kill(session.pids[0], signal.SIGCONT)

        rows = run_beside(session, stop)
    assert rows.disturbance.still_engine == "cpu engine 0"
    assert rows.disturbance.longest_still_ms > 250
    assert reasons(rows, "cpu engine 0 stood still for")


def test_an_engine_that_is_stopped_while_idle_and_never_answers_is_noticed():
    with ProcessSession([ENGINES]) as session:
        os.kill(session.pids[1], signal.SIGSTOP)
        rows = session.run(poisson_schedule(100, 100), Policy(16))
        assert set(rows.tasks["engine"]) == {0}
    assert reasons(rows, "cpu engine 1 stood still for")


def test_an_engine_that_is_killed_again_and_again_makes_the_run_invalid():
    with ProcessSession([ENGINES]) as session:

        def kill():
            for _ in range(14):
                time.sleep(0.1)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(session.pids[0], signal.SIGKILL)

        rows = run_beside(session, kill)
        n_deaths = len(session.deaths)
    assert rows.disturbance.n_deaths >= n_deaths - 1 >= 3  # of some it missed the run's end
    assert rows.disturbance.by_second["deaths"].sum() == rows.disturbance.n_deaths
    assert reasons(rows, "engines died")


def test_an_engine_that_is_not_ready_when_the_run_begins_is_missing_from_it():
    class Restarts(NullFactory):
        def __call__(self, index):
            time.sleep(0.3)
            return super().__call__(index)

    with ProcessSession([PoolSpec(CPU, 2, Restarts(2 * MS))]) as session:
        victim = psutil.Process(session.pids[0])
        victim.kill()
        rows = session.run(poisson_schedule(100, 150), Policy(16))
    assert rows.disturbance.n_deaths == 1
    assert 15 < rows.disturbance.n_disturbed < 150


class FakeReader:
    """Of a process; each look takes 1 ms of CPU time."""

    spent_ns = 0

    def __init__(self, pid):
        self.pid = pid

    def times(self):
        FakeReader.spent_ns += MS
        return ProcessTimes(0, self.pid, 0, 0, 0, is_stopped=False)

    def close(self):
        pass


@pytest.mark.parametrize(("n_engines", "period_ms"), [(0, 100), (1, 500), (100, 1000)])
def test_with_many_engines_it_looks_less_often(monkeypatch, n_engines, period_ms):
    now_ns = [0]
    FakeReader.spent_ns = 0
    monkeypatch.setattr(sampling, "ProcessReader", FakeReader)
    monkeypatch.setattr(sampling, "monotonic_ns", lambda: now_ns[0])
    monkeypatch.setattr(sampling.time, "thread_time_ns", lambda: FakeReader.spent_ns)
    with contextlib.closing(Sampler([(CPU, i, True) for i in range(n_engines)], 0)) as sampler:
        pids = [*range(4_000_000, 4_000_000 + n_engines)]
        sampler.look(pids)
        for now_ns[0] in range(0, 2000 * MS, 10 * MS):
            sampler.look(pids)
        samples = sampler.samples()
    looks = len(samples.engines[0].times) if n_engines else 2000 / period_ms
    assert looks == pytest.approx(2000 / period_ms, abs=1)
    assert len(samples.machine) == 2
