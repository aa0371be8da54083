#!/usr/bin/env python3
"""A fleet in virtual time: routing, what tuning does to its tail, how many machines stand for all,
and how fast.

python experiments/cluster/run.py [--quick] [--out FOLDER]

Servers of 40 cores of two generations, a part of them with an accelerator: service times of
accelerator/amd_epyc_zen4 beside a busy neighbour; the older generation takes GENERATION times as
long; the GPU by its published speedup. Production query sizes, Poisson arrivals, a day of load
pressed into the run. Writes one CSV a question.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np
import numpy.typing as npt
import pandas as pd

from backends.tuning.probe import Sla, capacity_qps, latencies_ms, probe
from backends.virtual.fleet import ROUTES, Fleet, FleetRun, ServerKind
from backends.virtual.simulated import SimulatedSession
from experiments.common.servers import (
    LARGEST,
    MEDIUM_SLA_MS,
    N_ENGINES,
    Server,
    ladder,
    load_config,
    service_table,
)
from infra.clock import NS_PER_S
from infra.load.arrivals import RateCurve
from infra.messages import ACCEL, CPU
from infra.progress import Progress
from infra.rng import stream
from infra.settings.config import RunConfig
from loadGenerator import CommonLoad, Schedule, draw_sizes
from scheduler import Goal, HillClimb, Policy, Stage, static_policy

HERE = Path(__file__).resolve().parent
FloatArray = npt.NDArray[np.float64]
GENERATION = 1.5  # stated: the older CPUs take so many times as long
WITH_GPU, OLDER = 0.2, 0.4  # shares of the servers; the rest is newer and without
DAY_LOW = 0.4  # the night's rate over the day's highest
PEAK = 0.8  # of what the fleet carries at the static policy without waiting
TAIL_QUERIES = 20_000
GPU_BUSY = 0.6  # where queries are routed by size
WARM_UP = 0.05  # of the queries
QUANTILES = (0.5, 0.95, 0.99)
Tell = Callable[[float], None]


@dataclass(frozen=True)
class Effort:
    """How much of the study is run."""

    models: tuple[str, ...] = tuple(MEDIUM_SLA_MS)
    queries: int = 2_000_000  # of a run
    most_queries: int = 10_000_000  # of the runs that show the speed
    servers: int = 100
    most_servers: int = 1000
    draws: int = 400  # samples of machines of each size


QUICK = Effort(("wnd",), 100_000, 1_000_000, 20, 200, 100)


# -- servers and their load --------------------------------------------------------------------------------------


def kinds_of(model: str, policies: dict[str, Policy]) -> list[tuple[ServerKind, float]]:
    """The three kinds of servers and their shares; each weighs what it carries without waiting."""
    config = load_config()
    kinds = []
    for name, slower, n_accel, share in (
        ("newer", 1.0, 0, 1 - WITH_GPU - OLDER),
        ("older", GENERATION, 0, OLDER),
        ("newer, GPU", 1.0, 1, WITH_GPU),
    ):
        table = service_table(model, Server(slower=slower))
        policy = policies[name]
        session = SimulatedSession({CPU: N_ENGINES, ACCEL: n_accel}, table, keep_tasks=False)
        weight = capacity_qps(session, config, policy, N_ENGINES)
        kinds.append((ServerKind(name, N_ENGINES, table, policy, n_accel, weight), share))
    return kinds


def fleet_of(kinds: Sequence[tuple[ServerKind, float]], n_servers: int) -> Fleet:
    """So many servers of the kinds, by their shares."""
    counts = [round(share * n_servers) for _, share in kinds[1:]]
    return Fleet(
        [
            (kind, n)
            for (kind, _), n in zip(kinds, [n_servers - sum(counts), *counts], strict=True)
            if n
        ]
    )


def static_policies() -> dict[str, Policy]:
    """The paper's baseline on every server."""
    return dict.fromkeys(("newer", "older", "newer, GPU"), static_policy(LARGEST, N_ENGINES))


def tuned_policies(model: str, sla_ms: float) -> dict[str, Policy]:
    """What carries most under the SLA, kind by kind: DeepRecSched's hill climbing on one server in
    virtual time.
    """
    config = load_config()
    tuned = {}
    sla = Sla(sla_ms, max_queries=20_000)
    for name, session, thresholds in _alone(model):
        static = static_policy(LARGEST, N_ENGINES)
        goal = Goal(0.5 * capacity_qps(session, config, static, N_ENGINES), 0.02)
        load = CommonLoad(config, sla.max_queries, 2)
        knobs: dict[str, Sequence[int | None]] = {
            "batch_items": ladder(2),
            "offload_items": [*thresholds, None],
        }
        search = HillClimb(knobs, static, goal)
        while (trial := search.propose()) is not None:
            probed = probe(session, load, sla, trial)
            assert probed is not None, "virtual time is not interrupted"
            search.observe(probed.outcome)
        best = search.best
        assert best is not None, "every search ends with a policy"
        tuned[name] = best.policy
    return tuned


def tail_policies(model: str) -> dict[str, Policy]:
    """What has the lowest p95 at the fleet's peak, kind by kind: the whole grid on one server in
    virtual time.
    """
    config = load_config()
    best = {}
    for name, session, thresholds in _alone(model):
        rate_qps = PEAK * capacity_qps(
            session, config, static_policy(LARGEST, N_ENGINES), N_ENGINES
        )
        schedule = CommonLoad(config, TAIL_QUERIES, 3).at(rate_qps)
        policies = [Policy(n, k) for n in ladder(2) for k in (*thresholds, None)]
        p95 = [
            np.quantile(latencies_ms(session.run(schedule, [Stage(policy)])), 0.95)
            for policy in policies
        ]
        best[name] = policies[int(np.argmin(p95))]
    return best


def _alone(model: str) -> Iterator[tuple[str, SimulatedSession, list[int]]]:
    """One server of each kind, and the thresholds that it can choose from."""
    for name, slower, thresholds in (
        ("newer", 1.0, []),
        ("older", GENERATION, []),
        ("newer, GPU", 1.0, ladder(2)),
    ):
        table = service_table(model, Server(slower=slower))
        yield (
            name,
            SimulatedSession({CPU: N_ENGINES, ACCEL: 1}, table, keep_tasks=False),
            thresholds,
        )


def fair_threshold(fleet: Fleet, schedule: Schedule) -> int:
    """The least size from which on the GPUs carry all queries and are busy for GPU_BUSY of the
    time.
    """
    gpu = next(i for i, kind in enumerate(fleet.kinds) if kind.n_accel)
    largest_first = np.sort(schedule.n_items)[::-1]
    busy_ns = np.cumsum(fleet.kinds[gpu].table.accel_ns[0, largest_first])
    enough = np.searchsorted(
        busy_ns, GPU_BUSY * int((fleet.kind == gpu).sum()) * int(schedule.arrival_ns[-1])
    )
    return int(largest_first[min(int(enough), len(largest_first) - 1)]) + 1


def load_of(
    config: RunConfig, n: int, peak_qps: float, *, diurnal: bool, seed: int = 0
) -> Schedule:
    """n queries, Poisson: at the peak rate, or over one day from the night's rate to the peak's and
    back.
    """
    rng = stream(config.inputs.numpy_rand_seed, "fleet arrivals", seed)
    sizes = draw_sizes(
        config.load, LARGEST, n, stream(config.inputs.numpy_rand_seed, "fleet sizes", seed)
    )
    unit = np.cumsum(rng.exponential(1.0, n))
    if diurnal:
        day = np.linspace(0, 1, 10_001)
        rate = DAY_LOW + (1 - DAY_LOW) * (1 - np.cos(2 * np.pi * day)) / 2
        length_s = n / (peak_qps * RateCurve(day, rate).mean_rate)
        seconds = RateCurve(day * length_s, rate * peak_qps).times_s(unit)
    else:
        seconds = unit / peak_qps
    return Schedule(np.rint(seconds * NS_PER_S).astype(np.int64), sizes, np.zeros(n, np.int32))


def tails(run: FleetRun) -> dict[str, float]:
    """Quantiles of the fleet's latency after the warm-up."""
    own = run.latency_ms[int(WARM_UP * len(run.latency_ms)) :]
    return {
        f"p{100 * p:g}_ms": float(x)
        for p, x in zip(QUANTILES, np.quantile(own, QUANTILES), strict=True)
    }


# -- questions ---------------------------------------------------------------------------------------------------


def routing(effort: Effort, tell: Tell) -> list[dict[str, Any]]:
    """Tail by routing rule and load, a mixed fleet."""
    config = load_config()
    rows = []
    loads = (0.5, 0.7, 0.8, 0.9)
    model = "wnd" if "wnd" in effort.models else effort.models[0]
    kinds = kinds_of(model, tail_policies(model))
    fleet = fleet_of(kinds, effort.servers)
    for i, load in enumerate(loads):
        schedule = load_of(config, effort.queries, load * float(fleet.weight.sum()), diurnal=False)
        for route in ROUTES:
            begun = time.perf_counter()
            run = fleet.run(schedule, route, large_items=fair_threshold(fleet, schedule))
            wall_s = time.perf_counter() - begun
            rows.append(
                {
                    "model": model,
                    "load": load,
                    "route": route,
                    "servers": len(fleet),
                    **tails(run),
                    "wall_s": wall_s,
                }
            )
        tell((i + 1) / len(loads))
    return rows


def tuning(effort: Effort, tell: Tell) -> list[dict[str, Any]]:
    """The fleet's tail over a day by the policies of its servers; the same queries go to the same
    servers.
    """
    config = load_config()
    rows = []
    for i, model in enumerate(effort.models):
        chosen = {
            "static": static_policies(),
            "tuned for the tail": tail_policies(model),
            "tuned for the rate": tuned_policies(model, MEDIUM_SLA_MS[model]),
        }
        fleets = {
            name: fleet_of(kinds_of(model, policies), effort.servers)
            for name, policies in chosen.items()
        }
        weight = fleets["static"].weight
        schedule = load_of(config, effort.queries, PEAK * float(weight.sum()), diurnal=True)
        static: dict[str, float] = {}
        for name, fleet in fleets.items():
            fleet.weight = weight
            found = tails(fleet.run(schedule, "random"))
            static = static or found
            rows.append(
                {
                    "model": model,
                    "servers": effort.servers,
                    "policies": name,
                    **found,
                    **{
                        f"{k} gain": static[f"{k}_ms"] / found[f"{k}_ms"]
                        for k in ("p50", "p95", "p99")
                    },
                    "batch, threshold": "; ".join(
                        f"{kind}: {p.batch_items}, {p.offload_items or 'none'}"
                        for kind, p in chosen[name].items()
                    ),
                }
            )
        tell((i + 1) / len(effort.models))
    return rows


def sampling(effort: Effort, tell: Tell) -> list[dict[str, Any]]:
    """p95 of k machines of a fleet, drawn at random, beside the p95 of all of them."""
    config = load_config()
    rows = []
    for i, model in enumerate(effort.models):
        fleet = fleet_of(kinds_of(model, static_policies()), effort.servers)
        schedule = load_of(config, effort.queries, PEAK * float(fleet.weight.sum()), diurnal=True)
        run = fleet.run(schedule, "random")
        begin = int(WARM_UP * len(schedule))
        order = np.argsort(run.server[begin:], kind="stable")
        by_server = np.split(
            run.latency_ms[begin:][order], np.cumsum(np.bincount(run.server[begin:]))[:-1]
        )
        whole = float(np.quantile(run.latency_ms[begin:], 0.95))
        rng = stream(config.inputs.numpy_rand_seed, "fleet samples")
        for k in (1, 2, 3, 5, 10, 20, 50):
            if k < len(fleet):
                errors = [
                    abs(
                        np.quantile(
                            np.concatenate([by_server[s] for s in rng.permutation(len(fleet))[:k]]),
                            0.95,
                        )
                        / whole
                        - 1
                    )
                    for _ in range(effort.draws)
                ]
                rows.append(
                    {
                        "model": model,
                        "servers": len(fleet),
                        "machines": k,
                        "fleet_p95_ms": whole,
                        "median_error": float(np.median(errors)),
                        "error_95": float(np.quantile(errors, 0.95)),
                        "within_10_percent": float(np.mean(np.array(errors) <= 0.1)),
                    }
                )
        tell((i + 1) / len(effort.models))
    return rows


def speed(effort: Effort, tell: Tell) -> list[dict[str, Any]]:
    """Seconds for the largest run, by the number of servers and the rule."""
    config = load_config()
    rows = []
    model = "wnd" if "wnd" in effort.models else effort.models[0]
    kinds = kinds_of(model, static_policies())
    sizes = [n for n in (1, 10, 100, 1000) if n <= effort.most_servers]
    for i, n_servers in enumerate(sizes):
        fleet = fleet_of(kinds, n_servers)
        n = effort.most_queries if n_servers == sizes[-1] else effort.queries
        schedule = load_of(config, n, PEAK * float(fleet.weight.sum()), diurnal=True)
        for route in ("random", "round_robin", "power_of_two", "shortest_queue"):
            begun = time.perf_counter()
            run = fleet.run(schedule, route)
            rows.append(
                {
                    "servers": n_servers,
                    "queries": n,
                    "route": route,
                    "seconds": time.perf_counter() - begun,
                    **tails(run),
                }
            )
        tell((i + 1) / len(sizes))
    return rows


STUDIES = {"routing": routing, "tuning": tuning, "sampling": sampling, "speed": speed}


def main(argv: Sequence[str]) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument(
        "--quick", action="store_true", help="one model, small fleets: under a minute"
    )
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the CSV files")
    given = parser.parse_args(argv)
    effort = QUICK if given.quick else Effort()
    given.out.mkdir(parents=True, exist_ok=True)
    with Progress("auto") as progress:
        for name, study in STUDIES.items():
            with progress.step(name) as on_fraction:
                rows = study(effort, on_fraction)
            pd.DataFrame(rows).to_csv(given.out / f"{name}.csv", index=False, float_format="%.5g")
    print("\n".join(str(given.out / f"{name}.csv") for name in STUDIES))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
