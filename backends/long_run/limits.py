"""The highest rate at which a tail of a walked load is inside an SLA, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy import optimize

from infra.arrays import FloatArray

FULL = 0.995  # highest utilisation at which a limit is looked for
EMPTY = 0.02  # of it: where the engines hardly ever wait
WIDTH = 1e-3  # relative width to which a limit is found
NEARLY = 1.1  # a limit that was found on a shorter load holds to this factor
FLATTEST = 0.1  # a tail rises with the rate by at least this power of it, or a limit has no error
FARTHEST = 0.3  # log: beyond the walked rates
PARTS = 20  # of a load, for its own error

TailMs = Callable[[float], float]  # of the rate, or of a factor on it; infinite: no steady state


def highest(tail_ms: TailMs, sla_ms: float, full: float, about: float = 0.0) -> float:
    """The highest rate at which the tail is inside the SLA; 0 where none is.

    `full`: the rate beyond which there is no steady state. `about`: where the limit is supposed to
    be; 0: not known.
    """

    def over(rate: float) -> float:
        return math.log(min(tail_ms(rate), 1e6 * sla_ms) / sla_ms)

    low, high = EMPTY * full, full
    if about:
        near = (about / NEARLY, min(full, about * NEARLY))
        low = near[0] if over(near[0]) <= 0 else low
        high = near[1] if over(near[1]) > 0 else full
    if over(high) <= 0:
        return high
    if over(low) > 0:
        return 0.0
    return float(optimize.brentq(over, low, high, rtol=WIDTH))


def crossing(factors: FloatArray, tails_ms: Sequence[float], level_ms: float) -> float:
    """Where the tail reaches a level, by the factor on the rate.

    Beyond the factors by a line that rises at least a little, and not far.
    """
    x = np.log(factors)
    y = np.maximum.accumulate(np.log(tails_ms))
    at = int(np.clip(np.searchsorted(y, math.log(level_ms)), 1, len(y) - 1))
    rise = max((y[at] - y[at - 1]) / (x[at] - x[at - 1]), FLATTEST)
    reached = x[at - 1] + (math.log(level_ms) - y[at - 1]) / rise
    return math.exp(np.clip(reached, x[0] - FARTHEST, x[-1] + FARTHEST))


def tails_by_part(latency_ms: FloatArray, p: float | FloatArray) -> FloatArray:
    """Logs of the p-quantiles of equal parts of a load, [part] or [part, p]."""
    tails: FloatArray = np.log([np.quantile(part, p) for part in np.array_split(latency_ms, PARTS)])
    return tails


def part_error(by_part: FloatArray) -> FloatArray:
    """Standard error of a mean by its parts."""
    error: FloatArray = by_part.std(axis=0, ddof=1) / math.sqrt(PARTS)
    return error


def limit_by_part(latencies_ms: Sequence[FloatArray], factors: FloatArray, p: float) -> FloatArray:
    """Log of the limit around its mean, by parts of the load.

    `latencies_ms` at each of three factors on the rate, of which the limit is the middle one.
    """
    below, at, above = latencies_ms
    rise = math.log(np.quantile(above, p) / np.quantile(below, p))
    steep = max(FLATTEST, rise / math.log(factors[2] / factors[0]))
    tails = tails_by_part(at, p)
    by_part: FloatArray = (tails.mean() - tails) / steep
    return by_part
