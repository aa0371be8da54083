"""How the tuner times calls on a CPU."""

import multiprocessing
import time

from models.embedding.cpu.timing import neighbours, seconds


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
    assert not [child for child in multiprocessing.active_children() if child.is_alive()]
