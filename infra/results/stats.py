"""From rows to numbers that hold: quantiles with intervals, the warm-up cut, VALID or INVALID."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from infra.arrays import FloatArray, Int64Array
from infra.clock import NS_PER_MS, NS_PER_S
from infra.messages import ACCEL
from infra.results.long_run import LongRun
from infra.results.quantiles import Busy, Estimate, finite, queries_needed, queue_quantile

# The generator is late if its p99 lateness exceeds both of these.
LATE_MS = 1.0
LATE_SLA_FRACTION = 0.05
# The queue grows if more queries than both of these piled up during the run.
GROWTH_FRACTION = 0.05
GROWTH_QUERIES = 20


@dataclass(frozen=True, slots=True)
class Summary:
    """A measuring run: latency is answer minus INTENDED arrival; warm-up queries are left out.

    Percentiles are those of this run, with the interval of the endless one as far as so many
    latencies of a queue tell it (else its bounds are infinite); `long_run` is told from the tasks.
    """

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
    long_run: LongRun | None = None

    def with_long_run(self, long_run: LongRun) -> Summary:
        """With what the run tells of the endless one; above capacity it is INVALID."""
        reasons = self.invalid_reasons
        busiest = long_run.busiest
        if busiest is not None and long_run.is_above_capacity:
            steady = f"above capacity: no steady state at a utilisation of {busiest.value:.2f}"
            reasons = (*reasons, f"{steady} ({busiest.low:.2f} to {busiest.high:.2f})")
        return dataclasses.replace(self, long_run=long_run, invalid_reasons=reasons)

    @property
    def sla_tail_ms(self) -> Estimate:
        """The SLA's percentile in the long run; of this run where that is not told."""
        told = self.long_run.percentiles.get(self.sla_percentile) if self.long_run else None
        return told or self.p_sla_ms

    @property
    def sla_verdict(self) -> str:
        """`met`, `missed` or `undecided` in the long run."""
        if self.long_run is not None and self.long_run.is_above_capacity:
            return "missed"
        tail = self.sla_tail_ms
        if tail.high <= self.sla_ms:
            return "met"
        return "missed" if tail.low > self.sla_ms else "undecided"

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
            if isinstance(value, Estimate | LongRun):
                value = value.as_json()
            document[field.name] = finite(value) if isinstance(value, float) else value
        document["invalid_reasons"] = list(self.invalid_reasons)
        verdicts = {"meets_sla": self.meets_sla, "sla_verdict": self.sla_verdict}
        return {**document, "valid": self.valid, **verdicts}


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
    busy = _busiest(answered, tasks)
    p50, p95, p99, p_sla = (
        queue_quantile(latency_ms, p, busy) for p in (0.5, 0.95, 0.99, sla_percentile / 100)
    )
    accel_queries, accel_items = _accel_share(answered, tasks)
    span_s = (done.max() - arrival.min()) / NS_PER_S if len(done) else math.nan
    reasons = [*extra]
    n_lost = int(len(measured) - len(answered))
    if n_lost:
        reasons.append(f"{n_lost} of {len(measured)} queries were lost")
    if late_p99 > max(LATE_MS, LATE_SLA_FRACTION * sla_ms):
        reasons.append(f"the generator was late: p99 lateness {late_p99:.2f} ms")
    fewest = queries_needed(sla_percentile / 100)
    if len(answered) < fewest:
        reasons.append(
            f"too few queries: {len(answered)} do not bound p{sla_percentile:g} "
            f"(at least {fewest} do)"
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
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
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


def _busiest(answered: pd.DataFrame, tasks: pd.DataFrame) -> Busy | None:
    """How busy the engines of the busiest pool were; None where the tasks are not known."""
    counted = tasks[tasks["query_id"].isin(answered["query_id"])]
    if counted.empty:
        return None
    span_ns = float(counted["end_ns"].max() - counted["start_ns"].min())
    pools = [_busy(pool, len(answered), span_ns) for _, pool in counted.groupby("pool")]
    return max(pools, key=lambda busy: busy.autocorrelation_time)


def _busy(tasks: pd.DataFrame, n_queries: int, span_ns: float) -> Busy:
    """Of a pool's engines, as far as they had a task at all; merged tasks took their time once."""
    took_ns = (tasks["end_ns"] - tasks["start_ns"]).astype(float)
    took_ns /= tasks.groupby(["engine", "start_ns"])["end_ns"].transform("size")
    of_query = took_ns.groupby(tasks["query_id"]).sum().to_numpy()
    mean_ns = float(of_query.sum()) / n_queries  # queries that had no task here brought no work
    mean_square = float((of_query**2).sum()) / n_queries
    cs2 = max(0.0, mean_square / mean_ns**2 - 1) if mean_ns else 0.0
    return Busy(float(of_query.sum()) / (tasks["engine"].nunique() * max(span_ns, 1.0)), cs2)
