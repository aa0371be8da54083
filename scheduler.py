"""Every decision: how a query is split, where its tasks go, when it is answered, what to try next.

Sans I/O: events in, commands out. No clock, no queue, no process, no tensor, no randomness.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from infra.deployment import Deployment
from infra.messages import (
    ACCEL,
    CPU,
    ITEM_BYTES,
    Answer,
    Enqueue,
    Fail,
    Query,
    Task,
    TaskDone,
    TaskFailed,
)
from infra.ranking import best_packed
from infra.results.long_run import RateLimit
from infra.results.quantiles import Estimate
from infra.search.rate_search import RateBisection, RateWalk
from infra.search.sla_test import Verdict

SCOUTS = 5  # rungs asked along a whole knob
WHOLE = 2**31 - 1  # items: no query is larger
MAX_ATTEMPTS = 2  # a task is redone once; if it fails again, its query is given up


@dataclass(frozen=True, slots=True)
class Policy:
    """The two knobs of DeepRecSched (Gupta et al., ISCA 2020, sec. IV).

    `batch_items`: items of the largest CPU task. `offload_items`: queries of at least this many
    items go whole to the accelerator.
    """

    batch_items: int
    offload_items: int | None = None

    def __post_init__(self) -> None:
        if self.batch_items < 1:
            raise ValueError(f"batch_items is {self.batch_items}; a task needs at least 1 item")
        if self.offload_items is not None and self.offload_items < 1:
            raise ValueError(
                f"offload_items is {self.offload_items}; expected at least 1 item, or None"
            )


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of a deployment; a single model has one.

    `keep_items`: how many of the best items go on, from the last stage as the answer; None: all,
    unranked. `pool`: whose engines serve what is not offloaded. `batch_items`: items of its largest
    task; None: as the policy says. `offloads`: whether the policy's threshold holds for it.
    """

    keep_items: int | None = None
    pool: str = CPU
    batch_items: int | None = None
    offloads: bool = True

    def under(self, policy: Policy) -> Policy:
        """The run's policy as it holds for this stage."""
        offload_items = policy.offload_items if self.offloads else None
        return Policy(self.batch_items or policy.batch_items, offload_items)


ONE_STAGE = (Stage(),)


def stages_of(deployment: Deployment) -> tuple[Stage, ...]:
    """The deployment's stages; one on a device takes whole queries and offloads none."""
    return tuple(
        Stage(stage.keep_items, stage.pool, stage.batch_items)
        if deployment.pool(stage).on_cores
        else Stage(stage.keep_items, stage.pool, stage.batch_items or WHOLE, offloads=False)
        for stage in deployment.stages
    )


def split(n_items: int, policy: Policy, pool: str = CPU) -> list[tuple[str, int, int]]:
    """(pool, first_item, n_items) of every task: a partition in order; the last may be short."""
    if policy.offload_items is not None and n_items >= policy.offload_items:
        return [(ACCEL, 0, n_items)]
    batch = policy.batch_items
    if n_items <= batch:
        return [(pool, 0, n_items)]
    return [(pool, first, min(batch, n_items - first)) for first in range(0, n_items, batch)]


@dataclass(slots=True)
class _Open:
    """A query in the system: the parts of its stage that are not done, and their failures."""

    query: Query
    stage: int
    parts: set[int]
    n_items: int  # of the stage
    items: bytes  # which, as in Task
    scores: dict[int, bytes]  # by part, where there are any
    end_ns: int = 0  # of the latest part: two engines' answers can arrive in the other order
    failures: dict[int, int] | None = None  # by part


class Dispatcher:
    """Events in, commands out; tasks go to their pool's FIFO, a stage ends with its last part."""

    def __init__(self, policy: Policy, stages: Sequence[Stage] = ONE_STAGE) -> None:
        self._stages = tuple(stages)
        self._policies = [stage.under(policy) for stage in stages]
        self._open: dict[int, _Open] = {}

    @property
    def n_open(self) -> int:
        """Queries in the system."""
        return len(self._open)

    def on_query(self, query: Query) -> list[Enqueue]:
        """A query arrived."""
        return self._enter(query, 0, query.n_items)

    def on_done(self, event: TaskDone) -> list[Enqueue | Answer | Fail]:
        """A task ended; ignored where its query has failed or its part is done already."""
        task = event.task
        state = self._open.get(task.query_id)
        if state is None or state.stage != task.stage or task.part not in state.parts:
            return []
        state.parts.discard(task.part)
        state.end_ns = max(state.end_ns, event.end_ns)
        if event.scores:
            state.scores[task.part] = event.scores
        return [] if state.parts else self._stage_done(state)

    def _stage_done(self, state: _Open) -> list[Enqueue | Answer | Fail]:
        """The parts have joined: the best items go on; as many where the engines give no scores."""
        keep = self._stages[state.stage].keep_items
        n_items = state.n_items
        items = state.items
        ranked = keep is not None and bool(state.scores)
        if keep is not None and ranked:
            try:
                items = best_packed(
                    items,
                    b"".join(scores for _, scores in sorted(state.scores.items())),
                    n_items,
                    keep,
                )
            except ValueError as error:
                del self._open[state.query.query_id]
                return [Fail(state.query, f"stage {state.stage} cannot be ranked: {error}")]
            n_items = len(items) // ITEM_BYTES
        elif keep is not None:
            n_items = min(keep, n_items)
            items = items[: ITEM_BYTES * n_items]
        if state.stage + 1 < len(self._stages):
            return [*self._enter(state.query, state.stage + 1, n_items, items)]
        del self._open[state.query.query_id]
        return [Answer(state.query, state.end_ns, items if ranked else b"")]

    def on_failed(self, event: TaskFailed) -> list[Enqueue | Fail]:
        """A task's engine died or raised: the task is redone once, then its query is given up."""
        task = event.task
        state = self._open.get(task.query_id)
        if state is None or state.stage != task.stage or task.part not in state.parts:
            return []
        if state.failures is None:
            state.failures = {}
        failures = state.failures[task.part] = state.failures.get(task.part, 0) + 1
        if failures < MAX_ATTEMPTS:
            return [Enqueue(task)]
        del self._open[task.query_id]
        return [Fail(state.query, f"task {task.part} failed {failures} times, last: {event.error}")]

    def _enter(self, query: Query, stage: int, n_items: int, items: bytes = b"") -> list[Enqueue]:
        query_id = query.query_id
        parts = split(n_items, self._policies[stage], self._stages[stage].pool)
        tasks = []
        for part, (pool, first, n) in enumerate(parts):
            sent = items[ITEM_BYTES * first : ITEM_BYTES * (first + n)]
            tasks.append(Enqueue(Task(query_id, stage, part, first, n, pool, sent)))
        self._open[query_id] = _Open(query, stage, set(range(len(tasks))), n_items, items, {})
        return tasks


def static_policy(max_items: int, n_engines: int) -> Policy:
    """The paper's baseline: the largest query split evenly over all cores (ISCA 2020, sec. V)."""
    return Policy(-(-max_items // n_engines))


def with_offload(policy: Policy, thresholds: Sequence[int]) -> list[Policy]:
    """`policy` with each offload threshold in turn."""
    return [replace(policy, offload_items=threshold) for threshold in thresholds]


@dataclass(frozen=True, slots=True)
class Trial:
    """What to measure next: a policy at a rate.

    `n_queries`: None: as many as it takes to decide. `asks_limit`: the policy's limit is wanted;
    else it is enough to know whether it lies below this rate.
    """

    policy: Policy
    rate_qps: float
    n_queries: int | None = None
    asks_limit: bool = True


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a trial showed."""

    verdict: Verdict
    late_share: float  # of the queries that count
    p_sla_ms: float  # latency at the SLA's percentile
    n_queries: int  # sent
    leans_met: bool  # the late share is inside the SLA, decided or not
    limit: RateLimit | None = None  # the policy's, where the trial tells it
    foreseen_ms: tuple[float, float] | None = None  # where a confirmation at the limit may end


@dataclass(frozen=True, slots=True)
class Limit:
    """What a policy carries under the SLA; an upper bound alone (value 0) where it was only shown
    to be worse.

    `carried_qps`: the highest rate tried that met the SLA. `told`: the limit where one trial told
    it, and `foreseen_ms`: between which tails a confirmation at it ends.
    """

    policy: Policy
    qps: Estimate
    carried_qps: float
    told: RateLimit | None = None
    foreseen_ms: tuple[float, float] | None = None


class Search(Protocol):
    """Finds the best policy, one trial after the other; deterministic in what it observes."""

    @property
    def n_policies(self) -> int:
        """How many policies there are to choose from."""

    @property
    def limits(self) -> Sequence[Limit]:
        """What is known so far, in order of discovery."""

    @property
    def best(self) -> Limit | None:
        """The best policy so far; None before the first limit."""

    def propose(self) -> Trial | None:
        """The next trial, the same until it is observed; None when the search has ended."""

    def observe(self, outcome: Outcome) -> None:
        """What the proposed trial showed."""


@dataclass(frozen=True, slots=True)
class Goal:
    """What makes one policy better than another, and how finely a limit is found."""

    start_qps: float  # where the first limit is looked for
    rel_width: float = 0.05
    watts: Callable[[Policy], float] = lambda _: 1.0  # for QPS per watt: power under a policy

    def value(self, limit: Limit) -> float:
        """QPS, or QPS per watt."""
        return limit.qps.value / self.watts(limit.policy)


Script = Generator[Trial, Outcome, None]


class Scripted:
    """A search written as a generator: it yields what to try and is sent what that showed."""

    def __init__(self, goal: Goal, n_policies: int) -> None:
        if n_policies < 1:
            raise ValueError("no policy to choose from")
        self._goal = goal
        self.n_policies = n_policies
        self.limits: list[Limit] = []
        self._script = self._search()
        self._trial: Trial | None = next(self._script, None)

    @property
    def best(self) -> Limit | None:
        """The best policy so far, the earlier one of equals."""
        return max(self.limits, key=self._goal.value, default=None)

    def propose(self) -> Trial | None:
        """The next trial."""
        return self._trial

    def observe(self, outcome: Outcome) -> None:
        """What it showed."""
        try:
            self._trial = self._script.send(outcome)
        except StopIteration:
            self._trial = None

    def _search(self) -> Script:
        raise NotImplementedError

    def _find_limit(self, policy: Policy, start_qps: float, seen: Outcome | None = None) -> Script:
        """Bisect; `seen` is what the starting rate showed, where that is known."""
        width = self._goal.rel_width
        near = 1 + 4 * width  # the limit of a neighbour that just won is not far
        bisection = (
            RateBisection(start_qps, width)
            if seen is None
            else RateBisection(start_qps, width, first_step=near)
        )
        if seen is not None:
            bisection.observe(seen.verdict, leans_met=seen.leans_met)
        while (rate_qps := bisection.propose()) is not None:
            outcome = yield Trial(policy, rate_qps)
            if outcome.limit is not None:
                self._know(policy, outcome, outcome.limit)
                return
            bisection.observe(outcome.verdict, leans_met=outcome.leans_met)
        self.limits.append(Limit(policy, bisection.estimate, bisection.carried_qps))

    def _know(self, policy: Policy, outcome: Outcome, limit: RateLimit) -> None:
        """A trial told the limit."""
        qps = limit.qps
        self.limits.append(Limit(policy, qps, qps.value, limit, outcome.foreseen_ms))


class Exhaustive(Scripted):
    """The oracle: the limit of every policy, each on its own."""

    def __init__(self, policies: Sequence[Policy], goal: Goal) -> None:
        self._policies = tuple(dict.fromkeys(policies))
        super().__init__(goal, len(self._policies))

    def _search(self) -> Script:
        for policy in self._policies:
            yield from self._find_limit(policy, self._goal.start_qps)


class HillClimb(Scripted):
    """Climbs one knob after the other until a whole round changes nothing.

    Scouts ask over a knob's whole range first. A neighbour is asked one question: does it carry
    more than the best so far, by half of the width asked for? The trial may tell its limit; else
    that is looked for, from there, only if it does (decided, or leaning so): a worse one costs a
    single trial. The scouts find
    the slope where a plateau or a bump hides it; a direction is given up after `PATIENCE` rungs in
    a row that are not better, not at the first dip.

    `knobs`: the values of `batch_items`, of `offload_items` (None: no offload) or both, in the
    order to climb. `start_limit`: what the start carries, where that is known already. `scouts`:
    how many rungs are asked along a whole knob; None: all.
    """

    PATIENCE = 2

    def __init__(
        self,
        knobs: Mapping[str, Sequence[int | None]],
        start: Policy,
        goal: Goal,
        start_limit: Limit | None = None,
        scouts: int | None = SCOUTS,
    ) -> None:
        self._start = start
        self._start_limit = start_limit
        self._scouts = scouts
        self._knobs = {
            name: _ladder([*values, getattr(start, name)]) for name, values in knobs.items()
        }
        self._tried: set[Policy] = set()
        super().__init__(goal, math.prod(len(values) for values in self._knobs.values()))

    def _search(self) -> Script:
        if self._start_limit is not None:
            self.limits.append(self._start_limit)
        else:
            yield from self._find_limit(self._start, self._goal.start_qps)
        self._tried.add(self._start)
        top = None
        while top != self.best:
            top = self.best
            for name, ladder in self._knobs.items():
                yield from self._climb(name, ladder)
            if len(self._knobs) == 1:
                return

    def _climb(self, name: str, ladder: Sequence[int | None]) -> Script:
        """Ask rungs all along the ladder first, then closer and closer ones around the best."""
        stride = 2 ** max(0, math.ceil(math.log2(len(ladder) / (self._scouts or len(ladder)))))
        for at in sorted({*range(0, len(ladder), stride), len(ladder) - 1}, reverse=True):
            yield from self._challenge(_at_rung(self._best_limit().policy, name, ladder[at]))
        while stride > 1:
            stride //= 2
            before = self.best
            yield from self._walk(name, ladder, stride)
            if self.best == before:
                yield from self._walk(name, ladder, -stride)

    def _walk(self, name: str, ladder: Sequence[int | None], step: int) -> Script:
        """Step on while it gets better, and over dips shorter than PATIENCE."""
        best = self._best_limit()
        at = ladder.index(getattr(best.policy, name))
        dips = 0
        while dips < self.PATIENCE and 0 <= at + step < len(ladder):
            at += step
            yield from self._challenge(_at_rung(best.policy, name, ladder[at]))
            dips = dips + 1 if self._best_limit() == best else 0
            best = self._best_limit()

    def _challenge(self, policy: Policy) -> Script:
        """One trial at a rate that would make this policy the best; its limit if it holds there."""
        if policy in self._tried:
            return
        self._tried.add(policy)
        to_beat = (
            self._goal.value(self._best_limit())
            * self._goal.watts(policy)
            * (1 + self._goal.rel_width / 2)
        )
        if to_beat == 0:  # nothing has met the SLA yet
            yield from self._find_limit(policy, self._goal.start_qps)
            return
        outcome = yield Trial(policy, to_beat, asks_limit=False)
        if outcome.limit is not None:
            self._know(policy, outcome, outcome.limit)
        elif outcome.verdict == "met" or (outcome.verdict == "undecided" and outcome.leans_met):
            yield from self._find_limit(policy, to_beat, seen=outcome)
        else:
            high = to_beat if outcome.verdict == "missed" else math.inf
            self.limits.append(Limit(policy, Estimate(0.0, 0.0, high), 0.0))

    def _best_limit(self) -> Limit:
        best = self.best
        assert best is not None, "the start has a limit"
        return best


def _at_rung(policy: Policy, name: str, rung: int | None) -> Policy:
    """The policy with another value of one knob."""
    knob: dict[str, Any] = {name: rung}
    return replace(policy, **knob)


def _ladder(values: Sequence[int | None]) -> list[int | None]:
    """Ascending, each once; None, which is beyond every number, last."""
    numbers = sorted({value for value in values if value is not None})
    return [*numbers, None] if None in values else [*numbers]


class ReleasedClimb(Scripted):
    """The release's hill climbing: policies in the given order, until the first that carries less
    than the best.

    Every trial is an update of `n_queries`; each policy's walk over `grid_qps` starts where the one
    before it ended. `max_updates` bounds one walk.
    """

    def __init__(
        self,
        policies: Sequence[Policy],
        grid_qps: Sequence[float],
        sla_ms: float,
        stable_region: float,
        max_updates: int,
        n_queries: int,
        start_step: int = 0,
        goal: Goal | None = None,
    ) -> None:
        self._policies = tuple(policies)
        self._grid = tuple(grid_qps)
        self._n_queries = n_queries
        self._walk_settings = (self._grid, sla_ms, stable_region, max_updates)
        self._start_step = start_step
        super().__init__(goal or Goal(self._grid[0]), len(self._policies))

    def _search(self) -> Script:
        step = self._start_step
        for policy in self._policies:
            walk = RateWalk(*self._walk_settings, step)
            while (rate_qps := walk.propose()) is not None:
                outcome = yield Trial(policy, rate_qps, self._n_queries)
                walk.observe(outcome.p_sla_ms)
            step = walk.limit_step
            qps = self._grid[step] if step >= 0 else 0.0
            worse = any(qps < limit.qps.value for limit in self.limits)
            self.limits.append(Limit(policy, Estimate(qps, -math.inf, math.inf), qps))
            if worse:
                return
