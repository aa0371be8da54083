"""Service times measured on a session's own engines, through the harness: what virtual time needs
to foretell it.

Every size is scored beside busy neighbours (all queries at once) and alone (one after the other),
on fresh inputs; the time to wake an engine and the gap between two tasks come from the same rows.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pandas as pd

from accelerator.latency import Profile, spread_of
from accelerator.service import ServiceTable, overheads_of, table_of_profiles
from backends.session import Session, SessionError
from infra.clock import NS_PER_MS, NS_PER_S, NS_PER_US
from infra.messages import ACCEL, CPU
from infra.progress import OnFraction
from infra.rng import stream
from infra.settings.config import RunConfig
from loadGenerator import Schedule, draw_input_ids
from scheduler import Policy, Stage

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
    """What the engines take: one profile for the CPU pool, one for each accelerator."""

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
        """For virtual time."""
        return table_of_profiles(self.cpu, self.accels, max_items, seed)


@dataclass(frozen=True)
class Sample:
    """Tasks measured once (see `_run`): CPU engines all busy, one by one, under Poisson load;
    accelerators all busy.
    """

    busy: pd.DataFrame
    alone: pd.DataFrame
    loaded: pd.DataFrame
    accel: pd.DataFrame | None = None


def calibrate(
    session: Session,
    config: RunConfig,
    n_cpu: int,
    n_accel: int = 0,
    on_fraction: OnFraction | None = None,
) -> Calibration:
    """Measure both pools; 10 s or so, less for small models.

    Raises KeyboardInterrupt, SessionError.
    """
    return calibration_of([sample(session, config, n_cpu, n_accel, on_fraction=on_fraction)], n_cpu)


def sample(
    session: Session,
    config: RunConfig,
    n_cpu: int,
    n_accel: int = 0,
    budget_s: float = BUDGET_S,
    on_fraction: OnFraction | None = None,
) -> Sample:
    """Tasks of all sizes on both pools, `budget_s` for each of the four ways."""
    tell = on_fraction or (lambda _: None)
    steps = 3 + (n_accel > 0)
    max_items = config.inputs.max_mini_batch_size
    sizes = sizes_to_measure(max_items)
    busy = _burst(session, config, sizes, Policy(max_items), n_cpu, budget_s)
    tell(1 / steps)
    alone = _one_by_one(session, config, sizes, Policy(max_items), busy, budget_s)
    tell(2 / steps)
    loaded = _loaded(session, config, sizes, busy, n_cpu, budget_s)
    tell(3 / steps)
    if not n_accel:
        return Sample(busy, alone, loaded)
    return Sample(
        busy,
        alone,
        loaded,
        _burst(session, config, sizes, Policy(max_items, 1), n_accel, budget_s / 2),
    )


def calibration_of(samples: Sequence[Sample], n_cpu: int) -> Calibration:
    """The profiles of some samples together."""
    busy, alone, loaded = (
        pd.concat([getattr(s, name) for s in samples], ignore_index=True)
        for name in ("busy", "alone", "loaded")
    )
    cpu = _under_load(_profile(busy, alone, n_cpu), loaded)
    accels = [s.accel for s in samples if s.accel is not None]
    return Calibration(
        cpu,
        tuple(_profile(own, own, 1) for _, own in pd.concat(accels).groupby("engine"))
        if accels
        else (),
    )


def sizes_to_measure(max_items: int) -> list[int]:
    """1, 2, 4, ... and between the larger ones half-way steps, up to the largest query."""
    sizes = {2**i for i in range(max_items.bit_length())} | {
        3 * 2**i for i in range(3, max_items.bit_length() - 1)
    }
    return sorted({n for n in sizes if n <= max_items} | {max_items})


def _burst(
    session: Session,
    config: RunConfig,
    sizes: list[int],
    policy: Policy,
    n_engines: int,
    budget_s: float,
) -> pd.DataFrame:
    """All at once; as many rounds as the time allows, after one that shows how many that is.

    Equal sizes come together, as a batch's tasks do: what the neighbours run is part of the time.
    """
    rng = stream(config.inputs.numpy_rand_seed, "calibration")

    def order(rounds: int) -> npt.NDArray[np.int64]:
        return np.concatenate(
            [np.repeat(rng.permutation(sizes), TOGETHER * n_engines) for _ in range(rounds)]
        )

    first = _run(session, config, order(1), None, policy)
    took_s = float(first["end_ns"].max() - first["start_ns"].min()) / NS_PER_S
    tasks = _run(
        session,
        config,
        order(int(np.clip(budget_s / took_s, LEAST_ROUNDS, MOST_ROUNDS))),
        None,
        policy,
    )
    # At the end of the burst engines run dry: the last tasks have fewer neighbours.
    return tasks.sort_values("start_ns").iloc[n_engines : len(tasks) - n_engines]


def _one_by_one(
    session: Session,
    config: RunConfig,
    sizes: list[int],
    policy: Policy,
    busy: pd.DataFrame,
    budget_s: float,
) -> pd.DataFrame:
    """Each after the one before has surely ended."""
    took_ns = _usual_ns(busy).reindex(sizes).interpolate().ffill()
    a_round_s = float(BETWEEN * took_ns.sum() + len(sizes) * PAUSE_NS) / NS_PER_S
    rounds = int(np.clip(budget_s / a_round_s, LEAST_ROUNDS, MOST_ROUNDS))
    rng = stream(config.inputs.numpy_rand_seed, "calibration, one by one")
    order = np.concatenate([rng.permutation(sizes) for _ in range(rounds)])
    gaps_ns = took_ns.reindex(order).to_numpy() * BETWEEN + PAUSE_NS
    arrivals = np.concatenate([[0], np.cumsum(gaps_ns)[:-1]]).astype(np.int64)
    return _run(session, config, order, arrivals, policy)


def _loaded(
    session: Session,
    config: RunConfig,
    sizes: list[int],
    busy: pd.DataFrame,
    n_engines: int,
    budget_s: float,
) -> pd.DataFrame:
    """Poisson arrivals at half of the capacity: the driver at work beside the engines, as in a run."""
    usual_ns = _usual_ns(busy)
    gap_ns = float(usual_ns.reindex(sizes).mean()) / n_engines / LOADED
    rng = stream(config.inputs.numpy_rand_seed, "calibration, loaded")
    rounds = int(np.clip(budget_s * NS_PER_S / gap_ns / len(sizes), LEAST_ROUNDS, MOST_ROUNDS))
    order = rng.permutation(np.repeat(sizes, rounds))
    arrivals = np.cumsum(rng.exponential(gap_ns, len(order))).astype(np.int64)
    tasks = _run(session, config, order, arrivals, Policy(max(sizes))).sort_values("start_ns")
    start, end = (tasks[name].to_numpy() for name in ("start_ns", "end_ns"))
    latest = np.zeros(n_engines, np.int64)
    n_busy = np.zeros(len(tasks), np.int64)
    for i, engine in enumerate(tasks["engine"]):
        latest[engine] = 0
        n_busy[i] = (latest > start[i]).sum()
        latest[engine] = end[i]
    # In the time that such a task usually takes: one that took longer met more arrivals because it
    # took longer.
    usual_end = start + tasks["n_items"].map(usual_ns).to_numpy()
    met = np.searchsorted(arrivals, usual_end) - np.searchsorted(arrivals, start, side="right")
    return tasks.assign(n_busy=n_busy, met=met)


def slope_of(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Of the line y = a + b x by least squares: b and its standard error; three points or more, not
    all at one x.
    """
    x = x - x.mean()
    y = y - y.mean()
    slope = float(x @ y / (x @ x))
    residual = y - slope * x
    return slope, math.sqrt(residual @ residual / (len(x) - 2) / (x @ x))


def _under_load(profile: Profile, loaded: pd.DataFrame) -> Profile:
    """The profile as it holds under load: what each arrival takes, the level of the times, and
    their spread.
    """
    expected = np.array(
        [profile.ms(n, k) for n, k in zip(loaded["n_items"], loaded["n_busy"], strict=True)]
    )
    took = loaded["ms"].to_numpy()
    met = loaded["met"].to_numpy(float)
    # took / expected = level + what an arrival takes x met / expected, by least squares
    relative = took / expected
    arrivals = met / expected
    usual = relative < np.quantile(
        relative, 0.99
    )  # a stall of the machine is none of the arrivals' doing
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


def _run(
    session: Session,
    config: RunConfig,
    sizes: npt.NDArray[np.int64],
    arrival_ns: npt.NDArray[np.int64] | None,
    policy: Policy,
) -> pd.DataFrame:
    """The tasks with `ms`, and what was added before each (`wake_ns`, `gap_ns`: means of the run)."""
    n = len(sizes)
    ids = draw_input_ids(
        config.inputs, n, stream(config.inputs.numpy_rand_seed, "calibration, inputs")
    )
    arrivals = np.zeros(n, np.int64) if arrival_ns is None else arrival_ns
    rows = session.run(Schedule(arrivals, sizes.astype(np.int32), ids), [Stage(policy)])
    if session.interrupted:
        raise KeyboardInterrupt
    if rows.queries["done_ns"].isna().any():
        raise SessionError("the service times could not be measured: queries were lost")
    overhead = overheads_of(rows)[CPU if policy.offload_items is None else ACCEL]
    took_ms = (rows.tasks["end_ns"] - rows.tasks["start_ns"]) / NS_PER_MS
    return rows.tasks.assign(ms=took_ms, wake_ns=overhead.wake_ns, gap_ns=overhead.gap_ns)


def _profile(busy: pd.DataFrame, alone: pd.DataFrame, n_engines: int) -> Profile:
    """Medians by size."""
    levels = [_times_ms(own) for own in ([alone, busy] if n_engines > 1 else [alone])]
    medians = [{n: float(np.median(times)) for n, times in level.items()} for level in levels]
    return Profile(
        medians[0],
        {"source": "measured on the engines of this run", "date": time.strftime("%Y-%m-%d")},
        {n_engines - 1: medians[1]} if n_engines > 1 else {},
        {}
        if n_engines > 1
        else {n: spread_of(times, medians[0][n]) for n, times in levels[0].items()},
        float(alone["wake_ns"].mean()) / NS_PER_US,
        float(busy["gap_ns"].mean()) / NS_PER_US,
    )


def _usual_ns(busy: pd.DataFrame) -> pd.Series:
    """Median time by size."""
    return busy.groupby("n_items")["ms"].median() * NS_PER_MS


def _times_ms(tasks: pd.DataFrame) -> dict[int, npt.NDArray[np.float64]]:
    return {int(n): own.to_numpy(float) for n, own in tasks["ms"].groupby(tasks["n_items"])}
