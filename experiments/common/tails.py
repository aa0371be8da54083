"""The tail of a run: how long its queries took once the warm-up is over."""

from __future__ import annotations

from dataclasses import astuple, dataclass

import numpy as np
import numpy.typing as npt

from backends.session import Session
from backends.tuning.probe import latencies_ms
from infra.results.quantiles import quantile
from infra.settings.config import RunConfig
from loadGenerator import Schedule, draw_schedule
from scheduler import Policy

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Tail:
    """Columns of a row: quantiles of the latency."""

    p50_ms: float
    p95_ms: float
    p99_ms: float


@dataclass(frozen=True)
class P95:
    """Columns of a row: p95 with its interval."""

    p95_ms: float
    low_ms: float
    high_ms: float


def load_for(
    seconds: float, config: RunConfig, rate_qps: float, run_id: int, fewest: int = 100
) -> Schedule:
    """So many seconds of load, but the fewest queries at least; a tenth of them is warm-up."""
    n = max(int(rate_qps * seconds), fewest)
    return draw_schedule(config, n, n // 10, rate_qps, run_id)


def warm_ms(session: Session, schedule: Schedule, policy: Policy) -> FloatArray:
    """Run the schedule; latencies of the queries after its warm-up."""
    return latencies_ms(session.run(schedule, policy))[schedule.n_warmup :]


def tail_of(latency_ms: FloatArray) -> Tail:
    """p50, p95 and p99."""
    return Tail(*np.quantile(latency_ms, (0.5, 0.95, 0.99)).tolist())


def p95_of(latency_ms: FloatArray) -> P95:
    """p95 with its interval."""
    return P95(*astuple(quantile(latency_ms, 0.95)))
