"""Looks at a run's engines and at the machine some times a second; what that costs is bounded."""

from __future__ import annotations

import time
from collections.abc import Sequence

from infra.clock import NS_PER_MS, NS_PER_S, monotonic_ns
from infra.procfs import MachineReader, MachineTimes, ProcessReader, ProcessTimes, our_cpu_ns
from infra.results.disturbance import EngineSamples, Outage, RunSamples

PERIOD_NS = 100 * NS_PER_MS
LONGEST_PERIOD_NS = MACHINE_PERIOD_NS = NS_PER_S
MOST_COST = 1 / 500  # of a core: with many engines it looks less often


class Sampler:
    """Samples of a run's engines; `labels` by slot: pool, index, whether tasks need a core."""

    def __init__(self, labels: Sequence[tuple[str, int, bool]], start_ns: int) -> None:
        self._labels = labels
        self._start_ns = start_ns
        self._times: list[list[ProcessTimes]] = [[] for _ in labels]
        self._readers: dict[int, ProcessReader] = {}
        self._machine_reader = MachineReader()
        self._machine: list[MachineTimes] = []
        self._ours_ns: list[int] = []
        self._outages: list[Outage] = []
        self._next_ns = 0
        self._next_machine_ns = 0

    def look(self, pids: Sequence[int], *, now: bool = False) -> None:
        """Read the engines of these process ids, by slot, if it is time, or `now`."""
        begun_ns = monotonic_ns()
        if begun_ns < self._next_ns and not now:
            return
        spent_ns = -time.thread_time_ns()
        for times, pid in zip(self._times, pids, strict=True):
            reader = self._readers.get(pid)
            if reader is None:
                reader = self._readers[pid] = ProcessReader(pid)
            sample = reader.times()
            if sample is not None:
                times.append(sample)
        if now or begun_ns >= self._next_machine_ns:
            self._machine.append(self._machine_reader.times())
            self._ours_ns.append(our_cpu_ns(pids))
            self._next_machine_ns = begun_ns + MACHINE_PERIOD_NS
        spent_ns += time.thread_time_ns()
        period_ns = min(max(PERIOD_NS, int(spent_ns / MOST_COST)), LONGEST_PERIOD_NS)
        self._next_ns = begun_ns + period_ns

    def missing(self, slot: int, from_ns: int, until_ns: int) -> None:
        """An engine had died, and its successor was not ready until then."""
        pool, engine, _ = self._labels[slot]
        self._outages.append(Outage(pool, engine, from_ns, until_ns))

    def samples(self) -> RunSamples:
        """All that was read."""
        engines = [
            EngineSamples(*label, times)
            for label, times in zip(self._labels, self._times, strict=True)
        ]
        return RunSamples(self._start_ns, engines, self._machine, self._ours_ns, self._outages)

    def close(self) -> None:
        """Give the descriptors back."""
        for reader in self._readers.values():
            reader.close()
        self._readers.clear()
        self._machine_reader.close()
