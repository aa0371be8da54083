"""One clock for all processes of a machine: monotonic nanoseconds, and other units of time."""

from __future__ import annotations

import time

NS_PER_US = 1_000
NS_PER_MS = 1_000_000
NS_PER_S = 1_000_000_000

monotonic_ns = time.monotonic_ns  # CLOCK_MONOTONIC: comparable between processes of one machine


def wait_until_ns(target_ns: int, spin_ns: int) -> int:
    """Sleep, then spin for the last `spin_ns`, until `target_ns`; returns when it woke up."""
    now_ns = monotonic_ns()
    if target_ns - now_ns > spin_ns:
        time.sleep((target_ns - now_ns - spin_ns) / NS_PER_S)
        now_ns = monotonic_ns()
    while now_ns < target_ns:
        now_ns = monotonic_ns()
    return now_ns
