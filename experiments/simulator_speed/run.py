#!/usr/bin/env python3
"""Tasks per second of both simulators beside SimPy and Ciw, on the same M/M/c and the same draws.

python experiments/simulator_speed/run.py [--quick]

The event loop also runs split queries, the kernel also with and without the tasks' rows, at growing
numbers of tasks. A peer that is not installed (build/bench_requirements.txt) is left out. The means
stand beside Erlang's formula. Tables: peers and ours.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from accelerator.service import Recording, ServiceTable, table_of_law
from backends.session import Session
from backends.virtual.fifo_kernel import Engines, serve
from backends.virtual.simulated import SimulatedSession
from experiments.common.study import NoOptions, Study, View
from experiments.simulator_speed.peers import ciw_mmc, simpy_mmc
from infra.clock import NS_PER_MS
from infra.messages import CPU
from loadGenerator import Schedule
from scheduler import Policy

FloatArray = npt.NDArray[np.float64]
ENGINES = (2, 40)
LOAD = 0.8
PARTS = 6
ROUNDS = 5
PEERS = {"SimPy": ("simpy", simpy_mmc), "Ciw": ("ciw", ciw_mmc)}


@dataclass(frozen=True)
class SpeedEffort:
    """Tasks beside the peers, and of our simulators alone."""

    n_beside: int
    n_alone: int


@dataclass(frozen=True)
class SpeedCase:
    """One comparison ("peers") or measurement ("ours") with so many engines and tasks."""

    table: str
    engines: int
    tasks: int


@dataclass(frozen=True)
class PeerRow:
    """One simulator in one round."""

    engines: int
    tasks: int
    simulator: str
    round: int
    tasks_per_s: float
    mean_ms: float
    erlang_ms: float
    largest_difference_ms: float  # of a time in the system from the first simulator's


@dataclass(frozen=True)
class OurRow:
    """One of our simulators in one round."""

    what: str
    engines: int
    law: str
    task_rows: bool
    tasks: int
    round: int
    tasks_per_s: float


class QueueWorld:
    """An M/M/c: n customers, mean service 1 ms; or queries of several tasks."""

    def __init__(self, n: int, n_engines: int, seed: int, parts: int = 1) -> None:
        rng = np.random.default_rng(seed)
        self.n_engines = n_engines
        arrivals = np.cumsum(rng.exponential(parts / n_engines / LOAD, n // parts))
        services = rng.exponential(1.0, n)
        self.arrival_ns = np.rint(arrivals * NS_PER_MS).astype(np.int64)
        self.service_ns = np.maximum(np.rint(services * NS_PER_MS), 1).astype(np.int64)
        sizes = np.full(n // parts, parts, np.int32)
        self.schedule = Schedule(self.arrival_ns, sizes, np.zeros(n // parts, np.int32))
        first = np.arange(0, n + 1, parts)
        self.recording = Recording(first, self.service_ns, np.zeros(n, np.int64))

    def session(self, *, compiled: bool, keep_tasks: bool = True) -> Session:
        """The same times for the kernel (a table) and for the event loop (a function)."""
        if compiled:
            table = ServiceTable(np.ones((1, 2), np.int64), recording=self.recording)
            return SimulatedSession({CPU: self.n_engines}, table, keep_tasks=keep_tasks)
        ns = self.service_ns.tolist()
        first = self.recording.first.tolist()
        return SimulatedSession(
            {CPU: self.n_engines}, lambda task: ns[first[task.query_id] + task.part]
        )

    def run(self, session: Session) -> FloatArray:
        """Times in the system, ms."""
        queries = session.run(self.schedule, Policy(1)).queries
        done, arrival = (queries[name].to_numpy(np.int64) for name in ("done_ns", "arrival_ns"))
        in_system: FloatArray = (done - arrival) / NS_PER_MS
        return in_system

    def peer(self, simulate: Callable[[FloatArray, FloatArray, int], FloatArray]) -> FloatArray:
        """The same in another simulator."""
        return simulate(self.arrival_ns / NS_PER_MS, self.service_ns / NS_PER_MS, self.n_engines)


def kernel_only(n: int, n_engines: int, law: str, *, keep_tasks: bool, parts: int = PARTS) -> float:
    """Seconds of the compiled function alone for n tasks."""
    world = QueueWorld(n, n_engines, 1, parts)
    table = table_of_law(law, 1.0, 1.0, parts, 0, 1)
    times = (ServiceTable(table.cpu_ns) if law == "deterministic" else table).times()
    engines = Engines.idle([n_engines, 0])
    first_start, done = (np.zeros(n // parts, np.int64) for _ in range(2))
    tasks = np.empty((n if keep_tasks else 0, 7), np.int64)
    sizes = world.schedule.n_items.astype(np.int64)
    busy_ns = np.zeros(2, np.int64)
    begun = time.perf_counter()
    serve(
        world.arrival_ns,
        sizes,
        0,
        len(sizes),
        1,
        0,
        times,
        engines,
        busy_ns,
        first_start,
        done,
        tasks,
    )
    return time.perf_counter() - begun


def erlang_ms(n_engines: int) -> float:
    """Mean time in an M/M/c at LOAD, service 1 ms (Erlang C)."""
    inverse_b = 1.0
    offered = LOAD * n_engines
    for k in range(1, n_engines + 1):
        inverse_b = 1 + inverse_b * k / offered
    b = 1 / inverse_b
    return 1 + b / (1 - LOAD * (1 - b)) / (n_engines * (1 - LOAD))


def simulators(world: QueueWorld) -> dict[str, Callable[[], FloatArray]]:
    """All simulators that are there; each gives the times in the system."""
    runs: dict[str, Callable[[], FloatArray]] = {
        "event loop": lambda: world.run(world.session(compiled=False)),
        "kernel, all rows": lambda: world.run(world.session(compiled=True)),
        "kernel, rows of queries": lambda: world.run(
            world.session(compiled=True, keep_tasks=False)
        ),
    }
    for name, (module, simulate) in PEERS.items():
        if importlib.util.find_spec(module):
            runs[name] = functools.partial(world.peer, simulate)
    return runs


def beside_peers(case: SpeedCase) -> Iterator[PeerRow]:
    """All simulators in turn on the same customers, some rounds."""
    for seed in range(ROUNDS):
        reference = None
        for name, run in simulators(QueueWorld(case.tasks, case.engines, seed)).items():
            begun = time.perf_counter()
            in_system = run()
            rate = case.tasks / (time.perf_counter() - begun)
            reference = in_system if reference is None else reference
            means = (in_system.mean(), erlang_ms(case.engines))
            largest = np.abs(in_system - reference).max()
            yield PeerRow(case.engines, case.tasks, name, seed, rate, *means, largest)


def kernel_alone(case: SpeedCase) -> Iterator[OurRow]:
    """The compiled function by law and rows, and its growth with the number of tasks."""
    sizes = (case.tasks // 4, case.tasks, 4 * case.tasks)
    laws = ("deterministic", "exponential")
    for law, keep, n, k in itertools.product(laws, (False, True), sizes, range(ROUNDS)):
        rate = n / kernel_only(n, case.engines, law, keep_tasks=keep)
        yield OurRow("kernel alone", case.engines, law, keep, n, k, rate)


def event_loop(case: SpeedCase) -> Iterator[OurRow]:
    """The event loop with whole and with split queries."""
    sizes = (case.tasks // 80, case.tasks // 20)
    for parts, n, k in itertools.product((1, PARTS), sizes, range(ROUNDS)):
        world = QueueWorld(n // parts * parts, case.engines, k, parts)
        session = world.session(compiled=False)
        begun = time.perf_counter()
        world.run(session)
        rate = n / (time.perf_counter() - begun)
        what = f"event loop, {parts} tasks a query"
        yield OurRow(what, case.engines, "exponential", True, n, k, rate)


@functools.cache
def compile_kernel() -> None:
    """Compile the kernel before it is timed."""
    kernel_only(600, 2, "exponential", keep_tasks=True)


def measure(case: SpeedCase) -> dict[str, list[PeerRow] | list[OurRow]]:
    """The rows of one table for one number of engines."""
    compile_kernel()
    if case.table == "peers":
        return {"peers": list(beside_peers(case))}
    return {"ours": [*kernel_alone(case), *event_loop(case)]}


def cases(effort: SpeedEffort, _: NoOptions) -> list[SpeedCase]:
    """Both tables for all numbers of engines."""
    sizes = {"peers": effort.n_beside, "ours": effort.n_alone}
    return [SpeedCase(table, n_engines, n) for table, n in sizes.items() for n_engines in ENGINES]


def rates(rows: pd.DataFrame) -> pd.DataFrame:
    """Median, least and most tasks per second of the rounds."""
    keys = ("what", "simulator", "engines", "law", "task_rows", "tasks")
    grouped = rows.groupby([name for name in rows if name in keys], sort=False)["tasks_per_s"]
    return grouped.agg(["median", "min", "max"]).round(-3).astype(int)


STUDY = Study(
    "simulator_speed",
    "How many tasks per second does virtual time serve?",
    cases,
    measure,
    efforts={"quick": SpeedEffort(3_000, 100_000), "full": SpeedEffort(50_000, 2_000_000)},
    report={"Beside SimPy and Ciw": View(rates, "peers"), "Ours": View(rates, "ours")},
    float_format="%.6g",
)

if __name__ == "__main__":
    STUDY.main()
