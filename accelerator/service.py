"""Service times of virtual time: how long each task of a run takes, on a CPU engine and on an
accelerator.

One table for every source: profiles with their spread, laws for checks against theory, the tasks of
a real run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import special

from accelerator.devices import accelerator_root, derived_profile, latency_profile, load_device
from accelerator.latency import Profile, read_profile, service_times_ns
from infra.clock import NS_PER_MS, NS_PER_US
from infra.messages import ACCEL, CPU
from infra.results.rows import Rows
from infra.results.run_folder import read
from infra.settings.config import ConfigError, RunConfig

Int64Array = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

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
    cpu_overhead: tuple[int, int]
    accel_overhead: tuple[int, int]
    stolen_ns: int
    seed: int


@dataclass(frozen=True)
class Recording:
    """The very times of a real run's tasks, one stage: those of query i are ns[first[i] :
    first[i + 1]], by part.

    `delays_ns`: from when the task was due and its engine free to its start.
    """

    first: Int64Array
    ns: Int64Array
    delays_ns: Int64Array


@dataclass(frozen=True)
class Overhead:
    """What passes before a task begins: `wake_ns` from when it is due on an engine that is idle,
    `gap_ns` from the end of the engine's task before on one that is busy.
    """

    wake_ns: int = 0
    gap_ns: int = 0


@dataclass(frozen=True)
class ServiceTable:
    """Service times in ns by number of items, index 0 unused.

    `cpu_ns` [busy neighbours, items]: a row for 0, 1, ... other busy CPU engines, the last for all
    beyond. `accel_ns` [accelerator, items]: a row each. `factors` [row, k]: a task's time is
    multiplied by one of the k factors in the row that `cpu_row` or `accel_row` [items] names (-1:
    none), drawn by query, stage, part and `seed`, so it is the same for every policy and rate
    (common random numbers). `stolen_ns`: a CPU task takes so much longer for each query that
    arrives while it runs. `recording`: the times themselves, in place of all that.
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
        """For compiled code."""
        none = np.full(self.max_items + 1, -1, np.int64)
        recording = self.recording or Recording(
            np.zeros(1, np.int64), *(np.zeros(0, np.int64) for _ in range(2))
        )
        return Times(
            np.ascontiguousarray(self.cpu_ns),
            np.ascontiguousarray(self.accel_ns),
            np.ascontiguousarray(self.factors),
            none if self.cpu_row is None else self.cpu_row,
            none if self.accel_row is None else self.accel_row,
            recording.first,
            recording.ns,
            recording.delays_ns,
            (self.cpu_overhead.wake_ns, self.cpu_overhead.gap_ns),
            (self.accel_overhead.wake_ns, self.accel_overhead.gap_ns),
            self.stolen_ns,
            self.seed,
        )

    def overhead(self, pool: str) -> Overhead:
        """Of a task in this pool."""
        return self.accel_overhead if pool == ACCEL else self.cpu_overhead


@numba.njit(cache=True)
def drawn_index(query_id: int, stage: int, part: int, seed: int, n: int) -> int:
    """A number in [0, n) drawn by what it is for: splitmix64 (Steele, Lea and Flood, 2014) of its
    coordinates.
    """
    z = np.uint64((query_id * _STAGES + stage) * MOST_PARTS + part) + np.uint64(seed) * np.uint64(
        0xD1B54A32D192ED03
    )
    z += np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return np.int64(((z >> np.uint64(32)) * np.uint64(n)) >> np.uint64(32))  # type: ignore[return-value]


def law_factors(law: str, cv: float = 1.0) -> FloatArray:
    """[1, k] equally likely factors with mean 1: exponential, deterministic, or lognormal with
    standard deviation `cv`.

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
        case other:
            raise ValueError(f"unknown law {other!r}")
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
    """A CPU engine and any accelerators by their profiles, each task with the spread of the nearest
    profiled batch.

    The accelerators share the spread and the overhead of the first.
    """
    cpu_ns = service_times_ns(cpu, max_items)
    accel_ns = [service_times_ns(p, max_items)[0] for p in accels]
    factors: list[FloatArray] = []
    rows: list[Int64Array] = []
    for profile in (cpu, *accels[:1]):
        own, row = _spread_rows(profile, max_items)
        rows.append(row + np.where(row >= 0, len(factors), 0))
        factors += own
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


def service_of(config: RunConfig) -> tuple[ServiceTable, dict[str, Any]]:
    """The service times that a run's settings name, and where they come from; raises ConfigError."""
    simulation = config.simulation
    accels = config.engines.accel_devices if config.engines.model_accel else ()
    seed = config.inputs.numpy_rand_seed
    max_items = config.inputs.max_mini_batch_size
    law = simulation.service_law
    if law == "replay":
        table = ServiceTable(
            np.ones((1, 2), np.int64), recording=recording_of(replayed_rows(config))
        )
        return table, {
            "law": law,
            "source": f"the tasks of {Path(simulation.service_profile).name}",
        }
    if law != "profile":
        mean_ms = simulation.service_mean_ms
        cv = simulation.service_cv
        shown = f"{law}, mean {mean_ms:g} ms" + (
            f", coefficient of variation {cv:g}" if law == "lognormal" else ""
        )
        return table_of_law(law, mean_ms, cv, max_items, len(accels), seed), {
            "law": law,
            "source": shown,
        }
    cpu = service_profile(config)
    root = accelerator_root(config.engines.accel_root_dir)
    devices = [load_device(root, name) for name in accels]
    profiles = [
        derived_profile(device, config.model.name, cpu)
        if device.kind == "speedup"
        else latency_profile(device, config.model, max_items)
        for device in devices
    ]
    facts = {
        "law": law,
        "source": f"{simulation.service_profile}: "
        f"{cpu.provenance.get('source', 'no source stated')}",
        "cpu": dict(cpu.provenance),
        "accelerators": [dict(profile.provenance) for profile in profiles],
    }
    return table_of_profiles(cpu, profiles, max_items, seed), facts


def service_profile(config: RunConfig) -> Profile:
    """The CPU engine's times: of a device folder, or of a file; raises ConfigError."""
    name = config.simulation.service_profile
    try:
        if Path(name).is_file():
            return read_profile(Path(name))
        device = load_device(accelerator_root(config.engines.accel_root_dir), name)
        return latency_profile(device, config.model, config.inputs.max_mini_batch_size)
    except ConfigError as error:
        said = (
            str(error)
            .removeprefix("accel_device ")
            .replace("expected cuda or a", "expected a profile's file or a")
        )
        raise ConfigError("service_profile", said) from error
    except ValueError as error:
        raise ConfigError("service_profile", str(error)) from error


def replayed_rows(config: RunConfig) -> Rows:
    """The run whose schedule and tasks are replayed; raises ConfigError."""
    folder = Path(config.simulation.service_profile)
    try:
        rows = read(folder).rows()
        recording_of(rows)
    except (OSError, ValueError, KeyError) as error:
        said = " ".join(str(error).split())
        raise ConfigError(
            "service_profile",
            f"is {str(folder)!r}; service_law replay expects the folder of a saved run: {said}",
        ) from error
    return rows


def _overhead(profile: Profile) -> Overhead:
    return Overhead(round(profile.wake_us * NS_PER_US), round(profile.gap_us * NS_PER_US))


def _spread_rows(profile: Profile, max_items: int) -> tuple[list[FloatArray], Int64Array]:
    """The spread of every profiled batch, and for every size which of them is nearest (in the
    logarithm).
    """
    sizes = sorted(profile.spread)
    if not sizes:
        return [], np.full(max_items + 1, -1, np.int64)
    bounds = np.sqrt(np.array(sizes[:-1], float) * np.array(sizes[1:], float))
    row = np.searchsorted(bounds, np.arange(max_items + 1)).astype(np.int64)
    return [np.array(profile.spread[n]) for n in sizes], row


def recording_of(rows: Rows) -> Recording:
    """The times of a run's tasks, every part of queries 0 .. n - 1 once, one stage.

    Raises ValueError if a query is missing or has parts missing.
    """
    tasks = rows.tasks.assign(delay_ns=_delays(rows)[0]).sort_values(["query_id", "part"])
    query_id = tasks["query_id"].to_numpy(np.int64)
    part = tasks["part"].to_numpy(np.int64)
    first = np.searchsorted(query_id, np.arange(len(rows.queries) + 1)).astype(np.int64)
    missing = np.flatnonzero(np.diff(first) == 0)
    if len(missing):
        raise ValueError(f"the run has no task of query {missing[0]}")
    if tasks["stage"].any() or (part != np.arange(len(part)) - first[query_id]).any():
        raise ValueError("the run's tasks are not each part of each query once, in one stage")
    took_ns = (tasks["end_ns"] - tasks["start_ns"]).to_numpy(np.int64)
    return Recording(first, took_ns, tasks["delay_ns"].to_numpy(np.int64))


def overheads_of(rows: Rows) -> dict[str, Overhead]:
    """Mean delay of tasks on idle and on busy engines, by pool; the longest hundredth (stalls) is
    left out.
    """
    delay_ns, idle = _delays(rows)
    found = {}
    for pool in (CPU, ACCEL):
        mine = rows.tasks["pool"] == pool
        own = [delay_ns[mine & on].sort_values().to_numpy() for on in (idle, ~idle)]
        found[pool] = Overhead(
            *(int(x[: max(1, int(0.99 * len(x)))].mean()) if len(x) else 0 for x in own)
        )
    return found


def _delays(rows: Rows) -> tuple[pd.Series, pd.Series]:
    """Of every task: ns from when it was due and its engine free to its start, and whether its
    engine was idle.
    """
    tasks = rows.tasks.sort_values("start_ns")
    due = tasks["query_id"].map(rows.queries.set_index("query_id")["arrival_ns"]).astype(np.int64)
    free = tasks.groupby(["pool", "engine"])["end_ns"].shift().fillna(0).astype(np.int64)
    delay = (tasks["start_ns"] - np.maximum(due, free)).clip(lower=0)
    return delay.reindex(rows.tasks.index), (free <= due).reindex(rows.tasks.index)
