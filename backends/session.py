"""What measuring and tuning need of a backend."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from infra.arrays import FloatArray
from infra.clock import NS_PER_MS
from infra.messages import Answer, Fail, TaskDone
from infra.results.rows import Rows
from loadGenerator import Schedule
from scheduler import Policy


class SessionError(RuntimeError):
    """The engines cannot do what the run needs; said in one line."""


class Watch(Protocol):
    """Looks on while a run goes, and ends it as soon as enough is known."""

    def observe(self, latency_ms: FloatArray, busy_frac: float) -> bool:
        """Take the next latencies in order of arrival (infinite: lost).

        `busy_frac`: utilisation of the busiest pool so far. True ends the run: nothing more is
        sent, what is waiting is dropped.
        """


class Session(Protocol):
    """Engines that stay warm over many runs."""

    interrupted: bool

    def run(
        self,
        schedule: Schedule,
        policy: Policy,
        on_progress: Callable[[int], None] | None = None,
        watch: Watch | None = None,
    ) -> Rows:
        """Walk the schedule under a policy to its last answer, or until `watch` has seen enough.

        Returns the rows of the queries sent. `on_progress` gets the number of queries answered so
        far.
        """


def whole_inputs(schedule: Schedule, candidates: npt.NDArray[np.int32] | None) -> Schedule:
    """The schedule with queries as large as their inputs; `candidates` [input], None: as drawn."""
    if candidates is None:
        return schedule
    return replace(schedule, n_items=candidates[schedule.input_id])


class InOrder:
    """Brings a run's events into the order of arrival for its watch."""

    def __init__(self, schedule: Schedule, n_engines: Mapping[str, int], watch: Watch) -> None:
        self._arrival_ns = schedule.arrival_ns
        self._watch = watch
        self._latency_ms = np.full(len(schedule), math.nan)
        self._n_engines = dict(n_engines)
        self._busy_ns = dict.fromkeys(n_engines, 0)
        self._n_shown = 0

    def done(self, event: TaskDone) -> None:
        """A task ended."""
        self._busy_ns[event.task.pool] += event.end_ns - event.start_ns

    def ended(self, command: Answer | Fail) -> None:
        """A query was answered or given up."""
        query = command.query
        late_ns = command.done_ns - query.arrival_ns if isinstance(command, Answer) else math.inf
        self._latency_ms[query.query_id] = late_ns / NS_PER_MS

    def show(self, now_ns: int) -> bool:
        """Give the watch what is new; True if it has seen enough."""
        missing = np.isnan(self._latency_ms[self._n_shown :])
        end = self._n_shown + (int(missing.argmax()) if missing.any() else len(missing))
        if end == self._n_shown:
            return False
        latency_ms = self._latency_ms[self._n_shown : end]
        self._n_shown = end
        return self._watch.observe(latency_ms, busiest(self._busy_ns, self._n_engines, now_ns))


def busiest(busy_ns: Mapping[str, int], n_engines: Mapping[str, int], now_ns: int) -> float:
    """Utilisation of the busiest pool since the run's start, 0 to 1."""
    return min(1.0, work_share(busy_ns, n_engines, now_ns))


def work_share(busy_ns: Mapping[str, int], n_engines: Mapping[str, int], span_ns: int) -> float:
    """Work of the busiest pool over the time of its engines; above 1 where that is too short."""
    return max(
        (busy_ns[pool] / (n * max(span_ns, 1)) for pool, n in n_engines.items() if n),
        default=0.0,
    )
