#!/usr/bin/env python3
"""Every scheduler in virtual time: all models, three SLAs, CPU and CPU + accelerator; regret and cost.

python experiments/scheduling/virtual.py [--quick] [--out FOLDER]

Service times: service_times.csv (one core of the machine named there, full tables). Done cases are kept in
regret.csv and not run again.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np
import pandas as pd

from accelerator.devices import ROOT, derived_profile, load_device
from accelerator.latency import Profile, service_times_ns
from backends.fifo_kernel import ServiceTable
from backends.probe import Sla, probe
from backends.simulated import SimulatedSession
from infra.cli import parse
from infra.config import RunConfig
from infra.rate_search import log_grid_qps
from loadGenerator import CommonLoad
from scheduler import Exhaustive, Goal, HillClimb, Policy, ReleasedClimb, Search, static_policy

HERE = Path(__file__).resolve().parent
MEDIUM_SLA_MS = {"rm1": 100, "rm2": 400, "rm3": 100, "ncf": 5, "wnd": 25, "mtwnd": 25, "din": 100, "dien": 35}
SLA_SHARES = {"low": 0.5, "medium": 1.0, "high": 1.5}  # of the medium one (ISCA 2020)
N_ENGINES = 40  # the paper's server
LARGEST = 1000
BATCHES = sorted({round(2 ** (i / 4)) for i in range(40)} | {LARGEST})
THRESHOLDS = sorted({round(2 ** (i / 2)) for i in range(20)} | {LARGEST})
RELEASED_BATCHES = (1024, 512, 256, 128, 64, 32)
RELEASED_THRESHOLDS = (96, 128, 192, 256, 384, 512)
MAX_QUERIES, QUICK_QUERIES = 20_000, 5_000
REL_WIDTH = 0.02
CHECK_QUERIES = 400_000  # of the long run that tells what a policy really carries
WIDE = {"exhaustive": 1, "hill": 1, "released": 1, "static": 1}


def service_table(model: str) -> ServiceTable:
    """CPU core as measured, and the GTX 1080 Ti by its published speedup over a core."""
    times = pd.read_csv(HERE / "service_times.csv", comment="#")
    own = times[times["model"] == model]
    profile = Profile(dict(zip(own["batch"].astype(int), own["ms"], strict=True)), {})
    card = derived_profile(load_device(ROOT, "nvidia_gtx_1080_ti"), model, profile)
    return ServiceTable(service_times_ns(profile, LARGEST)[None], service_times_ns(card, LARGEST)[None])


def load_config(seed: int = 123) -> RunConfig:
    """Production query sizes up to the paper's 1,000 items, Poisson arrivals."""
    return parse([
        "--queue", "--num_batches", "32", "--max_mini_batch_size", str(LARGEST), "--arrival_qps", "1",
        "--batch_size_distribution", "production", "--numpy_rand_seed", str(seed),
    ])  # fmt: skip


def searches(accel: bool, goal: Goal, sla_ms: float, best: Search | None) -> dict[str, Search]:
    """One search of each kind; the hill climb of the accelerator starts where that of the CPU ended."""
    static = static_policy(LARGEST, N_ENGINES)
    grid = log_grid_qps(0.01, 100.0, 271)  # the release's step of 3.5 %, over rates of 40 engines
    from_step = int(np.searchsorted(grid, goal.start_qps / 5))
    released = (grid, sla_ms, 0.1, 128, 64, from_step)
    known = best.best if best is not None else None
    if not accel:
        return {
            "exhaustive": Exhaustive([Policy(n) for n in BATCHES], goal),
            "hill": HillClimb({"batch_items": BATCHES}, static, goal, known),
            "released": ReleasedClimb([Policy(n) for n in RELEASED_BATCHES], *released),
        }
    start = known.policy if known is not None else static
    knobs: dict[str, Sequence[int | None]] = {"offload_items": [*THRESHOLDS, None], "batch_items": BATCHES}
    policies = [Policy(n, k) for n in BATCHES for k in (*THRESHOLDS, None)]
    return {
        "exhaustive": Exhaustive(policies, goal),
        "hill": HillClimb(knobs, start, goal, known),
    }


def drive(search: Search, session: SimulatedSession, config: RunConfig, sla: Sla) -> dict[str, float]:
    """Run a search to its end; what it cost."""
    load, n_trials, n_queries, seconds, begun = CommonLoad(config, sla.max_queries, 2), 0, 0, 0.0, time.monotonic()
    while (trial := search.propose()) is not None:
        own = load if trial.n_queries is None else CommonLoad(config, 2 * trial.n_queries, 1000 + n_trials)
        probed = probe(session, own, sla, trial)
        assert probed is not None, "virtual time is not interrupted"
        n_trials, n_queries, seconds = n_trials + 1, n_queries + probed.outcome.n_queries, seconds + probed.seconds
        search.observe(probed.outcome)
    return {"trials": n_trials, "queries": n_queries, "seconds": seconds, "wall_s": time.monotonic() - begun}
