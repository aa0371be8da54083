"""Virtual time: service times instead of engines. An event loop around the Dispatcher, or its compiled equal."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from heapq import heappop, heappush
from itertools import count

import numpy as np
import pandas as pd

from backends.fifo_kernel import Int64Array, ServiceTable, serve
from backends.session import InOrder, Watch, busiest
from infra.clock import NS_PER_MS
from infra.messages import ACCEL, CPU, Answer, Enqueue, Fail, Query, Task, TaskDone
from infra.rows import TASK_COLUMNS, Recorder, Rows, query_table
from loadGenerator import Schedule
from scheduler import Dispatcher, Policy, Stage

ServiceTime = Callable[[Task], int]  # ns
PIECE = 2048  # queries served between two looks of a watch, at least


class SimulatedSession:
    """`engines` = {pool: number of engines}; `service` gives each task's time, from a table much faster.

    `keep_tasks` False leaves the rows of the tasks out where a table is given: a search over thousands of runs does
    not need them.
    """

    def __init__(
        self, engines: Mapping[str, int], service: ServiceTime | ServiceTable, *, keep_tasks: bool = True
    ) -> None:
        self._engines, self._service, self._keep_tasks = dict(engines), service, keep_tasks
        self.interrupted = False
        if isinstance(service, ServiceTable) and engines.get(ACCEL, 0) > len(service.accel_ns):
            raise ValueError(f"{engines[ACCEL]} accelerators, but times for {len(service.accel_ns)}")

    def run(
        self, schedule: Schedule, stages: Sequence[Stage], on_progress: Callable[[int], None] | None = None,
        watch: Watch | None = None,
    ) -> Rows:  # fmt: skip
        """Walk the schedule in virtual time: idle engines pull from their pool's FIFO."""
        if isinstance(self._service, ServiceTable) and len(stages) == 1 and stages[0].keep_items is None:
            rows = self._run_compiled(schedule, stages[0].policy, self._service, watch)
        else:
            rows = _EventLoop(schedule, stages, self._engines, self._service, watch).run()
        if on_progress is not None:
            on_progress(int(rows.queries["done_ns"].notna().sum()))
        return rows

    def _run_compiled(self, schedule: Schedule, policy: Policy, table: ServiceTable, watch: Watch | None) -> Rows:
        sizes = schedule.n_items.astype(np.int64)
        if len(sizes) and int(sizes.max()) > table.max_items:
            raise ValueError(f"a query has {sizes.max()} items, but the service times end at {table.max_items}")
        n, served = len(schedule), 0
        offload = policy.offload_items or 0
        first_start, done = np.zeros(n, np.int64), np.zeros(n, np.int64)
        cpu_free, accel_free = (np.zeros(self._engines.get(pool, 0), np.int64) for pool in (CPU, ACCEL))
        if offload and not len(accel_free):
            raise ValueError(f"the policy offloads from {offload} items on, but there is no accelerator")
        busy, cpu_latest, accel_latest = np.zeros(2, np.int64), np.zeros_like(cpu_free), np.zeros_like(accel_free)
        pieces: list[Int64Array] = []
        while served < n:
            piece = slice(served, n if watch is None else min(n, served + max(PIECE, served // 4)))
            parts = np.where((sizes[piece] >= offload) & (offload > 0), 1, -(-sizes[piece] // policy.batch_items))
            tasks = np.zeros((int(parts.sum()) if self._keep_tasks else 0, 7), np.int64)
            serve(
                schedule.arrival_ns[piece], sizes[piece], served, policy.batch_items, offload, table.cpu_ns,
                table.accel_ns, table.noise, cpu_free, accel_free, cpu_latest, accel_latest, busy, first_start[piece],
                done[piece], tasks,
            )  # fmt: skip
            pieces.append(tasks)
            served = piece.stop
            if watch is not None:
                latency_ms = (done[piece] - schedule.arrival_ns[piece]) / NS_PER_MS
                now_ns = int(max(cpu_free.max(initial=0), accel_free.max(initial=0)))
                busy_frac = busiest({CPU: int(busy[0]), ACCEL: int(busy[1])}, self._engines, now_ns)
                if watch.observe(latency_ms, busy_frac):
                    break
        rows = _task_table(np.concatenate(pieces) if pieces else np.zeros((0, 7), np.int64), schedule)
        return Rows(_query_rows(schedule, served, policy, first_start, done), rows)


class _EventLoop:
    """A heap of arrivals and ends of tasks around the Dispatcher."""

    def __init__(
        self, schedule: Schedule, stages: Sequence[Stage], engines: Mapping[str, int],
        service: ServiceTime | ServiceTable, watch: Watch | None,
    ) -> None:  # fmt: skip
        self._service = service
        self._dispatcher, self._recorder = Dispatcher(stages), Recorder(schedule.n_warmup)
        self._in_order = InOrder(schedule, engines, watch) if watch is not None else None
        self._idle = {pool: deque(range(n)) for pool, n in engines.items()}
        self._end_ns = {pool: [0] * n for pool, n in engines.items()}  # of each engine's latest task
        self._waiting: dict[str, deque[tuple[Task, int]]] = {pool: deque() for pool in engines}
        self._order = count()
        self._events: list[tuple[int, int, Query | tuple[TaskDone, int]]] = []
        for i in range(len(schedule)):
            heappush(self._events, (int(schedule.arrival_ns[i]), next(self._order), schedule.query(i)))

    def run(self) -> Rows:
        while self._events:
            now_ns, _, event = heappop(self._events)
            self._carry_out(self._happen(event, now_ns), now_ns)
            if self._in_order is not None and self._in_order.show(now_ns):
                break
            self._start_tasks(now_ns)
        return self._recorder.rows()

    def _happen(self, event: Query | tuple[TaskDone, int], now_ns: int) -> Sequence[Enqueue | Answer | Fail]:
        if isinstance(event, Query):
            self._recorder.sent(event, now_ns)
            return self._dispatcher.on_query(event)
        done, enqueued_ns = event
        self._idle[done.task.pool].append(done.engine)
        self._recorder.done(done, enqueued_ns)
        if self._in_order is not None:
            self._in_order.done(done)
        return self._dispatcher.on_done(done)

    def _carry_out(self, commands: Sequence[Enqueue | Answer | Fail], now_ns: int) -> None:
        for command in commands:
            if isinstance(command, Enqueue):
                self._waiting[command.task.pool].append((command.task, now_ns))
            elif isinstance(command, Answer):
                self._recorder.answered(command)
                if self._in_order is not None:
                    self._in_order.ended(command)

    def _start_tasks(self, now_ns: int) -> None:
        for pool, tasks in self._waiting.items():
            idle = self._idle[pool]
            while tasks and idle:
                task, enqueued_ns = tasks.popleft()
                engine = idle.popleft()
                end_ns = self._end_ns[pool][engine] = now_ns + self._service_ns(task, engine, now_ns)
                done = TaskDone(task, engine, now_ns, end_ns)
                heappush(self._events, (end_ns, next(self._order), (done, enqueued_ns)))

    def _service_ns(self, task: Task, engine: int, now_ns: int) -> int:
        service = self._service
        if not isinstance(service, ServiceTable):
            return service(task)
        n_busy = sum(end_ns > now_ns for end_ns in self._end_ns[task.pool])
        return service.task_ns(task.query_id, task.part, task.n_items, engine if task.pool == ACCEL else None, n_busy)


def _query_rows(schedule: Schedule, n: int, policy: Policy, first_start: Int64Array, done: Int64Array) -> pd.DataFrame:
    sizes = schedule.n_items[:n].astype(np.int64)
    whole = sizes >= policy.offload_items if policy.offload_items is not None else np.zeros(n, bool)
    columns = np.column_stack([
        schedule.input_id[:n], sizes, np.where(whole, 1, -(-sizes // policy.batch_items)), schedule.arrival_ns[:n],
        schedule.arrival_ns[:n], first_start[:n], done[:n],
    ]) if n else np.zeros((0, 7), np.int64)  # fmt: skip
    return query_table(np.arange(n, dtype=np.int64), columns, schedule.n_warmup)


def _task_table(tasks: Int64Array, schedule: Schedule) -> pd.DataFrame:
    """Columns as infra.rows has them, in order of their end."""
    tasks = tasks[np.argsort(tasks[:, 6], kind="stable")]
    query_id, part, is_accel, engine, n_items, start, end = tasks.T
    pool = np.where(is_accel == 1, ACCEL, CPU).astype(object)
    columns = [query_id, np.zeros_like(part), part, pool, engine, n_items, schedule.arrival_ns[query_id], start, end]
    return pd.DataFrame(dict(zip(TASK_COLUMNS, columns, strict=True)))
