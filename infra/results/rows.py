"""The rows that a run leaves: one per query, one per task.

Every number and figure is computed from them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pandas as pd

from infra.messages import ACCEL, CPU, Answer, Fail, Query, TaskDone

TASK_COLUMNS = [
    "query_id",
    "stage",
    "part",
    "pool",
    "engine",
    "n_items",
    "enqueued_ns",
    "start_ns",
    "end_ns",
]
QUERY_COLUMNS = [
    "input_id",
    "n_items",
    "n_tasks",
    "arrival_ns",
    "sent_ns",
    "first_start_ns",
    "done_ns",
]
UNKNOWN = -1


@dataclass(frozen=True)
class Rows:
    """`queries`: query_id, input_id, n_items, n_tasks, arrival_ns, sent_ns, first_start_ns,
    done_ns, is_warmup.

    `tasks`: TASK_COLUMNS. Times are ns since the run's start; sent_ns, first_start_ns and done_ns
    are null for a query that was not sent, not started or not answered. `notes` are reasons why the
    run is INVALID. `answers`: {query id: items of its input, best first (int32, packed)} of the
    queries that were ranked.
    """

    queries: pd.DataFrame
    tasks: pd.DataFrame
    notes: tuple[str, ...] = ()
    answers: Mapping[int, bytes] = field(default_factory=dict)


@dataclass
class Recorder:
    """Collects the events of one run; the query ids are 0..n-1."""

    n_warmup: int
    _queries: dict[int, list[int]] = field(default_factory=dict)
    _tasks: list[tuple[int, ...]] = field(default_factory=list)
    _notes: list[str] = field(default_factory=list)
    _answers: dict[int, bytes] = field(default_factory=dict)
    _pools: dict[str, int] = field(default_factory=lambda: {CPU: 0, ACCEL: 1})

    def sent(self, query: Query, now_ns: int) -> None:
        """A query entered the system."""
        self._queries[query.query_id] = [
            query.input_id,
            query.n_items,
            0,
            query.arrival_ns,
            now_ns,
            UNKNOWN,
            UNKNOWN,
        ]

    def done(self, event: TaskDone, enqueued_ns: int) -> None:
        """A task ended."""
        task = event.task
        pool = self._pools.setdefault(task.pool, len(self._pools))
        self._tasks.append(
            (
                task.query_id,
                task.stage,
                task.part,
                pool,
                event.engine,
                task.n_items,
                enqueued_ns,
                event.start_ns,
                event.end_ns,
            )
        )
        row = self._queries[task.query_id]
        row[2] += 1
        row[5] = event.start_ns if row[5] == UNKNOWN else min(row[5], event.start_ns)

    def answered(self, answer: Answer) -> None:
        """A query is complete."""
        self._queries[answer.query.query_id][6] = answer.done_ns
        if answer.items:
            self._answers[answer.query.query_id] = answer.items

    def failed(self, fail: Fail) -> None:
        """A query was given up: the run is INVALID, and says why."""
        self._notes.append(f"query {fail.query.query_id} failed: {fail.reason}")

    def note(self, reason: str) -> None:
        """Something that makes the run INVALID."""
        self._notes.append(reason)

    def rows(self) -> Rows:
        """What was recorded so far."""
        ids = sorted(self._queries)
        table = np.array([self._queries[i] for i in ids], dtype=np.int64).reshape(
            len(ids), len(QUERY_COLUMNS)
        )
        queries = query_table(np.array(ids, dtype=np.int64), table, self.n_warmup)
        done = np.array(self._tasks, dtype=np.int64).reshape(len(self._tasks), len(TASK_COLUMNS))
        tasks = pd.DataFrame(done, columns=TASK_COLUMNS)
        tasks["pool"] = np.array([*self._pools], object)[done[:, TASK_COLUMNS.index("pool")]]
        return Rows(queries, tasks, tuple(self._notes), self._answers)


def query_table(
    ids: npt.NDArray[np.int64], table: npt.NDArray[np.int64], n_warmup: int
) -> pd.DataFrame:
    """The rows of the queries `ids` from an array [query, QUERY_COLUMNS] in which UNKNOWN stands
    for null.
    """
    queries = pd.DataFrame(table, columns=QUERY_COLUMNS)
    queries.insert(0, "query_id", ids)
    for name in ("sent_ns", "first_start_ns", "done_ns"):
        known = queries[name].to_numpy()
        queries[name] = pd.arrays.IntegerArray(known.copy(), known == UNKNOWN)
    queries["is_warmup"] = ids < n_warmup
    return queries
