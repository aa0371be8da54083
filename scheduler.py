"""Every decision: how a query is split, where its tasks go, when it is answered, what to try next.

Sans I/O: events in, commands out. No clock, no queue, no process, no tensor, no randomness.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from infra.messages import ACCEL, CPU, Answer, Enqueue, Fail, Query, Task, TaskDone, TaskFailed

MAX_ATTEMPTS = 2  # a task is redone once; if it fails again, its query is given up


@dataclass(frozen=True, slots=True)
class Policy:
    """The two knobs of DeepRecSched (Gupta et al., ISCA 2020, sec. IV)."""

    batch_items: int  # largest CPU task
    offload_items: int | None = None  # queries of at least this many items go whole to the accelerator

    def __post_init__(self) -> None:
        if self.batch_items < 1:
            raise ValueError(f"batch_items is {self.batch_items}; a task needs at least 1 item")
        if self.offload_items is not None and self.offload_items < 1:
            raise ValueError(f"offload_items is {self.offload_items}; expected at least 1 item, or None")


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of a pipeline; a single model is a pipeline of one stage."""

    policy: Policy
    keep_items: int | None = None  # how many of the best items go on; None = last stage


def split(n_items: int, policy: Policy) -> list[tuple[str, int, int]]:
    """(pool, first_item, n_items) of every task of a query; a partition in order, only the last may be short."""
    if policy.offload_items is not None and n_items >= policy.offload_items:
        return [(ACCEL, 0, n_items)]
    batch = policy.batch_items
    return [(CPU, first, min(batch, n_items - first)) for first in range(0, n_items, batch)]


@dataclass(slots=True)
class _Open:
    """A query in the system: the parts of its current stage that are not done, and their failures so far."""

    query: Query
    stage: int
    parts: set[int]
    end_ns: int = 0  # of the latest part: two engines' answers can arrive in the other order
    failures: dict[int, int] = field(default_factory=dict)


class Dispatcher:
    """Events in, commands out. Tasks go to the FIFO of their pool; a stage ends with its last part."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        self._stages = tuple(stages)
        self._open: dict[int, _Open] = {}

    @property
    def n_open(self) -> int:
        """Queries in the system."""
        return len(self._open)

    def on_query(self, query: Query) -> list[Enqueue]:
        """A query arrived."""
        return self._enter(query, 0, query.n_items)

    def on_done(self, event: TaskDone) -> list[Enqueue | Answer]:
        """A task ended; what no longer counts (its query has failed, its part is done already) is ignored."""
        task = event.task
        state = self._open.get(task.query_id)
        if state is None or state.stage != task.stage or task.part not in state.parts:
            return []
        state.parts.discard(task.part)
        state.end_ns = max(state.end_ns, event.end_ns)
        if state.parts:
            return []
        keep = self._stages[task.stage].keep_items
        if keep is None:
            del self._open[task.query_id]
            return [Answer(state.query, state.end_ns)]
        return [*self._enter(state.query, task.stage + 1, min(keep, state.query.n_items))]

    def on_failed(self, event: TaskFailed) -> list[Enqueue | Fail]:
        """A task's engine died or raised: the task is redone once, then its query is given up."""
        task = event.task
        state = self._open.get(task.query_id)
        if state is None or state.stage != task.stage or task.part not in state.parts:
            return []
        failures = state.failures.get(task.part, 0) + 1
        state.failures[task.part] = failures
        if failures < MAX_ATTEMPTS:
            return [Enqueue(task)]
        del self._open[task.query_id]
        return [Fail(state.query, f"task {task.part} failed {failures} times, last: {event.error}")]

    def _enter(self, query: Query, stage: int, n_items: int) -> list[Enqueue]:
        parts = split(n_items, self._stages[stage].policy)
        self._open[query.query_id] = _Open(query, stage, set(range(len(parts))))
        return [
            Enqueue(Task(query.query_id, stage, part, first, n, pool)) for part, (pool, first, n) in enumerate(parts)
        ]


def static_policy(max_items: int, n_engines: int) -> Policy:
    """The paper's baseline: the largest query split evenly over all cores (ISCA 2020, sec. V)."""
    return Policy(-(-max_items // n_engines))


def log_grid_qps(min_gap_ms: float, max_gap_ms: float, steps: int) -> tuple[float, ...]:
    """`steps` rates from 1000 / max_gap_ms up to 1000 / min_gap_ms, evenly spaced in the logarithm."""
    ratio = (max_gap_ms / min_gap_ms) ** (1 / (steps - 1))
    return tuple(1000 / max_gap_ms * ratio**i for i in range(steps))


@dataclass(frozen=True, slots=True)
class Trial:
    """What to measure next: one scheduler update at a rate of the grid under a policy."""

    policy: Policy
    step: int  # index into the grid
    rate_qps: float


@dataclass(frozen=True, slots=True)
class Observation:
    """What one update saw."""

    trial: Trial
    p_sla_ms: float
    verdict: str  # "up": below the dead band; "hold": inside it; "down": over the SLA


@dataclass(frozen=True, slots=True)
class Limit:
    """What a configuration carries: the fastest step of the grid that held, or -1 if none did."""

    policy: Policy
    step: int
    rate_qps: float
    updates: int


class RateWalk:
    """Walks the log grid of rates for one policy, a step an update, as the release does.

    Below the dead band one step up, over the SLA one step down, inside it no move. It ends when held for
    `HOLDS` updates in all, when it has turned `TURNS` times, when it stands at an end of the grid, or after
    `max_updates`.
    """

    HOLDS = 3
    TURNS = 4

    def __init__(
        self, policy: Policy, grid_qps: Sequence[float], sla_ms: float, stable_region: float, max_updates: int,
        start_step: int = 0,
    ) -> None:  # fmt: skip
        self._policy, self._grid = policy, tuple(grid_qps)
        self._sla_ms, self._band_ms = sla_ms, sla_ms * (1 - stable_region)
        self._max_updates = max_updates
        self._step = min(max(start_step, 0), len(self._grid) - 1)
        self._holds = self._turns = self._direction = 0
        self.history: list[Observation] = []
        self._met: dict[int, list[bool]] = {}
        self._ended = False

    def propose(self) -> Trial | None:
        """The next update, or None when the walk has ended."""
        return None if self._ended else Trial(self._policy, self._step, self._grid[self._step])

    def observe(self, p_sla_ms: float) -> None:
        """The latency percentile that the proposed update saw."""
        verdict = "down" if p_sla_ms > self._sla_ms else "up" if p_sla_ms < self._band_ms else "hold"
        trial = Trial(self._policy, self._step, self._grid[self._step])
        self.history.append(Observation(trial, p_sla_ms, verdict))
        self._met.setdefault(self._step, []).append(verdict != "down")
        move = {"up": 1, "hold": 0, "down": -1}[verdict]
        self._holds += move == 0
        if move and move == -self._direction:
            self._turns += 1
        self._direction = move or self._direction
        blocked = not 0 <= self._step + move < len(self._grid)
        self._ended = (
            blocked or self._holds >= self.HOLDS or self._turns >= self.TURNS or len(self.history) >= self._max_updates
        )
        if not blocked:
            self._step += move

    @property
    def limit(self) -> Limit:
        """The fastest step at which at least half of the updates met the SLA."""
        held = [step for step, met in self._met.items() if 2 * sum(met) >= len(met)]
        step = max(held, default=-1)
        return Limit(self._policy, step, self._grid[step] if held else 0.0, len(self.history))


class ReleasedClimb:
    """The release's hill climbing: configurations in the given order, until the first that is worse.

    Each configuration's walk starts where the one before it ended. `max_updates` bounds one walk.
    """

    def __init__(
        self, policies: Sequence[Policy], grid_qps: Sequence[float], sla_ms: float, stable_region: float,
        max_updates: int, start_step: int = 0,
    ) -> None:  # fmt: skip
        if not policies:
            raise ValueError("no configuration to climb through")
        self._policies = tuple(policies)
        self._walk_settings = (tuple(grid_qps), sla_ms, stable_region, max_updates)
        self._walk = RateWalk(self._policies[0], *self._walk_settings, start_step)
        self.limits: list[Limit] = []
        self.history: list[Observation] = []
        self._ended = False

    @property
    def n_configurations(self) -> int:
        """How many configurations there are to climb through."""
        return len(self._policies)

    def propose(self) -> Trial | None:
        """The next update, or None when the climb has ended."""
        return None if self._ended else self._walk.propose()

    def observe(self, p_sla_ms: float) -> None:
        """The latency percentile that the proposed update saw."""
        self._walk.observe(p_sla_ms)
        self.history.append(self._walk.history[-1])
        if self._walk.propose() is not None:
            return
        limit = self._walk.limit
        worse = bool(self.limits) and limit.step < max(known.step for known in self.limits)
        self.limits.append(limit)
        self._ended = worse or len(self.limits) == len(self._policies)
        if not self._ended:
            following = self._policies[len(self.limits)]
            self._walk = RateWalk(following, *self._walk_settings, start_step=limit.step)

    @property
    def best(self) -> Limit:
        """The configuration that carries the highest rate; the earlier one where two are equal."""
        return max(self.limits, key=lambda limit: limit.step)


def with_offload(policy: Policy, thresholds: Sequence[int]) -> list[Policy]:
    """`policy` with each offload threshold in turn."""
    return [replace(policy, offload_items=threshold) for threshold in thresholds]
