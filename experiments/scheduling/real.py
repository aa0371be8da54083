#!/usr/bin/env python3
"""The schedulers on the real engines of this machine: QPS under the SLA for some models, with a
table.

python experiments/scheduling/real.py [--models wnd,ncf] [--slas medium] [--schedulers released,hill] [--quick]
    [--out FOLDER] [flags of DeepRecSys.py]

Each search is a run of DeepRecSys.py; real.csv gets a line per phase as soon as a search has ended,
and a search that is there is not run again. About 3 minutes a search.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import pandas as pd

from accelerator.devices import model_configs
from experiments.common.servers import MEDIUM_SLA_MS, SLA_SHARES
from infra.progress import Progress
from infra.results import run_folder

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
COMMON = [
    "--queue", "--inference_engines", "0", "--num_batches", "32", "--nepochs", "64", "--max_mini_batch_size", "1024",
    "--batch_size_distribution", "production", "--tune_batch_qps", "--batch_configs", "1024-512-256-128-64-32",
    "--model_accel", "--tune_accel_qps", "--accel_configs", "32-64-128-192-256-384-512",
    "--max_arr_range", "50", "--min_arr_range", "0.2", "--arr_steps", "157", "--sched_timeout", "128", "--log_file", "",
]  # fmt: skip
QUICK = [
    "--table_scale",
    "0.01",
    "--nepochs",
    "16",
    "--batch_configs",
    "512-128",
    "--accel_configs",
    "128-256",
]


def search(
    model: str, sla: str, scheduler: str, flags: Sequence[str], folder: Path
) -> list[dict[str, Any]]:
    """One run of DeepRecSys.py; a row per phase. Raises RuntimeError with its message if it fails."""
    sla_ms = MEDIUM_SLA_MS[model] * SLA_SHARES[sla]
    before = {run.folder for run in run_folder.find(folder)}
    command = [
        sys.executable,
        str(ROOT / "DeepRecSys.py"),
        "--config_file",
        str(model_configs()[model]),
        *COMMON,
        "--target_latency",
        str(sla_ms),
        "--scheduler",
        scheduler,
        "--results_dir",
        str(folder),
        *flags,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{model}, {sla}, {scheduler}: {done.stderr.strip()}")
    (run,) = [run for run in run_folder.find(folder) if run.folder not in before]
    rows = []
    for line in run.document["tuning"]:
        summary = line["summary"] or {"p_sla_ms": {"value": None}, "valid": False}
        rows.append(
            {
                "model": model,
                "sla": sla,
                "sla_ms": sla_ms,
                "scheduler": scheduler,
                "phase": line["name"],
                "batch_items": line["batch_items"],
                "offload_items": line["offload_items"],
                "limit_qps": line["limit_qps"]["value"],
                "low_qps": line["limit_qps"]["low"],
                "high_qps": line["limit_qps"]["high"],
                "confirmed_qps": line["rate_qps"],
                "p95_ms": summary["p_sla_ms"]["value"],
                "valid": summary["valid"],
                "trials": line["n_trials"],
                "queries": line["n_queries"],
                "seconds": line["seconds"],
            }
        )
    return rows


def main(argv: Sequence[str]) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--models", default="wnd,rm1,rm3,ncf")
    parser.add_argument("--slas", default="medium")
    parser.add_argument("--schedulers", default="released,hill")
    parser.add_argument(
        "--quick", action="store_true", help="small tables, few queries: under a minute a search"
    )
    parser.add_argument(
        "--out", type=Path, default=HERE, help="folder of real.csv; the runs go to its results/"
    )
    given, flags = parser.parse_known_args(argv)
    if unknown := set(given.models.split(",")) - set(MEDIUM_SLA_MS) or set(
        given.slas.split(",")
    ) - set(SLA_SHARES):
        sys.stderr.write(
            f"real.py: {', '.join(sorted(unknown))}: not known; expected "
            f"{', '.join(MEDIUM_SLA_MS)} and {', '.join(SLA_SHARES)}\n"
        )
        return 2
    file = given.out / "real.csv"
    given.out.mkdir(parents=True, exist_ok=True)
    known = (
        set(pd.read_csv(file)[["model", "sla", "scheduler"]].itertuples(index=False))
        if file.is_file()
        else set()
    )
    known = {tuple(key) for key in known}
    wanted = [
        (model, sla, scheduler)
        for model in given.models.split(",")
        for sla in given.slas.split(",")
        for scheduler in given.schedulers.split(",")
        if (model, sla, scheduler) not in known
    ]
    with Progress("auto") as progress, progress.step("searching") as on_fraction:
        for n, case in enumerate(wanted):
            on_fraction(n / len(wanted), ", ".join(case))
            try:
                rows = search(
                    *case, [*(QUICK if given.quick else []), *flags], given.out / "results"
                )
            except RuntimeError as error:
                sys.stderr.write(f"real.py: {error}\n")
                return 1
            pd.DataFrame(rows).to_csv(
                file, mode="a", header=not file.is_file(), index=False, float_format="%.5g"
            )
    print(pd.read_csv(file).to_string(index=False))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
