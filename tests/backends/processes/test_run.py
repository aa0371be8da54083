"""What the event loop knows of its run: how long to spin; and how an engine waits for its next
task.
"""

import socket
import threading
import time

import numpy as np
import pytest
from helpers import poisson_schedule

from backends.processes.engine import _polled
from backends.processes.run import LEAST_SPIN_NS, MOST_SPIN_NS, SPIN_MARGIN_NS, Run
from loadGenerator import Pacer
from scheduler import ONE_STAGE, Policy


@pytest.fixture
def run():
    return Run(poisson_schedule(100, 5, n_items=1), Policy(1), ONE_STAGE, None, None)


def test_the_spin_settles_where_nine_in_ten_sleeps_have_ended(run):
    rng = np.random.default_rng(1)
    spins = []
    for _ in range(6_000):
        run.overslept(int(rng.exponential(50_000)))
        spins.append(run.spin_ns)
    ninth_decile_ns = 50_000 * np.log(10)
    assert np.mean(spins[1_000:]) == pytest.approx(ninth_decile_ns + SPIN_MARGIN_NS, rel=0.2)


@pytest.mark.parametrize(("overslept_ns", "expected"), [(0, LEAST_SPIN_NS), (10**9, MOST_SPIN_NS)])
def test_the_spin_stays_within_bounds(run, overslept_ns, expected):
    for _ in range(1_000):
        run.overslept(overslept_ns)
    assert run.spin_ns == expected


def test_the_pacer_tells_what_comes_and_when_there_is_no_more():
    schedule = poisson_schedule(100, 3, n_items=1)
    pacer = Pacer(schedule)
    assert [pacer.coming(k).query_id for k in range(3)] == [0, 1, 2]
    assert pacer.coming(3) is None
    list(pacer.due(int(schedule.arrival_ns[0])))
    assert pacer.coming(0).query_id == 1
    assert pacer.coming(2) is None


def test_a_polling_engine_gets_what_is_there_what_comes_late_and_the_end():
    driver, engine = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    receive = _polled(engine)
    driver.send(b"there")
    assert receive(64) == b"there"

    def late():
        time.sleep(0.05)  # far longer than it polls
        driver.send(b"late")

    sender = threading.Thread(target=late)
    sender.start()
    assert receive(64) == b"late"
    sender.join()
    driver.close()
    assert receive(64) == b""
    engine.close()
