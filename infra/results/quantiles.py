"""Quantiles of latencies with intervals: of independent samples, and of a queue's latencies."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
from scipy import fft, special

from infra.arrays import FloatArray

HEAVY_TRAFFIC = (
    1.75  # of the autocorrelation time near full utilisation; measured, experiments/intervals
)
INDEPENDENT = 90  # queries' worth that a run of a queue must have, and
INDEPENDENT_TAIL = 10  # so many beyond the quantile
LOW_TIMES = 1.1  # estimates of the autocorrelation time are low by so much


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value and its 95 % interval; a bound that the data cannot give is infinite."""

    value: float
    low: float
    high: float

    def as_json(self) -> dict[str, float | None]:
        """{value, low, high}; infinite becomes null (JSON has no infinity)."""
        return {name: finite(bound) for name, bound in dataclasses.asdict(self).items()}


def finite(value: float) -> float | None:
    """The value, or None where it is no finite number."""
    return value if math.isfinite(value) else None


def _binomial_quantile(share: float, n: int, p: float) -> int:
    """Fewest successes that n trials exceed with a probability of at most 1 - `share`."""
    k: int = math.ceil(special.bdtrik(share, n, p))
    rounded_up = k > 0 and special.bdtr(k - 1, n, p) >= share
    return k - 1 if rounded_up else k


def quantile(samples: FloatArray, p: float, confidence: float = 0.95) -> Estimate:
    """The p-quantile (nearest rank) with a distribution-free interval from order statistics.

    The ranks are binomial quantiles: the interval covers the true quantile of independent samples
    with at least `confidence`. Source: David and Nagaraja, Order Statistics (2003), sec. 7.1.
    Latencies of a queue are correlated, so at high load the true coverage is lower.
    """
    n = len(samples)
    if n == 0:
        return Estimate(math.nan, -math.inf, math.inf)
    ordered = np.sort(samples)
    tail = (1 - confidence) / 2
    low = _binomial_quantile(tail, n, p)
    high = _binomial_quantile(1 - tail, n, p) + 1
    return Estimate(
        value=float(ordered[max(math.ceil(p * n), 1) - 1]),
        low=float(ordered[low - 1]) if low >= 1 else -math.inf,
        high=float(ordered[high - 1]) if high <= n else math.inf,
    )


def queries_needed(p: float, confidence: float = 0.95) -> int:
    """Fewest independent queries whose p-quantile has a finite upper bound (order statistics)."""
    n = max(1, math.ceil(math.log((1 - confidence) / 2) / math.log(p)) - 1)
    while _binomial_quantile(1 - (1 - confidence) / 2, n, p) + 1 > n:
        n += 1
    return n


@dataclass(frozen=True, slots=True)
class Busy:
    """How busy the engines were: `utilisation`, and the variability of the work of a query.

    `cs2`: variance of a query's work over its squared mean.
    """

    utilisation: float
    cs2: float

    @property
    def autocorrelation_time(self) -> float:
        """Of the latencies, in queries, by the theory of heavy traffic; infinite from 1 on.

        Source: Whitt, Management Science 35 (1989), 1341-1366; the factor is measured.
        """
        if self.utilisation >= 1:
            return math.inf
        return HEAVY_TRAFFIC * (1 + self.cs2) * self.utilisation / (1 - self.utilisation) ** 2


def autocorrelation_time(samples: FloatArray) -> float:
    """tau = 1 + 2 x the sum of autocorrelations: n samples are worth n / tau independent ones.

    The sum ends at the first lag of at least 5 tau (Sokal, Monte Carlo Methods in Statistical
    Mechanics, 1997, sec. 3). At least 1; a constant series has 1.
    """
    n = len(samples)
    if n < 4:
        return 1.0
    centred = samples - samples.mean()
    if not np.abs(centred).max() > 0:
        return 1.0
    size = fft.next_fast_len(2 * n, real=True)
    power = np.abs(fft.rfft(centred, size)) ** 2
    covariance = fft.irfft(power, size)[: n // 2]
    tau = 2 * np.cumsum(covariance / covariance[0]) - 1
    inside = np.arange(len(tau)) >= 5 * tau
    window = int(np.argmax(inside)) if inside.any() else len(tau) - 1
    return max(1.0, float(tau[window]))


def queue_quantile(latency_ms: FloatArray, p: float, busy: Busy | None) -> Estimate:
    """The p-quantile of a queue's latencies in order of arrival, with a 95 % interval.

    As `quantile`, but n latencies count as n over their autocorrelation time. Its estimate is low
    in just those runs that are too short, so `busy` decides whether there is an interval at all
    (None: not known, and the latencies are taken at their word).
    """
    n = len(latency_ms)
    value = quantile(latency_ms, p).value
    unknown = Estimate(value, -math.inf, math.inf)
    needed = max(INDEPENDENT, INDEPENDENT_TAIL / (1 - p))
    if n == 0 or (busy is not None and n < needed * busy.autocorrelation_time):
        return unknown
    ordered = np.sort(latency_ms)
    cut = np.minimum(latency_ms, quantile(latency_ms, 0.999).value)  # single stalls are no memory
    times = (autocorrelation_time((latency_ms > value).astype(float)), autocorrelation_time(cut))
    worth = n / max(1.0, LOW_TIMES * max(times)) if max(times) > 1 else float(n)
    low = _binomial_quantile(0.025, max(int(worth), 1), p) / worth * n
    high = (_binomial_quantile(0.975, max(int(worth), 1), p) + 1) / worth * n
    return Estimate(
        value=value,
        low=float(ordered[math.floor(low) - 1]) if low >= 1 else -math.inf,
        high=float(ordered[math.ceil(high) - 1]) if high <= n else math.inf,
    )
