"""Does a percentile of the latency meet the SLA at this rate? As few queries decide as can.

Late queries (latency over the SLA) are counted in order of arrival. At looks that grow
geometrically a one-sided binomial test asks whether the share of late queries is below, or above,
1 - percentile; all looks together are wrong at most as often as asked (Bonferroni). Queue latencies
come in clumps, so n queries count only as n / tau, where tau is the autocorrelation time of the
latencies.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import special

from infra.arrays import FloatArray
from infra.results.quantiles import autocorrelation_time

Verdict = Literal["met", "missed", "undecided"]

FIRST_LOOK = 256  # queries: fewer could all fall into one disturbance of the machine
LOOK_GROWTH = 1.5
BURN_IN_SHARE = 0.1  # of the queries so far: a queue begins empty
FEWEST_TIMES = 20  # autocorrelation times in the sample, before tau itself is believed
TAU_MARGIN = 1.25  # the estimate of tau is biased low in samples this short
SATURATED_BLOCK = 32  # queries
SATURATED_LATENESS = 2.0  # times the SLA that all of the latest block exceed
SATURATED_SHARE = 0.25  # of all queries so far are late, too


def p_value_met(n: float, late: float, percentile: float) -> float:
    """Probability of so few late queries out of n if the percentile were just at the SLA.

    The queries are independent. This is LoadGen's early stopping: h queries in time and t late ones
    pass at confidence c where I_p(h, t + 1) <= 1 - c, the regularised incomplete beta function
    (mlcommons/inference, loadgen/early_stopping.cc, tolerance 0; n and t may be fractions here).
    For p99 at 99 % and none late that takes 459 queries.
    """
    return float(special.betainc(max(n - late, 1e-9), late + 1, percentile / 100))


def p_value_missed(n: float, late: float, percentile: float) -> float:
    """Probability of so many late queries out of n, likewise."""
    return float(special.betaincc(n - late + 1, late, percentile / 100)) if late > 0 else 1.0


def relaxation_queries(busy_frac: float) -> float:
    """Queries that a queue at this utilisation takes to forget that it began empty; infinite at 1.

    Heavy traffic: 4 rho / (1 - rho)^2 arrivals in M/M/c, half of that for constant service times,
    which is taken here (Abate and Whitt, Transient behavior of the M/M/1 queue, 1987). Until then a
    queue that grows, but slowly, looks well.
    """
    return 2 * busy_frac / (1 - busy_frac) ** 2 if busy_frac < 1 else math.inf


@dataclass(frozen=True, slots=True)
class Decision:
    """The verdict, and what it rests on."""

    verdict: Verdict
    n_queries: int  # seen, burn-in included
    n_effective: float  # independent queries that they are worth
    late_share: float
    saturated: bool = False  # missed because the queue kept growing


class SlaTest:
    """Sequential test of `percentile` <= `sla_ms`, fed latencies in order of arrival until decided.

    `confidence`: a rate that just meets or just misses the SLA gets the wrong verdict with at most
    1 - confidence. `max_queries`: after so many the verdict is "undecided".
    """

    def __init__(
        self,
        sla_ms: float,
        percentile: float = 95.0,
        confidence: float = 0.99,
        max_queries: int = 100_000,
    ) -> None:
        if not 0 < percentile < 100 or not 0.5 <= confidence < 1 or max_queries < 1:
            raise ValueError(
                f"percentile {percentile}, confidence {confidence}, max_queries {max_queries}: "
                "expected 0 < percentile < 100, 0.5 <= confidence < 1, at least 1 query"
            )
        self._sla_ms = sla_ms
        self._percentile = percentile
        self._looks = look_sizes(max_queries)
        self._alpha = (1 - confidence) / len(self._looks)
        self._latency_ms = np.empty(max_queries)
        self._n = self._n_late = self._next = 0
        self._busy_frac = 0.0
        self.decision: Decision | None = None

    @property
    def wants(self) -> int:
        """How many more queries it takes until the next look (0: decided)."""
        return 0 if self.decision else self._looks[self._next] - self._n

    def observe(self, latency_ms: FloatArray, busy_frac: float = 0.0) -> Decision | None:
        """Take in latencies, infinite for a lost query; those after the decision are ignored.

        `busy_frac`: utilisation so far of the busiest pool of engines.
        """
        taken = 0
        self._busy_frac = busy_frac
        while taken < len(latency_ms) and self.decision is None:
            block_end = self._n - self._n % SATURATED_BLOCK + SATURATED_BLOCK
            stop = min(self._looks[self._next], block_end)
            part = latency_ms[taken : taken + stop - self._n]
            self._latency_ms[self._n : self._n + len(part)] = part
            taken += len(part)
            self._n += len(part)
            self._n_late += int(np.count_nonzero(part > self._sla_ms))
            self._look()
        return self.decision

    def _look(self) -> None:
        if self._n >= SATURATED_BLOCK and self._n % SATURATED_BLOCK == 0 and self._is_saturated():
            self.decision = Decision("missed", self._n, 0.0, self._n_late / self._n, saturated=True)
        elif self._n == self._looks[self._next]:
            self.decision = self._test(last=self._next == len(self._looks) - 1)
            self._next += self.decision is None

    def _is_saturated(self) -> bool:
        if self._n < 2 * SATURATED_BLOCK or self._n_late <= SATURATED_SHARE * self._n:
            return False
        latest = self._latency_ms[self._n - SATURATED_BLOCK : self._n]
        return float(latest.min()) > SATURATED_LATENESS * self._sla_ms

    def _test(self, *, last: bool) -> Decision | None:
        burn_in = int(self._n * BURN_IN_SHARE)
        counted = np.minimum(self._latency_ms[burn_in : self._n], 10 * self._sla_ms)
        late = counted > self._sla_ms
        times = autocorrelation_time(counted), autocorrelation_time(late.astype(float))
        tau = TAU_MARGIN * max(times)
        n_effective = len(counted) / tau
        n_relaxed = len(counted) / max(tau, relaxation_queries(self._busy_frac))
        share = float(late.mean())
        sample = (n_effective, share * n_effective, self._percentile)
        verdict: Verdict = "undecided"
        if n_effective >= FEWEST_TIMES and p_value_missed(*sample) <= self._alpha:
            verdict = "missed"
        elif n_relaxed >= FEWEST_TIMES and p_value_met(*sample) <= self._alpha:
            verdict = "met"
        if verdict == "undecided" and not last:
            return None
        return Decision(verdict, self._n, n_effective, share)


def look_sizes(max_queries: int) -> list[int]:
    """Queries seen at each look, ascending; the last is `max_queries`."""
    n_looks = max(1, math.floor(math.log(max(max_queries / FIRST_LOOK, 1), LOOK_GROWTH)) + 1)
    sizes = {round(max_queries / LOOK_GROWTH**i) for i in range(n_looks)}
    return sorted(size for size in sizes if size >= 1)
