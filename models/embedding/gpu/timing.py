"""Times on a CUDA device: of its own work, by events, and from the host's side, by the clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from models.embedding.backend import Call, FloatArray

_LEAD_CLOCKS = 1_000_000  # about half a millisecond, in which the host queues what is timed
_FLUSH_BYTES = 256 << 20  # beyond any L2


def device_seconds(
    calls: Sequence[Call], n_rounds: int, *, cold: bool = True, first: int = 0
) -> FloatArray:
    """(calls, rounds): the device's time for call(i), i = first, first + 1, ...

    All calls in turn within a round. `cold`: L2 holds none of it; else what the same call has just
    left there. The device is kept busy until the host has queued the call, so launches are not in
    the time unless they take longer than half a millisecond.
    """
    cuda: Any = torch.cuda  # its events have no types, and its way to keep a device busy no name
    flush = torch.empty(_FLUSH_BYTES, dtype=torch.uint8, device="cuda")
    events = []
    for round_id in range(first, first + n_rounds):
        for call in calls:
            if cold:
                flush.zero_()
            else:
                call(round_id)
            cuda._sleep(_LEAD_CLOCKS)  # noqa: SLF001 (there is no other)
            start, end = (cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            call(round_id)
            end.record()
            events.append((start, end))
        torch.cuda.synchronize()
    ms = [start.elapsed_time(end) for start, end in events]
    return np.array(ms, dtype=np.float64).reshape(n_rounds, len(calls)).T / 1e3


def wall_seconds(
    calls: Sequence[Call],
    n_rounds: int,
    *,
    first: int = 0,
    wait: Callable[[], object] = lambda: None,
) -> FloatArray:
    """(calls, rounds): from the call to its result, on the host's clock.

    `wait` returns when a device is done.
    """
    times = np.empty((len(calls), n_rounds))
    for round_id in range(n_rounds):
        for i, call in enumerate(calls):
            wait()
            start = time.perf_counter()
            call(first + round_id)
            wait()
            times[i, round_id] = time.perf_counter() - start
    return times
