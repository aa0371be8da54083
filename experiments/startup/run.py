#!/usr/bin/env python3
"""Seconds and memory from the command to the first query: RM1, RM2, DIN with 1, 2 and 4 engines.

python experiments/startup/run.py [--rounds 3]     2 minutes a round

The real command runs with 16 queries and full tables; the first query's time is that of the
progress line before it. Memory: the driver's resident set (tables and inputs, shared with the
engines) and the largest private memory of an engine, at its end. Tables: rounds (a start a row) and
startup (their medians).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from accelerator.devices import model_configs
from experiments.common.study import Study, View
from infra.settings.cli import parse
from infra.settings.fields import flag

SCRIPT = Path(__file__).resolve().parents[2] / "DeepRecSys.py"
N_QUERIES = 16
COMMON = f"""--queue --num_batches 2 --nepochs {N_QUERIES // 2} --arrival_qps 20
    --progress plain --warmup_queries 0"""


@dataclass(frozen=True)
class StartEffort:
    """What is started."""

    models: tuple[str, ...] = ("rm1", "rm2", "din")
    engines: tuple[int, ...] = (1, 2, 4)


@dataclass(frozen=True)
class StartOptions:
    """The study's flags."""

    rounds: int = flag(3, "starts of each, in turn", low=1)


@dataclass(frozen=True)
class StartCase:
    """One start."""

    model: str
    engines: int
    round: int


@dataclass(frozen=True)
class StartRow:
    """What one start took."""

    model: str
    engines: int
    first_query_s: float
    tables_mib: float
    driver_over_tables_mib: float
    engine_private_mib: float


def start(case: StartCase) -> dict[str, list[StartRow]]:
    """Start the real command; raises RuntimeError if it fails."""
    file = str(model_configs()[case.model])
    words = ["--config_file", file, *COMMON.split(), "--inference_engines", str(case.engines)]
    with tempfile.TemporaryDirectory() as folder:
        where = ["--results_dir", folder, "--log_file", f"{folder}/tasks.log"]
        first_query_s = seconds_to_first_query([sys.executable, str(SCRIPT), *words, *where])
        (run,) = Path(folder).glob("*/run.json")
        memory = json.loads(run.read_text())["memory"]
    tables_mib = parse(words).model.table_bytes / 2**20
    over_mib = memory["driver_rss_mib"] - tables_mib
    private_mib = max(memory["engine_private_mib"])
    row = StartRow(case.model, case.engines, first_query_s, tables_mib, over_mib, private_mib)
    return {"rounds": [row]}


def seconds_to_first_query(command: list[str]) -> float:
    """Run the command to its end; the time of the progress line with which the run begins."""
    begun = time.monotonic()
    first_query_s = 0.0
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    ) as process:
        for line in process.stderr or ():
            if f"{N_QUERIES} queries at" in line:
                first_query_s = time.monotonic() - begun
    if process.returncode or not first_query_s:
        raise RuntimeError(f"{' '.join(command)}: exit code {process.returncode}")
    return first_query_s


def cases(effort: StartEffort, options: StartOptions) -> list[StartCase]:
    """All starts, in turn."""
    return [
        StartCase(model, n_engines, i)
        for i in range(options.rounds)
        for model in effort.models
        for n_engines in effort.engines
    ]


def medians(rounds: pd.DataFrame) -> pd.DataFrame:
    """A line per model and number of engines."""
    return rounds.groupby(["model", "engines"], sort=False).median().reset_index()


def draw(table: pd.DataFrame) -> Figure:
    """Seconds to the first query."""
    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axes = figure.add_subplot()
    by_engines = table.pivot_table("first_query_s", "model", "engines", sort=False)
    by_engines.plot.bar(ax=axes, rot=0)
    axes.set(xlabel="", ylabel="seconds to the first query")
    return figure


STUDY = Study(
    "startup",
    "How long until the first query?",
    cases,
    start,
    efforts={"quick": StartEffort(("din",), (1,)), "full": StartEffort()},
    options=StartOptions,
    derived={"startup": View(medians, "rounds")},
    figures={"startup": View(draw, "startup")},
    report={"Medians of the starts": View(pd.DataFrame, "startup")},
    float_format="%.4g",
    formats={"rounds": "%.9g"},
)

if __name__ == "__main__":
    STUDY.main()
