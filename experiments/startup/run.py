#!/usr/bin/env python3
"""Seconds and memory from the command to the first query: RM1, RM2, DIN with 1, 2 and 4 engines,
full tables.

python experiments/startup/run.py [FOLDER] [--rounds 3]     writes startup.csv and startup.png; 2 minutes a round
The real command runs with 16 queries; the first one's time is that of the progress line before it. Memory: the driver's
resident set (tables and inputs, shared with the engines) and the largest private memory of an engine, at its end.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from accelerator.devices import model_configs
from infra.settings.cli import parse

MODELS = ("rm1", "rm2", "din")
ENGINES = (1, 2, 4)
ROOT = Path(__file__).resolve().parents[2]
N_QUERIES, RATE_QPS = 16, 20
Row = dict[str, float | str]


def measure(name: str, n_engines: int) -> Row:
    """One start of the real command."""
    file = model_configs()[name]
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            str(ROOT / "DeepRecSys.py"),
            "--queue",
            "--config_file",
            str(file),
            "--num_batches",
            "2",
            "--nepochs",
            str(N_QUERIES // 2),
            "--arrival_qps",
            str(RATE_QPS),
            "--inference_engines",
            str(n_engines),
            "--results_dir",
            folder,
            "--progress",
            "plain",
            "--warmup_queries",
            "0",
        ]
        begun = time.monotonic()
        first_query_s = 0.0
        with subprocess.Popen(
            command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
        ) as process:
            for line in process.stderr or ():
                if f"{N_QUERIES} queries at" in line:  # said as the run begins
                    first_query_s = time.monotonic() - begun
        if process.returncode or not first_query_s:
            raise RuntimeError(f"{' '.join(command)}: exit code {process.returncode}")
        (run,) = Path(folder).glob("*/run.json")
        facts = json.loads(run.read_text())
    tables_mib = parse(["--config_file", str(file), "--num_batches", "2"]).model.table_bytes / 2**20
    memory = facts["memory"]
    return {
        "model": name,
        "engines": n_engines,
        "first_query_s": first_query_s,
        "tables_mib": tables_mib,
        "driver_over_tables_mib": memory["driver_rss_mib"] - tables_mib,
        "engine_private_mib": max(memory["engine_private_mib"]),
    }


def draw(table: pd.DataFrame) -> Figure:
    """Seconds to the first query."""
    figure, axis = plt.subplots(figsize=(5, 3.2), layout="constrained")
    table.pivot_table(
        index="model", columns="engines", values="first_query_s", sort=False
    ).plot.bar(ax=axis, rot=0)
    axis.set(xlabel="", ylabel="seconds to the first query")
    return figure


def main(argv: Sequence[str]) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path, default=Path.cwd())
    parser.add_argument("--rounds", type=int, default=3, help="starts of each, in turn")
    args = parser.parse_args(argv)
    folder = args.folder
    rounds = [measure(name, n) for _ in range(args.rounds) for name in MODELS for n in ENGINES]
    table = (
        pd.DataFrame(rounds)
        .groupby(["model", "engines"], sort=False)
        .agg(statistics.median)
        .reset_index()
    )
    table.to_csv(folder / "startup.csv", index=False, float_format="%.4g")
    print(f"medians of {args.rounds} start(s)")
    print(table.round(2).to_string(index=False))
    draw(table).savefig(folder / "startup.png")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
