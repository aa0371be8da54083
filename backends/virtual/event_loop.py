"""Virtual time: a schedule and a heap of the tasks' ends around the Dispatcher."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple
from heapq import heappop, heappush

from accelerator.service import Recording, ServiceTable, ServiceTimes, drawn_index
from backends.session import InOrder, Watch
from infra.arrays import Int64Array
from infra.messages import ACCEL, CPU, Answer, Enqueue, Fail, Query, Task, TaskDone
from infra.results.rows import Recorder, Rows
from loadGenerator import Schedule
from scheduler import Dispatcher, Policy, Stage

ServiceTime = Callable[[Task], int]  # ns
_TookNs = Callable[[Task, int, int, list[int]], int]  # task, engine, start, ends of latest tasks
_DelayNs = Callable[[Task, bool], int]
Commands = Sequence[Enqueue | Answer | Fail]
PIECE = 2048  # queries served between two looks of a watch, or two reports of progress, at least


class EventLoop:
    """One run: arrivals from the schedule, ends from the heap, decisions by the Dispatcher."""

    def __init__(
        self,
        schedule: Schedule,
        policy: Policy,
        stages: Sequence[Stage],
        engines: Mapping[str, int],
        service: ServiceTime | ServiceTimes,
        watch: Watch | None = None,
    ) -> None:
        self._schedule = schedule
        self._took_ns, self._delay_ns = _task_times(service, schedule)
        self._times = service if isinstance(service, ServiceTimes) else None
        cores = self._times.on_cores if self._times is not None else frozenset[str]()
        self._stages = tuple(stages)
        self._dispatcher = Dispatcher(policy, stages)
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
        """Let all ends before `limit_ns` happen; True if the watch is done.

        An arrival goes before an end at the same time.
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
            if not commands or self._put_off(commands, done.task.stage, now_ns):
                continue
            if self._carry_out(commands, now_ns):
                return True
        return False

    def _put_off(self, commands: Commands, stage: int, now_ns: int) -> bool:
        """Put off what follows a stage until its best are chosen; False if that is at once."""
        if self._times is None or self._stages[stage].keep_items is None:
            return False
        query_id = _query_id(commands[0])
        wait_ns = self._times.choosing_ns(query_id, stage, self._n_items(query_id, stage))
        if wait_ns == 0:
            return False
        then_ns = now_ns + wait_ns
        self._n_begun += 1
        later = [c._replace(done_ns=then_ns) if isinstance(c, Answer) else c for c in commands]
        heappush(self._ends, (then_ns, self._n_begun, later, 0))
        return True

    def _n_items(self, query_id: int, stage: int) -> int:
        """Items of a query that come into a stage."""
        kept = [before.keep_items for before in self._stages[:stage]]
        sizes = [n for n in kept if n is not None]
        return min([int(self._schedule.n_items[query_id]), *sizes])

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


def _query_id(command: Enqueue | Answer | Fail) -> int:
    return command.task.query_id if isinstance(command, Enqueue) else command.query.query_id


def _neighbours(
    engines: Mapping[str, int], cores: frozenset[str]
) -> tuple[dict[str, list[int]], dict[str, int]]:
    """Ends of each engine's latest task by pool, and where a pool's engines begin in its list.

    Pools on the machine's cores share a list: their engines are neighbours.
    """
    shared = list[int]()
    lists = {}
    first = {}
    for pool, n_engines in engines.items():
        ends = shared if pool in cores else []
        lists[pool] = ends
        first[pool] = len(ends)
        ends.extend([0] * n_engines)
    return lists, first


def _task_times(
    service: ServiceTime | ServiceTimes, schedule: Schedule
) -> tuple[_TookNs, _DelayNs]:
    """What a task takes, and what passes before it on an engine that was idle or (True) busy."""
    if not isinstance(service, ServiceTimes):
        return lambda task, *_: service(task), lambda *_: 0
    by_stage = [_table_times(table, schedule) for table in service.tables]
    if len(by_stage) == 1:
        return by_stage[0]
    return (
        lambda task, *where: by_stage[task.stage][0](task, *where),
        lambda task, was_busy: by_stage[task.stage][1](task, was_busy),
    )


def _table_times(table: ServiceTable, schedule: Schedule) -> tuple[_TookNs, _DelayNs]:
    """`_task_times` of one stage; Python numbers, as elements of arrays cost ten times as much."""
    if table.recording is not None:
        return _recorded_times(table.recording)
    overhead = [astuple(table.overhead(pool)) for pool in (CPU, ACCEL)]
    return (
        _stretched(_drawn_ns(table), table.stolen_ns, schedule),
        lambda task, was_busy: overhead[task.pool == ACCEL][was_busy],
    )


def _recorded_times(recording: Recording) -> tuple[_TookNs, _DelayNs]:
    first = recording.first.tolist()
    ns = recording.ns.tolist()
    delays_ns = recording.delays_ns.tolist()
    return (
        lambda task, *_: ns[first[task.query_id] + task.part],
        lambda task, _: delays_ns[first[task.query_id] + task.part],
    )


def _drawn_ns(table: ServiceTable) -> _TookNs:
    """The table's time beside as many busy neighbours, times the task's own factor."""
    cpu_ns = table.cpu_ns.tolist()
    accel_ns = table.accel_ns.tolist()
    factor_of = _factor_of(table)
    last = len(cpu_ns) - 1

    def took_ns(task: Task, engine: int, start_ns: int, end_ns: list[int]) -> int:
        on_accel = task.pool == ACCEL
        if on_accel:
            took = accel_ns[engine][task.n_items]
        else:
            n_busy = min(last, sum(end > start_ns for end in end_ns)) if last else 0
            took = cpu_ns[n_busy][task.n_items]
        factor = factor_of(task)
        return int(took) if factor is None else max(1, int(took * factor))

    return took_ns


def _factor_of(table: ServiceTable) -> Callable[[Task], float | None]:
    """By what a task's time is multiplied; None: by nothing."""
    if table.task_factors is not None:
        first = table.task_factors.first.tolist()
        by_task = table.task_factors.factors.tolist()
        return lambda task: by_task[first[task.query_id] + task.part]
    factors = table.factors.tolist()
    n_factors = table.factors.shape[1]
    cpu_row = _rows_of_factors(table.cpu_row)
    accel_row = _rows_of_factors(table.accel_row)

    def drawn(task: Task) -> float | None:
        row = accel_row if task.pool == ACCEL else cpu_row
        if row is None or row[task.n_items] < 0:
            return None
        at = drawn_index(task.query_id, task.stage, task.part, table.seed, n_factors)
        return float(factors[row[task.n_items]][at])

    return drawn


def _rows_of_factors(row: Int64Array | None) -> list[int] | None:
    """The row of factors of each size, -1 without; None if no size has one."""
    return None if row is None or (row < 0).all() else row.tolist()


def _stretched(took_ns: _TookNs, stolen_ns: int, schedule: Schedule) -> _TookNs:
    """Longer on the cores by what each query that arrives meanwhile takes of them."""
    if not stolen_ns:
        return took_ns
    arrivals = schedule.arrival_ns.tolist()

    def longer_ns(task: Task, engine: int, start_ns: int, end_ns: list[int]) -> int:
        took = took_ns(task, engine, start_ns, end_ns)
        if task.pool == ACCEL:
            return took
        n_arrived = bisect_right(arrivals, start_ns + took) - bisect_right(arrivals, start_ns)
        return took + stolen_ns * n_arrived

    return longer_ns
