"""Times on a CUDA device, with a device that only writes down what is asked of it."""

import pytest
import torch

from models.embedding.gpu.timing import device_seconds, wall_seconds


@pytest.mark.parametrize("cold", [True, False])
def test_a_call_is_queued_while_the_device_is_busy_and_timed_alone(cold, monkeypatch):
    log = []

    class Flush:
        def zero_(self):
            log.append("flush")

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            log.append("event")
            self.at = len(log)

        def elapsed_time(self, end):
            return float(end.at - self.at)

    monkeypatch.setattr(torch, "empty", lambda *_, **__: Flush())
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda _: log.append("busy"))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: log.append("wait"))
    calls = [lambda i: log.append(f"a{i}"), lambda i: log.extend([f"b{i}", "more", "more"])]
    times = device_seconds(calls, 2, cold=cold, first=5)
    before = ["flush"] if cold else ["a5"]
    assert log[:5] == [*before, "busy", "event", "a5", "event"]
    assert log.count("wait") == 2
    assert [log.count(name) for name in ("a5", "b5", "a6", "b6")] == [1 if cold else 2] * 4
    assert times.tolist() == [[0.002, 0.002], [0.004, 0.004]]


def test_wall_times_are_of_every_call_and_round():
    seen = []
    calls = [lambda i: seen.append(("a", i)), lambda i: seen.append(("b", i))]
    times = wall_seconds(calls, 2, first=3)
    assert seen == [("a", 3), ("b", 3), ("a", 4), ("b", 4)]
    assert times.shape == (2, 2)
    assert (times > 0).all()
