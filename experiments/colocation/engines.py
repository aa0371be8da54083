#!/usr/bin/env python3
"""What co-location does to the tail on a large server: 1 to 40 engines of one model, simulated.

python experiments/colocation/engines.py [--profile amd_epyc_zen4] [--quick] [--out FOLDER]

Service times are a core's from the profile; the slow-down by a neighbour that runs the same model
is that of data/pairs.csv. How it goes on from two neighbours on was not measured, so there are two
worlds: it stays, or every busy neighbour adds as much (up to those of a socket). The arrivals, 70 %
of what the engines carry in that world, meet them without any slow-down as well. engines.csv,
engines.png; under a minute.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from accelerator.devices import ROOT, latency_profile, load_device
from accelerator.service import ServiceTable, table_of_profiles
from backends.tuning.probe import capacity_qps
from backends.virtual.simulated import SimulatedSession
from experiments.common.panels import finish, legend, model_line, panels
from experiments.common.released import LARGEST_ITEMS, MODELS, PRODUCTION, config_of
from experiments.common.study import Study, View
from experiments.common.tails import Tail, tail_of, warm_ms
from infra.messages import CPU
from infra.settings.config import ConfigError, ModelConfig
from infra.settings.fields import flag
from loadGenerator import draw_schedule
from scheduler import Policy

PAIRS = Path(__file__).resolve().parent / "data" / "pairs.csv"
ENGINES = (1, 2, 4, 8, 16, 32, 40)
LOAD = 0.7
POLICY = Policy(128)
ALONE = "no slow-down"
BESIDE = "as beside one"
ADDING = "each adds as much"
SOCKET = 20  # cores that share caches and memory channels


@dataclass(frozen=True)
class ServerOptions:
    """Flags of the study."""

    profile: str = flag("amd_epyc_zen4", "folder of accelerator/ with a profiled CPU core")


@dataclass(frozen=True)
class ServerCase:
    """One model on servers of all sizes."""

    model: str
    profile: str
    n_queries: int


@dataclass(frozen=True)
class ServerRow:
    """The tail of so many engines at the rate of a world, with and without its slow-down."""

    model: str
    engines: int
    world: str
    service: str
    rate_qps: float
    tail: Tail


def cases(n_queries: int, options: ServerOptions) -> list[ServerCase]:
    """A case a model; raises ConfigError where there is no such device."""
    load_device(ROOT, options.profile)
    return [ServerCase(model, options.profile, n_queries) for model in MODELS]


def service_tables(model: ModelConfig, device: str) -> dict[str, ServiceTable]:
    """A core's times in each world.

    The profile beside a neighbour is the reference: alone is it over the slow-down.
    """
    measured = latency_profile(load_device(ROOT, device), model)
    if 1 not in measured.busy_ms:
        problem = f"{device} was not measured beside a neighbour (profiler.py --neighbours 1)"
        raise ConfigError("profile", problem)
    beside_ms = pd.Series(measured.busy_ms[1])
    pairs = pd.read_csv(PAIRS).query("model == neighbour == @model.name").sort_values("batch")
    batches = np.log(beside_ms.index), np.log(pairs["batch"])
    slowdown = np.interp(*batches, pairs["slowdown"]).clip(min=1)
    alone_ms = beside_ms / slowdown

    def times(n_busy: int) -> dict[int, float]:
        return dict(alone_ms * (1 + (slowdown - 1) * n_busy))

    def world(n_busy: Iterable[int]) -> ServiceTable:
        busy_ms = {n: times(n) for n in n_busy}
        profile = replace(measured, batch_ms=times(0), busy_ms=busy_ms)
        return table_of_profiles(profile, [], LARGEST_ITEMS, seed=5)

    return {ALONE: world(()), BESIDE: world((1,)), ADDING: world(range(1, SOCKET))}


def serve(case: ServerCase) -> dict[str, list[ServerRow]]:
    """A row a number of engines and world, on the same arrivals and sizes."""
    config = config_of(case.model, f"{PRODUCTION} --num_batches 32 --arrival_qps 1")
    tables = service_tables(config.model, case.profile)
    n = case.n_queries
    rows = []
    for n_engines in ENGINES:
        sessions = {
            world: SimulatedSession({CPU: n_engines}, table, keep_tasks=False)
            for world, table in tables.items()
        }
        for world in (BESIDE, ADDING):
            rate_qps = LOAD * capacity_qps(sessions[world], config, POLICY, n_engines)
            schedule = draw_schedule(config, n, n // 10, rate_qps, n_engines)
            for service in (world, ALONE):
                tail = tail_of(warm_ms(sessions[service], schedule, POLICY))
                rows.append(ServerRow(case.model, n_engines, world, service, rate_qps, tail))
    return {"engines": rows}


def ratios(rows: pd.DataFrame, world: str) -> pd.DataFrame:
    """p95 in a world over p95 without a slow-down at its rate: a row a model, columns: engines."""
    columns = ["service", "engines"]
    rows = rows[rows["world"] == world]
    p95_ms = rows.pivot_table("p95_ms", index="model", columns=columns, sort=False)
    return p95_ms[world] / p95_ms[ALONE]


def draw(rows: pd.DataFrame) -> Figure:
    """p95 over that without a slow-down, by engines, in each world."""
    figure, both = panels(2, 5.5, 4.4)
    for world, axes in zip((BESIDE, ADDING), both, strict=True):
        for model, line in ratios(rows, world).iterrows():
            model_line(axes, model, line.index, line)
        y = "p95 over p95 without a slow-down"
        finish(axes, "CPU engines", y, f"slow-down {world}", log="x")
        axes.set_xticks(ENGINES, [str(n) for n in ENGINES])
    legend(both[0], ncols=2)
    return figure


STUDY = Study(
    "colocation_engines",
    "What does co-location do to the tail on a large server?",
    cases,
    serve,
    efforts={"quick": 5_000, "full": 50_000},  # queries
    options=ServerOptions,
    parallel=True,
    figures={"engines": View(draw, "engines")},
    report={
        f"p95 over p95 without a slow-down, by engines; {world}": View(
            lambda rows, world=world: ratios(rows, world), "engines"
        )
        for world in (BESIDE, ADDING)
    },
    float_format="%.4g",
)

if __name__ == "__main__":
    STUDY.main()
