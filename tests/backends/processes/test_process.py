"""Real processes with null engines: nothing is lost, whoever dies; nothing is left behind, whoever
stops.
"""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import psutil
import pytest
from helpers import MS, ROOT, SHARED_MEMORY, NullFactory, poisson_schedule

from backends.processes.engine import NullEngine, PoolSpec
from backends.processes.process import EngineError, ProcessSession
from infra.messages import ACCEL, CPU, WireTask
from infra.results.stats import summarize
from loadGenerator import Schedule
from scheduler import Policy

pytestmark = pytest.mark.alone


class KilledByInput(NullEngine):
    """Ends its process, the hard way, at inputs of a certain number; `once`: only the first engine
    to see it.
    """

    def __init__(self, bad_input, marker=None):
        super().__init__(busy_ns=200_000)
        object.__setattr__(self, "bad_input", bad_input)
        object.__setattr__(self, "marker", marker)

    def score(self, task):
        if task.input_id == self.bad_input and (self.marker is None or not self.marker.exists()):
            if self.marker is not None:
                self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        super().score(task)


class RaisesAtInput(NullEngine):
    def __init__(self, bad_input):
        super().__init__()
        object.__setattr__(self, "bad_input", bad_input)

    def score(self, task):
        if task.input_id == self.bad_input:
            raise RuntimeError("a number is not a number")


class StallsOnce(NullEngine):
    """Never ends its first task with input 1."""

    def __init__(self, marker):
        super().__init__()
        object.__setattr__(self, "marker", marker)

    def score(self, task):
        if task.input_id == 1 and not self.marker.exists():
            self.marker.touch()
            time.sleep(3600)


def schedule(rate_qps, n, n_items=40, bad=None):
    base = poisson_schedule(rate_qps, n, n_items)
    ids = np.zeros(n, np.int32)
    if bad is not None:
        ids[bad] = 1
    return Schedule(base.arrival_ns, base.n_items, ids)


def check_conservation(rows, n_queries, n_items, batch):
    """Every query answered, every item of it scored exactly once."""
    assert rows.queries["done_ns"].notna().all()
    assert len(rows.queries) == n_queries
    n_parts = -(-n_items // batch)
    assert Counter(rows.tasks["query_id"]) == dict.fromkeys(range(n_queries), n_parts)
    assert not rows.tasks.duplicated(["query_id", "part"]).any()
    assert (rows.tasks.groupby("query_id")["n_items"].sum() == n_items).all()


def leftovers(before):
    """Children of this process, and files in shared memory, that were not there before."""
    return multiprocessing.active_children(), set(SHARED_MEMORY.iterdir()) - before


@pytest.fixture(autouse=True)
def leaves_nothing_behind():
    before = set(SHARED_MEMORY.iterdir())
    fds = psutil.Process().num_fds()
    yield
    children, files = leftovers(before)
    assert not children
    assert not files
    assert psutil.Process().num_fds() <= fds + 2  # a spawned process's resource tracker keeps one


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_nothing_is_lost_and_times_are_in_order(method):
    with ProcessSession([PoolSpec(CPU, 2, NullFactory(), start_method=method)]) as session:
        rows = session.run(schedule(2000, 600), Policy(16))
    check_conservation(rows, 600, 40, 16)
    tasks = rows.tasks
    assert (tasks["enqueued_ns"] <= tasks["start_ns"]).all()
    assert (tasks["start_ns"] <= tasks["end_ns"]).all()
    queries = rows.queries
    assert (queries["arrival_ns"] <= queries["sent_ns"]).all()
    assert (queries["sent_ns"] <= queries["first_start_ns"]).all()
    last_end = tasks.groupby("query_id")["end_ns"].max()
    assert (queries["done_ns"].to_numpy(np.int64) == last_end.to_numpy()).all()


def test_a_burst_beyond_the_kernels_buffer_is_held_and_served():
    with ProcessSession([PoolSpec(CPU, 2, NullFactory())]) as session:
        burst = Schedule(
            np.zeros(3000, np.int64), np.full(3000, 40, np.int32), np.zeros(3000, np.int32)
        )
        rows = session.run(burst, Policy(10))
    check_conservation(rows, 3000, 40, 10)
    starts = rows.tasks.sort_values("start_ns")
    for _, tasks in starts.groupby("engine"):  # who pulls from a FIFO sees it in order
        assert (np.diff(tasks["query_id"] * 4 + tasks["part"]) > 0).all()


def test_large_queries_go_whole_to_the_accelerator():
    sizes = np.where(np.arange(300) % 3 == 0, 100, 30).astype(np.int32)
    base = poisson_schedule(1000, 300)
    with ProcessSession(
        [PoolSpec(CPU, 1, NullFactory()), PoolSpec(ACCEL, 1, NullFactory())]
    ) as session:
        rows = session.run(
            Schedule(base.arrival_ns, sizes, np.zeros(300, np.int32)), Policy(16, 100)
        )
    offloaded = rows.tasks[rows.tasks["pool"] == ACCEL]
    assert set(offloaded["query_id"]) == set(range(0, 300, 3))
    assert (offloaded["n_items"] == 100).all()
    assert summarize(rows.queries, rows.tasks, 10.0).accel_query_share == pytest.approx(1 / 3)


def test_engines_stay_warm_from_run_to_run():
    with ProcessSession([PoolSpec(CPU, 2, NullFactory())]) as session:
        pids = session.pids
        for _ in range(3):
            check_conservation(session.run(schedule(2000, 100), Policy(16)), 100, 40, 16)
        assert session.pids == pids


def test_an_engine_killed_at_any_moment_loses_no_query():
    with ProcessSession([PoolSpec(CPU, 2, NullFactory(busy_ns=1 * MS))]) as session:
        stop = threading.Event()

        def murder():
            while not stop.wait(0.08):
                with contextlib.suppress(ValueError):  # it is being buried
                    if session._engines[
                        0
                    ].ready:  # who dies before that, three times in a row, ends the session
                        os.kill(session.pids[0], signal.SIGKILL)

        murderer = threading.Thread(target=murder)
        murderer.start()
        try:
            rows = session.run(schedule(300, 300, n_items=32), Policy(16))
        finally:
            stop.set()
            murderer.join()
        check_conservation(rows, 300, 32, 16)
        assert session.deaths
        assert "SIGKILL" in session.deaths[0]["error"]
        assert summarize(rows.queries, rows.tasks, 1000.0, extra=rows.notes).n_lost == 0


def test_a_task_whose_engine_dies_is_redone_once(tmp_path):
    marker = tmp_path / "killed"
    with ProcessSession([PoolSpec(CPU, 2, lambda _: KilledByInput(1, marker))]) as session:
        rows = session.run(schedule(500, 200, bad=50), Policy(40))
        assert len(session.deaths) == 1
        check_conservation(rows, 200, 40, 40)
        assert not rows.notes
        check_conservation(session.run(schedule(500, 50), Policy(40)), 50, 40, 40)


def test_a_task_taken_by_an_engine_that_dies_before_it_can_say_so_is_redone(tmp_path, monkeypatch):
    marker = tmp_path / "killed"

    class DiesBetweenTakingAndSaying(WireTask):
        @staticmethod
        def unpack(message):
            task = WireTask.unpack(message)
            if task.input_id == 1 and not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return task

    monkeypatch.setattr("backends.processes.engine.WireTask", DiesBetweenTakingAndSaying)
    with ProcessSession([PoolSpec(CPU, 2, NullFactory())]) as session:
        rows = session.run(schedule(500, 100, bad=50), Policy(40))
        assert len(session.deaths) == 1
    check_conservation(rows, 100, 40, 40)


def test_an_idle_engine_is_not_taken_for_a_stalled_one():
    arrival_ns = np.array([0, 1, 2, 1500]) * MS
    pause = Schedule(arrival_ns, np.full(4, 40, np.int32), np.zeros(4, np.int32))
    with ProcessSession([PoolSpec(CPU, 2, NullFactory())], stall_timeout_s=0.3) as session:
        check_conservation(session.run(pause, Policy(40)), 4, 40, 40)
        assert not session.deaths


def test_a_task_that_kills_two_engines_fails_its_query_visibly():
    with ProcessSession([PoolSpec(CPU, 2, lambda _: KilledByInput(1))]) as session:
        rows = session.run(schedule(500, 200, bad=50), Policy(40))
        assert len(session.deaths) == 2
    lost = rows.queries[rows.queries["done_ns"].isna()]
    assert lost["query_id"].tolist() == [50]
    s = summarize(rows.queries, rows.tasks, 1000.0, extra=rows.notes)
    assert not s.valid
    assert any("query 50 failed" in reason and "SIGKILL" in reason for reason in s.invalid_reasons)


def test_an_error_in_a_model_fails_its_query_and_not_the_engine():
    with ProcessSession([PoolSpec(CPU, 1, lambda _: RaisesAtInput(1))]) as session:
        pids = session.pids
        rows = session.run(schedule(500, 100, bad=10), Policy(40))
        assert session.pids == pids
    assert rows.queries[rows.queries["done_ns"].isna()]["query_id"].tolist() == [10]
    assert "not a number" in rows.notes[0]


def test_a_stalled_engine_is_killed_and_its_task_redone(tmp_path):
    with ProcessSession(
        [PoolSpec(CPU, 1, lambda _: StallsOnce(tmp_path / "stalled"))], stall_timeout_s=0.5
    ) as session:
        rows = session.run(schedule(500, 50, bad=20), Policy(40))
        assert len(session.deaths) == 1
    check_conservation(rows, 50, 40, 40)


def test_a_stalled_engine_is_noticed_while_others_are_busy_and_the_backlog_is_long(tmp_path):
    burst = Schedule(
        np.zeros(2000, np.int64),
        np.full(2000, 40, np.int32),
        np.r_[1, np.zeros(1999)].astype(np.int32),
    )
    with ProcessSession(
        [PoolSpec(CPU, 1, lambda _: StallsOnce(tmp_path / "stalled"))], stall_timeout_s=0.5
    ) as session:
        rows = session.run(burst, Policy(40))
        assert len(session.deaths) == 1
    check_conservation(rows, 2000, 40, 40)


def test_an_engine_that_dies_before_it_is_ready_ends_the_session_with_its_name():
    def broken(_):
        raise RuntimeError("no such model")

    with pytest.raises(
        EngineError, match="cpu engine 0 ended with exit code 1 before it was ready"
    ):
        ProcessSession([PoolSpec(CPU, 1, broken)]).__enter__()


def test_a_silent_engine_is_named_after_the_time_out():
    class Silent(NullEngine):
        def warm_up(self):
            time.sleep(3600)

    specs = [PoolSpec(CPU, 1, NullFactory()), PoolSpec(ACCEL, 1, lambda _: Silent())]
    with pytest.raises(EngineError, match=r"accel engine 0 was not ready within 0\.5 s"):
        ProcessSession(specs, ready_timeout_s=0.5).__enter__()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_gives_the_rows_so_far(number):
    sent = []

    def interrupt(n_ended):
        if n_ended and not sent:
            sent.append(os.kill(os.getpid(), number))

    with ProcessSession([PoolSpec(CPU, 2, NullFactory())]) as session:
        begun = time.monotonic()
        rows = session.run(schedule(100, 10_000), Policy(40), interrupt)
        assert time.monotonic() - begun < 20
        assert session.interrupted
    assert 0 < len(rows.queries) < 10_000
    assert "interrupted" in rows.notes[0]
    assert not summarize(rows.queries, rows.tasks, 10.0, extra=rows.notes).valid


DRIVER = """
import sys, time
sys.path[:0] = [{root!r}, {tests!r}]
from helpers import poisson_schedule
from backends.processes.engine import NullEngine, PoolSpec
from backends.processes.process import ProcessSession
from scheduler import Policy, Stage
with ProcessSession([PoolSpec("cpu", 2, lambda _: NullEngine(60_000_000_000))]) as session:
    print(*session.pids, flush=True)
    session.run(poisson_schedule(200, 100000, 8), Policy(4))
"""


def test_engines_do_not_outlive_a_driver_that_is_killed():
    code = DRIVER.format(root=str(ROOT), tests=str(Path(__file__).resolve().parents[2]))
    driver = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    pids = [int(pid) for pid in driver.stdout.readline().split()]
    assert len(pids) == 2
    deadline = time.monotonic() + 30
    while (
        min(sum(psutil.Process(pid).cpu_times()[:2]) for pid in pids) < 0.2
        and time.monotonic() < deadline
    ):
        time.sleep(0.05)  # both are at work on a task of a minute
    driver.kill()
    driver.wait()
    driver.stdout.close()
    _, alive = psutil.wait_procs(
        [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=10
    )
    assert not alive


def test_engines_can_be_pinned_to_cores():
    cores = tuple(sorted(os.sched_getaffinity(0)))
    with ProcessSession([PoolSpec(CPU, 3, NullFactory(), cores=cores)]) as session:
        assert [os.sched_getaffinity(pid) for pid in session.pids] == [
            {cores[i % len(cores)]} for i in range(3)
        ]


def test_memory_of_driver_and_engines_is_reported():
    with ProcessSession([PoolSpec(CPU, 2, NullFactory())]) as session:
        memory = session.memory()
    assert memory["driver_rss_mib"] > 10
    assert len(memory["engine_private_mib"]) == 2
    assert max(memory["engine_private_mib"]) < memory["driver_rss_mib"]


def test_no_engine_is_scheduled_before_the_driver():
    with ProcessSession(
        [PoolSpec(CPU, 1, NullFactory(), yields=True), PoolSpec(ACCEL, 1, NullFactory())]
    ) as session:
        cpu, accel = session.pids
        assert os.sched_getscheduler(cpu) == os.SCHED_IDLE
        assert os.sched_getscheduler(accel) == os.SCHED_OTHER


def test_a_task_is_enqueued_when_its_query_is_sent():
    with ProcessSession([PoolSpec(CPU, 1, NullFactory())]) as session:
        rows = session.run(poisson_schedule(400, 40, n_items=5), Policy(2))
    sent_ns = rows.queries.set_index("query_id")["sent_ns"].astype(np.int64)
    assert len(rows.tasks) == 120
    assert (rows.tasks["enqueued_ns"] == rows.tasks["query_id"].map(sent_ns)).all()
    assert (rows.tasks["start_ns"] >= rows.tasks["enqueued_ns"]).all()


def test_replies_are_read_while_arrivals_leave_no_time_between_them():
    gap_ns, n = 10_000, 5_000
    schedule = Schedule(gap_ns * np.arange(1, n + 1), np.ones(n, np.int32), np.zeros(n, np.int32))
    with ProcessSession([PoolSpec(CPU, 1, NullFactory())]) as session:
        read = session._read_replies
        answered_before_the_last_was_sent = []

        def noted(run, *limit):
            replies = read(run, *limit)
            if run is not None and run.pacer.next_ns is not None:
                answered_before_the_last_was_sent.append(replies)
            return replies

        session._read_replies = noted
        rows = session.run(schedule, Policy(1))
    assert rows.queries["done_ns"].notna().all()
    assert sum(answered_before_the_last_was_sent) > 0


def test_the_driver_does_not_spin_while_work_waits_for_every_engine(monkeypatch):
    waiting_at_spin = []
    with ProcessSession([PoolSpec(CPU, 2, NullFactory(5 * MS), yields=True)]) as session:
        spin = session._spin

        def noted(run, next_ns):
            waiting_at_spin.append(len(session._pools[CPU].in_kernel))
            spin(run, next_ns)

        monkeypatch.setattr(session, "_spin", noted)
        overloaded = session.run(poisson_schedule(2000, 200), Policy(1))
        at_leisure = session.run(poisson_schedule(50, 10), Policy(1))
    assert overloaded.queries["done_ns"].notna().all()
    assert at_leisure.queries["done_ns"].notna().all()
    assert waiting_at_spin
    assert max(waiting_at_spin) <= 2
