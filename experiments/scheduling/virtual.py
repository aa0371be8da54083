#!/usr/bin/env python3
"""All schedulers in virtual time: eight models, three SLAs, CPU and CPU + accelerator.

python experiments/scheduling/virtual.py [--quick] [--models wnd,ncf] [--slas medium]
    [--inference_engines 40] [--device NAME] [--slower 1.0]

A server of 40 cores as the paper's, service times of one core of accelerator/amd_epyc_zen4 beside a
busy neighbour (times --slower, for another CPU), one accelerator: the GTX 1080 Ti by its published
speedup over that core, or another device folder by its profile or roofline. Tables: virtual (a
search a row: what it found, what that truly carries, what it cost), virtual_curves (QPS by one
knob) and virtual_map (by batch and threshold).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from accelerator.devices import ROOT, load_device
from backends.tuning.probe import Sla, capacity_qps, max_rate_qps, probe
from backends.virtual.simulated import SimulatedSession
from experiments.common.servers import (
    LARGEST,
    MEDIUM_SLA_MS,
    SLA_SHARES,
    Server,
    ladder,
    load_config,
    service_table,
)
from experiments.common.study import Study, View, names
from experiments.scheduling import plot
from infra.messages import ACCEL, CPU
from infra.search.rate_search import log_grid_qps
from infra.settings.fields import ConfigError, flag
from loadGenerator import CommonLoad
from scheduler import (
    Exhaustive,
    Goal,
    HillClimb,
    Limit,
    Policy,
    ReleasedClimb,
    Search,
    static_policy,
    with_offload,
)

CPU_WATTS = 250.0  # two sockets of 125 W (Xeon Gold 6138), as stated
GPU_WATTS = 250.0  # GTX 1080 Ti: as NVIDIA states
RELEASED_BATCHES = (1024, 512, 256, 128, 64, 32)
RELEASED_THRESHOLDS = (96, 128, 192, 256, 384, 512)
RELEASED_GRID_QPS = (0.01, 100.0, 271)  # the release's step of 3.5 %, over the rates of 40 cores
REL_WIDTH = 0.02
MIN_SLAS = 40  # an overload of 5 % needs 20 SLAs until its queries are late


@dataclass(frozen=True)
class Grids:
    """How finely and how long is searched."""

    cpu_steps: int = 4  # batches per doubling where they are the only knob
    batch_steps: int = 1  # batches per doubling where there are two knobs
    threshold_steps: int = 2
    max_queries: int = 20_000  # of a trial; more where that is less than MIN_SLAS times the SLA


@dataclass(frozen=True)
class VirtualEffort:
    """How much of the study is run where no flag says."""

    models: tuple[str, ...] = tuple(MEDIUM_SLA_MS)
    slas: tuple[str, ...] = tuple(SLA_SHARES)
    grids: Grids = Grids()


@dataclass(frozen=True)
class VirtualOptions:
    """The study's flags."""

    models: tuple[str, ...] = names((), "models; none: the effort's", MEDIUM_SLA_MS)
    slas: tuple[str, ...] = names((), "SLAs; none: the effort's", SLA_SHARES)
    inference_engines: int = flag(Server.n_engines, "cores of the server", low=1)
    device: str = flag(Server.device, "folder under accelerator/")
    slower: float = flag(1.0, "service times of the CPU over the measured ones", low=1e-3)


@dataclass(frozen=True)
class VirtualCase:
    """One model under one SLA on one server."""

    model: str
    sla: str
    server: Server
    grids: Grids


@dataclass(frozen=True)
class VirtualRow:
    """What a search has found and what it has cost."""

    model: str
    sla: str
    sla_ms: float
    search: str
    batch_items: int
    offload_items: int | None
    found_qps: float
    low_qps: float
    high_qps: float
    true_qps: float
    watts: float
    trials: int
    queries: int
    seconds: float  # of load
    wall_s: float


@dataclass(frozen=True)
class CurveRow:
    """The highest rate at one value of one knob."""

    model: str
    sla: str
    knob: str
    value: int | None
    qps: float
    low_qps: float
    high_qps: float
    batch_items: int


@dataclass(frozen=True)
class MapRow:
    """The highest rate at one pair of batch and threshold."""

    model: str
    sla: str
    batch_items: int
    offload_items: int | None
    qps: float


class CaseSearches:
    """The searches of a case on its simulated server; they fill rows and curves."""

    def __init__(self, case: VirtualCase) -> None:
        self.case = case
        self.config = load_config()
        n_engines = case.server.n_engines
        table = service_table(case.model, case.server)
        self.session = SimulatedSession({CPU: n_engines, ACCEL: 1}, table, keep_tasks=False)
        self.static = static_policy(LARGEST, n_engines)
        carried_qps = capacity_qps(self.session, self.config, self.static, n_engines)
        self.goal = Goal(0.5 * carried_qps, REL_WIDTH)
        sla_ms = MEDIUM_SLA_MS[case.model] * SLA_SHARES[case.sla]
        enough = round(MIN_SLAS * sla_ms / 1e3 * 4 * self.goal.start_qps)
        self.sla = Sla(sla_ms, max_queries=max(case.grids.max_queries, enough))
        self.check = Sla(sla_ms, max_queries=5 * self.sla.max_queries)
        self.load = CommonLoad(self.config, self.sla.max_queries, 2)
        self.fresh = CommonLoad(self.config, self.check.max_queries, 9)
        self.rows: list[VirtualRow] = []
        self.curves: list[CurveRow] = []

    def on_cpu(self) -> Limit:
        """The searches over the batch alone; returns the hill climb's."""
        batches = ladder(self.case.grids.cpu_steps)
        static = self.search("static", Exhaustive([self.static], self.goal))
        oracle = Exhaustive([Policy(n) for n in batches], self.goal)
        self.search("exhaustive, CPU", oracle)
        self.add_curve("batch_items", oracle.limits)
        climb = HillClimb({"batch_items": batches}, self.static, self.goal, static)
        hill = self.search("hill, CPU", climb)
        self.search("released, CPU", self.released([Policy(n) for n in RELEASED_BATCHES]))
        return hill

    def with_accelerator(self, hill: Limit) -> list[Limit]:
        """The searches over batch and threshold from a CPU policy on; returns the whole grid's."""
        batches = ladder(self.case.grids.batch_steps)
        thresholds = [*ladder(self.case.grids.threshold_steps), None]
        knobs: dict[str, Sequence[int | None]] = {
            "offload_items": thresholds,
            "batch_items": batches,
        }
        oracle = Exhaustive([Policy(n, k) for n in batches for k in thresholds], self.goal)
        batch = self.search("exhaustive, CPU + accelerator", oracle).policy.batch_items
        at_best = [limit for limit in oracle.limits if limit.policy.batch_items == batch]
        self.add_curve("offload_items", at_best)
        climb = HillClimb(knobs, hill.policy, self.goal, hill)
        self.search("hill, CPU + accelerator", climb)
        walk = self.released(with_offload(hill.policy, RELEASED_THRESHOLDS))
        self.search("released, CPU + accelerator", walk)
        per_watt = Goal(self.goal.start_qps, REL_WIDTH, watts)
        self.search("hill, QPS per watt", HillClimb(knobs, hill.policy, per_watt, hill))
        return list(oracle.limits)

    def released(self, policies: Sequence[Policy]) -> Search:
        """The released walk over these policies."""
        grid = log_grid_qps(*RELEASED_GRID_QPS)
        start = int(np.searchsorted(grid, self.goal.start_qps / 5))
        return ReleasedClimb(policies, grid, self.sla.latency_ms, 0.1, 128, 64, start)

    def search(self, name: str, search: Search) -> Limit:
        """Run a search to its end, and add its row."""
        n_trials = 0
        n_queries = 0
        seconds = 0.0
        begun = time.monotonic()
        while (trial := search.propose()) is not None:
            n_trials += 1
            load = self.load
            if trial.n_queries is not None:
                load = CommonLoad(self.config, 2 * trial.n_queries, 1000 + n_trials)
            probed = probe(self.session, load, self.sla, trial)
            assert probed is not None, "virtual time is not interrupted"
            n_queries += probed.outcome.n_queries
            seconds += probed.seconds
            search.observe(probed.outcome)
        best = search.best
        assert best is not None, "a search ends with a policy"
        row = VirtualRow(
            self.case.model,
            self.case.sla,
            self.sla.latency_ms,
            name,
            best.policy.batch_items,
            best.policy.offload_items,
            best.qps.value,
            best.qps.low,
            best.qps.high,
            self.true_qps(best),
            watts(best.policy),
            n_trials,
            n_queries,
            seconds,
            time.monotonic() - begun,
        )
        self.rows.append(row)
        return best

    def true_qps(self, best: Limit) -> float:
        """What the policy carries on a long load that no search has seen, to 1 %."""
        start_qps = min(best.qps.value, 4 * self.goal.start_qps) or self.goal.start_qps
        rate = max_rate_qps(self.session, self.fresh, best.policy, self.check, start_qps, 0.01)
        return rate.value

    def add_curve(self, knob: str, limits: Sequence[Limit]) -> None:
        """Add the rows of a curve over one knob."""
        for limit in limits:
            value = getattr(limit.policy, knob)
            rates = (limit.qps.value, limit.qps.low, limit.qps.high)
            batch = limit.policy.batch_items
            self.curves.append(CurveRow(self.case.model, self.case.sla, knob, value, *rates, batch))


def watts(policy: Policy) -> float:
    """Power of the server under a policy, as stated."""
    return CPU_WATTS + (GPU_WATTS if policy.offload_items is not None else 0.0)


def search_all(case: VirtualCase) -> dict[str, Sequence[VirtualRow | CurveRow | MapRow]]:
    """Rows of the searches, of the curves over one knob, and of the map over both."""
    searches = CaseSearches(case)
    limits = searches.with_accelerator(searches.on_cpu())
    grid = [
        MapRow(case.model, case.sla, x.policy.batch_items, x.policy.offload_items, x.qps.value)
        for x in limits
    ]
    return {"virtual": searches.rows, "virtual_curves": searches.curves, "virtual_map": grid}


def cases(effort: VirtualEffort, options: VirtualOptions) -> list[VirtualCase]:
    """All models under all SLAs on the server that the flags describe."""
    try:
        load_device(ROOT, options.device)
    except ConfigError as error:
        raise ConfigError("device", str(error).removeprefix(f"{error.flag} ")) from error
    server = Server(options.inference_engines, options.device, options.slower)
    return [
        VirtualCase(model, sla, server, effort.grids)
        for model in options.models or effort.models
        for sla in options.slas or effort.slas
    ]


STUDY = Study(
    "scheduling_virtual",
    "How near does each search come to the best policy, at what cost, and what does tuning gain?",
    cases,
    search_all,
    efforts={
        "quick": VirtualEffort(("wnd", "ncf"), ("medium",), Grids(2, 1, 1, 10_000)),
        "full": VirtualEffort(),
    },
    options=VirtualOptions,
    parallel=True,
    figures={
        "gains": View(plot.figure_gains, "virtual"),
        "regret": View(plot.figure_regret, "virtual"),
        "qps_by_batch": View(partial(plot.figure_curves, knob="batch_items"), "virtual_curves"),
        "qps_by_threshold": View(
            partial(plot.figure_curves, knob="offload_items"), "virtual_curves"
        ),
        "qps_map": View(plot.figure_map, "virtual_map"),
    },
    report={
        "Regret": View(plot.regret_summary, "virtual"),
        "Gain over static, geometric means": View(plot.geometric_means, "virtual"),
        "Best per-core batch, CPU": View(plot.best_batches, "virtual"),
    },
)

if __name__ == "__main__":
    STUDY.main()
