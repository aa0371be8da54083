"""The inside of an engine process: take a task from the pool's socket, score it, answer with its
times.

The pool's socket is shared by all its engines, so it is a FIFO that each idle engine pulls from;
the kernel hands every message to exactly one of them and a killed engine holds no lock. What an
engine is working on stands in `Slots`, memory that the driver can read after a SIGKILL.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import mmap
import os
import signal
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing import reduction
from typing import Any, Protocol, runtime_checkable

from infra.clock import monotonic_ns
from infra.messages import DONE, ERROR, MESSAGE_BYTES, READY, WireReply, WireTask

_PR_SET_PDEATHSIG = 1
_PR_SET_TIMERSLACK = 29
_POLL_NS = 500_000
IDLE = 0


class Engine(Protocol):
    """What scores tasks; built in its own process by an EngineFactory."""

    def warm_up(self) -> None:
        """Get ready to score at full speed."""

    def score(self, task: WireTask) -> bytes | None:
        """Score the task's items; raises if it cannot.

        The scores (float32, packed) where the stage ranks by them.
        """


@runtime_checkable
class MergingEngine(Protocol):
    """An engine that can score several tasks as one batch."""

    def takes_more(self, tasks: Sequence[WireTask]) -> bool:
        """Whether any further task, however large, may be scored in one batch with these."""

    def score(self, task: WireTask) -> bytes | None:
        """Score one task."""

    def score_merged(self, tasks: Sequence[WireTask]) -> None:
        """Score several as one batch."""


EngineFactory = Callable[[int], Engine]  # engine index within its pool -> engine


@dataclass(frozen=True)
class PoolSpec:
    """The engines of one pool.

    A CUDA engine is spawned (CUDA does not survive a fork), all others are forked.
    """

    pool: str
    n_engines: int
    factory: EngineFactory
    start_method: str = "fork"
    cores: tuple[int, ...] = ()  # engine i is pinned to cores[i % len]; empty: not pinned
    message_bytes: int = MESSAGE_BYTES  # of the largest message, where items travel
    yields: bool = (
        False  # gives way at once to the driver and to accelerators, which must be on time
    )


class Slots:
    """One int64 per engine in memory shared by all processes of a session: the ticket being worked
    on, or IDLE.
    """

    def __init__(self, n: int, fd: int | None = None) -> None:
        self._fd = os.memfd_create("engine-slots") if fd is None else fd
        if fd is None:
            os.ftruncate(self._fd, max(n, 1) * 8)
        self._n = n
        self._map = mmap.mmap(self._fd, max(n, 1) * 8)
        self._view = memoryview(self._map).cast("q")

    def __getitem__(self, i: int) -> int:
        return self._view[i]

    def __setitem__(self, i: int, ticket: int) -> None:
        self._view[i] = ticket

    def __reduce__(self) -> tuple[Any, ...]:  # only while a process is being spawned
        return _attach_slots, (self._n, reduction.DupFd(self._fd))

    def close(self) -> None:
        """Give the memory back."""
        self._view.release()
        self._map.close()
        os.close(self._fd)


def _attach_slots(n: int, fd: Any) -> Slots:
    return Slots(n, fd.detach())


def prctl(option: int, value: int) -> None:
    """Linux process control; elsewhere nothing happens."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def precise_timers() -> None:
    """Let this thread's sleeps end within a microsecond of what was asked (Linux adds 50 by
    default).
    """
    prctl(_PR_SET_TIMERSLACK, 1)


def run_engine(
    index: int,
    slot: int,
    spec: PoolSpec,
    ends: tuple[socket.socket, socket.socket],
    slots: Slots,
    parent_pid: int,
    inherited: Sequence[socket.socket] = (),
) -> None:
    """Main function of an engine process; `ends` are its ends of the pool's task and the session's
    reply socket.

    `inherited` are the driver's ends, which a forked process must close: the driver's death is then
    seen as the end of the stream.
    """
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches the whole process group; the driver decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:  # the driver died before the line above
        return
    for driver_end in inherited:
        driver_end.close()
    tasks, replies = ends
    precise_timers()
    if spec.yields:
        # Where all cores are busy, a waking driver waits for the end of an engine's time slice: p99
        # lateness was 3 ms beside ordinary engines, 2 ms at nice 10, 0.1 ms at nice 19 and 0.06 ms
        # beside idle-class ones.
        with contextlib.suppress(OSError, AttributeError):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    if spec.cores:
        os.sched_setaffinity(0, {spec.cores[index % len(spec.cores)]})
    gc.freeze()
    engine = spec.factory(index)
    engine.warm_up()
    receive = partial(_polled(tasks) if spec.yields else tasks.recv, spec.message_bytes)
    waiting = partial(tasks.recv, spec.message_bytes, socket.MSG_DONTWAIT)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        replies.send(WireReply(0, slot, READY, 0, 0).pack())
        _serve(engine, slot, receive, waiting, replies, slots)


def _polled(tasks: socket.socket) -> Callable[[int], bytes]:
    """recv that looks for a message for a while before it sleeps.

    To wake a sleeping engine takes 20 to 200 us of a query's latency, and of the driver's time. An
    engine that yields polls at no one's cost.
    """

    def receive(size: int) -> bytes:
        end_ns = monotonic_ns() + _POLL_NS
        while monotonic_ns() < end_ns:
            with contextlib.suppress(BlockingIOError):
                return tasks.recv(size, socket.MSG_DONTWAIT)
        return tasks.recv(size)

    return receive


def _serve(
    engine: Engine,
    slot: int,
    receive: Callable[[], bytes],
    waiting: Callable[[], bytes],
    replies: socket.socket,
    slots: Slots,
) -> None:
    """Serve until the stream ends; `waiting` receives like `receive`, or raises BlockingIOError."""
    merging = engine if isinstance(engine, MergingEngine) else None  # asked once: it takes 10 us
    while message := receive():
        first = WireTask.unpack(message)
        slots[slot] = first.ticket
        taken = [first] if merging is None else [first, *_more_to_merge(merging, first, waiting)]
        start_ns = monotonic_ns()
        error = ""
        scores = None
        try:
            if merging is not None and len(taken) > 1:
                merging.score_merged(taken)
            else:
                scores = engine.score(first)
        except Exception as problem:  # noqa: BLE001 (a model's error is its query's, not ours)
            error = f"{type(problem).__name__}: {problem}"
        end_ns = monotonic_ns()
        for task in taken:
            reply = WireReply(
                task.ticket, slot, ERROR if error else DONE, start_ns, end_ns, error, scores or b""
            )
            replies.send(reply.pack())
        slots[slot] = IDLE


def _more_to_merge(
    engine: MergingEngine, first: WireTask, waiting: Callable[[], bytes]
) -> list[WireTask]:
    """Tasks that wait and fit a batch with the first; a dead engine's are redone like its first."""
    more: list[WireTask] = []
    with contextlib.suppress(BlockingIOError):
        while engine.takes_more([first, *more]):
            message = waiting()
            if not message:
                break
            more.append(WireTask.unpack(message))
    return more


@dataclass(frozen=True)
class NullEngine:
    """Does nothing, or keeps the core busy for `busy_ns`: for measuring and testing everything
    around an engine.
    """

    busy_ns: int = 0

    def warm_up(self) -> None:
        """Nothing to prepare."""

    def score(self, task: WireTask) -> None:
        """Spin."""
        del task
        end_ns = monotonic_ns() + self.busy_ns
        while monotonic_ns() < end_ns:
            pass
