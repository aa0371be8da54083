"""From rows to numbers that hold: quantiles with intervals, the warm-up cut, VALID or INVALID."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import special

from infra.arrays import FloatArray, Int64Array
from infra.clock import NS_PER_MS, NS_PER_S
from infra.messages import ACCEL

# The generator is late if its p99 lateness exceeds both of these.
LATE_MS = 1.0
LATE_SLA_FRACTION = 0.05
# The queue grows if more queries than both of these piled up during the run.
GROWTH_FRACTION = 0.05
GROWTH_QUERIES = 20


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


@dataclass(frozen=True, slots=True)
class Summary:
    """A measuring run: latency is answer minus INTENDED arrival; warm-up queries are left out."""

    n_queries: int
    offered_qps: float
    achieved_qps: float
    p50_ms: Estimate
    p95_ms: Estimate
    p99_ms: Estimate
    sla_percentile: float
    p_sla_ms: Estimate
    sla_ms: float
    mean_latency_ms: float
    mean_queue_ms: float  # first start - intended arrival
    mean_compute_ms: float  # answer - first start
    accel_query_share: float
    accel_item_share: float
    lateness_p50_ms: float
    lateness_p99_ms: float
    n_lost: int
    invalid_reasons: tuple[str, ...]

    @property
    def valid(self) -> bool:
        """Whether the run can be trusted."""
        return not self.invalid_reasons

    @property
    def meets_sla(self) -> bool:
        """Whether the percentile of the SLA is inside it (its value; the interval is beside it)."""
        return self.p_sla_ms.value <= self.sla_ms

    def as_json(self) -> dict[str, Any]:
        """What run.json holds under `summary`."""
        document: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Estimate):
                value = value.as_json()
            document[field.name] = finite(value) if isinstance(value, float) else value
        document["invalid_reasons"] = list(self.invalid_reasons)
        return {**document, "valid": self.valid, "meets_sla": self.meets_sla}


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


def queue_growth(arrival_ns: Int64Array, done_ns: Int64Array) -> int:
    """Queries that the last arrival finds in the system, itself left out (the first finds none)."""
    if len(arrival_ns) == 0:
        return 0
    ends = np.sort(done_ns)
    return int(len(arrival_ns) - 1 - np.searchsorted(ends, arrival_ns[-1], side="right"))


def summarize(
    queries: pd.DataFrame,
    tasks: pd.DataFrame,
    sla_ms: float,
    sla_percentile: float = 95.0,
    extra: tuple[str, ...] = (),
) -> Summary:
    """Summary of a run's rows (columns: see infra.results.rows).

    `extra`: reasons for INVALID that the caller knows.
    """
    measured = queries[~queries["is_warmup"]]
    sent = measured[measured["sent_ns"].notna()]
    answered = sent[sent["done_ns"].notna()]
    arrival, first_start, done = (
        answered[name].to_numpy(np.int64) for name in ("arrival_ns", "first_start_ns", "done_ns")
    )
    intended = sent["arrival_ns"].to_numpy(np.int64)
    late_ms = (sent["sent_ns"].to_numpy(np.int64) - intended) / NS_PER_MS
    late_p50, late_p99 = (
        float(np.quantile(late_ms, p)) if len(late_ms) else math.nan for p in (0.5, 0.99)
    )
    latency_ms = (done - arrival) / NS_PER_MS
    p_sla = quantile(latency_ms, sla_percentile / 100)
    accel_queries, accel_items = _accel_share(answered, tasks)
    span_s = (done.max() - arrival.min()) / NS_PER_S if len(done) else math.nan
    reasons = [*extra]
    n_lost = int(len(measured) - len(answered))
    if n_lost:
        reasons.append(f"{n_lost} of {len(measured)} queries were lost")
    if late_p99 > max(LATE_MS, LATE_SLA_FRACTION * sla_ms):
        reasons.append(f"the generator was late: p99 lateness {late_p99:.2f} ms")
    if not math.isfinite(p_sla.high):
        reasons.append(
            f"too few queries: {len(answered)} do not bound p{sla_percentile:g} "
            f"(at least {queries_needed(sla_percentile / 100)} do)"
        )
    grown = queue_growth(arrival, done)
    if grown > max(GROWTH_FRACTION * len(answered), GROWTH_QUERIES):
        reasons.append(
            f"the queue was still growing: {grown} queries were waiting when the last one came"
        )
    return Summary(
        n_queries=len(answered),
        offered_qps=_offered_qps(intended),
        achieved_qps=len(answered) / span_s if len(answered) and span_s > 0 else math.nan,
        p50_ms=quantile(latency_ms, 0.50),
        p95_ms=quantile(latency_ms, 0.95),
        p99_ms=quantile(latency_ms, 0.99),
        sla_percentile=sla_percentile,
        p_sla_ms=p_sla,
        sla_ms=sla_ms,
        mean_latency_ms=_mean(latency_ms),
        mean_queue_ms=_mean((first_start - arrival) / NS_PER_MS),
        mean_compute_ms=_mean((done - first_start) / NS_PER_MS),
        accel_query_share=accel_queries,
        accel_item_share=accel_items,
        lateness_p50_ms=late_p50,
        lateness_p99_ms=late_p99,
        n_lost=n_lost,
        invalid_reasons=tuple(reasons),
    )


def _mean(values: FloatArray) -> float:
    return float(values.mean()) if len(values) else math.nan


def _offered_qps(arrival_ns: Int64Array) -> float:
    span_ns = int(arrival_ns[-1] - arrival_ns[0]) if len(arrival_ns) > 1 else 0
    return (len(arrival_ns) - 1) * NS_PER_S / span_ns if span_ns else math.nan


def _accel_share(answered: pd.DataFrame, tasks: pd.DataFrame) -> tuple[float, float]:
    """Share of the queries, and of the items, that went to the accelerator."""
    if answered.empty:
        return 0.0, 0.0
    counted = tasks[tasks["query_id"].isin(answered["query_id"])]
    offloaded = counted[counted["pool"] == ACCEL]
    item_share = float(offloaded["n_items"].sum() / counted["n_items"].sum())
    return offloaded["query_id"].nunique() / len(answered), item_share
