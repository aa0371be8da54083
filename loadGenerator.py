"""The load: arrival processes and query sizes -> a Schedule drawn before the run, and its Pacer.

Open loop: nothing that happens in the run changes the schedule, and latency runs from the scheduled
arrival. Arrivals, sizes and inputs have random streams of their own (infra.rng), so that another
law for one of them leaves the others alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import special

from infra.arrays import FloatArray, Int32Array, Int64Array
from infra.clock import NS_PER_S
from infra.load.arrivals import STEADY, draw_diurnal_ns, draw_gaps_ns, draw_modulated_ns
from infra.load.files import read_arrivals_ns, read_numbers, read_rate_curve, read_sizes, read_trace
from infra.messages import Query
from infra.rng import stream
from infra.settings.config import InputConfig, LoadConfig, RunConfig

# MLPerf Inference, DLRM-v2 (2024): user-item pairs of a sample, 20 equally likely quantiles.
MLPERF_ITEMS = (100, 100, *(200,) * 12, 300, 300, 400, 500, 600, 700)

# `production`: facts stated by Gupta et al., ISCA 2020 (heavier tail than a lognormal, the largest
# quarter of the queries about half of the work, at most about 1,000 items). Body: lognormal; from
# its upper quartile on a Pareto tail.
PRODUCTION_MEDIAN = 90.0
PRODUCTION_SIGMA = 0.45
PRODUCTION_TAIL_INDEX = 1.9
PRODUCTION_TAIL_SHARE = 0.25
PRODUCTION_MAX = 1024

FEWEST_BURSTS = 10  # expected in a run of bursty arrivals


@dataclass(frozen=True)
class Schedule:
    """A run's load: `arrival_ns` int64[n], `n_items` and `input_id` int32[n].

    Arrivals count from the run's start and do not descend. The first `n_warmup` queries are left
    out of the statistics.
    """

    arrival_ns: Int64Array
    n_items: Int32Array
    input_id: Int32Array
    n_warmup: int = 0

    def __post_init__(self) -> None:
        if not len(self.arrival_ns) == len(self.n_items) == len(self.input_id):
            raise ValueError("a schedule's arrays differ in length")
        if len(self) and (np.diff(self.arrival_ns) < 0).any():
            raise ValueError("a schedule's arrivals must not descend")

    def __len__(self) -> int:
        return len(self.arrival_ns)

    @property
    def rate_qps(self) -> float:
        """Arrivals per second, from the run's start to the last."""
        return len(self) * NS_PER_S / max(int(self.arrival_ns[-1]), 1) if len(self) else 0.0

    def query(self, i: int) -> Query:
        """The i-th query; its id is i."""
        return Query(i, int(self.arrival_ns[i]), int(self.n_items[i]), int(self.input_id[i]))


def draw_schedule(
    config: RunConfig, n_queries: int, n_warmup: int, rate_qps: float, run_index: int = 0
) -> Schedule:
    """The whole load of a run; `run_index` numbers the runs of a session, each with new streams."""
    rng = stream(config.inputs.numpy_rand_seed, "arrivals", run_index)
    arrival_ns = draw_arrivals_ns(config.load, rate_qps, n_queries, rng)
    return Schedule(arrival_ns, *_draw_queries(config, n_queries, run_index), n_warmup)


def burst(config: RunConfig, n_queries: int, run_index: int) -> Schedule:
    """n_queries at once: what the engines carry when they never wait (for measuring capacity)."""
    return Schedule(np.zeros(n_queries, np.int64), *_draw_queries(config, n_queries, run_index))


def schedule_of(queries: pd.DataFrame) -> Schedule:
    """The load of a saved run (`queries.parquet`)."""
    return Schedule(
        queries["arrival_ns"].to_numpy(np.int64),
        queries["n_items"].to_numpy(np.int32),
        queries["input_id"].to_numpy(np.int32),
        int(queries["is_warmup"].sum()),
    )


def _draw_queries(config: RunConfig, n: int, run_index: int) -> tuple[Int32Array, Int32Array]:
    """n sizes and n input ids."""
    inputs = config.inputs
    of_sizes = stream(inputs.numpy_rand_seed, "sizes", run_index)
    of_inputs = stream(inputs.numpy_rand_seed, "inputs of queries", run_index)
    sizes = draw_sizes(config.load, inputs.max_mini_batch_size, n, of_sizes)
    return sizes, draw_input_ids(inputs, n, of_inputs)


def draw_arrivals_ns(
    load: LoadConfig, rate_qps: float, n: int, rng: np.random.Generator
) -> Int64Array:
    """n arrivals in ns from the run's start, ascending; `arrival_process` names the law.

    Raises ConfigError.
    """
    match load.arrival_process:
        case "file":
            return read_arrivals_ns(load.arrival_file, n)
        case "trace":
            return read_trace(load.arrival_file, n, load.arrival_time_scale)
        case "diurnal":
            curve = read_rate_curve(load.arrival_file, load.arrival_time_scale)
            return draw_diurnal_ns(curve, rate_qps, n, rng)
        case "mmpp":
            return draw_modulated_ns(load, rate_qps, n, rng)
        case _:
            arrival_ns: Int64Array = np.cumsum(draw_gaps_ns(load, rate_qps, n, rng))
            return arrival_ns


def draw_sizes(load: LoadConfig, max_items: int, n: int, rng: np.random.Generator) -> Int32Array:
    """n query sizes in items, cut to 1..max_items; `batch_size_distribution` names the law."""
    mean = load.avg_mini_batch_size
    spread = load.var_mini_batch_size
    sizes: FloatArray
    match load.batch_size_distribution:
        case "fixed":
            sizes = np.full(n, mean)
        case "normal":
            sizes = rng.normal(mean, spread, n)
        case "lognormal":
            sizes = rng.lognormal(mean, spread, n)
        case "file":
            sizes = rng.choice(read_numbers("batch_dist_file", load.batch_dist_file), n)
        case "mlperf":
            sizes = rng.choice(np.array(MLPERF_ITEMS, dtype=float), n)
        case "production":
            sizes = production_quantile(rng.random(n))
        case "trace":
            return read_sizes(load.arrival_file, n, max_items)
        case law:
            raise ValueError(f"unknown batch_size_distribution {law!r}")
    whole: Int32Array = np.clip(np.rint(sizes), 1, max_items).astype(np.int32)
    return whole


def production_quantile(u: FloatArray) -> FloatArray:
    """Quantile function of the `production` sizes, u in [0, 1).

    The body is lognormal, the tail beyond its knee Pareto, cut at PRODUCTION_MAX.
    """
    body_share = 1 - PRODUCTION_TAIL_SHARE
    body = PRODUCTION_MEDIAN * np.exp(PRODUCTION_SIGMA * special.ndtri(np.minimum(u, body_share)))
    knee = PRODUCTION_MEDIAN * math.exp(PRODUCTION_SIGMA * special.ndtri(body_share))
    cut_off = (PRODUCTION_MAX / knee) ** -PRODUCTION_TAIL_INDEX  # share of the uncut tail
    v = np.clip((u - body_share) / PRODUCTION_TAIL_SHARE, 0, 1)
    tail = knee * (1 - v * (1 - cut_off)) ** (-1 / PRODUCTION_TAIL_INDEX)
    sizes: FloatArray = np.where(u < body_share, body, tail)
    return sizes


def draw_input_ids(inputs: InputConfig, n: int, rng: np.random.Generator) -> Int32Array:
    """n input ids: pass after pass over the pool, each in a fresh random order."""
    passes = [rng.permutation(inputs.num_batches) for _ in range(math.ceil(n / inputs.num_batches))]
    return np.concatenate(passes)[:n].astype(np.int32)


class CommonLoad:
    """The same sizes, inputs and relative gaps at any rate (common random numbers).

    So two rates or policies differ by themselves and not by luck.
    """

    def __init__(self, config: RunConfig, n_queries: int, run_index: int = 0) -> None:
        process = config.load.arrival_process
        if process not in STEADY:
            raise ValueError(f"arrivals of process {process} are no others at another rate")
        self._config = config
        self._n_queries = n_queries
        self._run_index = run_index
        self._at_one_qps = self._draw(n_queries, 1.0)

    def _draw(self, n_queries: int, rate_qps: float) -> Schedule:
        return draw_schedule(self._config, n_queries, 0, rate_qps, self._run_index)

    @property
    def size_range(self) -> tuple[int, int]:
        """Items of the smallest and of the largest query."""
        return int(self._at_one_qps.n_items.min()), int(self._at_one_qps.n_items.max())

    def at(self, rate_qps: float, n_queries: int | None = None) -> Schedule:
        """The first `n_queries` at this rate, without a warm-up; by default all of them."""
        n = n_queries or self._n_queries
        if n > len(self._at_one_qps):  # equal streams give an equal beginning
            self._at_one_qps = self._draw(2 * n, 1.0)
        if self._config.load.arrival_process == "legacy":  # whole ms: another law at every rate
            return self._draw(n, rate_qps)
        unit = self._at_one_qps
        arrival_ns = np.rint(unit.arrival_ns[:n] / rate_qps).astype(np.int64)
        return Schedule(arrival_ns, unit.n_items[:n], unit.input_id[:n])


class Pacer:
    """Walks a schedule: which queries are due, and how long until the next. It owns no clock."""

    def __init__(self, schedule: Schedule) -> None:
        columns = (schedule.arrival_ns, schedule.n_items, schedule.input_id)
        self._queries = [*map(Query, range(len(schedule)), *(c.tolist() for c in columns))]
        self._next = 0

    def due(self, now_ns: int) -> Iterator[Query]:
        """The queries whose arrival has come, in order, each of them once."""
        while self._next < len(self._queries) and self._queries[self._next].arrival_ns <= now_ns:
            self._next += 1
            yield self._queries[self._next - 1]

    def coming(self, k: int) -> Query | None:
        """The query that comes after k others; None beyond the last."""
        at = self._next + k
        return self._queries[at] if at < len(self._queries) else None

    @property
    def next_ns(self) -> int | None:
        """The next arrival, or None after the last."""
        query = self.coming(0)
        return None if query is None else query.arrival_ns


def check_files(config: RunConfig) -> None:
    """Raise ConfigError if a file that the load needs cannot be used; called before any start."""
    load = config.load
    rng = stream(config.inputs.numpy_rand_seed, "check")
    if load.arrival_process in ("file", "trace", "diurnal"):
        draw_arrivals_ns(load, load.rate_qps, config.n_queries, rng)
    if load.batch_size_distribution in ("file", "trace"):
        draw_sizes(load, config.inputs.max_mini_batch_size, config.n_queries, rng)


def too_short(config: RunConfig, schedule: Schedule) -> tuple[str, ...]:
    """Why a run does not show its load: the rate curve is not over, or there are too few bursts."""
    load = config.load
    match load.arrival_process:
        case "diurnal":
            curve = read_rate_curve(load.arrival_file, load.arrival_time_scale)
            needed_s = float(curve.time_s[-1])
            what = "one round of the rate curve"
        case "mmpp":
            needed_s = FEWEST_BURSTS * load.arrival_burst_s / load.arrival_burst_share
            what = f"{FEWEST_BURSTS} bursts"
        case _:
            return ()
    lasts_s = int(schedule.arrival_ns[-1]) / NS_PER_S if len(schedule) else 0.0
    if lasts_s >= 0.99 * needed_s:
        return ()
    return (f"the arrivals last {lasts_s:.3g} s, {what} {needed_s:.3g} s",)
