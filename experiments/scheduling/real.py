#!/usr/bin/env python3
"""The schedulers on this machine's engines: QPS under the SLA for some models, with a table.

python experiments/scheduling/real.py [--models wnd,ncf] [--slas medium]
    [--schedulers released,hill] [--quick] [flags of DeepRecSys.py]

Each search is a run of DeepRecSys.py, kept below results/ of the study's folder; the table real has
a line per phase. About 3 minutes a search.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from accelerator.devices import model_configs
from experiments.common.servers import MEDIUM_SLA_MS, SLA_SHARES
from experiments.common.study import Study, View, names, out_folder, passed_on
from infra.results import run_folder
from infra.settings.cli import parse

SCRIPT = Path(__file__).resolve().parents[2] / "DeepRecSys.py"
COMMON = """--queue --inference_engines 0 --num_batches 32 --nepochs 64 --max_mini_batch_size 1024
    --batch_size_distribution production --tune_batch_qps --batch_configs 1024-512-256-128-64-32
    --model_accel --tune_accel_qps --accel_configs 32-64-128-192-256-384-512
    --max_arr_range 50 --min_arr_range 0.2 --arr_steps 157 --sched_timeout 128"""
QUICK = "--table_scale 0.01 --nepochs 16 --batch_configs 512-128 --accel_configs 128-256"


@dataclass(frozen=True)
class RealOptions:
    """The study's flags."""

    models: tuple[str, ...] = names(("wnd", "rm1", "rm3", "ncf"), "models", MEDIUM_SLA_MS)
    slas: tuple[str, ...] = names(("medium",), "SLAs", SLA_SHARES)
    schedulers: tuple[str, ...] = names(("released", "hill"), "searches", ())
    flags: tuple[str, ...] = passed_on()


@dataclass(frozen=True)
class RealCase:
    """One search."""

    model: str
    sla: str
    scheduler: str
    flags: tuple[str, ...]

    @property
    def sla_ms(self) -> float:
        """The bound of the p95."""
        return MEDIUM_SLA_MS[self.model] * SLA_SHARES[self.sla]

    def words(self, folder: Path) -> list[str]:
        """The command line of DeepRecSys.py with its runs in a folder."""
        common = ["--config_file", str(model_configs()[self.model]), *COMMON.split()]
        search = ["--target_latency", str(self.sla_ms), "--scheduler", self.scheduler]
        where = ["--log_file", "", "--results_dir", str(folder)]
        return [*common, *search, *where, *self.flags]


@dataclass(frozen=True)
class RealRow:
    """One phase of a search."""

    model: str
    sla: str
    sla_ms: float
    scheduler: str
    phase: str
    batch_items: int
    offload_items: int | None
    limit_qps: float
    low_qps: float
    high_qps: float
    confirmed_qps: float
    p95_ms: float | None
    valid: bool
    trials: int
    queries: int
    seconds: float


def search(case: RealCase) -> dict[str, list[RealRow]]:
    """One run of DeepRecSys.py; raises RuntimeError with its message if it fails."""
    folder = out_folder() / "results"
    before = {run.folder for run in run_folder.find(folder)}
    command = [sys.executable, str(SCRIPT), *case.words(folder)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode != 0:
        raise RuntimeError(ended.stderr.strip())
    (run,) = [run for run in run_folder.find(folder) if run.folder not in before]
    return {"real": [phase_row(case, line) for line in run.document["tuning"]]}


def phase_row(case: RealCase, line: dict[str, Any]) -> RealRow:
    """The row of a phase as run.json has it."""
    summary = line["summary"] or {"p_sla_ms": {"value": None}, "valid": False}
    limit = line["limit_qps"]
    return RealRow(
        case.model,
        case.sla,
        case.sla_ms,
        case.scheduler,
        line["name"],
        line["batch_items"],
        line["offload_items"],
        limit["value"],
        limit["low"],
        limit["high"],
        line["rate_qps"],
        summary["p_sla_ms"]["value"],
        summary["valid"],
        line["n_trials"],
        line["n_queries"],
        line["seconds"],
    )


def cases(effort_flags: str, options: RealOptions) -> list[RealCase]:
    """All searches; bad flags of DeepRecSys.py end here."""
    flags = (*effort_flags.split(), *options.flags)
    searches = [
        RealCase(model, sla, scheduler, flags)
        for model in options.models
        for sla in options.slas
        for scheduler in options.schedulers
    ]
    for case in searches:
        parse(case.words(Path()))
    return searches


STUDY = Study(
    "scheduling_real",
    "What do the searches find on this machine's engines?",
    cases,
    search,
    efforts={"quick": QUICK, "full": ""},
    options=RealOptions,
    report={"Phases": View(pd.DataFrame, "real")},
)

if __name__ == "__main__":
    STUDY.main()
