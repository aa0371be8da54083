"""Arrival processes: laws of the gaps, and Poisson arrivals whose rate changes with time.

No files, no clock.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from infra.arrays import FloatArray, Int64Array
from infra.clock import NS_PER_MS, NS_PER_S
from infra.settings.config import LoadConfig

STEADY = ("exponential", "gamma", "constant", "legacy")  # independent gaps, all of one law
_STATES_A_DRAW = 256


@dataclass(frozen=True)
class RateCurve:
    """A rate over time, linear between its points, that repeats itself.

    `time_s` begins at 0 and does not descend, `rate` is at least 0; two points at one time are a
    jump. Raises ValueError if that is not so or the rate is 0 throughout.
    """

    time_s: FloatArray
    rate: FloatArray

    def __post_init__(self) -> None:
        if len(self.time_s) < 2 or len(self.time_s) != len(self.rate):
            raise ValueError("a rate curve needs two points or more, each a time and a rate")
        is_finite = np.isfinite(self.time_s).all() and np.isfinite(self.rate).all()
        if not (is_finite and (self.rate >= 0).all()):
            raise ValueError(
                "a rate curve's times and rates must be finite numbers, its rates at least 0"
            )
        if self.time_s[0] != 0 or (np.diff(self.time_s) < 0).any():
            raise ValueError("a rate curve's times must begin at 0 and must not descend")
        if not self.expected[-1] > 0:
            raise ValueError("a rate curve must rise above 0 somewhere")

    @property
    def expected(self) -> FloatArray:
        """Arrivals expected until each point; (points,)."""
        area = np.diff(self.time_s) * (self.rate[:-1] + self.rate[1:]) / 2
        return np.concatenate(([0.0], np.cumsum(area)))

    @property
    def mean_rate(self) -> float:
        """Mean over a period."""
        return float(self.expected[-1] / self.time_s[-1])

    def with_mean(self, rate: float) -> RateCurve:
        """The same shape with another mean rate."""
        return RateCurve(self.time_s, self.rate * (rate / self.mean_rate))

    def times_s(self, expected: FloatArray) -> FloatArray:
        """The times at which so many arrivals are expected: the inverse of the rate's integral.

        It turns unit Poisson arrivals into Poisson arrivals of this rate (Cinlar, Introduction to
        Stochastic Processes, 1975, sec. 4.7).
        """
        until = self.expected
        periods, rest = np.divmod(expected, until[-1])
        part = np.clip(np.searchsorted(until, rest, side="right") - 1, 0, len(until) - 2)
        width = np.diff(self.time_s)[part]
        begin = self.rate[part]
        end = self.rate[part + 1]
        missing = rest - until[part]
        slope = np.divide(end - begin, width, out=np.zeros_like(width), where=width > 0)
        root = begin + np.sqrt(np.maximum(begin * begin + 2 * slope * missing, 0.0))
        into = np.divide(2 * missing, root, out=np.zeros_like(root), where=root > 0)
        times: FloatArray = periods * self.time_s[-1] + self.time_s[part] + np.minimum(into, width)
        return times


def draw_gaps_ns(load: LoadConfig, rate_qps: float, n: int, rng: np.random.Generator) -> Int64Array:
    """n gaps between arrivals in ns, mean 1 / rate_qps, for the laws of STEADY.

    Raises ValueError for another law.
    """
    mean_ns = NS_PER_S / rate_qps
    gaps: FloatArray
    match load.arrival_process:
        case "exponential":
            gaps = rng.exponential(mean_ns, n)
        case "gamma":
            gaps = rng.gamma(load.arrival_gamma_shape, mean_ns / load.arrival_gamma_shape, n)
        case "constant":
            gaps = np.full(n, mean_ns)
        case "legacy":
            # The release draws the GAP from a Poisson law in whole ms: far too regular (README).
            gaps = rng.poisson(mean_ns / NS_PER_MS, n).astype(np.float64) * NS_PER_MS
        case law:
            raise ValueError(f"no gaps are drawn for arrival_process {law!r}")
    return np.rint(gaps).astype(np.int64)


def draw_modulated_ns(
    load: LoadConfig, rate_qps: float, n: int, rng: np.random.Generator
) -> Int64Array:
    """n arrivals of a Markov-modulated Poisson process of two states, calm and burst.

    The mean rate is `rate_qps`. Stays in a state are exponential; the first state is drawn as
    likely as its share of time (stationary). Whoever draws more arrivals or another rate with an
    equal stream gets the same uniform numbers.
    """
    if n == 0:
        return np.empty(0, np.int64)
    of_states, of_arrivals = rng.spawn(2)
    unit = np.cumsum(of_arrivals.exponential(1.0, n))
    share = load.arrival_burst_share
    factor = load.arrival_burst_factor
    calm_qps = rate_qps / (1 + share * (factor - 1))
    stay_s = np.array([load.arrival_burst_s * (1 - share) / share, load.arrival_burst_s])
    # An even number of states a draw: each draw begins in the state that the first began in.
    state = int(of_states.random() < share)
    states = (state + np.arange(_STATES_A_DRAW)) % 2
    rates = calm_qps * np.where(states == 1, factor, 1.0)
    stays: list[FloatArray] = []
    expected = 0.0
    while expected <= unit[-1]:
        stays.append(of_states.exponential(1.0, _STATES_A_DRAW) * stay_s[states])
        expected += float((stays[-1] * rates).sum())
    ends = np.cumsum(np.concatenate(stays))
    time_s = np.concatenate(([0.0], np.repeat(ends[:-1], 2), [ends[-1]]))
    curve = RateCurve(time_s, np.repeat(np.tile(rates, len(stays)), 2))
    return np.rint(curve.times_s(unit) * NS_PER_S).astype(np.int64)


def draw_diurnal_ns(
    curve: RateCurve, rate_qps: float, n: int, rng: np.random.Generator
) -> Int64Array:
    """n Poisson arrivals whose rate repeats the curve's shape, with mean `rate_qps`."""
    times_s = curve.with_mean(rate_qps).times_s(np.cumsum(rng.exponential(1.0, n)))
    return np.rint(times_s * NS_PER_S).astype(np.int64)
