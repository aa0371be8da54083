"""A session in virtual time: compiled kernels where they suffice, else the event loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from accelerator.service import ServiceTable, ServiceTimes
from backends.session import Watch, busiest, whole_inputs, work_share
from backends.virtual.event_loop import PIECE, EventLoop, ServiceTime
from backends.virtual.fifo_kernel import Engines, serve
from backends.virtual.pipeline_kernel import Served, serve_pipeline
from infra.arrays import FloatArray, Int64Array
from infra.clock import NS_PER_MS
from infra.memory import no_garbage_collection
from infra.messages import ACCEL, CPU
from infra.results.rows import TASK_COLUMNS, Rows, query_table
from loadGenerator import Schedule
from scheduler import ONE_STAGE, Policy, Stage


@dataclass(frozen=True)
class _Walked:
    """The first `n_queries` of a schedule, served; `tasks` [task, 7] as the kernel writes them."""

    n_queries: int
    first_start_ns: Int64Array
    done_ns: Int64Array
    tasks: Int64Array
    busy_ns: Int64Array  # of the engines on cores, of the accelerators


@dataclass(frozen=True)
class Answers:
    """`done_ns` int64[queries]; `utilisation`: of the busiest pool, above 1 beyond its capacity."""

    done_ns: Int64Array
    utilisation: float

    def latencies_ms(self, schedule: Schedule) -> FloatArray:
        """Of the schedule's queries, in order of arrival."""
        latency_ms: FloatArray = (self.done_ns - schedule.arrival_ns) / NS_PER_MS
        return latency_ms


class SimulatedSession:
    """Engines of virtual time: {pool: number}; `service` gives each task's time.

    A table stands for the times of all stages and is much faster than a function. `candidates`
    [input]: items of each input, and so of its queries; None: as the schedule says. `keep_tasks`
    False leaves the rows of the tasks out where a table is given: a search over thousands of runs
    does not need them. Ctrl-C ends a run with the rows so far.
    """

    deaths: Sequence[dict[str, Any]] = ()  # engines of virtual time do not die

    def __init__(
        self,
        engines: Mapping[str, int],
        service: ServiceTime | ServiceTable | ServiceTimes,
        stages: Sequence[Stage] = ONE_STAGE,
        *,
        candidates: npt.NDArray[np.int32] | None = None,
        keep_tasks: bool = True,
    ) -> None:
        self._engines = dict(engines)
        self._stages = tuple(stages)
        self._candidates = candidates
        self._keep_tasks = keep_tasks
        self.interrupted = False
        if isinstance(service, ServiceTable):
            service = ServiceTimes((service,) * len(self._stages))
        self._service = service
        if isinstance(service, ServiceTimes):
            self._check_accelerators(service)

    def memory(self) -> dict[str, Any]:
        """Engines of virtual time have none."""
        return {}

    def _check_accelerators(self, times: ServiceTimes) -> None:
        n_engines = self._engines.get(ACCEL, 0)
        for stage, table in zip(self._stages, times.tables, strict=True):
            n_known = len(table.accel_ns)
            if stage.offloads and table.recording is None and n_engines > n_known:
                raise ValueError(f"{n_engines} accelerators, but times for {n_known}")

    def run(
        self,
        schedule: Schedule,
        policy: Policy,
        on_progress: Callable[[int], None] | None = None,
        watch: Watch | None = None,
    ) -> Rows:
        """Walk the schedule under a policy in virtual time: idle engines pull from their FIFO."""
        schedule = whole_inputs(schedule, self._candidates)
        times = self._service
        if isinstance(times, ServiceTimes):
            if self._stages == ONE_STAGE:
                return self._run_one_stage(schedule, policy, times.tables[0], on_progress, watch)
            if self.is_compiled(policy) and not (self._keep_tasks or on_progress or watch):
                served = serve_pipeline(schedule, policy, self._stages, self._engines, times)
                return _pipeline_rows(schedule, served)
        loop = EventLoop(schedule, policy, self._stages, self._engines, times, watch)
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
        if not self.interrupted:
            return ()
        return (f"interrupted after {n_answered} of {len(schedule)} queries",)

    def is_compiled(self, policy: Policy) -> bool:
        """Whether long loads under this policy are cheap."""
        times = self._service
        if not isinstance(times, ServiceTimes) or times.is_recorded:
            return False
        offloads = policy.offload_items and any(stage.offloads for stage in self._stages)
        return self._stages == ONE_STAGE or not offloads

    def answers(self, schedule: Schedule, policy: Policy) -> Answers:
        """When each query is answered, without making rows; raises ValueError if not compiled."""
        times = self._service
        if not (isinstance(times, ServiceTimes) and self.is_compiled(policy)):
            raise ValueError("this policy has no compiled server: run it")
        schedule = whole_inputs(schedule, self._candidates)
        last_ns = int(schedule.arrival_ns[-1])
        if self._stages == ONE_STAGE:
            walked = self._walk_one_stage(schedule, policy, times.tables[0], keep_tasks=False)
            busy_ns = self._by_pool(walked.busy_ns)
            return Answers(walked.done_ns, work_share(busy_ns, self._engines, last_ns))
        served = serve_pipeline(schedule, policy, self._stages, self._engines, times)
        return Answers(served.done_ns, work_share(served.busy_ns, self._engines, last_ns))

    def _by_pool(self, busy_ns: Int64Array) -> dict[str, int]:
        """[cpu, accel] by the names of the pools that there are."""
        return {
            p: int(ns) for p, ns in zip((CPU, ACCEL), busy_ns, strict=True) if p in self._engines
        }

    def _run_one_stage(
        self,
        schedule: Schedule,
        policy: Policy,
        table: ServiceTable,
        on_progress: Callable[[int], None] | None,
        watch: Watch | None,
    ) -> Rows:
        walked = self._walk_one_stage(
            schedule, policy, table, on_progress, watch, keep_tasks=self._keep_tasks
        )
        n = walked.n_queries
        queries = _query_rows(schedule, n, policy, walked.first_start_ns, walked.done_ns)
        return Rows(queries, _task_table(walked.tasks, schedule), self._notes(n, schedule))

    def _walk_one_stage(
        self,
        schedule: Schedule,
        policy: Policy,
        table: ServiceTable,
        on_progress: Callable[[int], None] | None = None,
        watch: Watch | None = None,
        *,
        keep_tasks: bool,
    ) -> _Walked:
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
        pieces = [np.zeros((0, 7), np.int64)]
        try:
            while served < n and not self.interrupted:
                whole = watch is None and on_progress is None
                piece = slice(served, n if whole else min(n, served + max(PIECE, served // 4)))
                tasks = np.empty((int(n_parts[piece].sum()) if keep_tasks else 0, 7), np.int64)
                serve(
                    schedule.arrival_ns,
                    sizes,
                    served,
                    piece.stop,
                    policy.batch_items,
                    offload,
                    times,
                    engines,
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
                        latency_ms, busiest(self._by_pool(busy), self._engines, now_ns)
                    ):
                        break
        except KeyboardInterrupt:
            self.interrupted = True
        return _Walked(served, first_start, done, np.concatenate(pieces), busy)

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
