"""What Linux tells of processes and of the machine: CPU time, waiting, stops, use by others.

All times are sums since some start, in ns: only differences mean something. What a kernel does not
tell is 0.
"""

from __future__ import annotations

import contextlib
import os
import resource
import time
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from infra.clock import NS_PER_S, NS_PER_US, monotonic_ns
from infra.provenance import usable_cores

QUIET_SHARE = 0.05  # others use at most so much of the cores of a quiet machine
_MOST_BYTES = 1 << 16
_TICK_NS = NS_PER_S // os.sysconf("SC_CLK_TCK")
_PROCESS_CPU_CLOCK = 2  # CPUCLOCK_SCHED, linux/posix-timers.h


class ProcessTimes(NamedTuple):
    """A process at a time: CPU time of all its threads, run delay of its first, faults, stopped."""

    at_ns: int
    pid: int
    ran_ns: int
    waited_ns: int  # it could run, and had no core
    major_faults: int
    is_stopped: bool


class MachineTimes(NamedTuple):
    """The usable cores: time in use, time that the hypervisor took, time over the CPU limit."""

    at_ns: int
    busy_ns: int
    steal_ns: int
    throttled_ns: int


def parse_schedstat(text: str) -> int:
    """Run delay in ns from /proc/PID/schedstat."""
    fields = text.split()
    return int(fields[1]) if len(fields) > 1 else 0


def parse_stat(text: str) -> tuple[str, int]:
    """State and major faults from /proc/PID/stat; the name in brackets may hold anything."""
    fields = text.rpartition(")")[2].split()
    return (fields[0], int(fields[9])) if len(fields) > 9 else ("?", 0)


def parse_cores(text: str, cores: Collection[int]) -> tuple[int, int]:
    """Idle and stolen time of these cores in ns, from /proc/stat."""
    idle = stolen = 0
    names = {f"cpu{core}" for core in cores}
    for line in text.splitlines():
        name, *ticks = line.split()
        if name in names:
            idle += int(ticks[3]) + int(ticks[4])
            stolen += int(ticks[7]) if len(ticks) > 7 else 0
    return idle * _TICK_NS, stolen * _TICK_NS


def parse_throttled(text: str) -> int:
    """Time over the CPU limit in ns, from a control group's cpu.stat of version 1 or 2."""
    values = dict(line.split()[:2] for line in text.splitlines() if len(line.split()) > 1)
    if "throttled_usec" in values:
        return int(values["throttled_usec"]) * NS_PER_US
    return int(values.get("throttled_time", 0))


def limit_file(groups: str, root: Path = Path("/sys/fs/cgroup")) -> Path | None:
    """The cpu.stat that counts for this process; `groups` is the text of /proc/self/cgroup.

    In a container the path that it names may lie outside; then the folder on top is its own.
    """
    for line in groups.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        folder = root / controllers if controllers else root
        for file in (folder / path.lstrip("/") / "cpu.stat", folder / "cpu.stat"):
            if file.is_file():
                return file
    return None


class ProcFile:
    """A file of /proc that is read again and again; '' where it cannot be read (any more)."""

    def __init__(self, path: str | Path | None) -> None:
        self._fd = -1
        if path is not None:
            with contextlib.suppress(OSError):
                self._fd = os.open(path, os.O_RDONLY)

    def text(self) -> str:
        """What stands there now."""
        try:
            return os.pread(self._fd, _MOST_BYTES, 0).decode() if self._fd >= 0 else ""
        except OSError:
            return ""

    def close(self) -> None:
        """Give the descriptor back."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1


class ProcessReader:
    """Reads one process."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._schedstat = ProcFile(f"/proc/{pid}/schedstat")
        self._stat = ProcFile(f"/proc/{pid}/stat")

    def times(self) -> ProcessTimes | None:
        """What it has used so far; None if it is gone."""
        at_ns = monotonic_ns()
        try:
            ran_ns = cpu_time_ns(self._pid)
        except OSError:
            return None
        state, faults = parse_stat(self._stat.text())
        waited_ns = parse_schedstat(self._schedstat.text())
        return ProcessTimes(at_ns, self._pid, ran_ns, waited_ns, faults, state in "Tt")

    def close(self) -> None:
        """Give the descriptors back."""
        self._schedstat.close()
        self._stat.close()


class MachineReader:
    """Reads the cores that this process may use."""

    def __init__(self) -> None:
        self._cores = usable_cores()
        self._stat = ProcFile("/proc/stat")
        groups = ProcFile("/proc/self/cgroup")
        self._limit = ProcFile(limit_file(groups.text()))
        groups.close()

    def times(self) -> MachineTimes:
        """What has been used so far."""
        text = self._stat.text()
        at_ns = monotonic_ns()
        idle_ns, steal_ns = parse_cores(text, self._cores)
        # What is not idle; the counters of use are only right to a tick of the kernel's clock.
        busy_ns = at_ns * len(self._cores) - idle_ns - steal_ns if text else 0
        return MachineTimes(at_ns, busy_ns, steal_ns, parse_throttled(self._limit.text()))

    def close(self) -> None:
        """Give the descriptors back."""
        self._stat.close()
        self._limit.close()


def cpu_time_ns(pid: int) -> int:
    """CPU time of all threads of a process; raises OSError if there is none of this number."""
    return time.clock_gettime_ns((~pid << 3) | _PROCESS_CPU_CLOCK)


def our_cpu_ns(pids: Collection[int]) -> int:
    """CPU time of this process, of its children that have ended, and of `pids`."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    total_ns = time.process_time_ns() + int((ended.ru_utime + ended.ru_stime) * NS_PER_S)
    for pid in pids:
        with contextlib.suppress(OSError):
            total_ns += cpu_time_ns(pid)
    return total_ns


class ForeignUse:
    """How much of the usable cores others take from now on; `pids` are ours beside this process."""

    def __init__(self, pids: Collection[int] = ()) -> None:
        self._pids = pids
        self._reader = MachineReader()
        self._before = self._reader.times()
        self._ours_ns = our_cpu_ns(pids)

    def share(self) -> float:
        """Share of the cores' time since the start, 0 to 1; to be asked once."""
        now = self._reader.times()
        self._reader.close()
        taken_ns = now.busy_ns - self._before.busy_ns - (our_cpu_ns(self._pids) - self._ours_ns)
        taken_ns += now.steal_ns - self._before.steal_ns
        span_ns = (now.at_ns - self._before.at_ns) * len(usable_cores())
        return min(max(taken_ns / max(span_ns, 1), 0.0), 1.0)
