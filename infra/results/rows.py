"""The rows that a run leaves: a row a query, a row a task.

Every number and figure is computed from them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from infra.arrays import Int64Array
from infra.messages import ACCEL, CPU, Answer, Fail, Query, TaskDone
from infra.results.disturbance import Disturbance

TASK_COLUMNS = "query_id stage part pool engine n_items enqueued_ns start_ns end_ns".split()
QUERY_COLUMNS = "input_id n_items n_tasks arrival_ns sent_ns first_start_ns done_ns".split()
_N_TASKS = QUERY_COLUMNS.index("n_tasks")
_FIRST_START = QUERY_COLUMNS.index("first_start_ns")
_DONE = QUERY_COLUMNS.index("done_ns")
UNKNOWN = -1


@dataclass(frozen=True)
class Rows:
    """`queries`: query_id, QUERY_COLUMNS, is_warmup; `tasks`: TASK_COLUMNS.

    Times are ns since the run's start; sent_ns, first_start_ns and done_ns are null for a query
    that was not sent, not started or not answered. `notes` are reasons why the run is INVALID.
    `answers`: {query id: items of its input, best first (int32, packed)} of the queries that were
    ranked. `disturbance` of a real run.
    """

    queries: pd.DataFrame
    tasks: pd.DataFrame
    notes: tuple[str, ...] = ()
    answers: Mapping[int, bytes] = field(default_factory=dict)
    disturbance: Disturbance | None = None

    def disturbed_by(self, sla_ms: float, percentile: float) -> tuple[str, ...]:
        """Why the run should be repeated, not believed; empty where nothing disturbed it."""
        return () if self.disturbance is None else self.disturbance.reasons(sla_ms, percentile)

    def faults(self, sla_ms: float, percentile: float) -> tuple[str, ...]:
        """All that makes the run INVALID, whatever its latencies are."""
        return (*self.notes, *self.disturbed_by(sla_ms, percentile))


@dataclass
class Recorder:
    """Collects the events of a run; the query ids are 0..n-1."""

    n_warmup: int
    _queries: dict[int, list[int]] = field(default_factory=dict)
    _tasks: list[tuple[int, ...]] = field(default_factory=list)
    _notes: list[str] = field(default_factory=list)
    _answers: dict[int, bytes] = field(default_factory=dict)
    _pools: dict[str, int] = field(default_factory=lambda: {CPU: 0, ACCEL: 1})

    def sent(self, query: Query, now_ns: int) -> None:
        """A query entered the system."""
        query_id, arrival_ns, n_items, input_id = query
        row = [input_id, n_items, 0, arrival_ns, now_ns, UNKNOWN, UNKNOWN]
        self._queries[query_id] = row

    def done(self, event: TaskDone, enqueued_ns: int) -> None:
        """A task ended."""
        query_id, stage, part, _, n_items, pool, _ = event.task
        number = self._pools.setdefault(pool, len(self._pools))
        _, engine, start_ns, end_ns, _ = event
        self._tasks.append(
            (query_id, stage, part, number, engine, n_items, enqueued_ns, start_ns, end_ns)
        )
        row = self._queries[query_id]
        row[_N_TASKS] += 1
        first_ns = row[_FIRST_START]
        row[_FIRST_START] = start_ns if first_ns == UNKNOWN else min(first_ns, start_ns)

    def answered(self, answer: Answer) -> None:
        """A query is complete."""
        query_id = answer.query.query_id
        self._queries[query_id][_DONE] = answer.done_ns
        if answer.items:
            self._answers[query_id] = answer.items

    def failed(self, fail: Fail) -> None:
        """A query was given up: the run is INVALID, and says why."""
        self._notes.append(f"query {fail.query.query_id} failed: {fail.reason}")

    def note(self, reason: str) -> None:
        """Something makes the run INVALID."""
        self._notes.append(reason)

    def rows(self) -> Rows:
        """What was recorded so far."""
        ids = np.array(sorted(self._queries), np.int64)
        queries = _matrix([self._queries[i] for i in ids.tolist()], len(QUERY_COLUMNS))
        tasks = pd.DataFrame(_matrix(self._tasks, len(TASK_COLUMNS)), columns=TASK_COLUMNS)
        tasks["pool"] = np.array([*self._pools], object)[tasks["pool"]]
        table = query_table(ids, queries, self.n_warmup)
        return Rows(table, tasks, tuple(self._notes), self._answers)


def _matrix(rows: list[list[int]] | list[tuple[int, ...]], width: int) -> Int64Array:
    return np.array(rows, np.int64).reshape(len(rows), width)


def query_table(ids: Int64Array, table: Int64Array, n_warmup: int) -> pd.DataFrame:
    """The rows of queries `ids` from an array [query, QUERY_COLUMNS]; UNKNOWN becomes null."""
    queries = pd.DataFrame(table, columns=QUERY_COLUMNS)
    queries.insert(0, "query_id", ids)
    for name in ("sent_ns", "first_start_ns", "done_ns"):
        values = queries[name].to_numpy()
        queries[name] = pd.arrays.IntegerArray(values.copy(), values == UNKNOWN)
    queries["is_warmup"] = ids < n_warmup
    return queries
