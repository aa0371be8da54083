"""Service times of virtual time: how long each task of a run takes, on its engine and offloaded.

One table for every source: profiles with their spread, laws for checks against theory, the tasks of
a real run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numba
import numpy as np
from scipy import special

from accelerator.latency import Profile, service_times_ns
from infra.arrays import FloatArray, Int64Array
from infra.clock import NS_PER_MS, NS_PER_US
from infra.messages import ACCEL, CPU

MOST_PARTS = 1 << 20  # of a query
_STAGES = 1 << 4
_LAW_POINTS = 1 << 16


class Times(NamedTuple):
    """A ServiceTable as the compiled code reads it."""

    cpu_ns: Int64Array
    accel_ns: Int64Array
    factors: FloatArray
    cpu_row: Int64Array
    accel_row: Int64Array
    first: Int64Array
    recorded_ns: Int64Array
    delays_ns: Int64Array
    task_factors: FloatArray
    cpu_overhead: tuple[int, int]
    accel_overhead: tuple[int, int]
    stolen_ns: int
    seed: int


@dataclass(frozen=True)
class Recording:
    """The very times of a real run's tasks in one stage, by query and part.

    Those of query i are `ns[first[i] : first[i + 1]]`. `delays_ns`: from when a task was due and
    its engine free to its start. `choosing_ns` [query]: from the stage's last end until its best
    items were chosen; empty where the stage does not choose.
    """

    first: Int64Array
    ns: Int64Array
    delays_ns: Int64Array
    choosing_ns: Int64Array = field(default_factory=lambda: np.zeros(0, np.int64))


@dataclass(frozen=True)
class TaskFactors:
    """What each task's time is multiplied by, by query and part.

    Those of query i are `factors[first[i] : first[i + 1]]`.
    """

    first: Int64Array
    factors: FloatArray


@dataclass(frozen=True)
class Overhead:
    """What passes before a task begins.

    `wake_ns`: from when it is due, on an idle engine. `gap_ns`: from the end of the engine's task
    before, on a busy one.
    """

    wake_ns: int = 0
    gap_ns: int = 0


@dataclass(frozen=True)
class ServiceTable:
    """Service times of a stage in ns by number of items, index 0 unused.

    `cpu_ns` [busy neighbours, items]: on the stage's own pool (whatever its device), a row for 0,
    1, ... other busy engines on its cores, the last for all beyond. `accel_ns` [accelerator,
    items]: a row each. `factors` [row, k]: a task's time is multiplied by one of the k factors in
    the row that `cpu_row` or `accel_row` [items] names (-1: none), drawn by query, stage, part and
    `seed`, so it is the same for every policy and rate (common random numbers). `task_factors`: a
    factor for each task of one schedule, in place of drawn ones. `stolen_ns`: a CPU task takes so
    much longer for each query that arrives while it runs. `recording`: the times themselves, in
    place of all that.
    """

    cpu_ns: Int64Array
    accel_ns: Int64Array = field(default_factory=lambda: np.zeros((0, 1), np.int64))
    factors: FloatArray = field(default_factory=lambda: np.ones((0, 1)))
    cpu_row: Int64Array | None = None
    accel_row: Int64Array | None = None
    cpu_overhead: Overhead = Overhead()
    accel_overhead: Overhead = Overhead()
    stolen_ns: int = 0
    seed: int = 0
    recording: Recording | None = None
    task_factors: TaskFactors | None = None

    def __post_init__(self) -> None:
        if self.cpu_ns.ndim != 2 or self.accel_ns.ndim != 2 or not len(self.cpu_ns):
            raise ValueError(
                "a service table needs cpu_ns [busy neighbours, items] and accel_ns [accelerator, "
                "items]"
            )
        if self.factors.ndim != 2:
            raise ValueError("a service table needs factors [row, k]")
        if (
            (self.cpu_ns[:, 1:] <= 0).any()
            or (self.accel_ns[:, 1:] <= 0).any()
            or not (self.factors > 0).all()
        ):
            raise ValueError("service times and their factors must be above 0")

    @property
    def max_items(self) -> int:
        """Largest task with a time."""
        widths = [
            self.cpu_ns.shape[1] - 1,
            *([self.accel_ns.shape[1] - 1] if len(self.accel_ns) else []),
        ]
        return int(min(widths))

    def times(self) -> Times:
        """The table as compiled code reads it."""
        none = np.full(self.max_items + 1, -1, np.int64)
        recording = self.recording or Recording(
            np.zeros(1, np.int64), *(np.zeros(0, np.int64) for _ in range(2))
        )
        by_task = self.task_factors or TaskFactors(recording.first, np.zeros(0))
        return Times(
            np.ascontiguousarray(self.cpu_ns),
            np.ascontiguousarray(self.accel_ns),
            np.ascontiguousarray(self.factors),
            none if self.cpu_row is None else self.cpu_row,
            none if self.accel_row is None else self.accel_row,
            by_task.first,
            recording.ns,
            recording.delays_ns,
            by_task.factors,
            (self.cpu_overhead.wake_ns, self.cpu_overhead.gap_ns),
            (self.accel_overhead.wake_ns, self.accel_overhead.gap_ns),
            self.stolen_ns,
            self.seed,
        )

    def overhead(self, pool: str) -> Overhead:
        """What passes before a task of this pool begins."""
        return self.accel_overhead if pool == ACCEL else self.cpu_overhead


@dataclass(frozen=True)
class ServiceTimes:
    """A deployment's times: a table for every stage, and what choosing the best items takes.

    `on_cores`: pools whose engines are neighbours. A query passes from a stage that chooses to the
    next `filter_ns + filter_item_ns x items` after its last part has ended.
    """

    tables: tuple[ServiceTable, ...]
    on_cores: frozenset[str] = frozenset({CPU})
    filter_ns: int = 0
    filter_item_ns: float = 0.0

    @property
    def is_recorded(self) -> bool:
        """Whether the times are those of a real run's tasks."""
        return any(table.recording is not None for table in self.tables)

    def choosing_ns(self, query_id: int, stage: int, n_items: int) -> int:
        """ns from the end of a stage with `n_items` items until its best are chosen."""
        recording = self.tables[stage].recording
        if recording is not None:
            return int(recording.choosing_ns[query_id]) if len(recording.choosing_ns) else 0
        return self.filter_ns + int(self.filter_item_ns * n_items)


@numba.njit(cache=True)
def drawn_index(query_id: int, stage: int, part: int, seed: int, n: int) -> int:
    """A number in [0, n) drawn by what it is for.

    splitmix64 (Steele, Lea and Flood, 2014) of its coordinates.
    """
    z = np.uint64((query_id * _STAGES + stage) * MOST_PARTS + part) + np.uint64(seed) * np.uint64(
        0xD1B54A32D192ED03
    )
    z += np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return int(np.int64(((z >> np.uint64(32)) * np.uint64(n)) >> np.uint64(32)))


def law_factors(law: str, cv: float = 1.0) -> FloatArray:
    """[1, k] equally likely factors with mean 1 of a law; `cv`: lognormal's standard deviation.

    Each stands for its share of the law (the quantile at its middle), 65,536 shares; the mean is
    exact.
    """
    u = (np.arange(_LAW_POINTS) + 0.5) / _LAW_POINTS
    match law:
        case "exponential":
            factors = -np.log1p(-u)
        case "deterministic":
            factors = np.ones(1)
        case "lognormal":
            factors = np.exp(np.sqrt(np.log1p(cv**2)) * special.ndtri(u))
        case unknown:
            raise ValueError(f"unknown law {unknown!r}")
    return np.atleast_2d(factors / factors.mean())


def table_of_law(
    law: str, mean_ms: float, cv: float, max_items: int, n_accel: int, seed: int
) -> ServiceTable:
    """Every task takes `mean_ms` in the mean, whatever its size, its engine and its neighbours."""
    ns = np.full((1, max_items + 1), round(mean_ms * NS_PER_MS), np.int64)
    row = np.zeros(max_items + 1, np.int64)
    return ServiceTable(
        ns, np.repeat(ns, n_accel, axis=0), law_factors(law, cv), row, row, seed=seed
    )


def table_of_profiles(
    cpu: Profile, accels: Sequence[Profile], max_items: int, seed: int
) -> ServiceTable:
    """A stage's engines and any accelerators by their profiles.

    Each task has the spread of the nearest profiled batch; the accelerators share the spread and
    the overhead of the first.
    """
    cpu_ns = service_times_ns(cpu, max_items)
    accel_ns = [service_times_ns(p, max_items)[0] for p in accels]
    factors: list[FloatArray] = []
    rows: list[Int64Array] = []
    for profile in (cpu, *accels[:1]):
        spread, row = _spread_rows(profile, max_items)
        rows.append(row + np.where(row >= 0, len(factors), 0))
        factors += spread
    return ServiceTable(
        cpu_ns,
        np.array(accel_ns, np.int64).reshape(len(accels), max_items + 1),
        np.array(factors) if factors else np.ones((0, 1)),
        rows[0],
        rows[1] if accels else None,
        _overhead(cpu),
        _overhead(accels[0]) if accels else Overhead(),
        round(cpu.arrival_us * NS_PER_US),
        seed,
    )


def _overhead(profile: Profile) -> Overhead:
    return Overhead(round(profile.wake_us * NS_PER_US), round(profile.gap_us * NS_PER_US))


def _spread_rows(profile: Profile, max_items: int) -> tuple[list[FloatArray], Int64Array]:
    """The spread of every profiled batch, and which is nearest to each size (in the logarithm)."""
    sizes = sorted(profile.spread)
    if not sizes:
        return [], np.full(max_items + 1, -1, np.int64)
    bounds = np.sqrt(np.array(sizes[:-1], float) * np.array(sizes[1:], float))
    row = np.searchsorted(bounds, np.arange(max_items + 1)).astype(np.int64)
    return [np.array(profile.spread[n]) for n in sizes], row
