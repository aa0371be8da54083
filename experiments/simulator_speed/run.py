#!/usr/bin/env python3
"""Tasks per second of both simulators beside SimPy and Ciw, on the same M/M/c with the same
arrivals and services.

python experiments/simulator_speed/run.py [--quick] [--out FOLDER]

The event loop also runs split queries, the kernel also with and without the tasks' rows, at growing
numbers of tasks. A peer that is not installed (build/bench_requirements.txt) is left out. Every
mean is checked against Erlang's formula.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np
import numpy.typing as npt
import pandas as pd

from accelerator.service import Recording, ServiceTable, table_of_law
from backends.session import Session
from backends.virtual.fifo_kernel import Engines, serve
from backends.virtual.simulated import SimulatedSession
from experiments.simulator_speed.peers import ciw_mmc, simpy_mmc
from infra.clock import NS_PER_MS
from infra.messages import CPU
from infra.progress import Progress
from loadGenerator import Schedule
from scheduler import Policy, Stage

HERE = Path(__file__).resolve().parent
FloatArray = npt.NDArray[np.float64]
ENGINES = (2, 40)
LOAD = 0.8
PARTS = 6
ROUNDS = 5


class World:
    """An M/M/c: n customers, mean service 1 ms."""

    def __init__(self, n: int, n_engines: int, seed: int, parts: int = 1) -> None:
        rng = np.random.default_rng(seed)
        self.n = n
        self.n_engines = n_engines
        self.parts = parts
        arrivals = np.cumsum(rng.exponential(parts / n_engines / LOAD, n // parts))
        services = rng.exponential(1.0, n)
        self.arrival_ns = np.rint(arrivals * NS_PER_MS).astype(np.int64)
        self.service_ns = np.maximum(np.rint(services * NS_PER_MS), 1).astype(np.int64)
        self.schedule = Schedule(
            self.arrival_ns, np.full(n // parts, parts, np.int32), np.zeros(n // parts, np.int32)
        )
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
        queries = session.run(self.schedule, [Stage(Policy(1))]).queries
        done, arrival = (queries[name].to_numpy(np.int64) for name in ("done_ns", "arrival_ns"))
        in_system: FloatArray = (done - arrival) / NS_PER_MS
        return in_system

    def peer(self, simulate: Callable[[FloatArray, FloatArray, int], FloatArray]) -> FloatArray:
        """The same in another simulator."""
        return simulate(self.arrival_ns / NS_PER_MS, self.service_ns / NS_PER_MS, self.n_engines)


def kernel_only(n: int, n_engines: int, law: str, *, keep_tasks: bool, parts: int = PARTS) -> float:
    """Seconds of the compiled function alone for n tasks."""
    world = World(n, n_engines, 1, parts)
    table = table_of_law(law, 1.0, 1.0, parts, 0, 1)
    times = (ServiceTable(table.cpu_ns) if law == "deterministic" else table).times()
    engines = Engines.idle([n_engines, 0])
    first_start, done = (np.zeros(n // parts, np.int64) for _ in range(2))
    tasks = np.empty((n if keep_tasks else 0, 7), np.int64)
    sizes = world.schedule.n_items.astype(np.int64)
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
        np.zeros(2, np.int64),
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


def contest(n: int, n_engines: int) -> Iterator[dict[str, Any]]:
    """All simulators in turn on the same customers, some rounds."""
    peers = {"SimPy": ("simpy", simpy_mmc), "Ciw": ("ciw", ciw_mmc)}
    for seed in range(ROUNDS):
        world = World(n, n_engines, seed)
        runs: dict[str, Callable[[], FloatArray]] = {
            "event loop": lambda world=world: world.run(world.session(compiled=False)),  # type: ignore[misc]
            "kernel, all rows": lambda world=world: world.run(world.session(compiled=True)),  # type: ignore[misc]
            "kernel, rows of queries": lambda world=world: world.run(  # type: ignore[misc]
                world.session(compiled=True, keep_tasks=False)
            ),
        }
        for name, (module, simulate) in peers.items():
            if importlib.util.find_spec(module):
                runs[name] = lambda world=world, simulate=simulate: world.peer(simulate)  # type: ignore[misc]
        reference = None
        for name, run in runs.items():
            begun = time.perf_counter()
            in_system = run()
            seconds = time.perf_counter() - begun
            reference = in_system if reference is None else reference
            yield {
                "engines": n_engines,
                "tasks": n,
                "simulator": name,
                "round": seed,
                "tasks_per_s": n / seconds,
                "mean_ms": in_system.mean(),
                "erlang_ms": erlang_ms(n_engines),
                "largest_difference_ms": float(np.abs(in_system - reference).max()),
            }


def ours(n: int) -> Iterator[dict[str, Any]]:
    """The kernel alone by engines, law and rows; its growth with the number of tasks; the loop with
    split queries.
    """
    for n_engines in ENGINES:
        for law in ("deterministic", "exponential"):
            for keep_tasks in (False, True):
                for tasks in (n // 4, n, 4 * n):
                    for k in range(ROUNDS):
                        seconds = kernel_only(tasks, n_engines, law, keep_tasks=keep_tasks)
                        yield {
                            "what": "kernel alone",
                            "engines": n_engines,
                            "law": law,
                            "task_rows": keep_tasks,
                            "tasks": tasks,
                            "round": k,
                            "tasks_per_s": tasks / seconds,
                        }
        for parts in (1, PARTS):
            for tasks in (n // 80, n // 20):
                for k in range(ROUNDS):
                    world = World(tasks // parts * parts, n_engines, k, parts)
                    session = world.session(compiled=False)
                    begun = time.perf_counter()
                    world.run(session)
                    yield {
                        "what": f"event loop, {parts} tasks a query",
                        "engines": n_engines,
                        "law": "exponential",
                        "task_rows": True,
                        "tasks": tasks,
                        "round": k,
                        "tasks_per_s": tasks / (time.perf_counter() - begun),
                    }


def main(argv: Sequence[str]) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--quick", action="store_true", help="few tasks: some seconds")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the CSV files")
    given = parser.parse_args(argv)
    given.out.mkdir(parents=True, exist_ok=True)
    n, n_ours = (3_000, 100_000) if given.quick else (50_000, 2_000_000)
    kernel_only(600, 2, "exponential", keep_tasks=True)  # compiled before it is timed
    with Progress("auto") as progress:
        with progress.step("M/M/c beside SimPy and Ciw") as on_fraction:
            rows = []
            for i, n_engines in enumerate(ENGINES):
                rows += list(contest(n, n_engines))
                on_fraction((i + 1) / len(ENGINES))
        with progress.step("kernel and event loop"):
            more = list(ours(n_ours))
    for name, table in (("peers", rows), ("ours", more)):
        frame = pd.DataFrame(table)
        frame.to_csv(given.out / f"{name}.csv", index=False, float_format="%.6g")
        keys = [
            c
            for c in frame.columns
            if c in ("what", "simulator", "engines", "law", "task_rows", "tasks")
        ]
        shown = (
            frame.groupby(keys, sort=False)["tasks_per_s"]
            .agg(["median", "min", "max"])
            .round(-3)
            .astype(int)
        )
        print(shown.to_string())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
