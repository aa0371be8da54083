"""Queues whose long run is known: engines, sizes, the law of a task's time, perhaps a drift.

A world makes runs as the product does (its schedules, its engines of virtual time, its rows), with
times that nobody but the world knows.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace

import numpy as np
from scipy import signal

from accelerator.service import Overhead, ServiceTable, TaskFactors
from backends.virtual.simulated import SimulatedSession
from infra.arrays import FloatArray
from infra.clock import NS_PER_MS
from infra.deployment import Deployment, one_model
from infra.messages import CPU
from infra.results.rows import Rows
from infra.settings.config import RunConfig, from_settings
from loadGenerator import Schedule, draw_schedule
from scheduler import Policy

LARGEST = 1024
CALL_MS = 0.3  # of a task of production sizes, and
ITEM_MS = 0.02  # of each of its items
NOISE = 0.05
DRIFT = 0.05  # its standard deviation, with the noise of tasks twice as large
MEMORY = 200  # tasks
WARM_UP = 200  # queries of a run
SEED = 11
NO_OVERHEAD = Overhead()


@dataclass(frozen=True)
class World:
    """`law` of a task's time around its mean: exponential, constant, noise or drift."""

    engines: int
    sizes: str  # one: of one task; production: cut into tasks of 64 items
    law: str

    @property
    def policy(self) -> Policy:
        """Which cuts production sizes and nothing else."""
        return Policy(64)

    @property
    def mean_ms(self) -> FloatArray:
        """Of a task, [items]."""
        if self.sizes == "one":
            return np.ones(LARGEST + 1)
        return CALL_MS + ITEM_MS * np.arange(LARGEST + 1, dtype=np.float64)

    def deployment(self, number: int) -> Deployment:
        """Engines of virtual time for Poisson arrivals; the seed of the long walks is the run's."""
        inputs = replace(self._config.inputs, numpy_rand_seed=number)
        return one_model(replace(self._config, inputs=inputs), self.engines)

    @functools.cached_property
    def _config(self) -> RunConfig:
        sizes: dict[str, str | int] = {"batch_size_distribution": "production"}
        if self.sizes == "one":
            sizes = {"batch_size_distribution": "fixed", "avg_mini_batch_size": 8}
        return from_settings(
            {
                "queue": True,
                "backend": "simulated",
                "arrival_process": "exponential",
                "max_mini_batch_size": LARGEST,
                "num_batches": 64,
                "inference_engines": self.engines,
                **sizes,
            }
        )

    def rate_qps(self, utilisation: float) -> float:
        """The rate at which the engines are so busy."""
        return utilisation * self.engines * 1e3 / self._work_ms

    @functools.cached_property
    def _work_ms(self) -> float:
        """Mean work of a query."""
        schedule = draw_schedule(self._config, 4_000_000, 0, 1.0, 7)
        counts = np.bincount(schedule.n_items)
        items = np.arange(len(counts))
        whole, rest = np.divmod(items, self.policy.batch_items)
        mean_ms = self.mean_ms
        work = whole * mean_ms[self.policy.batch_items] + np.where(rest > 0, mean_ms[rest], 0)
        return float((work * counts).sum() / counts.sum())

    def schedule(self, utilisation: float, n: int, number: int, n_warmup: int = 0) -> Schedule:
        """A load of n queries after the warm-up, drawn as the product does."""
        rate_qps = self.rate_qps(utilisation)
        return draw_schedule(self._config, n + n_warmup, n_warmup, rate_qps, number)

    def run(self, schedule: Schedule, number: int) -> Rows:
        """Serve the schedule with times that depend on the run's number."""
        return self.session(schedule, _stream(number)).run(schedule, self.policy)

    def latencies_ms(self, schedule: Schedule, number: int) -> FloatArray:
        """The same without rows, for long runs."""
        session = self.session(schedule, _stream(number))
        return session.answers(schedule, self.policy).latencies_ms(schedule)

    def session(
        self,
        schedule: Schedule,
        rng: np.random.Generator,
        longer: float = 1.0,
        overhead: Overhead = NO_OVERHEAD,
    ) -> SimulatedSession:
        """Engines for this schedule; tasks take `longer` times the world's, after an overhead."""
        n_tasks = -(-schedule.n_items.astype(np.int64) // self.policy.batch_items)
        first = np.concatenate([[0], np.cumsum(n_tasks)]).astype(np.int64)
        factors = TaskFactors(first, self._factors(rng, int(first[-1])))
        mean_ns = np.rint(longer * self.mean_ms * NS_PER_MS).astype(np.int64)[None, :]
        table = ServiceTable(mean_ns, cpu_overhead=overhead, task_factors=factors)
        return SimulatedSession({CPU: self.engines}, table)

    def _factors(self, rng: np.random.Generator, n: int) -> FloatArray:
        match self.law:
            case "exponential":
                return rng.exponential(1.0, n)
            case "constant":
                return np.ones(n)
            case "noise":
                return lognormal(rng.normal(0, NOISE, n), NOISE)
            case "drift":
                noise = lognormal(rng.normal(0, 2 * NOISE, n), 2 * NOISE)
                return noise * lognormal(_drift(rng.normal(size=n), MEMORY, DRIFT), DRIFT)
            case law:
                raise ValueError(f"unknown law {law!r}")


def _stream(number: int) -> np.random.Generator:
    return np.random.default_rng([SEED, number])


def lognormal(logs: FloatArray, spread: float) -> FloatArray:
    """Factors of mean 1, from normal logs of this spread."""
    factors: FloatArray = np.exp(logs - spread**2 / 2)
    return factors


def _drift(normal: FloatArray, memory: float, spread: float) -> FloatArray:
    """A first-order autoregression with this memory in steps, steady from its first value on."""
    kept = math.exp(-1 / memory)
    fresh = spread * math.sqrt(1 - kept * kept)
    drift: FloatArray = signal.lfilter(
        [fresh], [1.0, -kept], normal, zi=[(spread - fresh) * normal[0]]
    )[0]
    return drift


WORLDS = {
    "M/M/1": World(1, "one", "exponential"),
    "M/D/1": World(1, "one", "constant"),
    "production, 2 engines": World(2, "production", "noise"),
    "production, 40 engines": World(40, "production", "noise"),
    "production, 2 engines, drift": World(2, "production", "drift"),
    "production, 40 engines, drift": World(40, "production", "drift"),
}
