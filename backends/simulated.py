"""Virtual time: a heap of events and a service time instead of engines, and the same Dispatcher."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from heapq import heappop, heappush
from itertools import count

from infra.messages import Answer, Enqueue, Fail, Query, Task, TaskDone
from infra.rows import Recorder, Rows
from loadGenerator import Schedule
from scheduler import Dispatcher, Stage

ServiceTime = Callable[[Task], int]  # ns


class SimulatedSession:
    """`engines` = {pool: number of engines}; `service_ns` gives each task's time."""

    def __init__(self, engines: Mapping[str, int], service_ns: ServiceTime) -> None:
        self._engines, self._service_ns = dict(engines), service_ns
        self.interrupted = False

    def run(
        self, schedule: Schedule, stages: Sequence[Stage], on_progress: Callable[[int], None] | None = None
    ) -> Rows:
        """Walk the schedule in virtual time: idle engines pull from their pool's FIFO."""
        dispatcher, recorder = Dispatcher(stages), Recorder(schedule.n_warmup)
        idle = {pool: deque(range(n)) for pool, n in self._engines.items()}
        waiting: dict[str, deque[tuple[Task, int]]] = {pool: deque() for pool in self._engines}
        order = count()
        events: list[tuple[int, int, Query | tuple[TaskDone, int]]] = []
        for i in range(len(schedule)):
            heappush(events, (int(schedule.arrival_ns[i]), next(order), schedule.query(i)))
        n_answered = 0
        while events:
            now_ns, _, event = heappop(events)
            commands: Sequence[Enqueue | Answer | Fail]
            if isinstance(event, Query):
                recorder.sent(event, now_ns)
                commands = dispatcher.on_query(event)
            else:
                done, enqueued_ns = event
                idle[done.task.pool].append(done.engine)
                recorder.done(done, enqueued_ns)
                commands = dispatcher.on_done(done)
            for command in commands:
                if isinstance(command, Enqueue):
                    waiting[command.task.pool].append((command.task, now_ns))
                elif isinstance(command, Answer):
                    n_answered += 1
                    recorder.answered(command)
            for pool, tasks in waiting.items():
                while tasks and idle[pool]:
                    task, enqueued_ns = tasks.popleft()
                    end_ns = now_ns + self._service_ns(task)
                    done = TaskDone(task, idle[pool].popleft(), now_ns, end_ns)
                    heappush(events, (end_ns, next(order), (done, enqueued_ns)))
        if on_progress is not None:
            on_progress(n_answered)
        return recorder.rows()
