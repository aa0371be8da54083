"""This machine: engine processes, one event loop, deaths noticed.

The loop turns the Dispatcher's commands into messages and messages, arrivals and deaths into its
events. It decides nothing about queries; it only makes sure that no task is lost between two
processes.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import select
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.process import BaseProcess
from types import FrameType, TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import psutil

from backends.processes.engine import IDLE, PoolSpec, Slots, precise_timers, run_engine
from backends.processes.pool import Pool, Ticket
from backends.processes.run import Run
from backends.processes.sampler import Sampler
from backends.session import InOrder, SessionError, Watch, whole_inputs
from infra.clock import NS_PER_S, monotonic_ns
from infra.memory import no_garbage_collection
from infra.messages import (
    ERROR,
    READY,
    Answer,
    Enqueue,
    Fail,
    Query,
    Task,
    TaskDone,
    TaskFailed,
    WireReply,
    pack_task,
)
from infra.results.disturbance import disturbance_of
from infra.results.rows import Rows
from loadGenerator import Schedule
from scheduler import ONE_STAGE, Policy, Stage

TURN_NS = 30_000  # with an arrival as near as that, nothing else is begun
PREPARED = 16  # queries whose tasks are packed before they are due
REPLIES_A_TURN = 4  # then the loop looks for due arrivals again
MOST_UNREAD_NS, REPLIES_BEHIND = 1_000_000, 64  # also while arrivals leave no time between them
MAX_START_FAILURES = 3
KILL_PATIENCE_S = (
    20.0  # even a killed engine needs some CPU to end, and it comes last where the machine is busy
)
_POLL_S = 0.2

Commands = Sequence[Enqueue | Answer | Fail]
log = logging.getLogger(__name__)


class EngineError(SessionError):
    """The engines cannot be brought up, or keep dying before they are ready."""


@dataclass
class _Process:
    """One engine as the driver sees it."""

    pool: Pool
    index: int  # within its pool
    slot: int  # within the session
    process: BaseProcess
    since_ns: int
    ready: bool = False


class ProcessSession:
    """Engines that stay warm over many runs through the same stages.

    `candidates` [input]: items of each input, and so of its queries; None: as the schedule says.
    Use as a context manager; raises EngineError if the engines do not start.
    """

    def __init__(
        self,
        specs: Sequence[PoolSpec],
        stages: Sequence[Stage] = ONE_STAGE,
        *,
        candidates: npt.NDArray[np.int32] | None = None,
        ready_timeout_s: float = 120.0,
        stall_timeout_s: float = 60.0,
    ) -> None:
        self._specs = tuple(specs)
        self._stages = tuple(stages)
        self._candidates = candidates
        self._message_bytes = max((spec.message_bytes for spec in specs), default=0)
        self._ready_timeout_s = ready_timeout_s
        self._stall_timeout_s = stall_timeout_s
        self.deaths: list[dict[str, Any]] = []
        self.interrupted = False
        self._tickets: dict[int, Ticket] = {}
        self._n_tickets = 0
        self._start_failures = 0
        self._engines: list[_Process] = []
        self._run: Run | None = None

    def __enter__(self) -> Self:
        self._pools = {spec.pool: Pool(spec) for spec in self._specs}
        self._slots = Slots(sum(spec.n_engines for spec in self._specs))
        self._replies, self._reply_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._replies.setblocking(False)
        self._deaths = select.epoll()  # readable when an engine process has ended
        self._readers: list[Any] = [self._replies, self._deaths]
        try:
            for pool in self._pools.values():
                for index in range(pool.spec.n_engines):
                    self._start_engine(pool, index, len(self._engines))
            self._wait_ready()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def run(
        self,
        schedule: Schedule,
        policy: Policy,
        on_progress: Callable[[int], None] | None = None,
        watch: Watch | None = None,
    ) -> Rows:
        """Walk the schedule under a policy and return its rows.

        After SIGINT or SIGTERM they are those so far, and `interrupted` is set. `on_progress` and
        `watch` are told of the answered queries some ten times a second. Where `watch` ended the
        run, queries that were sent and not answered yet have no end.
        """
        precise_timers()
        schedule = whole_inputs(schedule, self._candidates)
        n_engines = {spec.pool: spec.n_engines for spec in self._specs}
        in_order = InOrder(schedule, n_engines, watch) if watch is not None else None
        self._tickets.clear()
        for pool in self._pools.values():
            pool.in_kernel.clear()
        with self._signals_noted(), no_garbage_collection():
            run = self._run = Run(schedule, policy, self._stages, on_progress, in_order)
            with contextlib.closing(Sampler(self._labels(), run.start_ns)) as run.sampler:
                run.sampler.look(self.pids, now=True)
                while not (run.finished or self.interrupted):
                    self._turn(run)
                run.sampler.look(self.pids, now=True)
        run.look()
        for pool in self._pools.values():  # what a run leaves behind that ended early
            pool.backlog.clear()
            pool.take_back()
        if self.interrupted:
            run.recorder.note(f"interrupted after {run.n_ended} of {len(schedule)} queries")
        for engine in self._engines:
            self._note_missing(engine)
        self._run = None
        rows = run.recorder.rows()
        seen = disturbance_of(run.sampler.samples(), rows.queries, rows.tasks)
        return replace(rows, disturbance=seen)

    def _labels(self) -> list[tuple[str, int, bool]]:
        """Pool and index of each engine, and whether its tasks need a core, by slot."""
        specs = [(engine.pool.spec, engine.index) for engine in self._engines]
        return [(spec.pool, index, spec.yields) for spec, index in specs]

    def _note_missing(self, engine: _Process) -> None:
        """An engine that is not ready has been missing in this run since its process began."""
        if self._run is not None and not engine.ready:
            self._run.sampler.missing(engine.slot, engine.since_ns, monotonic_ns())

    @property
    def pids(self) -> list[int]:
        """Process ids of the engines, by slot."""
        return [engine.process.pid or 0 for engine in self._engines]

    def memory(self) -> dict[str, Any]:
        """Memory of the driver, tables included, and what each engine has for itself, MiB."""
        private = []
        for pid in self.pids:
            with contextlib.suppress(psutil.Error):
                private.append(round(psutil.Process(pid).memory_full_info().uss / 2**20, 1))
        return {
            "driver_rss_mib": round(psutil.Process().memory_info().rss / 2**20, 1),
            "engine_private_mib": private,
        }

    def close(self) -> None:
        """End all engines: at the end of their stream, else by SIGTERM, else by SIGKILL.

        Leaves nothing behind.
        """
        for pool in self._pools.values():
            pool.driver_end.close()
            pool.engine_end.close()
        self._replies.close()
        self._reply_end.close()
        deadline = time.monotonic() + (0.5 if self.interrupted else 2.0)
        for engine in self._engines:
            engine.process.join(max(deadline - time.monotonic(), 0))
        for stop, patience_s in ((BaseProcess.terminate, 1.0), (BaseProcess.kill, KILL_PATIENCE_S)):
            alive = [engine.process for engine in self._engines if engine.process.is_alive()]
            for process in alive:
                stop(process)
            deadline = time.monotonic() + patience_s
            for process in alive:
                process.join(max(deadline - time.monotonic(), 0))
        for engine in self._engines:
            if engine.process.is_alive():
                log.warning("%s was killed and has not ended yet", engine.process.name)
            else:
                engine.process.close()
        self._engines.clear()
        self._deaths.close()
        self._slots.close()

    def _start_engine(self, pool: Pool, index: int, slot: int) -> None:
        context = multiprocessing.get_context(pool.spec.start_method)
        forked = pool.spec.start_method == "fork"
        inherited = (*(p.driver_end for p in self._pools.values()), self._replies) if forked else ()
        ends = (pool.engine_end, self._reply_end)
        process = context.Process(  # type: ignore[attr-defined]
            target=run_engine,
            args=(index, slot, pool.spec, ends, self._slots, os.getpid(), inherited),
            name=f"{pool.spec.pool} engine {index}",
            daemon=True,
        )
        process.start()
        engine = _Process(pool, index, slot, process, monotonic_ns())
        self._engines[slot : slot + 1] = [engine]
        self._deaths.register(process.sentinel, select.EPOLLIN)

    def _wait_ready(self) -> None:
        with self._signals_noted():
            while not all(engine.ready for engine in self._engines):
                if self.interrupted:
                    raise KeyboardInterrupt
                select.select(self._readers, [], [], _POLL_S)
                self._read_replies(None)
                self._notice_deaths(None)
                self._check_stalled()

    def _notice_deaths(self, run: Run | None) -> None:
        ready = {fd for fd, _ in self._deaths.poll(0)}
        if not ready:
            return
        for engine in [e for e in self._engines if e.process.sentinel in ready]:
            self._read_replies(run, limit=None)  # its last words count
            self._bury(engine, run)

    def _bury(self, engine: _Process, run: Run | None) -> None:
        """Redo what a dead engine held, and put another in its place."""
        pool = engine.pool
        self._note_missing(engine)
        self._deaths.unregister(engine.process.sentinel)
        engine.process.join()
        code = engine.process.exitcode or 0
        pid = engine.process.pid
        error = (
            f"{engine.process.name} was killed by {signal.Signals(-code).name}"
            if code < 0
            else (f"{engine.process.name} ended with exit code {code}")
        )
        engine.process.close()
        log.warning("%s (process %s)", error, pid)
        self.deaths.append(
            {"pool": pool.spec.pool, "engine": engine.index, "pid": pid, "error": error}
        )
        self._start_failures = 0 if engine.ready else self._start_failures + 1
        if self._start_failures >= MAX_START_FAILURES:
            self._engines.remove(engine)
            raise EngineError(f"{error} before it was ready, {self._start_failures} times in a row")
        held = self._slots[engine.slot]
        self._slots[engine.slot] = IDLE
        waiting = [ticket for ticket in pool.take_back() if ticket in self._tickets]
        working = {self._slots[e.slot] for e in self._engines if e.pool is pool}
        # Taken by the dead engine, or by a living one that has not said so yet: then it is done
        # twice, counted once.
        in_doubt = sorted(pool.in_kernel - {held, *waiting} - working)
        before = pool.backlog
        pool.backlog = deque()
        pool.in_kernel -= {held, *waiting, *in_doubt}
        if run is not None and held in self._tickets:
            failed = TaskFailed(self._tickets.pop(held).task, engine.index, error)
            self._carry_out(run, run.dispatcher.on_failed(failed))
        for ticket in in_doubt:
            old = self._tickets.pop(ticket)
            pool.backlog.append(self._new_ticket(old.task, old.input_id, old.enqueued_ns))
        pool.backlog.extend([*waiting, *before])
        self._start_engine(pool, engine.index, engine.slot)

    def _check_stalled(self) -> None:
        """Kill engines that are not ready in time, or that have held one task for too long."""
        now_ns = monotonic_ns()
        for engine in self._engines:
            if not engine.ready and now_ns - engine.since_ns > self._ready_timeout_s * NS_PER_S:
                raise EngineError(
                    f"{engine.process.name} was not ready within {self._ready_timeout_s:g} s"
                )
            ticket = self._slots[engine.slot]
            if ticket == IDLE or not engine.ready:
                continue
            run = self._run
            if run is not None and run.working.get(engine.slot, (0, 0))[0] != ticket:
                run.working[engine.slot] = (ticket, now_ns)
            elif (
                run is not None
                and now_ns - run.working[engine.slot][1] > self._stall_timeout_s * NS_PER_S
            ):
                log.warning(
                    "%s has held one task for %g s: killing it",
                    engine.process.name,
                    self._stall_timeout_s,
                )
                engine.process.kill()

    def _turn(self, run: Run) -> None:
        next_ns = run.pacer.next_ns
        to_next_ns = next_ns - run.now_ns() if next_ns is not None else NS_PER_S
        if to_next_ns <= 0:
            self._send_due(run)
            if (
                run.now_ns() - run.read_ns > MOST_UNREAD_NS
            ):  # no time between arrivals: the run is behind
                self._read_replies(run, REPLIES_BEHIND)
        elif self._all_have_work():
            self._sleep(run, to_next_ns)
        elif to_next_ns <= run.spin_ns:
            self._spin(run, run.start_ns + (next_ns or 0))
        else:
            self._sleep(run, to_next_ns - run.spin_ns)
        if run.tick():
            self._notice_deaths(run)
            self._check_stalled()
            run.sampler.look(self.pids)
            run.look()

    def _all_have_work(self) -> bool:
        """Whether tasks wait for every engine that shares the cores: a query is none the later for
        waiting outside.

        To be on time for it would take the very core on which an engine works.
        """
        pools = self._pools.values()
        return any(pool.backlog for pool in pools) or all(
            len(pool.in_kernel) > pool.spec.n_engines for pool in pools if pool.spec.yields
        )

    def _send_due(self, run: Run) -> None:
        for query in run.pacer.due(run.now_ns()):
            if not run.prepared:
                self._prepare(run, query)
            now_ns = run.now_ns()
            run.recorder.sent(query, now_ns)
            for number in run.prepared.popleft():
                self._send(number, now_ns)

    def _prepare(self, run: Run, query: Query) -> None:
        """Decide where a coming query goes and pack its tasks: when it is due, nothing is left but
        to send them.
        """
        commands = run.dispatcher.on_query(query)
        run.prepared.append(
            [self._new_ticket(command.task, query.input_id) for command in commands]
        )

    def _spin(self, run: Run, next_ns: int) -> None:
        """Until an arrival that is near; where there is time, queries to come are prepared and
        replies are read.
        """
        while (left_ns := next_ns - monotonic_ns()) > 0:
            if left_ns < TURN_NS:
                continue
            if (
                len(run.prepared) < PREPARED
                and (query := run.pacer.coming(len(run.prepared))) is not None
            ):
                self._prepare(run, query)
            elif self._read_replies(run, 1) and run.finished:
                return

    def _sleep(self, run: Run, for_ns: int) -> None:
        """Until something happens, or shortly before the next arrival."""
        writers = [pool.driver_end for pool in self._pools.values() if pool.backlog]
        timeout_s = min(max(for_ns / NS_PER_S, 0), _POLL_S)
        begun_ns = monotonic_ns()
        readable, writable, _ = select.select(self._readers, writers, [], timeout_s)
        if not (readable or writable) and timeout_s > 0:
            run.overslept(monotonic_ns() - begun_ns - int(timeout_s * NS_PER_S))
        if self._replies in readable:
            self._read_replies(run)
        if self._deaths in readable:
            self._notice_deaths(run)
        for pool in self._pools.values() if writable else ():
            pool.flush(self._tickets)

    def _read_replies(self, run: Run | None, limit: int | None = REPLIES_A_TURN) -> int:
        n = 0
        if run is not None:
            run.read_ns = run.now_ns()
        with contextlib.suppress(BlockingIOError):
            while limit is None or n < limit:
                self._on_reply(WireReply.unpack(self._replies.recv(self._message_bytes)), run)
                n += 1
        return n

    def _on_reply(self, reply: WireReply, run: Run | None) -> None:
        engine = self._engines[reply.engine]
        if reply.kind == READY:
            self._note_missing(engine)
            engine.ready = True
            self._start_failures = 0
            return
        ticket = self._tickets.pop(reply.ticket, None)
        engine.pool.in_kernel.discard(reply.ticket)
        if ticket is None or run is None:  # an attempt that was given up, or that a run left behind
            return
        if reply.kind == ERROR:
            log.warning("%s: %s", engine.process.name, reply.error)
            self._carry_out(
                run, run.dispatcher.on_failed(TaskFailed(ticket.task, engine.index, reply.error))
            )
            return
        start_ns = reply.start_ns - run.start_ns
        end_ns = reply.end_ns - run.start_ns
        run.done(
            event := TaskDone(ticket.task, engine.index, start_ns, end_ns, reply.scores),
            ticket.enqueued_ns,
        )
        self._carry_out(run, run.dispatcher.on_done(event))

    def _carry_out(self, run: Run, commands: Commands) -> None:
        for command in commands:
            if isinstance(command, Enqueue):
                input_id = run.schedule.query(command.task.query_id).input_id
                self._send(self._new_ticket(command.task, input_id), run.now_ns())
            else:
                run.ended(command)

    def _send(self, number: int, now_ns: int) -> None:
        """Append a ticket to its pool's FIFO."""
        ticket = self._tickets[number]
        ticket.enqueued_ns = now_ns
        pool = self._pools[ticket.task.pool]
        pool.backlog.append(number)
        pool.flush(self._tickets)

    def _new_ticket(self, task: Task, input_id: int, enqueued_ns: int = 0) -> int:
        self._n_tickets += 1
        wire = (
            pack_task(self._n_tickets, task.stage, input_id, task.first_item, task.n_items)
            + task.items
        )
        self._tickets[self._n_tickets] = Ticket(task, wire, input_id, enqueued_ns)
        return self._n_tickets

    @contextlib.contextmanager
    def _signals_noted(self) -> Iterator[None]:
        """SIGINT and SIGTERM end the run at the loop's next turn; a second one has its usual
        effect.
        """

        def note(number: int, _: FrameType | None) -> None:
            self.interrupted = True
            signal.signal(number, before[number])

        before: dict[int, Any] = {}
        with contextlib.suppress(
            ValueError
        ):  # not the main thread: whoever owns it deals with signals
            before |= {
                number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)
            }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
