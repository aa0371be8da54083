#!/usr/bin/env python3
"""Every scheduler in virtual time: eight models, three SLAs, CPU and CPU + accelerator; regret and
cost.

python experiments/scheduling/virtual.py [--quick] [--models wnd,ncf] [--slas medium] [--inference_engines 40]
    [--device NAME] [--slower 1.0] [--out FOLDER]

A server of 40 cores as the paper's, service times of one core of accelerator/amd_epyc_zen4 beside a
busy neighbour (times --slower, for another CPU), one accelerator: the GTX 1080 Ti by its published
speedup over that core, or another device folder by its profile or roofline. Rows go to virtual.csv,
virtual_curves.csv and virtual_map.csv (QPS by batch and threshold) case by case; a case that is
there is not run again.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np
import pandas as pd

from accelerator.devices import ROOT, load_device
from backends.tuning.probe import Sla, capacity_qps, max_rate_qps, probe
from backends.virtual.simulated import SimulatedSession
from experiments.common.servers import (
    LARGEST,
    MEDIUM_SLA_MS,
    N_ENGINES,
    SLA_SHARES,
    Server,
    ladder,
    load_config,
    service_table,
)
from infra.messages import ACCEL, CPU
from infra.progress import Progress
from infra.search.rate_search import log_grid_qps
from infra.settings.config import ConfigError
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

HERE = Path(__file__).resolve().parent
CPU_WATTS, GPU_WATTS = (
    250.0,
    250.0,
)  # two sockets of 125 W (Xeon Gold 6138); GTX 1080 Ti: as NVIDIA states
RELEASED_BATCHES = (1024, 512, 256, 128, 64, 32)
RELEASED_THRESHOLDS = (96, 128, 192, 256, 384, 512)
REL_WIDTH = 0.02


@dataclass(frozen=True)
class Effort:
    """How much of the study is run."""

    models: tuple[str, ...] = tuple(MEDIUM_SLA_MS)
    slas: tuple[str, ...] = tuple(SLA_SHARES)
    cpu_steps: int = 4  # batches per doubling where they are the only knob
    batch_steps: int = 1  # batches per doubling where there are two knobs
    threshold_steps: int = 2
    max_queries: int = 20_000  # of a trial; more where that is less than MIN_SLAS times the SLA


QUICK = Effort(("wnd", "ncf"), ("medium",), 2, 1, 1, 10_000)
MIN_SLAS = 40  # an overload of 5 % needs 20 SLAs until its queries are late


class Case:
    """One model under one SLA."""

    def __init__(self, model: str, sla_name: str, effort: Effort, server: Server) -> None:
        self.model = model
        self.sla_name = sla_name
        self.effort = effort
        self.config = load_config()
        engines = {CPU: server.n_engines, ACCEL: 1}
        self.session = SimulatedSession(engines, service_table(model, server), keep_tasks=False)
        self.static = static_policy(LARGEST, server.n_engines)
        self.goal = Goal(
            0.5 * capacity_qps(self.session, self.config, self.static, server.n_engines), REL_WIDTH
        )
        sla_ms = MEDIUM_SLA_MS[model] * SLA_SHARES[sla_name]
        enough = round(MIN_SLAS * sla_ms / 1e3 * 4 * self.goal.start_qps)
        self.sla = Sla(sla_ms, max_queries=max(effort.max_queries, enough))
        self.check = Sla(sla_ms, max_queries=5 * self.sla.max_queries)
        self.load = CommonLoad(self.config, self.sla.max_queries, 2)
        self.fresh = CommonLoad(self.config, self.check.max_queries, 9)
        self.rows: list[dict[str, Any]] = []
        self.curves: list[dict[str, Any]] = []

    def run(self) -> tuple[list[dict[str, Any]], ...]:
        """Rows of the searches, of the curves over one knob, and of the map over both."""
        e = self.effort
        goal = self.goal
        static = self._search("static", Exhaustive([self.static], goal))
        batches = ladder(e.batch_steps)
        thresholds = ladder(e.threshold_steps)
        everywhere = Exhaustive([Policy(n) for n in ladder(e.cpu_steps)], goal)
        self._search("exhaustive, CPU", everywhere)
        self._curve("batch_items", everywhere.limits)
        hill = self._search(
            "hill, CPU", HillClimb({"batch_items": ladder(e.cpu_steps)}, self.static, goal, static)
        )
        self._search("released, CPU", self._released([Policy(n) for n in RELEASED_BATCHES], goal))
        knobs: dict[str, Sequence[int | None]] = {
            "offload_items": [*thresholds, None],
            "batch_items": batches,
        }
        grid = [Policy(n, k) for n in batches for k in (*thresholds, None)]
        both = Exhaustive(grid, goal)
        best = self._search("exhaustive, CPU + accelerator", both)
        self._curve(
            "offload_items",
            [x for x in both.limits if x.policy.batch_items == best.policy.batch_items],
        )
        self._search("hill, CPU + accelerator", HillClimb(knobs, hill.policy, goal, hill))
        self._search(
            "released, CPU + accelerator",
            self._released(with_offload(hill.policy, RELEASED_THRESHOLDS), goal),
        )
        per_watt = Goal(goal.start_qps, REL_WIDTH, watts)
        self._search("hill, QPS per watt", HillClimb(knobs, hill.policy, per_watt, hill))
        return self.rows, self.curves, self._map(both.limits)

    def _released(self, policies: Sequence[Policy], goal: Goal) -> Search:
        grid = log_grid_qps(
            0.01, 100.0, 271
        )  # the release's step of 3.5 %, over the rates of 40 cores
        start = int(np.searchsorted(grid, goal.start_qps / 5))
        return ReleasedClimb(policies, grid, self.sla.latency_ms, 0.1, 128, 64, start)

    def _search(self, name: str, search: Search) -> Limit:
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
            n_queries = n_queries + probed.outcome.n_queries
            seconds = seconds + probed.seconds
            search.observe(probed.outcome)
        best = search.best
        assert best is not None, "every search ends with a policy"
        self.rows.append(
            {
                "model": self.model,
                "sla": self.sla_name,
                "sla_ms": self.sla.latency_ms,
                "search": name,
                "batch_items": best.policy.batch_items,
                "offload_items": best.policy.offload_items,
                "found_qps": best.qps.value,
                "low_qps": best.qps.low,
                "high_qps": best.qps.high,
                "true_qps": self._true_qps(best),
                "watts": watts(best.policy),
                "trials": n_trials,
                "queries": n_queries,
                "seconds": seconds,
                "wall_s": time.monotonic() - begun,
            }
        )
        return best

    def _true_qps(self, best: Limit) -> float:
        """What the policy carries on a long load that no search has seen, to 1 %."""
        start_qps = min(best.qps.value, 4 * self.goal.start_qps) or self.goal.start_qps
        return max_rate_qps(
            self.session, self.fresh, best.policy, self.check, start_qps, 0.01
        ).value

    def _map(self, limits: Sequence[Limit]) -> list[dict[str, Any]]:
        return [
            {
                "model": self.model,
                "sla": self.sla_name,
                "batch_items": limit.policy.batch_items,
                "offload_items": limit.policy.offload_items,
                "qps": limit.qps.value,
            }
            for limit in limits
        ]

    def _curve(self, knob: str, limits: Sequence[Limit]) -> None:
        for limit in limits:
            value = getattr(limit.policy, knob)
            self.curves.append(
                {
                    "model": self.model,
                    "sla": self.sla_name,
                    "knob": knob,
                    "value": value,
                    "qps": limit.qps.value,
                    "low_qps": limit.qps.low,
                    "high_qps": limit.qps.high,
                    "batch_items": limit.policy.batch_items,
                }
            )


def watts(policy: Policy) -> float:
    """Power of the server under a policy, as stated."""
    return CPU_WATTS + (GPU_WATTS if policy.offload_items is not None else 0.0)


def run_case(
    model: str, sla_name: str, effort: Effort, server: Server
) -> tuple[list[dict[str, Any]], ...]:
    """For a worker process."""
    return Case(model, sla_name, effort, server).run()


def main(argv: Sequence[str]) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument(
        "--quick", action="store_true", help="two models, one SLA, coarse grids: under a minute"
    )
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the CSV files")
    parser.add_argument("--models", help="comma-separated (default: all; quick: wnd,ncf)")
    parser.add_argument("--slas", help="of low, medium, high (default: all; quick: medium)")
    parser.add_argument(
        "--inference_engines", type=int, default=N_ENGINES, help="cores of the server"
    )
    parser.add_argument("--device", default=Server.device, help="folder under accelerator/")
    parser.add_argument(
        "--slower", type=float, default=1.0, help="service times of the CPU over the measured ones"
    )
    given = parser.parse_args(argv)
    effort = QUICK if given.quick else Effort()
    if given.models:
        effort = replace(effort, models=tuple(given.models.split(",")))
    if given.slas:
        effort = replace(effort, slas=tuple(given.slas.split(",")))
    if unknown := set(effort.models) - set(MEDIUM_SLA_MS) or set(effort.slas) - set(SLA_SHARES):
        parser.error(
            f"{', '.join(sorted(unknown))}: expected {', '.join(MEDIUM_SLA_MS)} and "
            f"{', '.join(SLA_SHARES)}"
        )
    server = Server(given.inference_engines, given.device, given.slower)
    if server.n_engines < 1 or not server.slower > 0:
        parser.error("--inference_engines: expected at least 1; --slower: expected more than 0")
    try:
        load_device(ROOT, server.device)
    except ConfigError as error:
        sys.stderr.write(f"virtual.py: --{error}\n".replace("accel_device", "device"))
        return 2
    files = [given.out / f"{name}.csv" for name in ("virtual", "virtual_curves", "virtual_map")]
    given.out.mkdir(parents=True, exist_ok=True)
    done: set[tuple[str, str]] = set()
    if files[0].is_file():
        known = pd.read_csv(files[0])
        done = set(zip(known["model"], known["sla"], strict=True))
    cases = [
        (model, sla) for model in effort.models for sla in effort.slas if (model, sla) not in done
    ]
    title = f"{len(cases)} of {len(effort.models) * len(effort.slas)} cases"
    with (
        Progress("auto") as progress,
        progress.step(title) as on_fraction,
        ProcessPoolExecutor(os.cpu_count()) as pool,
    ):
        jobs = {
            pool.submit(run_case, model, sla, effort, server): (model, sla) for model, sla in cases
        }
        for n, job in enumerate(as_completed(jobs), start=1):
            for file, rows in zip(files, job.result(), strict=True):
                pd.DataFrame(rows).to_csv(
                    file, mode="a", header=not file.is_file(), index=False, float_format="%.5g"
                )
            on_fraction(n / len(cases), ", ".join(jobs[job]))
    print("\n".join(map(str, files)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
