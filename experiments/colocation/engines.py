#!/usr/bin/env python3
"""What co-location does to the tail on a large server: 1 to 40 engines of one model, in virtual time.

python experiments/colocation/engines.py [--profile amd_epyc_zen4] [--quick] [--out FOLDER]

Service times are those of the profile, alone and beside a busy neighbour; more neighbours than were measured count as
the most that were. The same arrivals meet the same engines with the slow-down and without it. engines.csv, engines.png;
under a minute.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from accelerator.devices import accelerator_root, latency_profile, load_device, model_configs
from accelerator.service import table_of_profiles
from backends.probe import capacity_qps, latencies_ms
from backends.simulated import SimulatedSession
from infra.cli import parse
from infra.config import ConfigError
from infra.figures import color, plain_log, style
from infra.messages import CPU
from infra.progress import Progress
from infra.report import console, frame
from loadGenerator import draw_schedule
from scheduler import Policy, Stage

HERE = Path(__file__).resolve().parent
MODELS = ("rm1", "rm2", "rm3", "ncf", "wnd", "mtwnd", "din", "dien")
ENGINES = (1, 2, 4, 8, 16, 32, 40)
LOAD, BATCH, LARGEST = 0.7, 128, 1024
BESIDE, ALONE = "with the slow-down", "without"


def rows_of(name: str, device: str, n_queries: int) -> list[dict[str, object]]:
    """A row a number of engines, with and without the slow-down by neighbours, on the same arrivals and sizes."""
    config = parse([
        "--config_file", str(model_configs()[name]), "--queue", "--num_batches", "32", "--arrival_qps", "1",
        "--max_mini_batch_size", str(LARGEST), "--batch_size_distribution", "production",
    ])  # fmt: skip
    measured = latency_profile(load_device(accelerator_root("accelerator/"), device), config.model)
    tables = {
        BESIDE: table_of_profiles(measured, [], LARGEST, seed=5),
        ALONE: table_of_profiles(replace(measured, busy_ms={}), [], LARGEST, seed=5),
    }
    rows: list[dict[str, object]] = []
    for n_engines in ENGINES:
        sessions = {
            label: SimulatedSession({CPU: n_engines}, table, keep_tasks=False) for label, table in tables.items()
        }
        rate = LOAD * capacity_qps(sessions[BESIDE], config, Policy(BATCH), n_engines)
        schedule = draw_schedule(config, n_queries, n_queries // 10, rate, n_engines)
        for label, session in sessions.items():
            latency = latencies_ms(session.run(schedule, [Stage(Policy(BATCH))]))[schedule.n_warmup :]
            p50, p95, p99 = np.quantile(latency, (0.5, 0.95, 0.99))
            rows.append({
                "model": name, "engines": n_engines, "service": label, "rate_qps": rate, "p50_ms": p50, "p95_ms": p95,
                "p99_ms": p99,
            })  # fmt: skip
    return rows


def draw(rows: pd.DataFrame) -> Figure:
    """Left: p95 by engines with (solid) and without (dashed) the slow-down; right: their ratio."""
    figure = Figure(figsize=(12, 4.8), layout="constrained")
    tail, ratio = figure.subplots(1, 2)
    for model, own in rows.groupby("model", sort=False):
        grid = own.pivot_table(index="engines", columns="service", values="p95_ms")
        tail.plot(grid.index, grid[BESIDE], "o-", color=color(str(model)), markersize=3, label=str(model))
        tail.plot(grid.index, grid[ALONE], "--", color=color(str(model)), linewidth=1)
        ratio.plot(grid.index, grid[BESIDE] / grid[ALONE], "o-", color=color(str(model)), markersize=3)
    for axes in (tail, ratio):
        plain_log(axes, "x")
        axes.set_xticks(ENGINES, [str(n) for n in ENGINES])
    plain_log(tail, "y")
    style(tail, "CPU engines", "p95 (ms)", f"p95 at {LOAD:.0%} load; dashed: neighbours cost nothing")
    style(ratio, "CPU engines", "p95 with the slow-down over p95 without", "What co-location costs")
    tail.legend(fontsize=8, frameon=False, ncols=2)
    return figure


def main(argv: Sequence[str]) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="amd_epyc_zen4", help="folder of accelerator/ with a profiled CPU core")
    parser.add_argument("--quick", action="store_true", help="fewer queries")
    parser.add_argument("--out", type=Path, default=HERE)
    args = parser.parse_args(argv)
    rows: list[dict[str, object]] = []
    args.out.mkdir(parents=True, exist_ok=True)
    try:
        with Progress("auto") as progress, progress.step("engines") as on_fraction:
            for i, name in enumerate(MODELS):
                on_fraction(i / len(MODELS), name)
                rows += rows_of(name, args.profile, 5_000 if args.quick else 50_000)
    except ConfigError as error:
        parser.error(str(error))
    table = pd.DataFrame(rows)
    table.to_csv(args.out / "engines.csv", index=False, float_format="%.4g")
    draw(table).savefig(args.out / "engines.png", dpi=110)
    grid = {label: table[table["service"] == label].pivot_table(index="model", columns="engines", values="p95_ms")
            for label in (BESIDE, ALONE)}  # fmt: skip
    ratio = (grid[BESIDE] / grid[ALONE]).reset_index()
    console().print(frame("p95 with the slow-down by neighbours over p95 without, by number of engines", ratio))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
