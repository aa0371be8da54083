#!/usr/bin/env python3
"""Guided against exhaustive search on the real engines of this machine: what it finds, and for how
many trials.

python experiments/scheduling/guided.py [--models wnd,ncf,rm1,rm3] [--quick] [--out FOLDER] [flags of DeepRecSys.py]

Both search the same grid on the same warm engines; then the two policies are measured in turn, some
rounds, so that the machine's own swings meet both. guided.csv gets a line per model as soon as it
is known; a model that is there is not run again. About 8 minutes a model, most of it the exhaustive
search.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np
import pandas as pd

from accelerator.devices import model_configs
from backends.opening import OpenSession, open_session
from backends.tuning.probe import Sla, max_rate_qps
from backends.tuning.tuner import Phase, Tuner
from experiments.common.servers import MEDIUM_SLA_MS
from infra.progress import Progress
from infra.settings.cli import parse
from infra.settings.config import ConfigError, RunConfig
from loadGenerator import CommonLoad
from scheduler import Policy

HERE = Path(__file__).resolve().parent
COMMON = [
    "--queue", "--inference_engines", "0", "--num_batches", "32", "--nepochs", "40", "--max_mini_batch_size", "1024",
    "--batch_size_distribution", "production", "--tune_batch_qps", "--batch_configs", "64-128-256-512",
    "--model_accel", "--tune_accel_qps", "--accel_configs", "64-128-256", "--log_file", "",
]  # fmt: skip
QUICK = [
    "--table_scale",
    "0.01",
    "--nepochs",
    "8",
    "--batch_configs",
    "128-512",
    "--accel_configs",
    "128",
]
ROUNDS = 3


def best_of(
    config: RunConfig, opened: OpenSession, scheduler: str, progress: Progress
) -> tuple[Phase, Tuner]:
    """The best phase of a search."""
    own = replace(config, tune=replace(config.tune, scheduler=scheduler))
    tuner = Tuner(own, opened.session, opened.n_engines, progress)
    phases = [phase for phase in tuner.run().phases if phase.name != "static"]
    return max(phases, key=lambda phase: phase.limit.qps.value), tuner


def compare(config: RunConfig, rounds: int) -> dict[str, Any]:
    """One line: both searches, and their policies measured in turn."""
    with Progress("auto") as progress, open_session(config, progress) as opened:
        found = {name: best_of(config, opened, name, progress) for name in ("guided", "exhaustive")}
        policies = {name: phase.policy for name, (phase, _) in found.items()}
        load = CommonLoad(config, config.n_queries, 77)
        sla = Sla(config.tune.target_latency, max_queries=config.n_queries)
        rates: dict[str, list[float]] = {name: [] for name in policies}
        with progress.step("both policies in turn") as on_fraction:
            for i in range(rounds):
                for name, policy in policies.items():
                    start = found[name][0].limit.qps.value or 100.0
                    rates[name].append(
                        max_rate_qps(opened.session, load, policy, sla, start, 0.03).value
                    )
                on_fraction((i + 1) / rounds)
    guided = found["guided"][1].found
    ratios = np.array(rates["guided"]) / np.maximum(rates["exhaustive"], 1e-9)
    return {
        "model": config.model.name,
        "sla_ms": config.tune.target_latency,
        **{f"{name} policy": shown(policy) for name, policy in policies.items()},
        **{f"{name} limit_qps": phase.limit.qps.value for name, (phase, _) in found.items()},
        **{f"{name} confirmed_qps": phase.rate_qps for name, (phase, _) in found.items()},
        "guided trials": found["guided"][0].n_trials,
        "exhaustive trials": sum(
            phase.n_trials for phase in found["exhaustive"][1].found.phases[1:]
        ),
        "guided trial_s": found["guided"][0].seconds,
        "exhaustive trial_s": sum(
            phase.seconds for phase in found["exhaustive"][1].found.phases[1:]
        ),
        "guided_over_exhaustive": float(np.median(ratios)),
        "least": ratios.min(),
        "most": ratios.max(),
        "forecast": guided.notes[-1],
    }


def shown(policy: Policy) -> str:
    """batch, threshold."""
    return f"{policy.batch_items}, {policy.offload_items or 'none'}"


def main(argv: Sequence[str]) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--models", default="wnd,ncf,rm1,rm3")
    parser.add_argument("--quick", action="store_true", help="small tables, a grid of four")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of guided.csv")
    given, flags = parser.parse_known_args(argv)
    if unknown := set(given.models.split(",")) - set(MEDIUM_SLA_MS):
        sys.stderr.write(
            f"guided.py: --models: {', '.join(sorted(unknown))}: not among "
            f"{', '.join(MEDIUM_SLA_MS)}\n"
        )
        return 2
    file = given.out / "guided.csv"
    given.out.mkdir(parents=True, exist_ok=True)
    done = set(pd.read_csv(file)["model"]) if file.is_file() else set()
    try:
        for model in given.models.split(","):
            if model not in done:
                words = [
                    "--config_file",
                    str(model_configs()[model]),
                    *COMMON,
                    *(QUICK if given.quick else []),
                    *flags,
                ]
                config = parse([*words, "--target_latency", str(MEDIUM_SLA_MS[model])])
                line = compare(config, 1 if given.quick else ROUNDS)
                pd.DataFrame([line]).to_csv(
                    file, mode="a", header=not file.is_file(), index=False, float_format="%.5g"
                )
    except ConfigError as error:
        sys.stderr.write(f"guided.py: --{error}\n")
        return 2
    print(pd.read_csv(file).T.to_string(header=False))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
