#!/usr/bin/env python3
"""Where do the paper's gains come from? Tuning over the static baseline, by what a task costs.

python experiments/paper_gains/run.py [--quick] [--models wnd,ncf]

A server of 40 cores in virtual time, production sizes, Poisson arrivals. The product's own hill
climb searches the batch, then batch and threshold; the baseline's and its policies' rates are then
measured on a long load that no search has seen, the same for all services. Table: paper_gains, a
row a model, SLA, service and seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from backends.tuning.probe import Sla, capacity_qps, max_rate_qps
from backends.virtual.simulated import SimulatedSession
from experiments.common.released import MODELS
from experiments.common.servers import (
    LARGEST,
    MEDIUM_SLA_MS,
    N_ENGINES,
    SLA_SHARES,
    best_of,
    ladder,
    load_config,
)
from experiments.common.study import Study, View, names
from experiments.paper_gains import plot
from experiments.paper_gains.services import (
    AT_SCALE,
    OURS,
    PROPORTIONAL,
    RELEASED,
    Service,
    table_of,
    waste,
    work_ns,
)
from infra.messages import ACCEL, CPU
from loadGenerator import CommonLoad
from scheduler import Goal, HillClimb, Limit, Policy, static_policy

SEARCH_WIDTH = 0.02
MEASURED_WIDTH = 0.01
MIN_SLAS = 40  # an overload of 5 % needs 20 SLAs until its queries are late
STEPS = 2  # batches and thresholds per doubling
FITTED = Service(AT_SCALE, 2.5, card_cores=10)
SLAS = tuple(SLA_SHARES)


@dataclass(frozen=True)
class Searched:
    """A service with the SLAs, the seeds and the queries that it is searched with."""

    service: Service
    slas: tuple[str, ...] = SLAS
    n_seeds: int = 2
    n_queries: int = 40_000


@dataclass(frozen=True)
class GainsEffort:
    """What is searched."""

    searched: tuple[Searched, ...]
    models: tuple[str, ...] = MODELS
    search_queries: int = 10_000


@dataclass(frozen=True)
class GainsOptions:
    """The study's flags."""

    models: tuple[str, ...] = names((), "models; none: the effort's", MEDIUM_SLA_MS)


@dataclass(frozen=True)
class GainsCase:
    """One model on one service under some SLAs."""

    model: str
    service: Service
    slas: tuple[str, ...]
    seed: int
    search_queries: int
    n_queries: int


@dataclass(frozen=True)
class GainsRow:
    """Rates under an SLA: of the baseline, of the tuned batch, of tuned batch and threshold."""

    model: str
    service: Service
    sla: str
    sla_ms: float
    seed: int
    waste: float
    static_qps: float
    cpu_batch: int
    cpu_qps: float
    work_gain: float  # engine time of a query under the baseline over that under `cpu_batch`
    card_batch: int | None
    card_threshold: int | None
    card_qps: float | None


@dataclass
class ServiceSearch:
    """A case's server, and its load by its length."""

    case: GainsCase
    loads: dict[str, CommonLoad] = field(default_factory=dict)

    def __post_init__(self) -> None:
        case = self.case
        self.config = load_config()
        self.table = table_of(case.model, case.service)
        engines = {CPU: N_ENGINES, ACCEL: 1} if case.service.card_cores else {CPU: N_ENGINES}
        self.session = SimulatedSession(engines, self.table, keep_tasks=False)
        self.static = static_policy(LARGEST, N_ENGINES)
        self.loads["search"] = CommonLoad(self.config, case.search_queries, 100 + case.seed)
        self.loads["measured"] = CommonLoad(self.config, case.n_queries, 200 + case.seed)
        self.carried_qps = capacity_qps(self.session, self.config, self.static, N_ENGINES)

    def row(self, sla: str) -> GainsRow:
        """Search and measure under one SLA."""
        case = self.case
        sla_ms = MEDIUM_SLA_MS[case.model] * SLA_SHARES[sla]
        static_qps = self.measured(self.static, sla_ms, self.carried_qps)
        hill = self.climb({"batch_items": ladder(STEPS)}, self.static, sla_ms)
        cpu_qps = self.measured(hill.policy, sla_ms, hill.qps.value)
        with_card = self.with_card(hill, sla_ms) if case.service.card_cores else None
        card = with_card.policy if with_card else None
        card_qps = self.measured(card, sla_ms, with_card.qps.value) if card and with_card else None
        sizes = self.loads["measured"].at(1.0).n_items.astype("int64")
        cpu_ns = self.table.cpu_ns[-1]
        work = [work_ns(cpu_ns, sizes, p.batch_items) for p in (self.static, hill.policy)]
        return GainsRow(
            case.model,
            case.service,
            sla,
            sla_ms,
            case.seed,
            waste(cpu_ns),
            static_qps,
            hill.policy.batch_items,
            cpu_qps,
            work[0] / work[1],
            card.batch_items if card else None,
            card.offload_items if card else None,
            card_qps,
        )

    def climb(
        self,
        knobs: dict[str, Sequence[int | None]],
        start: Policy,
        sla_ms: float,
        limit: Limit | None = None,
    ) -> Limit:
        """The best that the hill climb comes to on the load of searches."""
        start_qps = limit.qps.value if limit else 0.0
        goal = Goal(start_qps or self.carried_qps, SEARCH_WIDTH)
        search = HillClimb(knobs, start, goal, limit)
        sla = self.sla("search", sla_ms)
        return best_of(search, self.session, self.loads["search"], sla)

    def with_card(self, hill: Limit, sla_ms: float) -> Limit:
        """The best batch and threshold, from the tuned batch on."""
        rungs = ladder(STEPS)
        knobs: dict[str, Sequence[int | None]] = {
            "offload_items": [*rungs, None],
            "batch_items": rungs,
        }
        return self.climb(knobs, hill.policy, sla_ms, hill)

    def measured(self, policy: Policy, sla_ms: float, start_qps: float) -> float:
        """What a policy carries on the load that no search has seen."""
        sla = self.sla("measured", sla_ms)
        load = self.loads["measured"]
        start_qps = start_qps or self.carried_qps
        rate = max_rate_qps(self.session, load, policy, sla, start_qps, MEASURED_WIDTH)
        return rate.value

    def sla(self, load: str, sla_ms: float) -> Sla:
        """The SLA, decided by all queries of a load at most, or by more where it is a long one."""
        n_queries = self.case.search_queries if load == "search" else self.case.n_queries
        enough = round(MIN_SLAS * sla_ms / 1e3 * self.carried_qps)
        return Sla(sla_ms, max_queries=max(n_queries, enough))


def search(case: GainsCase) -> dict[str, list[GainsRow]]:
    """The case's rows, one an SLA."""
    searches = ServiceSearch(case)
    return {"paper_gains": [searches.row(sla) for sla in case.slas]}


def cases(effort: GainsEffort, options: GainsOptions) -> list[GainsCase]:
    """All seeds of all services for each model."""
    return [
        GainsCase(model, x.service, x.slas, seed, effort.search_queries, x.n_queries)
        for x in effort.searched
        for model in options.models or effort.models
        for seed in range(1, x.n_seeds + 1)
    ]


FULL = (
    Searched(FITTED, n_seeds=5, n_queries=100_000),
    Searched(Service(OURS), n_seeds=3),
    Searched(Service(RELEASED), n_seeds=3),
    *(Searched(Service(OURS, task_cost=cost), ("medium",)) for cost in (0.25, 0.5, 1, 2)),
    Searched(Service(PROPORTIONAL), ("medium",), 1),
    *(Searched(Service(AT_SCALE, slower), n_seeds=1) for slower in (1.0, 2.0, 3.0, 4.0)),
    *(Searched(replace(FITTED, card_cores=cores), n_seeds=1) for cores in (1, 40)),
)
QUICK = (
    Searched(FITTED, n_seeds=2, n_queries=20_000),
    Searched(Service(OURS), ("medium",), 2, 20_000),
    Searched(Service(OURS, task_cost=1), ("medium",), 2, 20_000),
    Searched(Service(PROPORTIONAL), ("medium",), 2, 20_000),
)

STUDY = Study(
    "paper_gains",
    "Where do the paper's gains over the static baseline come from?",
    cases,
    search,
    efforts={"quick": GainsEffort(QUICK, ("wnd", "ncf"), 5_000), "full": GainsEffort(FULL)},
    options=GainsOptions,
    parallel=True,
    figures={
        "gains": View(plot.figure_paper, "paper_gains"),
        "gain_by_cost": View(plot.figure_cost, "paper_gains"),
        "gain_by_cores": View(plot.figure_cores, "paper_gains"),
    },
    report={
        "Geometric means over the models, least and most over seeds": View(
            plot.mean_table, "paper_gains"
        ),
        "By model, the fitted service": View(plot.model_table, "paper_gains"),
    },
)

if __name__ == "__main__":
    STUDY.main()
