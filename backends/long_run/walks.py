"""Long walks in virtual time: a fresh load, service times as a fit has them.

Random numbers are common: two fits, rates or policies differ by themselves and not by luck.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from accelerator.service import Overhead, ServiceTable, ServiceTimes, TaskFactors
from backends.long_run.fit import Fit
from backends.long_run.limits import PARTS, TailMs
from backends.virtual.simulated import SimulatedSession
from infra.arrays import BoolArray, FloatArray, Int64Array
from infra.messages import ACCEL
from loadGenerator import Schedule
from scheduler import Policy, Stage

WARM_UP = 20  # the first of so many parts of a walk is left out
Fits = dict[tuple[int, bool], Fit]  # by stage, and whether its tasks were offloaded


@dataclass(frozen=True)
class ServerModel:
    """What is walked through: engines by pool, stages, and what the harness adds.

    `overheads` by pool; `choosing_ns`: from the end of a stage until its best items are chosen.
    """

    engines: Mapping[str, int]
    stages: Sequence[Stage]
    overheads: Mapping[str, Overhead]
    on_cores: frozenset[str]
    choosing_ns: int = 0

    def overhead(self, pool: str) -> Overhead:
        """What passes before a task of this pool begins."""
        return self.overheads.get(pool, Overhead())


@dataclass(frozen=True)
class _Parts:
    """The tasks of a load in one stage: of query i, first[i] .. first[i + 1]; the rest by task."""

    first: Int64Array
    items: Int64Array
    is_offloaded: BoolArray

    @property
    def is_first(self) -> BoolArray:
        """Whether a task is the first of its query."""
        first = np.zeros(len(self.items), bool)
        first[self.first[:-1]] = True
        return first


class WalkedLoad:
    """A schedule under a policy, and the random numbers by which its tasks take residuals."""

    def __init__(self, server: ServerModel, policy: Policy, schedule: Schedule, seed: int) -> None:
        self.server = server
        self.policy = policy
        self.schedule = schedule
        self._seed = seed
        self._parts = _parts_of(server.stages, policy, schedule)

    def under(self, fits: Fits) -> Walk:
        """The load with a time for every task."""
        tables = [self._table(number, parts, fits) for number, parts in enumerate(self._parts)]
        times = ServiceTimes(tuple(tables), self.server.on_cores, self.server.choosing_ns)
        return Walk(self, times)

    def _table(self, number: int, parts: _Parts, fits: Fits) -> ServiceTable:
        factors = np.ones(len(parts.items))
        for offloaded in (False, True):
            fitted = fits.get((number, offloaded))
            if fitted is not None:
                chosen = parts.is_offloaded == offloaded
                rng = np.random.default_rng([self._seed, number, offloaded])
                is_first = parts.is_first[chosen]
                factors[chosen] = drawn_residuals(fitted, parts.items[chosen], is_first, rng)
        core, card = fits.get((number, False)), fits.get((number, True))
        none_ns = np.ones_like(next(iter(fits.values())).mean_ns)  # of a kind without tasks
        cpu_ns = [none_ns] if core is None else core.beside_ns(self._neighbours(number))
        accel_ns = [none_ns if card is None else card.mean_ns] * self.server.engines.get(ACCEL, 0)
        return ServiceTable(
            _whole_ns(cpu_ns),
            _whole_ns(accel_ns),
            cpu_overhead=self._overhead(number, fits, offloaded=False),
            accel_overhead=self._overhead(number, fits, offloaded=True),
            task_factors=TaskFactors(parts.first, factors),
        )

    def _neighbours(self, number: int) -> int:
        """Engines that can be busy beside one of the stage's."""
        return self.server.engines[self.server.stages[number].pool] - 1

    def _overhead(self, number: int, fits: Fits, *, offloaded: bool) -> Overhead:
        """What passes before a task begins, and on an idle engine what it takes longer."""
        overhead = self.server.overhead(self._pool(number, offloaded=offloaded))
        fitted = fits.get((number, offloaded))
        cold_ns = 0 if fitted is None else fitted.cold_ns
        return replace(overhead, wake_ns=overhead.wake_ns + cold_ns)

    def utilisation(self, fits: Fits) -> dict[str, float]:
        """By pool: the work of the load over the time that the engines have for it."""
        return {
            pool: float(ns.mean()) / self._time_ns(pool) for pool, ns in self._work(fits).items()
        }

    def utilisation_error(self, fits: Fits) -> dict[str, float]:
        """Standard error of `utilisation`, as the load is finite: by equal parts of it."""
        errors = {}
        ends_ns = np.array([part[-1] for part in np.array_split(self.schedule.arrival_ns, PARTS)])
        share = np.diff(ends_ns, prepend=0) / ends_ns[-1] * PARTS
        for pool, ns in self._work(fits).items():
            parts = np.array([part.mean() for part in np.array_split(ns, PARTS)]) / share
            errors[pool] = float(parts.std(ddof=1)) / PARTS**0.5 / self._time_ns(pool)
        return errors

    def _time_ns(self, pool: str) -> float:
        """What a pool's engines have for a query."""
        schedule = self.schedule
        return float(schedule.arrival_ns[-1]) * self.server.engines[pool] / len(schedule)

    def _work(self, fits: Fits) -> dict[str, FloatArray]:
        """By pool: work of each query in ns."""
        work_ns = {pool: np.zeros(len(self.schedule)) for pool in self.server.engines}
        for number, parts in enumerate(self._parts):
            for offloaded in (False, True):
                fitted = fits.get((number, offloaded))
                if fitted is None:
                    continue
                pool = self._pool(number, offloaded=offloaded)
                mean_ns = fitted.work_ns + self.server.overhead(pool).gap_ns
                by_task = np.where(parts.is_offloaded == offloaded, mean_ns[parts.items], 0.0)
                work_ns[pool] += np.add.reduceat(by_task, parts.first[:-1])
        return work_ns

    def _pool(self, number: int, *, offloaded: bool) -> str:
        return ACCEL if offloaded else self.server.stages[number].pool


@dataclass(frozen=True)
class Walk:
    """A load with a time for every task."""

    load: WalkedLoad
    times: ServiceTimes

    def latencies_ms(self, faster: float = 1.0) -> FloatArray:
        """Latency of each query, in order of arrival, at `faster` times the load's rate."""
        server = self.load.server
        schedule = self.load.schedule
        arrival_ns = np.rint(schedule.arrival_ns / faster).astype(np.int64)
        schedule = replace(schedule, arrival_ns=arrival_ns)
        session = SimulatedSession(server.engines, self.times, server.stages, keep_tasks=False)
        return session.answers(schedule, self.load.policy).latencies_ms(schedule)

    def settled_ms(self, faster: float = 1.0) -> FloatArray:
        """The same without the walk's beginning."""
        return settled(self.latencies_ms(faster))

    def tails(self, p: float) -> TailMs:
        """The p-quantile of the latency by the factor on the rate."""
        return lambda faster: float(np.quantile(self.settled_ms(faster), p))


def settled(latency_ms: FloatArray) -> FloatArray:
    """Latencies of a walk in order of arrival without its beginning, when the system fills."""
    return latency_ms[len(latency_ms) // WARM_UP :]


def _parts_of(stages: Sequence[Stage], policy: Policy, schedule: Schedule) -> list[_Parts]:
    coming = schedule.n_items.astype(np.int64)
    parts = []
    for stage in stages:
        under = stage.under(policy)
        whole = coming >= (under.offload_items or np.iinfo(np.int64).max)
        n_tasks = np.where(whole, 1, -(-coming // under.batch_items))
        first = np.concatenate([[0], np.cumsum(n_tasks)]).astype(np.int64)
        items = np.full(int(first[-1]), under.batch_items, np.int64)
        items[first[1:] - 1] = np.where(whole, coming, coming - (n_tasks - 1) * under.batch_items)
        parts.append(_Parts(first, items, np.repeat(whole, n_tasks)))
        keep = stage.keep_items
        coming = coming if keep is None else np.minimum(coming, keep)
    return parts


def drawn_residuals(
    fitted: Fit, items: Int64Array, is_first: BoolArray, rng: np.random.Generator
) -> FloatArray:
    """A residual for each of these tasks, in order; `is_first`: of its query.

    Tasks that scatter independently take any of their size's class; then equal random numbers give
    residuals of equal rank in every fit. Others take them in blocks, as they followed each other in
    the run, from the first task of some query on.
    """
    drawn = np.empty(len(items))
    of_task = fitted.law.classes[items]
    if not fitted.law.in_order:
        moment = rng.random(len(items))
        for number, residuals in enumerate(fitted.residuals):
            chosen = of_task == number
            at = (moment[chosen] * len(residuals)).astype(np.int64)
            drawn[chosen] = np.sort(residuals)[at]
        return drawn
    position = _positions(fitted, is_first, rng)
    for number, residuals in enumerate(fitted.residuals):
        chosen = of_task == number
        at = np.searchsorted(fitted.positions[number], position[chosen]) % len(residuals)
        drawn[chosen] = residuals[at]
    return drawn


def _positions(fitted: Fit, is_first: BoolArray, rng: np.random.Generator) -> Int64Array:
    """Where in the run each task finds its residual."""
    query = np.cumsum(is_first) - 1
    n_queries = int(query[-1]) + 1 if len(query) else 0
    block_queries = max(1, round(fitted.law.block * n_queries / max(len(query), 1)))
    block = query // block_queries
    begins = fitted.starts[rng.integers(0, len(fitted.starts), n_queries // block_queries + 1)]
    first_of_block = np.flatnonzero(is_first)[::block_queries]
    steps = np.arange(len(query)) - first_of_block[block]
    positions: Int64Array = (begins[block] + steps) % fitted.n_tasks
    return positions


def _whole_ns(rows: Sequence[FloatArray]) -> Int64Array:
    if not rows:
        return np.zeros((0, 1), np.int64)
    return np.maximum(np.rint(np.array(rows)), 1).astype(np.int64)
