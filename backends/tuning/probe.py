"""Measures single trials of a search on a session, and from them the highest rate under an SLA."""

from __future__ import annotations

import math
from dataclasses import dataclass

from backends.session import Session, SessionError
from infra.arrays import FloatArray
from infra.clock import NS_PER_MS, NS_PER_S
from infra.results.quantiles import Estimate, quantile
from infra.results.rows import Rows
from infra.search.rate_search import RateBisection
from infra.search.sla_test import Decision, SlaTest
from infra.settings.config import RunConfig
from loadGenerator import CommonLoad, Schedule, burst
from scheduler import Outcome, Policy, Trial

CAPACITY_QUERIES_AN_ENGINE = 32
# a trial lasts so many times the SLA at least: an overload of 5 % takes that long to be late
TRIAL_SLAS = 20
MS_PER_S = 1e3
VIRTUAL_QUERIES = 20_000  # of a confirmation in virtual time, at least
FIXED_WARMUP_SHARE = 0.25  # of a trial with a fixed number of queries, beside those that count


@dataclass(frozen=True, slots=True)
class Sla:
    """A percentile of the latency is at most `latency_ms`.

    Decided at `confidence`, or undecided after `max_queries`.
    """

    latency_ms: float
    percentile: float = 95.0
    confidence: float = 0.99
    max_queries: int = 20_000

    @property
    def late_share(self) -> float:
        """Share of the queries that may be late."""
        return 1 - self.percentile / 100

    def confirming_queries(self, config: RunConfig, rate_qps: float) -> int:
        """Queries of a run that confirms a rate; in virtual time they cost nothing."""
        fewest = VIRTUAL_QUERIES if config.engines.backend == "simulated" else 0
        return max(config.n_queries, fewest, queries_to_show_overload(self.latency_ms, rate_qps))


class _Watch:
    """Ends the run with the decision."""

    def __init__(self, test: SlaTest) -> None:
        self._test = test

    def observe(self, latency_ms: FloatArray, busy_frac: float) -> bool:
        return self._test.observe(latency_ms, busy_frac) is not None


@dataclass(frozen=True)
class Probed:
    """A trial's outcome, its rows if they are kept, how long it took in the session's time."""

    outcome: Outcome
    rows: Rows | None
    seconds: float
    decision: Decision | None  # None: a fixed number of queries


def probe(
    session: Session,
    load: CommonLoad,
    sla: Sla,
    trial: Trial,
) -> Probed | None:
    """Run the trial; None if the session was interrupted before it was decided."""
    if trial.n_queries is not None:
        n = trial.n_queries + math.ceil(trial.n_queries * FIXED_WARMUP_SHARE)
        rows = session.run(load.at(trial.rate_qps, n), trial.policy)
        counted = latencies_ms(rows)[n - trial.n_queries :]
        return None if session.interrupted else _fixed(rows, counted, sla)
    n = max(sla.max_queries, queries_to_show_overload(sla.latency_ms, trial.rate_qps))
    test = SlaTest(sla.latency_ms, sla.percentile, sla.confidence, n)
    schedule = load.at(trial.rate_qps, n)
    rows = session.run(schedule, trial.policy, watch=_Watch(test))
    decision = test.decision
    if decision is None:
        return None
    tail_ms = quantile(latencies_ms(rows)[: decision.n_queries], sla.percentile / 100).value
    leans = decision.verdict == "met" or (
        decision.verdict == "undecided" and decision.late_share <= sla.late_share
    )
    outcome = Outcome(decision.verdict, decision.late_share, tail_ms, len(rows.queries), leans)
    return Probed(outcome, rows, _seconds(rows, schedule), decision)


def queries_to_show_overload(sla_ms: float, rate_qps: float) -> int:
    """Fewest queries that tell whether the SLA is met: in fewer the queue has no time to grow."""
    return math.ceil(TRIAL_SLAS * sla_ms / MS_PER_S * rate_qps)


def max_rate_qps(
    session: Session,
    load: CommonLoad,
    policy: Policy,
    sla: Sla,
    start_qps: float,
    rel_width: float = 0.05,
) -> Estimate:
    """The highest rate at which `policy` meets the SLA, to `rel_width`; 0 if none does.

    The interval reaches from the highest rate shown to meet it to the lowest shown to miss it, each
    at the SLA's confidence. Raises KeyboardInterrupt if the session is interrupted.
    """
    bisection = RateBisection(start_qps, rel_width)
    while (rate_qps := bisection.propose()) is not None:
        probed = probe(session, load, sla, Trial(policy, rate_qps))
        if probed is None:
            raise KeyboardInterrupt
        bisection.observe(probed.outcome.verdict, leans_met=probed.outcome.leans_met)
    return bisection.estimate


def capacity_qps(session: Session, config: RunConfig, policy: Policy, n_engines: int = 2) -> float:
    """Queries per second that the engines answer when they never wait.

    Raises KeyboardInterrupt, SessionError.
    """
    n = CAPACITY_QUERIES_AN_ENGINE * max(2, n_engines)
    rows = session.run(burst(config, n, run_index=1), policy)
    if session.interrupted:
        raise KeyboardInterrupt
    if rows.queries["done_ns"].isna().any():
        raise SessionError("the capacity could not be measured: queries were lost")
    span_ns = float(rows.queries["done_ns"].max() - rows.queries["first_start_ns"].min())
    return n * NS_PER_S / span_ns


def latencies_ms(rows: Rows) -> FloatArray:
    """Latency of every query in order of arrival, infinite for one without an answer."""
    queries = rows.queries
    done_ns: FloatArray = queries["done_ns"].to_numpy(float, na_value=math.inf)
    arrival_ns: FloatArray = queries["arrival_ns"].to_numpy(float)
    return (done_ns - arrival_ns) / NS_PER_MS


def _fixed(rows: Rows, counted_ms: FloatArray, sla: Sla) -> Probed:
    late = float((counted_ms > sla.latency_ms).mean())
    tail_ms = quantile(counted_ms, sla.percentile / 100).value
    met = tail_ms <= sla.latency_ms
    outcome = Outcome("met" if met else "missed", late, tail_ms, len(rows.queries), met)
    return Probed(outcome, rows, float(rows.queries["done_ns"].max()) / NS_PER_S, None)


def _seconds(rows: Rows, schedule: Schedule) -> float:
    ends = rows.queries["done_ns"].dropna()
    last = (
        float(ends.max())
        if len(ends)
        else float(schedule.arrival_ns[min(len(rows.queries), len(schedule)) - 1])
    )
    return last / NS_PER_S
