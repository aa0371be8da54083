"""Several tests at a time (pytest -n), but those marked `alone` while no other runs: engines need
the cores.
"""

import fcntl
import gc
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
