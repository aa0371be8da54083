"""Virtual time: service times instead of engines.

An event loop around the Dispatcher, or its compiled equal.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, replace
from heapq import heappop, heappush
from typing import Any

import numpy as np
import pandas as pd

from accelerator.pipeline_service import PipelineService
from accelerator.service import ServiceTable, drawn_index
from backends.session import InOrder, Watch, busiest
from backends.virtual.fifo_kernel import Engines, Int64Array, serve
from backends.virtual.pipeline_kernel import Served, serve_pipeline
from infra.clock import NS_PER_MS
from infra.memory import no_garbage_collection
from infra.messages import ACCEL, CPU, Answer, Enqueue, Fail, Query, Task, TaskDone
from infra.results.rows import TASK_COLUMNS, Recorder, Rows, query_table
from loadGenerator import Schedule
from scheduler import Dispatcher, Policy, Stage

ServiceTime = Callable[[Task], int]  # ns
_TookNs = Callable[
    [Task, int, int, list[int]], int
]  # task, engine, start, end of each engine's latest task
Commands = Sequence[Enqueue | Answer | Fail]
PIECE = 2048  # queries served between two looks of a watch, or two reports of progress, at least


class SimulatedSession:
    """`engines` = {pool: number of engines}; `service` gives each task's time, from a table much
    faster.

    `keep_tasks` False leaves the rows of the tasks out where a table is given: a search over
    thousands of runs does not need them. Ctrl-C ends a run with the rows so far.
    """

    deaths: Sequence[dict[str, Any]] = ()  # engines of virtual time do not die

    def __init__(
        self,
        engines: Mapping[str, int],
        service: ServiceTime | ServiceTable | PipelineService,
        *,
        keep_tasks: bool = True,
    ) -> None:
        self._engines = dict(engines)
        self._service = service
        self._keep_tasks = keep_tasks
        self.interrupted = False
        known = isinstance(service, ServiceTable) and service.recording is None
        if known and engines.get(ACCEL, 0) > len(service.accel_ns):  # type: ignore[union-attr]
            raise ValueError(
                f"{engines[ACCEL]} accelerators, but times for {len(service.accel_ns)}"
            )  # type: ignore[union-attr]

    def memory(self) -> dict[str, Any]:
        """Engines of virtual time have none."""
        return {}

    def run(
        self,
        schedule: Schedule,
        stages: Sequence[Stage],
        on_progress: Callable[[int], None] | None = None,
        watch: Watch | None = None,
    ) -> Rows:
        """Walk the schedule in virtual time: idle engines pull from their pool's FIFO."""
        if (
            isinstance(self._service, ServiceTable)
            and len(stages) == 1
            and stages[0].keep_items is None
        ):
            return self._run_compiled(schedule, stages[0].policy, self._service, on_progress, watch)
        if isinstance(self._service, PipelineService) and not (
            self._keep_tasks or on_progress or watch
        ):
            return _pipeline_rows(
                schedule, serve_pipeline(schedule, stages, self._engines, self._service)
            )
        loop = _EventLoop(schedule, stages, self._engines, self._service, watch)
        try:
            with no_garbage_collection():
                for n_answered in loop.steps():
                    if on_progress is not None:
                        on_progress(n_answered)
                    if self.interrupted:
                        break
        except KeyboardInterrupt:
            self.interrupted = True
        rows = loop.rows()
        return replace(rows, notes=(*rows.notes, *self._notes(loop.n_answered, schedule)))

    def _notes(self, n_answered: int, schedule: Schedule) -> tuple[str, ...]:
        return (
            (f"interrupted after {n_answered} of {len(schedule)} queries",)
            if self.interrupted
            else ()
        )

    def _run_compiled(
        self,
        schedule: Schedule,
        policy: Policy,
        table: ServiceTable,
        on_progress: Callable[[int], None] | None,
        watch: Watch | None,
    ) -> Rows:
        sizes = schedule.n_items.astype(np.int64)
        n = len(schedule)
        served = 0
        offload = policy.offload_items or 0
        n_parts = np.where((sizes >= offload) & (offload > 0), 1, -(-sizes // policy.batch_items))
        self._check(sizes, n_parts, table, offload)
        times = table.times()
        first_start = np.zeros(n, np.int64)
        done = np.zeros(n, np.int64)
        engines = Engines.idle([self._engines.get(pool, 0) for pool in (CPU, ACCEL)])
        busy = np.zeros(2, np.int64)
        pieces: list[Int64Array] = []
        try:
            while served < n and not self.interrupted:
                whole = watch is None and on_progress is None
                piece = slice(served, n if whole else min(n, served + max(PIECE, served // 4)))
                tasks = np.empty(
                    (int(n_parts[piece].sum()) if self._keep_tasks else 0, 7), np.int64
                )
                serve(
                    schedule.arrival_ns,
                    sizes,
                    served,
                    piece.stop,
                    policy.batch_items,
                    offload,
                    times,
                    engines.free_ns,
                    engines.latest,
                    engines.index,
                    engines.bounds,
                    busy,
                    first_start,
                    done,
                    tasks,
                )
                pieces.append(tasks)
                served = piece.stop
                if on_progress is not None:
                    on_progress(served)
                if watch is not None:
                    latency_ms = (done[piece] - schedule.arrival_ns[piece]) / NS_PER_MS
                    now_ns = int(engines.free_ns.max(initial=0))
                    if watch.observe(
                        latency_ms, busiest({CPU: busy[0], ACCEL: busy[1]}, self._engines, now_ns)
                    ):
                        break
        except KeyboardInterrupt:
            self.interrupted = True
        rows = _task_table(
            np.concatenate(pieces) if pieces else np.zeros((0, 7), np.int64), schedule
        )
        queries = _query_rows(schedule, served, policy, first_start, done)
        return Rows(queries, rows, self._notes(served, schedule))

    def _check(
        self, sizes: Int64Array, n_parts: Int64Array, table: ServiceTable, offload_items: int
    ) -> None:
        if offload_items and not self._engines.get(ACCEL, 0):
            raise ValueError(
                f"the policy offloads from {offload_items} items on, but there is no accelerator"
            )
        if table.recording is not None:
            if len(sizes) >= len(table.recording.first):
                raise ValueError(
                    f"{len(sizes)} queries, but recorded times of {len(table.recording.first) - 1}"
                )
            if (np.diff(table.recording.first)[: len(sizes)] != n_parts).any():
                raise ValueError(
                    "the recorded run split its queries otherwise: replay it under its own policy"
                )
        elif len(sizes) and int(sizes.max()) > table.max_items:
            raise ValueError(
                f"a query has {sizes.max()} items, but the service times end at {table.max_items}"
            )


class _EventLoop:
    """The schedule and a heap of the tasks' ends, around the Dispatcher."""

    def __init__(
        self,
        schedule: Schedule,
        stages: Sequence[Stage],
        engines: Mapping[str, int],
        service: ServiceTime | ServiceTable | PipelineService,
        watch: Watch | None,
    ) -> None:
        self._schedule = schedule
        self._took_ns, self._delay_ns = _service(service, schedule)
        self._filter = (0, 0.0)
        cores: frozenset[str] = frozenset()
        if isinstance(service, PipelineService):
            self._filter = (service.filter_ns, service.filter_item_ns)
            cores = service.on_cores
        ranked = [stage.keep_items is not None for stage in stages]
        self._filters = self._filter != (0, 0.0) and any(ranked)
        self._stages = tuple(stages)
        self._dispatcher = Dispatcher(stages)
        self._recorder = Recorder(schedule.n_warmup)
        self._in_order = InOrder(schedule, engines, watch) if watch is not None else None
        self._idle = {pool: deque(range(n)) for pool, n in engines.items()}
        self._end_ns, self._first = _neighbours(engines, cores)  # of each engine's latest task
        self._waiting: dict[str, deque[tuple[Task, int]]] = {pool: deque() for pool in engines}
        # end, order, event, enqueued; or the commands that follow when the best items are found
        self._ends: list[tuple[int, int, TaskDone | Commands, int]] = []
        self._n_begun = self.n_answered = 0

    def rows(self) -> Rows:
        """What has happened so far."""
        return self._recorder.rows()

    def steps(self) -> Iterator[int]:
        """Run; gives the number of queries answered so far from time to time."""
        columns = (
            self._schedule.arrival_ns.tolist(),
            self._schedule.n_items.tolist(),
            self._schedule.input_id.tolist(),
        )
        for query in map(Query, range(len(self._schedule)), *columns):
            if self._until(query.arrival_ns):
                return
            self._recorder.sent(query, query.arrival_ns)
            if self._carry_out(self._dispatcher.on_query(query), query.arrival_ns):
                return
            if query.query_id % PIECE == 0:
                yield self.n_answered
        self._until(None)
        yield self.n_answered

    def _until(self, limit_ns: int | None) -> bool:
        """All ends before `limit_ns` (an arrival goes before an end at the same time); True if the
        watch is done.
        """
        ends = self._ends
        recorder = self._recorder
        dispatcher = self._dispatcher
        while ends and (limit_ns is None or ends[0][0] < limit_ns):
            now_ns, _, done, enqueued_ns = heappop(ends)
            if not isinstance(done, TaskDone):
                if self._carry_out(done, now_ns):
                    return True
                continue
            pool = done.task.pool
            recorder.done(done, enqueued_ns)
            if self._in_order is not None:
                self._in_order.done(done)
            waiting = self._waiting[pool]
            # What the end leads to is enqueued behind what waits, and goes to other pools too.
            if waiting:
                self._begin(*waiting.popleft(), done.engine, now_ns)
            else:
                self._idle[pool].append(done.engine)
            commands = dispatcher.on_done(done)
            if commands and (self._filters and self._choose(commands, done.task.stage, now_ns)):
                continue
            if commands and self._carry_out(commands, now_ns):
                return True
        return False

    def _choose(self, commands: Commands, stage: int, now_ns: int) -> bool:
        """Put off what follows a stage that chooses until the best items are found; False if it
        does not choose.
        """
        if self._stages[stage].keep_items is None:
            return False
        n_items = self._n_items(commands[0], stage)
        then_ns = now_ns + self._filter[0] + int(self._filter[1] * n_items)
        self._n_begun += 1
        later = [c._replace(done_ns=then_ns) if isinstance(c, Answer) else c for c in commands]
        heappush(self._ends, (then_ns, self._n_begun, later, 0))
        return True

    def _n_items(self, command: Enqueue | Answer | Fail, stage: int) -> int:
        """Items that came into a stage, by a command that follows it."""
        query_id = command.task.query_id if isinstance(command, Enqueue) else command.query.query_id
        kept = [own.keep_items for own in self._stages[:stage] if own.keep_items is not None]
        return min([int(self._schedule.n_items[query_id]), *kept])

    def _carry_out(self, commands: Commands, now_ns: int) -> bool:
        answered = False
        for command in commands:
            if type(command) is Enqueue:
                task = command.task
                idle = self._idle[task.pool]
                if idle:
                    self._begin(task, now_ns, idle.popleft(), now_ns)
                else:
                    self._waiting[task.pool].append((task, now_ns))
            elif type(command) is Answer:
                self._recorder.answered(command)
                self.n_answered += 1
                answered = True
                if self._in_order is not None:
                    self._in_order.ended(command)
        return answered and self._in_order is not None and self._in_order.show(now_ns)

    def _begin(self, task: Task, enqueued_ns: int, engine: int, now_ns: int) -> None:
        end_ns = self._end_ns[task.pool]
        at = self._first[task.pool] + engine
        start_ns = now_ns + self._delay_ns(task, end_ns[at] > enqueued_ns)
        end_ns[at] = done_ns = start_ns + self._took_ns(task, engine, start_ns, end_ns)
        self._n_begun += 1
        heappush(
            self._ends,
            (done_ns, self._n_begun, TaskDone(task, engine, start_ns, done_ns), enqueued_ns),
        )


def _neighbours(
    engines: Mapping[str, int], cores: frozenset[str]
) -> tuple[dict[str, list[int]], dict[str, int]]:
    """A list of ends for each pool, one for all on the machine's cores, and where a pool's engines
    begin in it.
    """
    shared = list[int]()
    lists = {}
    first = {}
    for pool, n in engines.items():
        own = shared if pool in cores else []
        lists[pool], first[pool] = own, len(own)
        own.extend([0] * n)
    return lists, first


def _service(
    service: ServiceTime | ServiceTable | PipelineService, schedule: Schedule
) -> tuple[_TookNs, Callable[[Task, bool], int]]:
    """What a task takes, and what passes before it begins on an engine that was idle or (True)
    busy.

    From the table as Python numbers: elements of arrays cost ten times as much.
    """
    if isinstance(service, PipelineService):
        by_stage = [_service(table, schedule) for table in service.tables]
        return (
            lambda task, *where: by_stage[task.stage][0](task, *where),
            lambda task, was_busy: by_stage[task.stage][1](task, was_busy),
        )
    if not isinstance(service, ServiceTable):
        return lambda task, *_: service(task), lambda *_: 0
    if service.recording is not None:
        first, ns, delays_ns = (x.tolist() for x in astuple(service.recording))
        return (
            lambda task, *_: ns[first[task.query_id] + task.part],
            lambda task, _: delays_ns[first[task.query_id] + task.part],
        )
    cpu_ns = service.cpu_ns.tolist()
    accel_ns = service.accel_ns.tolist()
    factors = service.factors.tolist()
    n_factors = service.factors.shape[1]
    last = len(cpu_ns) - 1
    stolen_ns = service.stolen_ns
    arrivals = schedule.arrival_ns.tolist() if stolen_ns else []
    overhead = [astuple(service.overhead(pool)) for pool in (CPU, ACCEL)]
    rows = [
        None if row is None or (row < 0).all() else row.tolist()
        for row in (service.cpu_row, service.accel_row)
    ]

    def took_ns(task: Task, engine: int, start_ns: int, end_ns: list[int]) -> int:
        on_accel = task.pool == ACCEL
        if on_accel:
            took = accel_ns[engine][task.n_items]
        else:
            n_busy = min(last, sum(end > start_ns for end in end_ns)) if last else 0
            took = cpu_ns[n_busy][task.n_items]
        row = rows[on_accel]
        if row is not None and row[task.n_items] >= 0:
            at = drawn_index(task.query_id, task.stage, task.part, service.seed, n_factors)
            took = max(1, int(took * factors[row[task.n_items]][at]))
        if stolen_ns and not on_accel:
            took += stolen_ns * (
                bisect_right(arrivals, start_ns + took) - bisect_right(arrivals, start_ns)
            )
        return int(took)

    return took_ns, lambda task, was_busy: overhead[task.pool == ACCEL][was_busy]


def _pipeline_rows(schedule: Schedule, served: Served) -> Rows:
    """The queries' rows; none of tasks."""
    columns = (
        np.column_stack(
            [
                schedule.input_id,
                schedule.n_items,
                served.n_tasks,
                schedule.arrival_ns,
                schedule.arrival_ns,
                served.first_start_ns,
                served.done_ns,
            ]
        ).astype(np.int64)
        if len(schedule)
        else np.zeros((0, 7), np.int64)
    )
    queries = query_table(np.arange(len(schedule), dtype=np.int64), columns, schedule.n_warmup)
    return Rows(queries, _task_table(np.zeros((0, 7), np.int64), schedule))


def _query_rows(
    schedule: Schedule, n: int, policy: Policy, first_start: Int64Array, done: Int64Array
) -> pd.DataFrame:
    sizes = schedule.n_items[:n].astype(np.int64)
    whole = sizes >= policy.offload_items if policy.offload_items is not None else np.zeros(n, bool)
    columns = (
        np.column_stack(
            [
                schedule.input_id[:n],
                sizes,
                np.where(whole, 1, -(-sizes // policy.batch_items)),
                schedule.arrival_ns[:n],
                schedule.arrival_ns[:n],
                first_start[:n],
                done[:n],
            ]
        )
        if n
        else np.zeros((0, 7), np.int64)
    )
    return query_table(np.arange(n, dtype=np.int64), columns, schedule.n_warmup)


def _task_table(tasks: Int64Array, schedule: Schedule) -> pd.DataFrame:
    """Columns as infra.results.rows has them, in order of their end."""
    tasks = tasks[np.argsort(tasks[:, 6], kind="stable")]
    query_id, part, is_accel, engine, n_items, start, end = tasks.T
    pool = np.array([CPU, ACCEL], object)[is_accel]
    columns = [
        query_id,
        np.zeros_like(part),
        part,
        pool,
        engine,
        n_items,
        schedule.arrival_ns[query_id],
        start,
        end,
    ]
    return pd.DataFrame(dict(zip(TASK_COLUMNS, columns, strict=True)))
