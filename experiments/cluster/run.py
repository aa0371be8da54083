#!/usr/bin/env python3
"""A fleet in virtual time: routing, tuning for its tail, machines that stand for all, and speed.

python experiments/cluster/run.py [--quick] [--only question=tuning]

Servers of 40 cores of two generations, a part of them with an accelerator: service times of
accelerator/amd_epyc_zen4 beside a busy neighbour; the older generation takes GENERATION times as
long; the GPU by its published speedup. Production query sizes, Poisson arrivals, a day of load
pressed into the run. One table a question.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from backends.tuning.probe import Sla, capacity_qps, latencies_ms
from backends.virtual.fleet import ROUTES, Fleet, FleetRun, ServerKind
from backends.virtual.simulated import SimulatedSession
from experiments.cluster import plot
from experiments.common.servers import (
    LARGEST,
    MEDIUM_SLA_MS,
    N_ENGINES,
    Server,
    best_of,
    ladder,
    load_config,
    service_table,
)
from experiments.common.study import NoOptions, Study, View
from infra.clock import NS_PER_S
from infra.load.arrivals import RateCurve
from infra.messages import ACCEL, CPU
from infra.rng import stream
from infra.settings.config import RunConfig
from loadGenerator import CommonLoad, Schedule, draw_sizes
from scheduler import Goal, HillClimb, Policy, static_policy

FloatArray = npt.NDArray[np.float64]
Policies = dict[str, Policy]  # by the kind of the server
GENERATION = 1.5  # stated: the older CPUs take so many times as long
WITH_GPU = 0.2  # share of the servers
OLDER = 0.4  # share of the servers; the rest is newer and without a GPU
DAY_LOW = 0.4  # the night's rate over the day's highest
PEAK = 0.8  # of what the fleet carries at the static policy without waiting
LOADS = (0.5, 0.7, 0.8, 0.9)
TAIL_QUERIES = 20_000
GPU_BUSY = 0.6  # where queries are routed by size
WARM_UP = 0.05  # of the queries
MACHINES = (1, 2, 3, 5, 10, 20, 50)


@dataclass(frozen=True)
class FleetSize:
    """How large the runs are."""

    queries: int = 2_000_000
    most_queries: int = 10_000_000  # of the runs that show the speed
    servers: int = 100
    most_servers: int = 1000
    draws: int = 400  # samples of machines of each size


@dataclass(frozen=True)
class FleetEffort:
    """How much of the study is run; the first model answers the questions about one."""

    models: tuple[str, ...]
    size: FleetSize


@dataclass(frozen=True)
class FleetCase:
    """A question about a model's fleet."""

    question: str
    model: str
    size: FleetSize


@dataclass(frozen=True)
class FleetTails:
    """Quantiles of the fleet's latency after the warm-up."""

    p50_ms: float
    p95_ms: float
    p99_ms: float

    @classmethod
    def of(cls, run: FleetRun) -> FleetTails:
        """Those of a run."""
        kept = run.latency_ms[int(WARM_UP * len(run.latency_ms)) :]
        return cls(*np.quantile(kept, (0.5, 0.95, 0.99)).tolist())


@dataclass(frozen=True)
class RoutingRow:
    """The tail under one rule at one load."""

    model: str
    load: float
    route: str
    servers: int
    tails: FleetTails
    wall_s: float


@dataclass(frozen=True)
class SamplingRow:
    """How far the p95 of `machines` machines is from the fleet's."""

    model: str
    servers: int
    machines: int
    fleet_p95_ms: float
    median_error: float
    error_95: float  # that 95 % of the samples keep
    within_10_percent: float


@dataclass(frozen=True)
class SpeedRow:
    """Seconds of one run."""

    servers: int
    queries: int
    route: str
    seconds: float
    tails: FleetTails


# -- servers and their load ------------------------------------------------------------------------


def kinds_of(model: str, policies: Policies) -> list[tuple[ServerKind, float]]:
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
    counts = [n_servers - sum(counts), *counts]
    return Fleet([(kind, n) for (kind, _), n in zip(kinds, counts, strict=True) if n])


def static_policies() -> Policies:
    """The paper's baseline on all servers."""
    return dict.fromkeys(("newer", "older", "newer, GPU"), static_policy(LARGEST, N_ENGINES))


def rate_policies(model: str) -> Policies:
    """What carries most under the SLA, kind by kind: DeepRecSched's hill climbing on one server."""
    config = load_config()
    tuned = {}
    sla = Sla(MEDIUM_SLA_MS[model], max_queries=20_000)
    static = static_policy(LARGEST, N_ENGINES)
    for name, session, thresholds in _alone(model):
        goal = Goal(0.5 * capacity_qps(session, config, static, N_ENGINES), 0.02)
        load = CommonLoad(config, sla.max_queries, 2)
        knobs = {"batch_items": ladder(2), "offload_items": thresholds}
        tuned[name] = best_of(HillClimb(knobs, static, goal), session, load, sla).policy
    return tuned


def tail_policies(model: str) -> Policies:
    """What has the lowest p95 at the fleet's peak, kind by kind: the whole grid on one server."""
    config = load_config()
    best = {}
    static = static_policy(LARGEST, N_ENGINES)
    for name, session, thresholds in _alone(model):
        rate_qps = PEAK * capacity_qps(session, config, static, N_ENGINES)
        schedule = CommonLoad(config, TAIL_QUERIES, 3).at(rate_qps)
        policies = [Policy(n, k) for n in ladder(2) for k in thresholds]
        runs = (session.run(schedule, policy) for policy in policies)
        best[name] = policies[int(np.argmin([np.quantile(latencies_ms(r), 0.95) for r in runs]))]
    return best


def _alone(model: str) -> Iterator[tuple[str, SimulatedSession, Sequence[int | None]]]:
    """One server of each kind, and the thresholds that it can choose from."""
    for name, slower, thresholds in (
        ("newer", 1.0, []),
        ("older", GENERATION, []),
        ("newer, GPU", 1.0, ladder(2)),
    ):
        table = service_table(model, Server(slower=slower))
        session = SimulatedSession({CPU: N_ENGINES, ACCEL: 1}, table, keep_tasks=False)
        yield name, session, [*thresholds, None]


def fair_threshold(fleet: Fleet, schedule: Schedule) -> int:
    """The least size from which on the GPUs carry all queries and are busy for GPU_BUSY of it."""
    gpu = next(i for i, kind in enumerate(fleet.kinds) if kind.n_accel)
    largest_first = np.sort(schedule.n_items)[::-1]
    busy_ns = np.cumsum(fleet.kinds[gpu].table.accel_ns[0, largest_first])
    wanted_ns = GPU_BUSY * int((fleet.kind == gpu).sum()) * int(schedule.arrival_ns[-1])
    enough = int(np.searchsorted(busy_ns, wanted_ns))
    return int(largest_first[min(enough, len(largest_first) - 1)]) + 1


def load_of(config: RunConfig, n: int, peak_qps: float, *, diurnal: bool = True) -> Schedule:
    """n queries, Poisson: over one day from the night's rate to the peak's and back, or at that."""
    seed = config.inputs.numpy_rand_seed
    rng = stream(seed, "fleet arrivals", 0)
    sizes = draw_sizes(config.load, LARGEST, n, stream(seed, "fleet sizes", 0))
    unit = np.cumsum(rng.exponential(1.0, n))
    if diurnal:
        day = np.linspace(0, 1, 10_001)
        rate = DAY_LOW + (1 - DAY_LOW) * (1 - np.cos(2 * np.pi * day)) / 2
        length_s = n / (peak_qps * RateCurve(day, rate).mean_rate)
        seconds = RateCurve(day * length_s, rate * peak_qps).times_s(unit)
    else:
        seconds = unit / peak_qps
    return Schedule(np.rint(seconds * NS_PER_S).astype(np.int64), sizes, np.zeros(n, np.int32))


def peak_of(fleet: Fleet) -> float:
    """The day's highest rate."""
    return PEAK * float(fleet.weight.sum())


# -- questions -------------------------------------------------------------------------------------


def routing(case: FleetCase) -> Iterator[RoutingRow]:
    """Tail by routing rule and load, a mixed fleet."""
    config = load_config()
    fleet = fleet_of(kinds_of(case.model, tail_policies(case.model)), case.size.servers)
    for load in LOADS:
        rate_qps = load * float(fleet.weight.sum())
        schedule = load_of(config, case.size.queries, rate_qps, diurnal=False)
        for route in ROUTES:
            begun = time.perf_counter()
            run = fleet.run(schedule, route, large_items=fair_threshold(fleet, schedule))
            wall_s = time.perf_counter() - begun
            yield RoutingRow(case.model, load, route, len(fleet), FleetTails.of(run), wall_s)


def tuning(case: FleetCase) -> Iterator[dict[str, Any]]:
    """The fleet's tail over a day by its policies; the same queries go to the same servers."""
    choices = {
        "static": static_policies(),
        "tuned for the tail": tail_policies(case.model),
        "tuned for the rate": rate_policies(case.model),
    }
    fleets = {
        name: fleet_of(kinds_of(case.model, policies), case.size.servers)
        for name, policies in choices.items()
    }
    weight = fleets["static"].weight
    schedule = load_of(load_config(), case.size.queries, peak_of(fleets["static"]))
    static = None
    for name, fleet in fleets.items():
        fleet.weight = weight
        tails = FleetTails.of(fleet.run(schedule, "random"))
        static = static or tails
        yield {
            "model": case.model,
            "servers": case.size.servers,
            "policies": name,
            **vars(tails),
            "p50 gain": static.p50_ms / tails.p50_ms,
            "p95 gain": static.p95_ms / tails.p95_ms,
            "p99 gain": static.p99_ms / tails.p99_ms,
            "batch, threshold": "; ".join(
                f"{kind}: {policy.batch_items}, {policy.offload_items or 'none'}"
                for kind, policy in choices[name].items()
            ),
        }


def sampling(case: FleetCase) -> Iterator[SamplingRow]:
    """p95 of k machines of a fleet, drawn at random, beside the p95 of all of them."""
    config = load_config()
    fleet = fleet_of(kinds_of(case.model, static_policies()), case.size.servers)
    schedule = load_of(config, case.size.queries, peak_of(fleet))
    run = fleet.run(schedule, "random")
    begin = int(WARM_UP * len(schedule))
    server = run.server[begin:]
    latency_ms = run.latency_ms[begin:]
    order = np.argsort(server, kind="stable")
    by_server = np.split(latency_ms[order], np.cumsum(np.bincount(server))[:-1])
    whole = float(np.quantile(latency_ms, 0.95))
    rng = stream(config.inputs.numpy_rand_seed, "fleet samples")

    def error(n_machines: int) -> float:
        drawn = rng.permutation(len(fleet))[:n_machines]
        p95 = np.quantile(np.concatenate([by_server[i] for i in drawn]), 0.95)
        return float(abs(p95 / whole - 1))

    for k in MACHINES:
        if k < len(fleet):
            errors = np.array([error(k) for _ in range(case.size.draws)])
            shares = (np.median(errors), np.quantile(errors, 0.95), np.mean(errors <= 0.1))
            yield SamplingRow(case.model, len(fleet), k, whole, *map(float, shares))


def speed(case: FleetCase) -> Iterator[SpeedRow]:
    """Seconds for the largest run, by the number of servers and the rule."""
    config = load_config()
    kinds = kinds_of(case.model, static_policies())
    sizes = [n for n in (1, 10, 100, 1000) if n <= case.size.most_servers]
    for n_servers in sizes:
        fleet = fleet_of(kinds, n_servers)
        n = case.size.most_queries if n_servers == sizes[-1] else case.size.queries
        schedule = load_of(config, n, peak_of(fleet))
        for route in ("random", "round_robin", "power_of_two", "shortest_queue"):
            begun = time.perf_counter()
            run = fleet.run(schedule, route)
            seconds = time.perf_counter() - begun
            yield SpeedRow(n_servers, n, route, seconds, FleetTails.of(run))


QUESTIONS = {"routing": routing, "tuning": tuning, "sampling": sampling, "speed": speed}


def cases(effort: FleetEffort, _: NoOptions) -> list[FleetCase]:
    """Routing and speed ask about one model, the others about each."""
    one_model = ("wnd",)
    models = {"routing": one_model, "speed": one_model}
    return [
        FleetCase(question, model, effort.size)
        for question in QUESTIONS
        for model in models.get(question, effort.models)
    ]


STUDY = Study(
    "cluster",
    "What do routing and tuning do to a fleet's tail, and how many machines stand for all?",
    cases,
    run=lambda case: {case.question: list(QUESTIONS[case.question](case))},
    efforts={
        "quick": FleetEffort(("wnd",), FleetSize(100_000, 1_000_000, 20, 200, 100)),
        "full": FleetEffort(tuple(MEDIUM_SLA_MS), FleetSize()),
    },
    figures={
        "routing": View(plot.figure_routing, "routing"),
        "tuning": View(plot.figure_tuning, "tuning"),
        "sampling": View(plot.figure_sampling, "sampling"),
    },
    report={
        "p95 and p99 by routing and load, ms": View(plot.by_route, "routing"),
        "Static over tuned": View(plot.tuning_gains, "tuning"),
        "Geometric means": View(plot.mean_gains, "tuning"),
        "Machines for p95 within 10 %": View(plot.machines_needed, "sampling"),
        "Speed": View(plot.speed_table, "speed"),
    },
)

if __name__ == "__main__":
    STUDY.main()
