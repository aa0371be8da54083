"""Watches the machine while the engines are idle: who else uses the cores?"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Collection
from pathlib import Path

from infra.clock import NS_PER_S
from infra.procfs import QUIET_SHARE, ForeignUse, cpu_time_ns

LEAST_NAMED = 0.01  # of a core


def quiet_check(watch_s: float, pids: Collection[int]) -> str:
    """What to say if others use the cores, else ''; `pids` are the idle engines'."""
    if watch_s <= 0:
        return ""
    foreign = ForeignUse(pids)
    before = cpu_times(pids)
    time.sleep(watch_s)
    share = foreign.share()
    return "" if share <= QUIET_SHARE else warning(share, watch_s, before, cpu_times(pids))


def cpu_times(left_out: Collection[int]) -> dict[int, int]:
    """CPU time in ns of all processes that can be seen, but for this and those left out."""
    times = {}
    for entry in Path("/proc").iterdir():
        pid = int(entry.name) if entry.name.isdecimal() else os.getpid()
        if pid != os.getpid() and pid not in left_out:
            with contextlib.suppress(OSError):
                times[pid] = cpu_time_ns(pid)
    return times


def warning(share: float, watch_s: float, before: dict[int, int], after: dict[int, int]) -> str:
    """One line that names the process which took the most CPU time in between."""
    used = {pid: ns - before.get(pid, 0) for pid, ns in after.items()}
    busiest = max(used, key=lambda pid: used[pid], default=0)
    of_core = used.get(busiest, 0) / (watch_s * NS_PER_S)
    who = "none that can be seen from here"
    if of_core >= LEAST_NAMED:
        who = f"most of all {name_of(busiest)}, process {busiest}: {of_core:.0%} of a core"
    return (
        f"other programs use {share:.0%} of the cores ({who}); engines give way to them, so the "
        "run may be INVALID: end them, or measure later"
    )


def name_of(pid: int) -> str:
    """A process's name."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return "a program that has ended"
