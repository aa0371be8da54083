"""The long-run latency of a short run, with an interval: its service times walked in virtual time.

A run's arrival and size laws are known and every task's time was measured, so only the times are
estimated: they are resampled in blocks as long as their memory, and a long fresh load is walked
through each resample with common random numbers. The spread is the interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy import stats

from backends.long_run.fit import Fit, Tasks, fit
from backends.long_run.limits import (
    FULL,
    crossing,
    highest,
    limit_by_part,
    part_error,
    tails_by_part,
)
from backends.long_run.walks import Fits, ServerModel, Walk, WalkedLoad
from infra.arrays import FloatArray, Int64Array
from infra.results.long_run import PART_ERRORS, LatencyCurve, LongRun, RateLimit
from infra.results.quantiles import Estimate
from loadGenerator import Schedule
from scheduler import Policy

LONG_QUERIES = 400_000  # of the walk that gives the values
SHORT_QUERIES = 20_000  # of the walks that give their spread
RESAMPLES = 40  # an interval of 95 % reaches from the least of them to the greatest
CHECKS = 200  # replays of the run's own schedule: outside of all of them is outside of 99 %
CHECKED = (0.5, 0.95, 0.99)
ROUNDING = 0.01  # of a latency: a model that is wrong by less is right
ENOUGH_MEMORIES = 6  # stretches of a run that are independent of each other
WIDEST = math.log(3.0)  # of a log interval: beyond, the resamples are near full utilisation
CONFIDENCE = 0.95
CURVE_AT = (0.2, 0.35, 0.5, 0.6, 0.7, 0.775, 0.85, 0.9, 0.94, 0.97)  # utilisations
CURVE_RESAMPLES = 15
NEAR = (0.95, 1.0, 1.05)  # of a limit: where its resamples are walked

DrawSchedule = Callable[[int, int], Schedule]  # queries, number of the draw


@dataclass(frozen=True)
class Measured:
    """What a run measured: tasks by stage and whether offloaded, on a server under a policy."""

    server: ServerModel
    policy: Policy
    tasks: Mapping[tuple[int, bool], Tasks]
    largest_items: int

    def fits(self) -> Fits:
        """The times of all tasks."""
        return {key: fit(tasks, self.largest_items) for key, tasks in self.tasks.items()}

    def resampled(self, fits: Fits, rng: np.random.Generator) -> Fits:
        """The times of as many tasks drawn in blocks, with replacement."""
        return {
            key: fit(tasks.at(_blocks(fits[key], rng)), self.largest_items, fits[key].law)
            for key, tasks in self.tasks.items()
        }

    def mean_ns(self, fits: Fits, key: tuple[int, bool]) -> float:
        """Mean time of the run's tasks of a kind under these fits."""
        return float(fits[key].work_ns[self.tasks[key].items].mean())


class Estimator:
    """Estimates from one run; `draw(n, number)` gives fresh loads at the run's rate.

    `is_drawn` False: the load is a recorded one, again and again, and has no error of its own.
    """

    def __init__(
        self, measured: Measured, draw: DrawSchedule, seed: int = 0, *, is_drawn: bool = True
    ) -> None:
        self._measured = measured
        self._seed = seed
        self._draw = draw
        self._is_drawn = is_drawn
        self.fits = measured.fits()

    def _load(self, n_queries: int, number: int) -> WalkedLoad:
        schedule = self._draw(n_queries, number)
        return WalkedLoad(self._measured.server, self._measured.policy, schedule, self._seed)

    @cached_property
    def _long(self) -> WalkedLoad:
        return self._load(LONG_QUERIES, 2)

    @cached_property
    def _short(self) -> WalkedLoad:
        return self._load(SHORT_QUERIES, 1)

    @cached_property
    def _resamples(self) -> list[Fits]:
        """Fits that the run could have given as well.

        Blocks end, and with them what lasts longer than a block: what the spread of their means
        lacks to the standard error of the mean is added to each.
        """
        rng = np.random.default_rng(self._seed)
        drawn = [self._measured.resampled(self.fits, rng) for _ in range(RESAMPLES)]
        shift = stats.norm.ppf((np.arange(RESAMPLES) + 0.5) / RESAMPLES)
        for key, fitted in self.fits.items():
            means = np.array([self._measured.mean_ns(fits, key) for fits in drawn])
            spread = float(np.std(means / self._measured.mean_ns(self.fits, key), ddof=1))
            missed = math.sqrt(max(0.0, fitted.law.memory.mean_error**2 - spread**2))
            for fits, z in zip(drawn, rng.permutation(shift), strict=True):
                fits[key] = replace(fits[key], mean_ns=fits[key].mean_ns * math.exp(missed * z))
        return drawn

    @property
    def memory(self) -> float:
        """Longest autocorrelation time of the residuals, in tasks."""
        return max(fitted.law.memory.tasks for fitted in self.fits.values())

    @cached_property
    def utilisation(self) -> dict[str, Estimate]:
        """By pool, of the law's rate."""
        known = self._long.utilisation(self.fits)
        errors = self._long.utilisation_error(self.fits) if self._is_drawn else {}
        spread = [self._short.utilisation(fits) for fits in self._resamples]
        estimates = {}
        for pool, value in known.items():
            resampled = np.array([values[pool] for values in spread])
            relative = float(np.std(resampled, ddof=1) / resampled.mean()) if value else 0.0
            half = 1.96 * math.hypot(relative * value, errors.get(pool, 0.0))
            estimates[pool] = Estimate(value, value - half, value + half)
        return estimates

    def withheld(self) -> str:
        """Why the run does not tell; empty where it does."""
        if any(estimate.high >= 1 for estimate in self.utilisation.values()):
            return "above capacity: no steady state"
        n_memories = min(fitted.n_memories for fitted in self.fits.values())
        if n_memories < ENOUGH_MEMORIES:
            return (
                f"too short to tell: the service times' memory is {self.memory:,.0f} tasks, and "
                f"the run holds {n_memories:.1f} independent stretches (at least {ENOUGH_MEMORIES})"
            )
        return ""

    def long_run(self, percentiles: Sequence[float]) -> LongRun:
        """Percentiles (0 to 100) of the endless run."""
        withheld = self.withheld()
        if withheld:
            return LongRun({}, self.utilisation, self.memory, withheld)
        p = np.asarray(percentiles) / 100
        values, errors = self._with_error(self._long.under(self.fits).settled_ms(), p)
        start = np.log(np.quantile(self._short.under(self.fits).settled_ms(), p))
        tails = [np.quantile(walk.settled_ms(), p) for walk in self._short_walks()]
        low, high = _bounds(np.log(tails) - start, errors)
        if high.max() > WIDEST:
            too_near = "the service times are too uncertain for a load so near the capacity"
            return LongRun({}, self.utilisation, self.memory, too_near)
        estimates = {
            percentile: _estimate(values[i], low[i], high[i])
            for i, percentile in enumerate(percentiles)
        }
        return LongRun(estimates, self.utilisation, self.memory)

    def _short_walks(self, n: int = RESAMPLES) -> Iterator[Walk]:
        """The short load under the first n resamples, one after the other."""
        return (self._short.under(fits) for fits in self._resamples[:n])

    def check(self, schedule: Schedule, observed_ms: FloatArray) -> str:
        """Why the fit does not describe the run: its schedule, walked again, gives other latencies.

        `observed_ms` of the queries after the schedule's warm-up. Empty where p50, p95 and p99 lie
        inside what `CHECKS` walks give.
        """
        p = np.array(CHECKED)
        walked = self._replayed([schedule] * CHECKS, p)
        seen = np.quantile(observed_ms, p)
        for i, (low, high) in enumerate(zip(walked.min(axis=0), walked.max(axis=0), strict=True)):
            slack = ROUNDING * seen[i]
            if not low - slack <= seen[i] <= high + slack:
                return (
                    "the service times depend on something that the model does not know: the "
                    f"run's schedule, walked again, gives a p{100 * p[i]:g} of {low:.2f} to "
                    f"{high:.2f} ms, but {seen[i]:.2f} was observed"
                )
        return ""

    def curve(self, percentile: float, sla_ms: float) -> LatencyCurve:
        """Latency at the percentile by rate, up to near the capacity, with the limit."""
        p = np.array([percentile / 100])
        long = self._long.under(self.fits)
        short = self._short.under(self.fits)
        walks = [*self._short_walks(CURVE_RESAMPLES)]
        tails = []
        rates = []
        for utilisation in CURVE_AT:
            faster = utilisation / self._busiest.value
            values, errors = self._with_error(long.settled_ms(faster), p)
            start = np.log(np.quantile(short.settled_ms(faster), p))
            resampled = np.log([np.quantile(walk.settled_ms(faster), p) for walk in walks])
            low, high = _bounds(resampled - start, errors)
            tails.append(_estimate(values[0], low[0], high[0]))
            rates.append(faster * self._rate_qps)
        return LatencyCurve(percentile, sla_ms, rates, tails, self.limit(percentile, sla_ms).qps)

    def limit(self, percentile: float, sla_ms: float) -> RateLimit:
        """The highest rate at which the percentile of the endless run is inside the SLA.

        Where the SLA holds up to the capacity it is that (`FULL` of it); 0 where no rate meets it.
        """
        p = percentile / 100
        long, short = self._long.under(self.fits), self._short.under(self.fits)
        busiest = self._busiest
        full = FULL / busiest.value
        factor = highest(long.tails(p), sla_ms, full, highest(short.tails(p), sla_ms, full))
        if factor == 0:
            return RateLimit(Estimate(0.0, 0.0, 0.0))
        if factor >= full:
            down, up = math.log(busiest.high / busiest.value), math.log(busiest.value / busiest.low)
            return RateLimit(_estimate(factor * self._rate_qps, -down, up), (down, up))
        factors = np.array(NEAR) * factor
        level = float(np.quantile(short.settled_ms(factor), p))  # the SLA, as the short load has it
        crossings = [
            crossing(factors, [np.quantile(w.settled_ms(f), p) for f in factors], level)
            for w in self._short_walks()
        ]
        parts = limit_by_part([long.settled_ms(f) for f in factors], factors, p)
        error = part_error(parts) * self._is_drawn
        ratios = np.log(np.array(crossings) / factor)[:, None]
        by_service, both = (_bounds(ratios, np.array([x])) for x in (0.0, error))
        return RateLimit(
            _estimate(factor * self._rate_qps, both[0][0], both[1][0]),
            (float(-by_service[0][0]), float(by_service[1][0])),
            tuple(parts.tolist()) if self._is_drawn else (),
        )

    def foreseen_ms(self, schedules: Iterable[Schedule], percentile: float) -> tuple[float, float]:
        """Between which values a run of such a schedule shows the percentile."""
        tails = self._replayed(schedules, np.array([percentile / 100]))
        return float(tails.min()), float(tails.max())

    def _replayed(self, schedules: Iterable[Schedule], p: FloatArray) -> FloatArray:
        """The p-quantiles of such runs, [schedule, p], each with residuals of its own."""
        server, policy = self._measured.server, self._measured.policy
        tails = []
        for i, schedule in enumerate(schedules):
            load = WalkedLoad(server, policy, schedule, self._seed + 1 + i)
            latency_ms = load.under(self.fits).latencies_ms()[schedule.n_warmup :]
            tails.append(np.quantile(latency_ms, p))
        return np.array(tails)

    def _with_error(self, latency_ms: FloatArray, p: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Quantiles, and the standard error of their logarithms by equal parts of the walk."""
        errors = part_error(tails_by_part(latency_ms, p))
        return np.quantile(latency_ms, p), errors * self._is_drawn

    @property
    def _busiest(self) -> Estimate:
        return max(self.utilisation.values(), key=lambda estimate: estimate.value)

    @property
    def _rate_qps(self) -> float:
        return self._long.schedule.rate_qps


def _estimate(value: float, low: float, high: float) -> Estimate:
    """A value and its bounds as logarithms around it."""
    return Estimate(float(value), float(value * math.exp(low)), float(value * math.exp(high)))


def _blocks(fitted: Fit, rng: np.random.Generator) -> Int64Array:
    """As many tasks as the run had, in blocks that begin with a query where order counts."""
    n = fitted.n_tasks
    block = min(fitted.law.block, n)
    if fitted.law.in_order:
        begins = rng.choice(fitted.starts, max(n // block, 1))
    else:
        begins = rng.integers(0, n, n)
    chosen: Int64Array = (begins[:, None] + np.arange(block)).ravel() % n
    return chosen


def _bounds(ratios: FloatArray, errors: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Lower and upper bound of the log of each value, around 0."""
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(ratios, [tail, 1 - tail], axis=0, method="weibull")
    mean = PART_ERRORS * errors
    return -np.hypot(np.minimum(low, 0), mean), np.hypot(np.maximum(high, 0), mean)
