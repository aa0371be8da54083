"""Service times measured on a session's own engines, through the harness, for virtual time.

Every size is scored beside busy neighbours (all queries at once) and alone (one after the other),
on fresh inputs; the time to wake an engine and the gap between two tasks come from the same rows.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt
import pandas as pd

from accelerator.deployment_service import FILTER_NS, FILTER_NS_PER_ITEM
from accelerator.latency import Profile, spread_of
from accelerator.replay import overheads_of
from accelerator.service import ServiceTable, ServiceTimes, table_of_profiles
from backends.session import Session, SessionError
from infra.clock import NS_PER_MS, NS_PER_S, NS_PER_US
from infra.deployment import Deployment
from infra.messages import ACCEL
from infra.progress import OnFraction
from infra.rng import stream
from infra.settings.pipeline import PoolConfig
from loadGenerator import Schedule, draw_input_ids
from scheduler import Policy

BUDGET_S = 4.0  # of engine time for each of the four ways to measure
LOADED = 0.5  # of the capacity
MOST_STOLEN_MS = 0.3
LEAST_FACTOR = 0.05  # of the expected time is left when what arrivals took is taken off
SURE_ERRORS = 2.5  # standard errors, or an arrival takes nothing
SPREAD_CLASSES = 4  # of sizes
TOGETHER = 4  # tasks of one size for each engine
LEAST_ROUNDS, MOST_ROUNDS = 2, 400
PAUSE_NS = 1_500_000  # between tasks that are to find idle engines
BETWEEN = 1.5  # times of the task before


@dataclass(frozen=True)
class Calibration:
    """What the engines take for one stage: on its own pool, and on each accelerator."""

    cpu: Profile
    accels: tuple[Profile, ...] = ()

    def __str__(self) -> str:
        accels = "".join(f", accelerator {p.batch_ms[max(p.batch_ms)]:.3g} ms" for p in self.accels)
        largest = max(self.cpu.batch_ms)
        return (
            f"by service times measured here ({largest} items: CPU "
            f"{self.cpu.batch_ms[largest]:.3g} ms{accels}; waking an engine "
            f"{self.cpu.wake_us:.0f} us, between two tasks {self.cpu.gap_us:.0f} us, taken by an "
            f"arrival {self.cpu.arrival_us:.0f} us)"
        )

    def table(self, max_items: int, seed: int) -> ServiceTable:
        """The stage's times for virtual time."""
        return table_of_profiles(self.cpu, self.accels, max_items, seed)


def calibrated_times(deployment: Deployment, stages: Sequence[Calibration]) -> ServiceTimes:
    """The deployment's times for virtual time; choosing takes what `deployment_service` says."""
    inputs = deployment.config.inputs
    return ServiceTimes(
        tuple(stage.table(inputs.max_mini_batch_size, inputs.numpy_rand_seed) for stage in stages),
        frozenset(pool.name for pool in deployment.pools if pool.on_cores),
        FILTER_NS,
        FILTER_NS_PER_ITEM,
    )


@dataclass(frozen=True)
class Sample:
    """Tasks of all stages measured once (see `_run`).

    All at once, one query after the other, and under Poisson load; `accel`: all offloaded at once.
    """

    busy: pd.DataFrame
    alone: pd.DataFrame
    loaded: pd.DataFrame
    accel: pd.DataFrame | None = None


def calibrate(
    session: Session,
    deployment: Deployment,
    *,
    offloads: bool = False,
    on_fraction: OnFraction | None = None,
) -> list[Calibration]:
    """Measure every stage, offloaded tasks too if asked; 10 s or so, less for small models.

    Raises KeyboardInterrupt, SessionError.
    """
    measured = sample(session, deployment, offloads=offloads, on_fraction=on_fraction)
    return calibrations_of([measured], deployment)


def sample(
    session: Session,
    deployment: Deployment,
    budget_s: float = BUDGET_S,
    *,
    offloads: bool = False,
    on_fraction: OnFraction | None = None,
) -> Sample:
    """Tasks of all sizes on all pools, `budget_s` for each of the four ways."""
    tell = on_fraction or (lambda _: None)
    steps = 3 + offloads
    clock = _Meter(session, deployment, budget_s)
    policy = Policy(clock.sizes[-1])
    busy = clock.burst(policy, deployment.n_engines, budget_s)
    tell(1 / steps)
    alone = clock.one_by_one(policy, busy)
    tell(2 / steps)
    loaded = clock.loaded(policy, busy)
    tell(3 / steps)
    if not offloads or deployment.accelerators is None:
        return Sample(busy, alone, loaded)
    everything = Policy(clock.sizes[-1], 1)
    accel = clock.burst(everything, deployment.accelerators.engines, budget_s / 2)
    return Sample(busy, alone, loaded, accel[accel["pool"] == ACCEL])


def calibrations_of(samples: Sequence[Sample], deployment: Deployment) -> list[Calibration]:
    """The profiles of every stage, from some samples together."""
    frames = {
        name: pd.concat([getattr(part, name) for part in samples], ignore_index=True)
        for name in ("busy", "alone", "loaded")
    }
    offloaded = [part.accel for part in samples if part.accel is not None]
    calibrations = []
    for number, stage in enumerate(deployment.stages):
        busy, alone, loaded = (frame[frame["stage"] == number] for frame in frames.values())
        if not deployment.pool(stage).on_cores:
            calibrations.append(Calibration(_profile(busy, busy, 1)))
            continue
        cpu = _under_load(_profile(busy, alone, deployment.n_engines), loaded)
        cards = pd.concat([tasks[tasks["stage"] == number] for tasks in offloaded or [busy[:0]]])
        accels = [_profile(tasks, tasks, 1) for _, tasks in cards.groupby("engine")]
        calibrations.append(Calibration(cpu, tuple(accels)))
    return calibrations


def sizes_to_measure(max_items: int) -> list[int]:
    """1, 2, 4, ... and between the larger ones half-way steps, up to the largest query."""
    sizes = {2**i for i in range(max_items.bit_length())} | {
        3 * 2**i for i in range(3, max_items.bit_length() - 1)
    }
    return sorted({n for n in sizes if n <= max_items} | {max_items})


@dataclass(frozen=True)
class _Meter:
    """Sends queries of all sizes through a deployment in several ways."""

    session: Session
    deployment: Deployment
    budget_s: float

    @property
    def sizes(self) -> list[int]:
        """Items of the queries, ascending."""
        return sizes_to_measure(self.deployment.config.inputs.max_mini_batch_size)

    def _stream(self, name: str) -> np.random.Generator:
        return stream(self.deployment.config.inputs.numpy_rand_seed, name)

    def burst(self, policy: Policy, n_engines: int, budget_s: float) -> pd.DataFrame:
        """All at once; as many rounds as the time allows, after one that shows how many that is.

        Equal sizes come together, as a batch's tasks do: what the neighbours run is part of the
        time.
        """
        rng = self._stream("calibration")

        def order(rounds: int) -> npt.NDArray[np.int64]:
            n_each = TOGETHER * n_engines
            parts = [np.repeat(rng.permutation(self.sizes), n_each) for _ in range(rounds)]
            return np.concatenate(parts)

        first = self._run(order(1), None, policy)
        took_s = float(first["end_ns"].max() - first["start_ns"].min()) / NS_PER_S
        rounds = int(np.clip(budget_s / took_s, LEAST_ROUNDS, MOST_ROUNDS))
        tasks = self._run(order(rounds), None, policy)
        # At the end of the burst engines run dry: the last tasks have fewer neighbours.
        return tasks.sort_values("start_ns").iloc[n_engines : len(tasks) - n_engines]

    def one_by_one(self, policy: Policy, busy: pd.DataFrame) -> pd.DataFrame:
        """Each query after the one before has surely ended."""
        took_ns = self._query_ns(busy, range(len(self.deployment.stages)))
        a_round_s = float(BETWEEN * took_ns.sum() + len(self.sizes) * PAUSE_NS) / NS_PER_S
        rounds = int(np.clip(self.budget_s / a_round_s, LEAST_ROUNDS, MOST_ROUNDS))
        rng = self._stream("calibration, one by one")
        order = np.concatenate([rng.permutation(self.sizes) for _ in range(rounds)])
        gaps_ns = took_ns.reindex(order).to_numpy() * BETWEEN + PAUSE_NS
        arrivals = np.concatenate([[0], np.cumsum(gaps_ns)[:-1]]).astype(np.int64)
        return self._run(order, arrivals, policy)

    def loaded(self, policy: Policy, busy: pd.DataFrame) -> pd.DataFrame:
        """Poisson arrivals at half of the capacity: the driver at work beside the engines."""
        gap_ns = max(map(partial(self._pool_ns, busy), self.deployment.pools)) / LOADED
        rng = self._stream("calibration, loaded")
        rounds = int(
            np.clip(self.budget_s * NS_PER_S / gap_ns / len(self.sizes), LEAST_ROUNDS, MOST_ROUNDS)
        )
        order = rng.permutation(np.repeat(self.sizes, rounds))
        arrivals = np.cumsum(rng.exponential(gap_ns, len(order))).astype(np.int64)
        tasks = self._run(order, arrivals, policy).sort_values("start_ns")
        # In the time that such a task usually takes: one that took longer met more arrivals
        # because it took longer.
        usual_ns = _usual_ns(busy)
        start = tasks["start_ns"].to_numpy()
        usual_end = (
            start
            + usual_ns.reindex(pd.MultiIndex.from_frame(tasks[["stage", "n_items"]])).to_numpy()
        )
        met = np.searchsorted(arrivals, usual_end) - np.searchsorted(arrivals, start, side="right")
        return tasks.assign(n_busy=self._busy_neighbours(tasks), met=met)

    def _busy_neighbours(self, tasks: pd.DataFrame) -> npt.NDArray[np.int64]:
        """How many other engines on cores worked when each task began; tasks in that order."""
        cores = {pool.name for pool in self.deployment.pools if pool.on_cores}
        latest: dict[tuple[str, int], int] = {}
        n_busy = np.zeros(len(tasks), np.int64)
        columns = (tasks[name] for name in ("pool", "engine", "start_ns", "end_ns"))
        for i, (pool, engine, start_ns, end_ns) in enumerate(zip(*columns, strict=True)):
            latest.pop((pool, engine), None)
            n_busy[i] = sum(end > start_ns for end in latest.values())
            if pool in cores:
                latest[pool, engine] = end_ns
        return n_busy

    def _query_ns(self, busy: pd.DataFrame, stages: Iterable[int]) -> pd.Series:
        """Usual time of a query's tasks in these stages, by its size."""
        total = pd.Series(0.0, index=self.sizes)
        usual_ns = _usual_ns(busy)
        for number in stages:
            coming = np.minimum(self.sizes, self.deployment.coming_items(number))
            in_stage = usual_ns[number].reindex(sorted({*coming})).interpolate().ffill().bfill()
            total += in_stage.reindex(coming).to_numpy()
        return total

    def _pool_ns(self, busy: pd.DataFrame, pool: PoolConfig) -> float:
        """Time of the pool that a query of the mean size takes."""
        if pool.name == ACCEL:
            return 0.0
        served = self.deployment.served_by(pool)
        return float(self._query_ns(busy, served).mean()) / pool.engines

    def _run(
        self,
        sizes: npt.NDArray[np.int64],
        arrival_ns: npt.NDArray[np.int64] | None,
        policy: Policy,
    ) -> pd.DataFrame:
        """The tasks with `ms` and the run's mean `wake_ns` and `gap_ns` of their pool."""
        n = len(sizes)
        inputs = self.deployment.config.inputs
        ids = draw_input_ids(inputs, n, self._stream("calibration, inputs"))
        arrivals = np.zeros(n, np.int64) if arrival_ns is None else arrival_ns
        rows = self.session.run(Schedule(arrivals, sizes.astype(np.int32), ids), policy)
        if self.session.interrupted:
            raise KeyboardInterrupt
        if rows.queries["done_ns"].isna().any():
            raise SessionError("the service times could not be measured: queries were lost")
        overheads = overheads_of(rows)
        took_ms = (rows.tasks["end_ns"] - rows.tasks["start_ns"]) / NS_PER_MS
        return rows.tasks.assign(
            ms=took_ms,
            wake_ns=[overheads[pool].wake_ns for pool in rows.tasks["pool"]],
            gap_ns=[overheads[pool].gap_ns for pool in rows.tasks["pool"]],
        )


def slope_of(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> tuple[float, float]:
    """The slope b of the line y = a + b x by least squares, and its standard error.

    Needs three points or more, not all at one x.
    """
    x = x - x.mean()
    y = y - y.mean()
    slope = float(x @ y / (x @ x))
    residual = y - slope * x
    return slope, math.sqrt(residual @ residual / (len(x) - 2) / (x @ x))


def _under_load(profile: Profile, loaded: pd.DataFrame) -> Profile:
    """The profile as it holds under load: what each arrival takes, the level and the spread."""
    expected = np.array(
        [profile.ms(n, k) for n, k in zip(loaded["n_items"], loaded["n_busy"], strict=True)]
    )
    took = loaded["ms"].to_numpy()
    met = loaded["met"].to_numpy(float)
    # took / expected = level + what an arrival takes x met / expected, by least squares
    relative = took / expected
    arrivals = met / expected
    # a stall of the machine is none of the arrivals' doing
    usual = relative <= np.quantile(relative, 0.99)
    arrival_ms = 0.0
    if np.ptp(arrivals[usual]) > 0:
        slope, stderr = slope_of(arrivals[usual], relative[usual])
        arrival_ms = min(slope, MOST_STOLEN_MS) if slope > SURE_ERRORS * stderr else 0.0
    factors = np.maximum((took - arrival_ms * met) / expected, LEAST_FACTOR)
    order = np.argsort(loaded["n_items"].to_numpy(), kind="stable")
    spread = {}
    for part in np.array_split(order, SPREAD_CLASSES):
        sizes = loaded["n_items"].to_numpy()[part]
        middle = min(profile.batch_ms, key=lambda n: abs(math.log(n) - np.log(sizes).mean()))
        spread[middle] = spread_of(factors[part], 1.0)
    return replace(profile, spread=spread, arrival_us=arrival_ms * 1e3)


def _profile(busy: pd.DataFrame, alone: pd.DataFrame, n_engines: int) -> Profile:
    """Medians by size, with the spread where the engine has no neighbours."""
    alone_ms = _times_ms(alone)
    medians = {n: float(np.median(times)) for n, times in alone_ms.items()}
    if n_engines > 1:
        beside = {n: float(np.median(times)) for n, times in _times_ms(busy).items()}
        busy_ms, spread = {n_engines - 1: beside}, {}
    else:
        busy_ms, spread = {}, {n: spread_of(times, medians[n]) for n, times in alone_ms.items()}
    return Profile(
        medians,
        {"source": "measured on the engines of this run", "date": time.strftime("%Y-%m-%d")},
        busy_ms,
        spread,
        float(alone["wake_ns"].mean()) / NS_PER_US,
        float(busy["gap_ns"].mean()) / NS_PER_US,
    )


def _usual_ns(busy: pd.DataFrame) -> pd.Series:
    """Median time by stage and size."""
    return busy.groupby(["stage", "n_items"])["ms"].median() * NS_PER_MS


def _times_ms(tasks: pd.DataFrame) -> dict[int, npt.NDArray[np.float64]]:
    sizes = tasks["ms"].groupby(tasks["n_items"])
    return {int(n): times.to_numpy(float) for n, times in sizes}
