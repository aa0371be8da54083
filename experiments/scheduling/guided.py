#!/usr/bin/env python3
"""Guided against exhaustive search on this machine's engines: what it finds, for how many trials.

python experiments/scheduling/guided.py [--models wnd,ncf] [--quick] [flags of DeepRecSys.py]

Both search the same grid on the same warm engines; then the two policies are measured in turn, some
rounds, so that the machine's own swings meet both. The table guided has a line per model. About 8
minutes a model, most of it the exhaustive search.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from accelerator.devices import model_configs
from backends.opening import OpenSession, open_session
from backends.tuning.policy_tuner import Phase, PolicyTuner, TuningResult
from backends.tuning.probe import Sla, max_rate_qps
from experiments.common.servers import MEDIUM_SLA_MS
from experiments.common.study import Study, View, names, passed_on, progress
from infra.deployment import resolve
from infra.settings.cli import parse
from infra.settings.config import RunConfig
from loadGenerator import CommonLoad
from scheduler import Policy

COMMON = """--queue --inference_engines 0 --num_batches 32 --nepochs 40 --max_mini_batch_size 1024
    --batch_size_distribution production --tune_batch_qps --batch_configs 64-128-256-512
    --model_accel --tune_accel_qps --accel_configs 64-128-256"""
QUICK = "--table_scale 0.01 --nepochs 8 --batch_configs 128-512 --accel_configs 128"


@dataclass(frozen=True)
class GuidedEffort:
    """Flags that make the search shorter, and how often the policies are measured in turn."""

    flags: tuple[str, ...] = ()
    rounds: int = 3


@dataclass(frozen=True)
class GuidedOptions:
    """The study's flags."""

    models: tuple[str, ...] = names(("wnd", "ncf", "rm1", "rm3"), "models", MEDIUM_SLA_MS)
    flags: tuple[str, ...] = passed_on()


@dataclass(frozen=True)
class GuidedCase:
    """One model under its medium SLA."""

    model: str
    rounds: int
    flags: tuple[str, ...]

    def config(self) -> RunConfig:
        """The settings of both searches."""
        common = ["--config_file", str(model_configs()[self.model]), *COMMON.split()]
        sla = ["--target_latency", str(MEDIUM_SLA_MS[self.model])]
        return parse([*common, "--log_file", "", *self.flags, *sla])


@dataclass(frozen=True)
class Ended:
    """A search that has ended, and the best of its phases."""

    result: TuningResult
    best: Phase

    @property
    def policy(self) -> str:
        """Batch and threshold."""
        return f"{self.best.policy.batch_items}, {self.best.policy.offload_items or 'none'}"


def search(config: RunConfig, opened: OpenSession, scheduler: str) -> Ended:
    """Run a search on warm engines."""
    config = replace(config, tune=replace(config.tune, scheduler=scheduler))
    deployment = replace(opened.deployment, config=config)
    result = PolicyTuner(deployment, opened.session, progress()).run()
    phases = [phase for phase in result.phases if phase.name != "static"]
    return Ended(result, max(phases, key=lambda phase: phase.limit.qps.value))


def rates_in_turn(
    config: RunConfig, opened: OpenSession, searches: tuple[Ended, ...], rounds: int
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The highest rates of the searches' policies, [round, search]."""
    load = CommonLoad(config, config.n_queries, 77)
    sla = Sla(config.tune.target_latency, max_queries=config.n_queries)

    def rate_qps(policy: Policy, start_qps: float) -> float:
        return max_rate_qps(opened.session, load, policy, sla, start_qps or 100.0, 0.03).value

    rates = []
    with progress().step("both policies in turn") as on_fraction:
        for i in range(rounds):
            rates.append([rate_qps(x.best.policy, x.best.limit.qps.value) for x in searches])
            on_fraction((i + 1) / rounds)
    return np.array(rates)


def compare(case: GuidedCase) -> dict[str, list[dict[str, Any]]]:
    """One line: both searches, and their policies measured in turn."""
    config = case.config()
    with open_session(resolve(config), progress()) as opened:
        guided = search(config, opened, "guided")
        exhaustive = search(config, opened, "exhaustive")
        rates = rates_in_turn(config, opened, (guided, exhaustive), case.rounds)
    whole_grid = exhaustive.result.phases[1:]
    ratios = rates[:, 0] / np.maximum(rates[:, 1], 1e-9)
    row = {
        "model": config.model.name,
        "sla_ms": config.tune.target_latency,
        "guided policy": guided.policy,
        "exhaustive policy": exhaustive.policy,
        "guided limit_qps": guided.best.limit.qps.value,
        "exhaustive limit_qps": exhaustive.best.limit.qps.value,
        "guided confirmed_qps": guided.best.rate_qps,
        "exhaustive confirmed_qps": exhaustive.best.rate_qps,
        "guided trials": guided.best.n_trials,
        "exhaustive trials": sum(phase.n_trials for phase in whole_grid),
        "guided trial_s": guided.best.seconds,
        "exhaustive trial_s": sum(phase.seconds for phase in whole_grid),
        "guided_over_exhaustive": np.median(ratios),
        "least": ratios.min(),
        "most": ratios.max(),
        "forecast": guided.result.notes[-1],
    }
    return {"guided": [row]}


def cases(effort: GuidedEffort, options: GuidedOptions) -> list[GuidedCase]:
    """The models; bad flags of DeepRecSys.py end here."""
    flags = (*effort.flags, *options.flags)
    models = [GuidedCase(model, effort.rounds, flags) for model in options.models]
    for case in models:
        case.config()
    return models


STUDY = Study(
    "scheduling_guided",
    "Does the guided search find what the exhaustive one finds, and for how many trials?",
    cases,
    compare,
    efforts={"quick": GuidedEffort(tuple(QUICK.split()), 1), "full": GuidedEffort()},
    options=GuidedOptions,
    report={"Guided beside exhaustive": View(pd.DataFrame.transpose, "guided")},
)

if __name__ == "__main__":
    STUDY.main()
