"""Several tests at a time (pytest -n), but those marked `alone` while no other runs: engines need
the cores.
"""

import fcntl
import gc
import multiprocessing
from pathlib import Path

import pytest


def pytest_collection_modifyitems(items):
    """Files that are alone as a whole come last, so that nobody waits between their tests."""
    items.sort(
        key=lambda item: item.getparent(pytest.Module).get_closest_marker("alone") is not None
    )


def pytest_collection_finish():
    """What imports have made stays: no collection looks at it again, and every run of a session
    begins with one.
    """
    gc.freeze()


@pytest.fixture(autouse=True)
def _no_process_is_left_behind():
    """A process that a test leaves would fail the tests after it, which count theirs."""
    before = set(multiprocessing.active_children())
    yield
    left = set(multiprocessing.active_children()) - before
    for process in left:
        process.kill()
        process.join()
    assert not left, f"this test left processes behind: {left}"


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item):
    """Around a test with its fixtures, and around the time that it may take."""
    alone = item.get_closest_marker("alone") is not None
    with Path(__file__).open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        try:
            return (yield)
        finally:
            fcntl.flock(lock, fcntl.LOCK_UN)  # processes that a test has forked hold the file, too
