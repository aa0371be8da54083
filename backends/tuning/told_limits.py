"""What a policy carries, told at once: by one real run's tasks, or long walks in virtual time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np

from backends.long_run.limits import (
    FULL,
    TailMs,
    highest,
    limit_by_part,
    part_error,
    tails_by_part,
)
from backends.long_run.of_run import estimator_of, no_curve, unknown
from backends.long_run.walks import settled
from backends.session import Session
from backends.tuning.probe import Probed, Sla, latencies_ms, probe
from backends.virtual.simulated import Answers, SimulatedSession
from infra.arrays import FloatArray
from infra.clock import NS_PER_S
from infra.deployment import Deployment
from infra.results.long_run import PART_ERRORS, RateLimit
from infra.results.quantiles import Estimate
from infra.results.rows import Rows
from infra.search.sla_test import Verdict
from infra.settings.config import RunConfig
from loadGenerator import CommonLoad, Schedule, draw_schedule
from scheduler import Outcome, Policy, Trial

FEWEST_QUERIES = 256  # of a run that tells a limit, and
RUN_SHARE = 0.25  # of the queries after which a rate would be undecided
RUN_WARMUP = 0.1  # of its queries
FORESEEN = 100  # runs in virtual time: outside of all of them a confirmation has failed
LONG_WALK = 200_000  # queries of a walk in virtual time
SHORT_WALK = 20_000  # of one that only tells clear cases
SURE_ERRORS = 4.0  # standard errors: a clear case
NEAR = (0.95, 1.0, 1.05)
_WALKED_LOAD = 3  # numbers of loads, for their random streams
_FORESEEN_LOAD = 3_000_000


class Prober(Protocol):
    """Makes trials of a search."""

    def probe(self, trial: Trial) -> Probed | None:
        """Make the trial; None if the session was interrupted."""


@dataclass(frozen=True)
class ByTest:
    """A rate a trial: as few queries as decide whether it meets the SLA."""

    session: Session
    load: CommonLoad
    sla: Sla

    def probe(self, trial: Trial) -> Probed | None:
        """The verdict on the trial's rate."""
        return probe(self.session, self.load, self.sla, trial)


@dataclass(frozen=True)
class ByRun:
    """A run a policy: its tasks' times tell the limit; `by_test` where these cannot be walked."""

    by_test: ByTest
    deployment: Deployment

    def probe(self, trial: Trial) -> Probed | None:
        """The limit of the trial's policy."""
        session, load, sla = self.by_test.session, self.by_test.load, self.by_test.sla
        n = max(FEWEST_QUERIES, math.ceil(RUN_SHARE * sla.max_queries))
        schedule = replace(load.at(trial.rate_qps, n), n_warmup=round(RUN_WARMUP * n))
        rows = session.run(schedule, trial.policy)
        if session.interrupted:
            return None
        if unknown(rows, self.deployment, trial.policy, schedule):
            return self.by_test.probe(trial)
        try:
            return self._told(trial, schedule, rows)
        except KeyboardInterrupt:
            session.interrupted = True
            return None

    def _told(self, trial: Trial, schedule: Schedule, rows: Rows) -> Probed:
        sla = self.by_test.sla
        estimator = estimator_of(rows, self.deployment, trial.policy, schedule, trial.rate_qps)
        limit = estimator.limit(sla.percentile, sla.latency_ms)
        coming = confirmations(self.deployment.config, limit.qps.value, sla)
        foreseen = estimator.foreseen_ms(coming, sla.percentile) if coming else None
        counted = latencies_ms(rows)[schedule.n_warmup :]
        outcome = _outcome(counted, trial.rate_qps, len(schedule), sla, limit, foreseen)
        seconds = float(rows.queries["done_ns"].max()) / NS_PER_S
        return Probed(outcome, rows, seconds, None)


class ByWalks:
    """Virtual time, whose service times are known: long walks of one load at every rate.

    `by_test` where a policy has no compiled server.
    """

    def __init__(self, session: SimulatedSession, config: RunConfig, by_test: ByTest) -> None:
        self._session = session
        self._config = config
        self._by_test = by_test
        self._sla = by_test.sla
        self._n_walked = 0

    @cached_property
    def _load(self) -> CommonLoad:
        return CommonLoad(self._config, LONG_WALK, _WALKED_LOAD)

    def probe(self, trial: Trial) -> Probed | None:
        """The limit of the trial's policy; that it is below the trial's rate, if that suffices."""
        if not self._session.is_compiled(trial.policy):
            return self._by_test.probe(trial)
        self._n_walked = 0
        try:
            walked = self._probe(trial)
        except KeyboardInterrupt:
            self._session.interrupted = True
            return None
        return Probed(replace(walked, n_queries=self._n_walked), None, 0.0, None)

    def _probe(self, trial: Trial) -> Outcome:
        sla = self._sla
        if not trial.asks_limit:
            latency_ms = self._clear_case(trial)
            if np.quantile(latency_ms, sla.percentile / 100) > sla.latency_ms:
                return _outcome(latency_ms, trial.rate_qps, 0, sla, None, None)
        limit = self._limit(trial.policy)
        rate_qps = limit.qps.value or trial.rate_qps
        coming = confirmations(self._config, limit.qps.value, sla)
        foreseen = self._foreseen(coming, trial.policy) if coming else None
        latency_ms = self._settled_ms(trial.policy, rate_qps, LONG_WALK)
        return _outcome(latency_ms, trial.rate_qps, 0, sla, limit, foreseen)

    def _clear_case(self, trial: Trial) -> FloatArray:
        """Latencies at the trial's rate: of a short walk where that tells whether it holds."""
        latency_ms = self._settled_ms(trial.policy, trial.rate_qps, SHORT_WALK)
        p = self._sla.percentile / 100
        error = part_error(tails_by_part(latency_ms, p))
        away = abs(math.log(np.quantile(latency_ms, p) / self._sla.latency_ms))
        if away > SURE_ERRORS * error:
            return latency_ms
        return self._settled_ms(trial.policy, trial.rate_qps, LONG_WALK)

    def _limit(self, policy: Policy) -> RateLimit:
        p = self._sla.percentile / 100
        sla_ms = self._sla.latency_ms
        full = self._full_qps(policy)
        about = highest(self._tails(policy, SHORT_WALK), sla_ms, full)
        rate_qps = highest(self._tails(policy, LONG_WALK), sla_ms, full, about)
        if rate_qps == 0:
            return RateLimit(Estimate(0.0, 0.0, 0.0))
        rates = np.array(NEAR) * rate_qps
        parts = limit_by_part(
            [self._settled_ms(policy, rate, LONG_WALK) for rate in rates], rates, p
        )
        half = PART_ERRORS * float(part_error(parts))
        low, high = rate_qps * math.exp(-half), rate_qps * math.exp(half)
        return RateLimit(Estimate(rate_qps, low, high), by_part=tuple(parts.tolist()))

    def _full_qps(self, policy: Policy) -> float:
        """The rate at which the busiest pool has as much work as time."""
        rate_qps = 1.0
        for n in (SHORT_WALK, LONG_WALK):  # beside busy neighbours tasks take longer
            rate_qps /= self._answers(self._load.at(rate_qps, n), policy).utilisation
        return rate_qps

    def _tails(self, policy: Policy, n: int) -> TailMs:
        """The SLA's percentile by rate; infinite where there is no steady state."""

        def tail_ms(rate_qps: float) -> float:
            schedule = self._load.at(rate_qps, n)
            answers = self._answers(schedule, policy)
            if answers.utilisation >= FULL:
                return math.inf
            latency_ms = settled(answers.latencies_ms(schedule))
            return float(np.quantile(latency_ms, self._sla.percentile / 100))

        return tail_ms

    def _settled_ms(self, policy: Policy, rate_qps: float, n: int) -> FloatArray:
        schedule = self._load.at(rate_qps, n)
        return settled(self._answers(schedule, policy).latencies_ms(schedule))

    def _answers(self, schedule: Schedule, policy: Policy) -> Answers:
        """Walk a load; raises KeyboardInterrupt."""
        self._n_walked += len(schedule)
        answers = self._session.answers(schedule, policy)
        if self._session.interrupted:
            raise KeyboardInterrupt
        return answers

    def _foreseen(self, schedules: Sequence[Schedule], policy: Policy) -> tuple[float, float]:
        tails = []
        for schedule in schedules:
            latency_ms = self._answers(schedule, policy).latencies_ms(schedule)
            counted = latency_ms[schedule.n_warmup :]
            tails.append(float(np.quantile(counted, self._sla.percentile / 100)))
        return min(tails), max(tails)


def prober_of(session: Session, deployment: Deployment, load: CommonLoad, sla: Sla) -> Prober:
    """The prober that tells most."""
    by_test = ByTest(session, load, sla)
    if isinstance(session, SimulatedSession):
        return ByWalks(session, deployment.config, by_test)
    return by_test if no_curve(deployment) else ByRun(by_test, deployment)


def confirmation(config: RunConfig, rate_qps: float, sla: Sla, number: int) -> Schedule:
    """The load of a run that confirms a rate; `number` for its random streams."""
    n = sla.confirming_queries(config, rate_qps)
    return draw_schedule(config, n, config.n_warmup, rate_qps, number)


def confirmations(config: RunConfig, rate_qps: float, sla: Sla) -> list[Schedule]:
    """Loads as a confirmation at this rate has them; none at rate 0."""
    if not rate_qps:
        return []
    return [confirmation(config, rate_qps, sla, _FORESEEN_LOAD + i) for i in range(FORESEEN)]


def _outcome(
    latency_ms: FloatArray,
    rate_qps: float,
    n_queries: int,
    sla: Sla,
    limit: RateLimit | None,
    foreseen_ms: tuple[float, float] | None,
) -> Outcome:
    late = float((latency_ms > sla.latency_ms).mean())
    tail_ms = float(np.quantile(latency_ms, sla.percentile / 100))
    verdict: Verdict = "missed"
    if limit is not None and limit.qps.high >= rate_qps:
        verdict = "met" if limit.qps.low >= rate_qps else "undecided"
    leans_met = limit is not None and limit.qps.value >= rate_qps
    return Outcome(verdict, late, tail_ms, n_queries, leans_met, limit, foreseen_ms)
