#!/usr/bin/env python3
"""Two models on one machine, each with its own SLA: how much of its load does each still carry?

python experiments/colocation/two_models.py [--pairs wnd+ncf,rm1+dien] [--quick] [--out FOLDER]
    [flags of DeepRecSys.py]

Real engines, one a model, each model with its own driver and Poisson load, at equal fractions of
what its engine carries alone. At each fraction: the first alone, the second alone, both at once.
two_models.csv grows pair by pair; two_models.png is made of it. Needs two cores; some 4 minutes,
--quick some 2.
"""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from backends.opening import open_session
from backends.tuning.probe import capacity_qps
from experiments.common.panels import finish, legend, model_line, panels
from experiments.common.released import MODELS, ONE_ENGINE, config_of
from experiments.common.servers import MEDIUM_SLA_MS
from experiments.common.study import Study, View, passed_on, progress
from experiments.common.tails import Tail, load_for, tail_of, warm_ms
from infra.deployment import resolve
from infra.progress import Progress
from infra.settings.config import ConfigError, RunConfig
from infra.settings.fields import flag
from scheduler import Policy

FRACTIONS = (0.3, 0.5, 0.7, 0.85)
POLICY = Policy(128)
ALONE = "alone"
TOGETHER = "both at once"


@dataclass(frozen=True)
class SharingOptions:
    """Flags of the study."""

    pairs: tuple[str, ...] = flag(("wnd+ncf", "rm1+dien", "rm2+rm3"), "model+model, with commas")
    seconds: float = flag(0.0, "length of a run; 0: the effort's", low=0)
    flags: tuple[str, ...] = passed_on()


@dataclass(frozen=True)
class SharingCase:
    """Two models, each alone and both at once, at all fractions of their loads."""

    pair: str
    seconds: float
    flags: tuple[str, ...]


@dataclass(frozen=True)
class SharingRow:
    """A run of one model's engine, alone or beside the other's."""

    pair: str
    model: str
    company: str
    fraction: float
    rate_qps: float
    sla_ms: float
    queries: int
    tail: Tail
    meets_sla: bool


def cases(seconds: float, options: SharingOptions) -> list[SharingCase]:
    """A case a pair; raises ConfigError for what is no pair. Bad flags end the program here."""
    for pair in options.pairs:
        models = set(pair.split("+"))
        if pair.count("+") != 1 or len(models) != 2 or not models <= set(MODELS):
            problem = f"{pair}; expected two different ones of {', '.join(MODELS)}"
            raise ConfigError("pairs", problem)
        for model in models:
            config_under_sla(model, options.flags)
    seconds = options.seconds or seconds
    return [SharingCase(pair, seconds, options.flags) for pair in options.pairs]


def config_under_sla(model: str, flags: Sequence[str]) -> RunConfig:
    """One engine of one model under its medium SLA."""
    return config_of(model, f"{ONE_ENGINE} --target_latency {MEDIUM_SLA_MS[model]}", flags)


def drive(config: RunConfig, seconds: float, pipe: Connection) -> None:
    """A model's driver: sends its capacity, then a run's queries and tail for each (rate, run).

    None ends it.
    """
    with (
        contextlib.suppress(EOFError),
        Progress("none") as quiet,
        open_session(resolve(config), quiet) as opened,
    ):
        n_engines = config.engines.inference_engines
        pipe.send(capacity_qps(opened.session, config, POLICY, n_engines))
        while (order := pipe.recv()) is not None:
            schedule = load_for(seconds, config, *order)
            latency_ms = warm_ms(opened.session, schedule, POLICY)
            pipe.send((len(latency_ms), tail_of(latency_ms)))


@contextlib.contextmanager
def driver(model: str, case: SharingCase) -> Iterator[tuple[Connection, float]]:
    """A process that drives the model's engine: the pipe to it, and the engine's capacity."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    words = config_under_sla(model, case.flags), case.seconds, theirs
    process = context.Process(target=drive, args=words)
    process.start()
    theirs.close()
    try:
        yield ours, float(ours.recv())
    finally:
        with contextlib.suppress(OSError):
            ours.send(None)
        process.join()


def share(case: SharingCase) -> dict[str, list[SharingRow]]:
    """A row a model, fraction and company; raises EOFError where a driver ends early."""
    pair = case.pair.split("+")
    rows = []
    with contextlib.ExitStack() as stack, progress().step(case.pair) as on_fraction:
        drivers = {model: stack.enter_context(driver(model, case)) for model in pair}
        for run_id, fraction in enumerate(FRACTIONS):
            on_fraction(run_id / len(FRACTIONS), f"at {fraction:.0%} of the load")
            for company in ([pair[0]], [pair[1]], pair):
                name = TOGETHER if company == pair else ALONE
                for model in company:
                    pipe, capacity_qps = drivers[model]
                    pipe.send((fraction * capacity_qps, run_id))
                for model in company:
                    pipe, capacity_qps = drivers[model]
                    n, tail = pipe.recv()
                    sla_ms = MEDIUM_SLA_MS[model]
                    load = fraction, fraction * capacity_qps, sla_ms
                    met = tail.p95_ms <= sla_ms
                    rows.append(SharingRow(case.pair, model, name, *load, n, tail, met))
    return {"two_models": rows}


def draw(rows: pd.DataFrame) -> Figure:
    """A panel a pair: p95 over the SLA by the fraction of the load carried alone."""
    pairs = rows.groupby("pair", sort=False)
    figure, all_axes = panels(len(pairs), 4.6, 4.2)
    for axes, (pair, runs) in zip(all_axes, pairs, strict=True):
        for (model, company), part in runs.groupby(["model", "company"], sort=False):
            line = "o-" if company == TOGETHER else "o--"
            p95 = part["p95_ms"] / part["sla_ms"]
            model_line(axes, model, part["fraction"], p95, line, f"{model} {company}")
        axes.axhline(1, color="#c1121f", linestyle=":", label="SLA")
        finish(axes, "load, of what the engine carries alone", "p95 over the SLA", pair, log="y")
        legend(axes, 7)
    return figure


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """A line a pair and model: the largest load within the SLA, alone and with the other model."""
    lines = []
    for (pair, model), runs in rows.groupby(["pair", "model"], sort=False):
        line = {"pair": pair, "model": model, "SLA ms": runs["sla_ms"].iloc[0]}
        for company in (ALONE, TOGETHER):
            met = runs[(runs["company"] == company) & runs["meets_sla"]]
            line[f"QPS, {company}"] = max(met["rate_qps"], default=0.0)
            line[f"p95 ms, {company}"] = met["p95_ms"].get(met.index.max(), np.nan)
        p95_ms = runs.pivot_table("p95_ms", index="fraction", columns="company")
        line["p95 together/alone"] = (p95_ms[TOGETHER] / p95_ms[ALONE]).median()
        lines.append(line)
    return pd.DataFrame(lines)


STUDY = Study(
    "colocation_two_models",
    "Two models on one machine, each with its own SLA: what does each still carry?",
    cases,
    share,
    efforts={"quick": 4.0, "full": 8.0},  # seconds of a run
    options=SharingOptions,
    figures={"two_models": View(draw, "two_models")},
    report={"Highest load of the sweep under each model's own SLA": View(summary, "two_models")},
    float_format="%.4g",
)

if __name__ == "__main__":
    STUDY.main()
