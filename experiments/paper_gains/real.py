#!/usr/bin/env python3
"""Does a cost a task make the gain on real engines too? The search with and without it.

python experiments/paper_gains/real.py [--quick] [--models rm1] [--cost_us 300]

Two engine processes spin so many microseconds of CPU before each task (in the ordinary scheduling
class, so that others on the machine do not starve them). The hill climb finds the batch for each
cost; then the baseline of 25 items and the batches are measured on the same warm engines in turn,
some rounds, so that the machine's swings meet all. Table: paper_gains_real, a row a round and cost.
"""

from __future__ import annotations

import mmap
import time
from dataclasses import dataclass, replace

import pandas as pd

from backends.opening import pool_specs
from backends.processes.engine import Engine, EngineFactory
from backends.processes.process import ProcessSession
from backends.tuning.probe import Sla, capacity_qps, max_rate_qps, probe
from experiments.common.released import config_of
from experiments.common.servers import LARGEST, MEDIUM_SLA_MS
from experiments.common.study import Study, View, names, progress
from experiments.paper_gains.services import (
    OURS,
    STATIC_ITEMS,
    Service,
    production_sizes,
    table_of,
    work_ns,
)
from infra.clock import NS_PER_US
from infra.deployment import resolve
from infra.messages import WireTask
from infra.settings.config import RunConfig
from infra.settings.fields import flag
from loadGenerator import CommonLoad
from scheduler import Goal, HillClimb, Policy, stages_of

COMMON = f"""--queue --inference_engines 2 --num_batches 8 --max_mini_batch_size {LARGEST}
    --batch_size_distribution production --log_file="""
STATIC = Policy(STATIC_ITEMS)
BATCHES = (64, 256, LARGEST)
WIDTH = 0.05
START_LOAD = 0.8  # of the capacity


class CostlyEngine:
    """An engine that spins before each task for as long as the driver says in shared memory."""

    def __init__(self, engine: Engine, cost_ns: memoryview) -> None:
        self._engine = engine
        self._cost_ns = cost_ns

    def warm_up(self) -> None:
        """As the engine does."""
        self._engine.warm_up()

    def score(self, task: WireTask) -> bytes | None:
        """Spin for so much time of this process, then score."""
        end_ns = time.thread_time_ns() + self._cost_ns[0]
        while time.thread_time_ns() < end_ns:
            pass
        return self._engine.score(task)


@dataclass(frozen=True)
class CostlyFactory:
    """Wraps the engines of a factory; `cost_ns` is shared with those that are forked."""

    factory: EngineFactory
    cost_ns: memoryview

    def __call__(self, index: int) -> CostlyEngine:
        return CostlyEngine(self.factory(index), self.cost_ns)


@dataclass(frozen=True)
class RealGainsEffort:
    """How often and how long is measured."""

    rounds: int = 5
    n_queries: int = 300
    table_scale: float = 0.01


@dataclass(frozen=True)
class RealGainsOptions:
    """The study's flags."""

    models: tuple[str, ...] = names(("rm1",), "models", MEDIUM_SLA_MS)
    cost_us: int = flag(300, "spun before each task, beside runs without", low=1)
    sla_ms: float = flag(100.0, "bound of the p95", low=1)


@dataclass(frozen=True)
class RealGainsCase:
    """One model without and with a cost a task under an SLA."""

    model: str
    cost_us: int
    sla_ms: float
    effort: RealGainsEffort

    def config(self) -> RunConfig:
        """The settings of the engines and of their load."""
        words = f"{COMMON} --table_scale {self.effort.table_scale} --nepochs 32"
        return config_of(self.model, words)


@dataclass(frozen=True)
class RealGainsRow:
    """What was measured in a round at one cost.

    `foretold`: the gain by engine time alone, as profiled with full tables.
    """

    model: str
    sla_ms: float
    cost_us: int
    round: int
    static_qps: float
    batch_items: int
    qps: float
    gain: float
    foretold: float


class CostlyServer:
    """Warm engines whose cost a task can be set, under one SLA on one load."""

    def __init__(self, session: ProcessSession, cost_ns: memoryview, case: RealGainsCase) -> None:
        self.session = session
        self.cost_ns = cost_ns
        self.config = case.config()
        self.sla = Sla(case.sla_ms, max_queries=case.effort.n_queries)
        self.load = CommonLoad(self.config, case.effort.n_queries, 2)

    def tuned(self, cost_us: int) -> Policy:
        """The batch that the hill climb comes to where each task costs so much."""
        start_qps = self.start_qps(STATIC, cost_us)
        search = HillClimb({"batch_items": BATCHES}, STATIC, Goal(start_qps, WIDTH))
        while (trial := search.propose()) is not None:
            probed = probe(self.session, self.load, self.sla, trial)
            if probed is None:
                raise KeyboardInterrupt
            search.observe(probed.outcome)
        assert search.best is not None, "a search ends with a policy"
        return search.best.policy

    def start_qps(self, policy: Policy, cost_us: int) -> float:
        """Set the cost from the next task on; where a limit is looked for first."""
        self.cost_ns[0] = cost_us * NS_PER_US
        return START_LOAD * capacity_qps(self.session, self.config, policy)

    def rate_qps(self, policy: Policy, cost_us: int) -> float:
        """What a policy carries under the SLA, now."""
        start_qps = self.start_qps(policy, cost_us)
        return max_rate_qps(self.session, self.load, policy, self.sla, start_qps, WIDTH).value


def measure(case: RealGainsCase) -> dict[str, list[RealGainsRow]]:
    """The search once for each cost, then all costs in turn, round by round."""
    deployment = resolve(case.config())
    specs, _ = pool_specs(deployment, progress())
    cost_ns = memoryview(mmap.mmap(-1, 8)).cast("q")
    costly = [
        replace(spec, factory=CostlyFactory(spec.factory, cost_ns), yields=False) for spec in specs
    ]
    rows = []
    rows = list[RealGainsRow]()
    with ProcessSession(costly, stages_of(deployment)) as session:
        server = CostlyServer(session, cost_ns, case)
        with progress().step("searching"):
            policies = {cost_us: server.tuned(cost_us) for cost_us in (0, case.cost_us)}
        with progress().step("measuring in turn") as on_fraction:
            for i in range(case.effort.rounds):
                rows += round_rows(case, server, policies, i + 1)
                on_fraction((i + 1) / case.effort.rounds)
    return {"paper_gains_real": rows}


def round_rows(
    case: RealGainsCase, server: CostlyServer, policies: dict[int, Policy], number: int
) -> list[RealGainsRow]:
    """The baseline and the tuned batch at each cost."""
    rows = []
    for cost_us, policy in policies.items():
        static_qps = server.rate_qps(STATIC, cost_us)
        qps = server.rate_qps(policy, cost_us)
        row = RealGainsRow(
            case.model,
            case.sla_ms,
            cost_us,
            number,
            static_qps,
            policy.batch_items,
            qps,
            qps / static_qps if static_qps else float("nan"),
            foretold_gain(case.model, cost_us, policy),
        )
        rows.append(row)
    return rows


def foretold_gain(model: str, cost_us: int, policy: Policy) -> float:
    """Engine time of a query under the baseline over that under the policy, by our profile."""
    cpu_ns = table_of(model, Service(OURS)).cpu_ns[-1] + cost_us * NS_PER_US
    sizes = production_sizes()
    static_ns, tuned_ns = (work_ns(cpu_ns, sizes, x.batch_items) for x in (STATIC, policy))
    return static_ns / tuned_ns


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """A line a cost: medians, and the gain's spread over the rounds."""
    grouped = rows.groupby(["model", "cost_us"])
    gain = grouped["gain"]
    return pd.DataFrame(
        {
            "batch": grouped["batch_items"].first(),
            "static QPS": grouped["static_qps"].median(),
            "tuned QPS": grouped["qps"].median(),
            "gain": gain.median(),
            "least": gain.min(),
            "most": gain.max(),
            "foretold": grouped["foretold"].median(),
        }
    ).reset_index()


def cases(effort: RealGainsEffort, options: RealGainsOptions) -> list[RealGainsCase]:
    """A case a model."""
    return [
        RealGainsCase(model, options.cost_us, options.sla_ms, effort) for model in options.models
    ]


STUDY = Study(
    "paper_gains_real",
    "Does a cost a task make the gain of tuning on real engines?",
    cases,
    measure,
    efforts={"quick": RealGainsEffort(1, 200, 0.001), "full": RealGainsEffort()},
    options=RealGainsOptions,
    report={"Gain by the cost a task": View(summary, "paper_gains_real")},
)

if __name__ == "__main__":
    STUDY.main()
