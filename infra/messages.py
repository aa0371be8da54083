"""The records that travel: between the dispatcher and a backend, and between processes.

They are named tuples, not frozen dataclasses: a run makes ten of them a task, and they are made in
a third of the time. Times are int nanoseconds since the run's start, except on the wire, where they
are the machine's monotonic clock (the same for every process on it).
"""

from __future__ import annotations

import struct
from typing import NamedTuple

CPU = "cpu"
ACCEL = "accel"


class Query(NamedTuple):
    """One user's request: rank `n_items` candidates, the first of input `input_id`."""

    query_id: int
    arrival_ns: int  # the INTENDED arrival, from the schedule; never the send time
    n_items: int
    input_id: int


class Task(NamedTuple):
    """Items [first_item, first_item + n_items) of a query at a stage, scored in one batch.

    `items`: which items of the input these are (int32, packed) where a stage before has chosen;
    empty: they lie there in a row.
    """

    query_id: int
    stage: int
    part: int
    first_item: int
    n_items: int
    pool: str  # CPU, ACCEL, or a name of the pipeline's
    items: bytes = b""


class TaskDone(NamedTuple):
    """Event: `engine` (index within the task's pool) scored the task.

    `scores`: one per item (float32, packed) where the stage ranks; empty where nobody asked for
    them or the engine has none.
    """

    task: Task
    engine: int
    start_ns: int
    end_ns: int
    scores: bytes = b""


class TaskFailed(NamedTuple):
    """Event: the task did not end; its engine died or raised."""

    task: Task
    engine: int
    error: str


class Enqueue(NamedTuple):
    """Command: append the task to its pool's FIFO."""

    task: Task


class Answer(NamedTuple):
    """Command: the query is complete.

    `items`: the best of its input, best first (int32, packed), where they were ranked.
    """

    query: Query
    done_ns: int
    items: bytes = b""

    @property
    def latency_ns(self) -> int:
        """Time from the intended arrival to the answer."""
        return self.done_ns - self.query.arrival_ns


class Fail(NamedTuple):
    """Command: the query is given up, visibly."""

    query: Query
    reason: str


_TASK = struct.Struct("<qiiii")
_REPLY = struct.Struct("<qiiqq")

READY, DONE, ERROR = 0, 1, 2  # kinds of reply
MESSAGE_BYTES = 4096  # where no items travel; with them see `message_bytes`
ITEM_BYTES = 4  # an id or a score on the wire

pack_task = _TASK.pack  # the fields of a WireTask but the items


def message_bytes(n_items: int) -> int:
    """Size of the largest message where tasks of `n_items` travel with their ids and scores."""
    return max(MESSAGE_BYTES, _REPLY.size + ITEM_BYTES * n_items)


class WireTask(NamedTuple):
    """Driver to engine; `ticket` numbers the driver's attempts from 1, `items` as in Task."""

    ticket: int
    stage: int
    input_id: int
    first_item: int
    n_items: int
    items: bytes = b""

    def pack(self) -> bytes:
        """The message: 24 bytes and the items."""
        return pack_task(*self[:5]) + self.items

    @staticmethod
    def unpack(message: bytes) -> WireTask:
        """Inverse of `pack`."""
        ticket, stage, input_id, first_item, n_items = _TASK.unpack_from(message)
        return WireTask(ticket, stage, input_id, first_item, n_items, message[_TASK.size :])


class WireReply(NamedTuple):
    """Engine to driver: READY after warm-up (ticket 0), DONE (with scores) or ERROR."""

    ticket: int
    engine: int
    kind: int
    start_ns: int
    end_ns: int
    error: str = ""
    scores: bytes = b""

    def pack(self) -> bytes:
        """The message: 32 bytes, then the scores or the error's text, cut to one message."""
        head = _REPLY.pack(self.ticket, self.engine, self.kind, self.start_ns, self.end_ns)
        return head + (self.scores or self.error.encode()[: MESSAGE_BYTES - len(head)])

    @staticmethod
    def unpack(message: bytes) -> WireReply:
        """Inverse of `pack`."""
        ticket, engine, kind, start_ns, end_ns = _REPLY.unpack_from(message)
        rest = message[_REPLY.size :]
        if kind == ERROR:
            return WireReply(ticket, engine, kind, start_ns, end_ns, rest.decode(errors="replace"))
        return WireReply(ticket, engine, kind, start_ns, end_ns, scores=rest)
