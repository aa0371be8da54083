"""What a short run tells of the endless one: percentiles, utilisation, the rate under the SLA."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from infra.results.quantiles import Estimate, finite

PART_ERRORS = 2.09  # standard errors by 20 parts of a load that hold 95 % (Student's t)


@dataclass(frozen=True, slots=True)
class RateLimit:
    """The highest rate under an SLA; `qps` is 0 where no rate meets it.

    Its interval has two sources. `by_service`: how far below and above the uncertain service times
    reach (logs). `by_part`: log of the limit, around its mean, of each part of the walked load; two
    policies walk the same load, so of their ratio only the differences remain.
    """

    qps: Estimate
    by_service: tuple[float, float] = (0.0, 0.0)
    by_part: tuple[float, ...] = ()

    def over(self, other: RateLimit) -> Estimate:
        """The ratio of the two rates, on common random numbers."""
        if not other.qps.value:
            return Estimate(math.nan, -math.inf, math.inf)
        ratio = self.qps.value / other.qps.value
        if self == other or not ratio:
            return Estimate(ratio, ratio, ratio)
        walked = 0.0
        if len(self.by_part) == len(other.by_part) > 1:
            walked = PART_ERRORS * _error(
                [a - b for a, b in zip(self.by_part, other.by_part, strict=True)]
            )
        low = math.hypot(self.by_service[0], other.by_service[1], walked)
        high = math.hypot(self.by_service[1], other.by_service[0], walked)
        return Estimate(ratio, ratio * math.exp(-low), ratio * math.exp(high))


def _error(values: Sequence[float]) -> float:
    """Standard error of the mean."""
    return statistics.stdev(values) / math.sqrt(len(values))


@dataclass(frozen=True, slots=True)
class LatencyCurve:
    """Latency at the SLA's percentile in ms by the rate, and the highest rate that meets the SLA.

    `highest_qps` is 0 where no rate meets it.
    """

    percentile: float
    sla_ms: float
    rate_qps: Sequence[float]
    tail_ms: Sequence[Estimate]
    highest_qps: Estimate

    def as_json(self) -> dict[str, Any]:
        """{percentile, sla_ms, highest_qps: {value, low, high}, points: [{qps, value, ...}]}."""
        points = zip(self.rate_qps, self.tail_ms, strict=True)
        return {
            "percentile": self.percentile,
            "sla_ms": self.sla_ms,
            "highest_qps": self.highest_qps.as_json(),
            "points": [{"qps": finite(qps), **tail.as_json()} for qps, tail in points],
        }


@dataclass(frozen=True, slots=True)
class LongRun:
    """The endless run, told from a short one: latency percentiles in ms {50.0: ...}, utilisation.

    The percentiles are empty where the run does not tell them; `withheld` says why. `memory` of the
    service times in tasks: how long a drift among them lasts. `curve` is None where the load is no
    other at another rate, too; `no_curve` says so.
    """

    percentiles: Mapping[float, Estimate] = field(default_factory=dict)
    utilisation: Mapping[str, Estimate] = field(default_factory=dict)  # by pool
    memory: float = 1.0
    withheld: str = ""
    curve: LatencyCurve | None = None
    no_curve: str = ""

    @property
    def is_above_capacity(self) -> bool:
        """Whether the work of some pool is not clearly less than its time."""
        return any(estimate.high >= 1 for estimate in self.utilisation.values())

    @property
    def busiest(self) -> Estimate | None:
        """Utilisation of the pool that has most to do; None where it is not known."""
        known = self.utilisation.values()
        return max(known, key=lambda estimate: estimate.value, default=None)

    def as_json(self) -> dict[str, Any]:
        """{percentiles: {p50: {value, low, high}, ...}, utilisation: {pool: ...}, ...}."""
        return {
            "percentiles": {f"p{p:g}": x.as_json() for p, x in self.percentiles.items()},
            "utilisation": {pool: x.as_json() for pool, x in self.utilisation.items()},
            "memory_tasks": self.memory,
            "withheld": self.withheld or None,
            "rate_curve": None if self.curve is None else self.curve.as_json(),
            "no_rate_curve": self.no_curve or None,
        }
