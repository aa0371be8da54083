"""The state of one walk over a schedule in real time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from backends.processes.sampler import Sampler
from backends.session import InOrder
from infra.clock import NS_PER_S, monotonic_ns
from infra.messages import Answer, Fail, TaskDone
from infra.results.rows import Recorder
from loadGenerator import Pacer, Schedule
from scheduler import Dispatcher, Policy, Stage

FIRST_SPIN_NS, LEAST_SPIN_NS, MOST_SPIN_NS = 150_000, 30_000, 400_000
SPIN_STEP_NS, SPIN_MARGIN_NS = 2_000, 20_000
LEAD_NS = 2_000_000  # from building the loop to the run's start


class Run:
    """What the event loop of `backends.processes.process` knows of the run that it is in."""

    def __init__(
        self,
        schedule: Schedule,
        policy: Policy,
        stages: Sequence[Stage],
        on_progress: Callable[[int], None] | None,
        in_order: InOrder | None,
    ) -> None:
        self.schedule = schedule
        self.pacer = Pacer(schedule)
        self.dispatcher = Dispatcher(policy, stages)
        self.recorder = Recorder(schedule.n_warmup)
        self.sampler: Sampler
        self.n_ended = 0
        self.working: dict[int, tuple[int, int]] = {}  # slot -> (ticket, since)
        self._on_progress = on_progress
        self._in_order = in_order
        self._ticked_ns = 0
        self._enough = False
        self.spin_ns = FIRST_SPIN_NS  # the last stretch before an arrival is spun, not slept
        self.read_ns = 0  # when replies were last read
        self.prepared: deque[list[int]] = deque()  # tickets of the queries that come next
        self.start_ns = monotonic_ns() + LEAD_NS

    def now_ns(self) -> int:
        """Time since the run's start."""
        return monotonic_ns() - self.start_ns

    @property
    def finished(self) -> bool:
        """Every query was sent and has ended, or the watch has seen enough."""
        return self._enough or self.n_ended == len(self.schedule)

    def done(self, event: TaskDone, enqueued_ns: int) -> None:
        """A task ended."""
        self.recorder.done(event, enqueued_ns)
        if self._in_order is not None:
            self._in_order.done(event)

    def ended(self, command: Answer | Fail) -> None:
        """A query was answered or given up."""
        self.n_ended += 1
        if isinstance(command, Answer) and command.items:  # ranking is part of the answer
            command = command._replace(done_ns=self.now_ns())
        if isinstance(command, Answer):
            self.recorder.answered(command)
        else:
            self.recorder.failed(command)
        if self._in_order is not None:
            self._in_order.ended(command)

    def overslept(self, by_ns: int) -> None:
        """A sleep ended that much late: the next arrival is spun for as long as nine in ten sleeps
        overrun.

        A core at rest takes 5 to 200 us to wake, by machine and by the hour; on a busy one the
        driver is on time and should not take the engines' time. A step up for a sleep longer than
        that, a ninth of it down for a shorter.
        """
        step_ns = 9 * SPIN_STEP_NS if by_ns > self.spin_ns - SPIN_MARGIN_NS else -SPIN_STEP_NS
        self.spin_ns = min(max(self.spin_ns + step_ns, LEAST_SPIN_NS), MOST_SPIN_NS)

    def tick(self) -> bool:
        """True some ten times a second: time for what need not be done at every turn."""
        now_ns = monotonic_ns()
        due = now_ns - self._ticked_ns > NS_PER_S // 10
        if due:
            self._ticked_ns = now_ns
        return due

    def look(self) -> None:
        """Tell how many queries have ended, and ask the watch."""
        if self._on_progress is not None:
            self._on_progress(self.n_ended)
        if self._in_order is not None:
            self._enough = self._in_order.show(self.now_ns())
