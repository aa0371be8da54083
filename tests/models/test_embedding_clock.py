"""How the tuner times calls on a CPU, and what it takes for faster."""

import time

import numpy as np
import pytest

from models.embedding.cpu.candidates import neighbours, seconds
from models.embedding.tuning.search import clearly_faster, paired


@pytest.mark.parametrize(("fast", "clear"), [
    ([0.9, 0.9, 0.9, 0.9], True), ([0.9, 0.5, 0.9, 0.8], True),
    ([0.97, 0.97, 0.97, 0.97], False),  # too little
    ([0.5, 0.5, 1.4, 1.6], False),  # fast in the median, but who knows
])  # fmt: skip
def test_faster_is_what_gains_enough_for_sure(fast, clear):
    times = np.array([[1.0, 1.0, 1.0, 1.0], fast])
    assert clearly_faster(times, 0, 1) == clear


@pytest.mark.parametrize("n", [7, 14, 28, 70])
def test_the_interval_of_the_paired_median_covers_it(n):
    rng = np.random.default_rng(n)
    covered = []
    for _ in range(2000):
        _, low, high = paired(np.stack((rng.exponential(size=n) + 1.0, np.ones(n))), 0, 1)
        covered.append(low <= 1 + np.log(2) <= high)
    assert 0.93 < np.mean(covered) < 0.995


def test_calls_are_timed_in_turn_and_neighbours_are_gone_afterwards():
    order = []
    times = seconds(
        [lambda _: (order.append("a"), time.sleep(0.002)), lambda _: order.append("b")], 3
    )
    assert times.shape[0] == 2
    assert 3 <= times.shape[1] <= 15
    assert (times[0] > 0.0019).all()
    assert {*order} == {"a", "b"}
    with neighbours(1):
        pass
    assert not [
        child for child in __import__("multiprocessing").active_children() if child.is_alive()
    ]
