"""What robbed the engines of a real run: rows by second, and whether the run can be believed.

An engine waits for a core (run delay) because of other programs, of the driver or of its
neighbours. Only as much of it counts as robbed as others used of the cores meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from infra.arrays import FloatArray
from infra.clock import NS_PER_MS, NS_PER_S
from infra.procfs import MachineTimes, ProcessTimes

MOST_ROBBED = 0.02  # of the engines' time
MOST_STILL_SLA = 0.1  # an engine stands still for at most so much of the SLA,
LEAST_STILL_MS = 5.0  # and what is shorter cannot be told from the samples
MOST_TRIES = 3
_CAUSES = {
    "foreign_ms": "other programs",
    "steal_ms": "other virtual machines",
    "throttled_ms": "the CPU limit of the container",
}
_SUMS = ("ran_ms", "waited_ms", "stopped_ms", "major_faults")
Measured = TypeVar("Measured")


@dataclass(frozen=True)
class EngineSamples:
    """What was read of the processes of an engine, in order; `on_cores`: its tasks need a core."""

    pool: str
    engine: int
    on_cores: bool
    times: Sequence[ProcessTimes]


@dataclass(frozen=True)
class Outage:
    """An engine was missing: from a death to the moment when its successor was ready."""

    pool: str
    engine: int
    from_ns: int
    until_ns: int


@dataclass(frozen=True)
class RunSamples:
    """What was read during a run that began at `start_ns`; `ours_ns`: CPU time of our processes."""

    start_ns: int
    engines: Sequence[EngineSamples]
    machine: Sequence[MachineTimes]
    ours_ns: Sequence[int]
    outages: Sequence[Outage] = ()


@dataclass(frozen=True)
class Disturbance:
    """Rows by second and engine, and what is judged beside them.

    `by_second`: second, span_ms (of it, less than 1,000 in the last), pool, engine, ran_ms,
    waited_ms (for a core), robbed_ms, stopped_ms (at work, and neither running nor waiting),
    major_faults, deaths; of the machine foreign_ms, steal_ms, throttled_ms (of all cores). The
    seconds before `measured_from_s` are not judged.
    """

    by_second: pd.DataFrame
    measured_from_s: float = 0.0
    longest_still_ms: float = 0.0
    still_engine: str = ""
    n_deaths: int = 0
    n_disturbed: int = 0  # queries in the system while an engine was missing
    n_queries: int = 0

    @property
    def measured(self) -> pd.DataFrame:
        """The rows of the seconds that are judged."""
        table = self.by_second
        return table[table["second"] + table["span_ms"] / 1e3 > self.measured_from_s]

    @property
    def robbed_share(self) -> float:
        """Share of the engines' time that others took, 0 to 1."""
        table = self.measured
        return float(table["robbed_ms"].sum() / max(table["span_ms"].sum(), 1e-9))

    def reasons(self, sla_ms: float, percentile: float) -> tuple[str, ...]:
        """Why the run is INVALID: what, how much, and what to do."""
        return tuple(
            reason
            for reason in (self._robbed(), self._still(sla_ms), self._deaths(percentile))
            if reason
        )

    def as_json(self) -> dict[str, Any]:
        """What run.json holds under `disturbance`."""
        return {
            "robbed_share": self.robbed_share,
            "longest_still_ms": self.longest_still_ms,
            "engine_deaths": self.n_deaths,
            "queries_without_an_engine": self.n_disturbed,
        }

    def _robbed(self) -> str:
        share = self.robbed_share
        if share <= MOST_ROBBED:
            return ""
        machine = self.measured.drop_duplicates("second")
        name = max(_CAUSES, key=lambda column: float(machine[column].sum()))
        taken = f"{_CAUSES[name]} took {share:.1%} of the engines' time"
        return f"{taken} (at most {MOST_ROBBED:.0%}): end what else runs, or measure later"

    def _still(self, sla_ms: float) -> str:
        most_ms = max(MOST_STILL_SLA * sla_ms, LEAST_STILL_MS)
        if self.longest_still_ms <= most_ms:
            return ""
        stood = f"{self.still_engine} stood still for {self.longest_still_ms:.0f} ms"
        cause = "it was stopped, or waited for memory, a disk or the hypervisor"
        return f"{stood} (at most {most_ms:g} ms): {cause}; see what stops it, and measure again"

    def _deaths(self, percentile: float) -> str:
        most = round((100 - percentile) / 100 * self.n_queries, 6)
        if not self.n_deaths or self.n_disturbed <= most:
            return ""
        hit = f"engines died {self.n_deaths} times; an engine was missing for {self.n_disturbed}"
        rest = f"of {self.n_queries} queries (at most {most:.0f}, the tail of p{percentile:g})"
        return f"{hit} {rest}: see engine_deaths in run.json, and measure again"


def repeat_disturbed(
    measure: Callable[[], Measured], reason: Callable[[Measured], str], tries: int = MOST_TRIES
) -> tuple[Measured, str]:
    """A measurement, repeated while `reason` finds it disturbed; with the last reason, or ''."""
    for _ in range(tries - 1):
        measured = measure()
        if not reason(measured):
            return measured, ""
    measured = measure()
    return measured, reason(measured)


def disturbance_of(
    samples: RunSamples, queries: pd.DataFrame, tasks: pd.DataFrame
) -> Disturbance | None:
    """What the samples and the rows of a run tell; None where there are too few samples."""
    if len(samples.machine) < 2 or not samples.engines:
        return None
    end_s = (samples.machine[-1].at_ns - samples.start_ns) / NS_PER_S
    edges_s = np.append(np.arange(0.0, end_s), end_s)
    machine = _machine_by_second(samples, edges_s)
    parts = []
    longest = (0.0, "")
    for engine in samples.engines:
        steps = engine_steps(engine, tasks, samples.start_ns)
        longest = max(longest, (_longest_still_ms(steps), f"{engine.pool} engine {engine.engine}"))
        parts.append(_by_second(engine, steps, samples, edges_s).join(machine))
    table = _robbed(pd.concat(parts, ignore_index=True))
    measured = queries[~queries["is_warmup"]]
    arrival_ns = measured["arrival_ns"]
    return Disturbance(
        table,
        float(arrival_ns.min()) / NS_PER_S if len(measured) else 0.0,
        *longest,
        n_deaths=len(samples.outages),
        n_disturbed=_n_disturbed(measured, samples),
        n_queries=len(measured),
    )


def engine_steps(samples: EngineSamples, tasks: pd.DataFrame, start_ns: int) -> pd.DataFrame:
    """From each sample of an engine to its next: begin_ns, end_ns, ran_ms, waited_ms, ...

    A wait is booked when it is over: what does not fit between two samples belongs before.
    """
    columns = list(zip(*samples.times, strict=True)) or [()] * 6
    at_ns, pid, ran_ns, waited_ns, faults, stopped = (np.array(x, np.int64) for x in columns)
    at_ns = at_ns - start_ns
    same = pid[1:] == pid[:-1]
    span_ns = np.diff(at_ns)[same]
    ran = np.diff(ran_ns)[same]
    steps = pd.DataFrame({"begin_ns": at_ns[:-1][same], "end_ns": at_ns[1:][same]})
    room = np.maximum(span_ns - ran, 0)
    waited = _booked_back(np.diff(waited_ns)[same], room)
    resting = room - np.minimum(waited, room)
    is_stopped = (stopped[1:] + stopped[:-1])[same] / 2  # half the time where it began or ended
    still = is_stopped * resting
    if samples.on_cores:
        busy = np.diff(_busy_ns(samples, tasks, at_ns))[same]
        still = np.maximum(still, _settled(busy - ran - waited, waited))
    steps["ran_ms"] = ran / NS_PER_MS
    steps["waited_ms"] = waited / NS_PER_MS
    steps["stopped_ms"] = np.minimum(still, resting) / NS_PER_MS
    steps["major_faults"] = np.diff(faults)[same]
    return steps


def _booked_back(waited: np.ndarray, room: np.ndarray) -> FloatArray:
    """Waits with what exceeds the room of their step moved to the steps before."""
    booked = np.zeros(len(waited))
    carried = 0.0
    for i in range(len(waited) - 1, -1, -1):
        carried += float(waited[i])
        booked[i] = min(carried, float(room[i]))
        carried -= booked[i]
    return booked


def _settled(missing: np.ndarray, waited: np.ndarray) -> FloatArray:
    """Time at work without a core in each step, less that of waits which are booked a step later.

    `missing` is negative where an engine ran beside its tasks (it polls), or where an earlier wait
    was booked; no more than was booked can be earlier.
    """
    still = np.zeros(len(missing))
    late = 0.0
    for i in range(len(missing) - 1, -1, -1):
        rest = float(missing[i]) - late
        still[i] = max(rest, 0.0)
        late = min(max(-rest, 0.0), float(waited[i]) + late)
    return still


def _busy_ns(samples: EngineSamples, tasks: pd.DataFrame, at_ns: np.ndarray) -> FloatArray:
    """Time that the engine had spent on tasks at these times; merged tasks took theirs once."""
    its = tasks[(tasks["pool"] == samples.pool) & (tasks["engine"] == samples.engine)]
    spans = its[["start_ns", "end_ns"]].drop_duplicates().sort_values("start_ns").to_numpy()
    if not len(spans):
        return np.zeros(len(at_ns))
    ends = np.cumsum(spans[:, 1] - spans[:, 0])
    sums = np.column_stack([np.append(0, ends[:-1]), ends])
    busy: FloatArray = np.interp(at_ns, spans.ravel(), sums.ravel())
    return busy


def _longest_still_ms(steps: pd.DataFrame) -> float:
    """The longest time for which the engine stood still in steps that follow each other."""
    longest = current = 0.0
    for still_ms in steps["stopped_ms"]:
        current = current + still_ms if still_ms > LEAST_STILL_MS else 0.0
        longest = max(longest, current)
    return float(longest)


def _by_second(
    engine: EngineSamples, steps: pd.DataFrame, samples: RunSamples, edges_s: FloatArray
) -> pd.DataFrame:
    """An engine's rows; between two samples all goes evenly."""
    n = len(edges_s) - 1
    rows = pd.DataFrame({"second": np.arange(n), "span_ms": np.diff(edges_s) * 1e3})
    rows["pool"] = engine.pool
    rows["engine"] = engine.engine
    for name in _SUMS:
        rows[name] = 0.0
        if len(steps):
            rows[name] = np.diff(_evenly(edges_s, steps, name))
    mine = [x for x in samples.outages if (x.pool, x.engine) == (engine.pool, engine.engine)]
    died_s = [(outage.from_ns - samples.start_ns) / NS_PER_S for outage in mine]
    rows["deaths"] = np.histogram(np.clip(died_s, 0, edges_s[-1]), edges_s)[0]
    return rows


def _evenly(edges_s: FloatArray, steps: pd.DataFrame, name: str) -> FloatArray:
    """A column's sum up to each edge; nothing is added where there are no samples."""
    times_s = steps[["begin_ns", "end_ns"]].to_numpy().ravel() / NS_PER_S
    ends = steps[name].to_numpy(float).cumsum()
    sums = np.column_stack([np.append(0.0, ends[:-1]), ends]).ravel()
    total: FloatArray = np.interp(edges_s, times_s, sums)
    return total


def _machine_by_second(samples: RunSamples, edges_s: FloatArray) -> pd.DataFrame:
    """What others used of all cores together, in ms by second."""
    at_ns, busy_ns, steal_ns, throttled_ns = np.array(samples.machine, np.int64).T
    at_s = (at_ns - samples.start_ns) / NS_PER_S
    sums = {
        "foreign_ms": busy_ns - np.array(samples.ours_ns, np.int64),
        "steal_ms": steal_ns,
        "throttled_ms": throttled_ns,
    }
    return pd.DataFrame(
        {
            name: np.maximum(np.diff(np.interp(edges_s, at_s, (ns - ns[0]) / NS_PER_MS)), 0.0)
            for name, ns in sums.items()
        }
    )


def _robbed(table: pd.DataFrame) -> pd.DataFrame:
    """With robbed_ms: waits as far as others used the cores, and stolen time as far as it ran."""
    by_second = table.groupby("second")
    waits_ms = by_second["waited_ms"].transform("sum")
    taken_ms = np.minimum(waits_ms, table["foreign_ms"] + table["throttled_ms"])
    waited_share = (table["waited_ms"] / waits_ms.where(waits_ms > 0, 1.0)).to_numpy()
    ran_ms = by_second["ran_ms"].transform("sum") + table["foreign_ms"]
    ran_share = table["ran_ms"] / ran_ms.where(ran_ms > 0, 1.0)
    robbed_ms = taken_ms * waited_share + table["steal_ms"] * ran_share
    table.insert(6, "robbed_ms", np.minimum(robbed_ms, table["span_ms"]))
    return table


def _n_disturbed(measured: pd.DataFrame, samples: RunSamples) -> int:
    """Queries that were in the system while an engine was missing."""
    arrival_ns = measured["arrival_ns"].to_numpy(np.int64)
    done_ns = measured["done_ns"].to_numpy(float, na_value=np.inf)
    hit = np.zeros(len(measured), bool)
    for outage in samples.outages:
        from_ns = outage.from_ns - samples.start_ns
        until_ns = outage.until_ns - samples.start_ns
        hit |= (arrival_ns < until_ns) & (done_ns > from_ns)
    return int(hit.sum())
