#!/usr/bin/env python3
"""What co-location does to the tail on a large server: 1 to 40 engines of one model, in virtual
time.

python experiments/colocation/engines.py [--profile amd_epyc_zen4] [--quick] [--out FOLDER]

Service times are a core's from the profile; the slow-down by a neighbour that runs the same model
is that of pairs.csv. How it goes on from two neighbours on was not measured, so there are two
worlds: it stays, or every busy neighbour adds as much (up to those of a socket). The arrivals, 70 %
of what the engines carry in that world, meet them without any slow-down as well. engines.csv,
engines.png; under a minute.
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
from accelerator.service import ServiceTable, table_of_profiles
from backends.tuning.probe import capacity_qps, latencies_ms
from backends.virtual.simulated import SimulatedSession
from infra.messages import CPU
from infra.progress import Progress
from infra.results.figures import color, plain_log, style
from infra.results.report import console, frame
from infra.settings.cli import parse
from infra.settings.config import ConfigError, ModelConfig
from loadGenerator import draw_schedule
from scheduler import Policy, Stage

HERE = Path(__file__).resolve().parent
MODELS = ("rm1", "rm2", "rm3", "ncf", "wnd", "mtwnd", "din", "dien")
ENGINES = (1, 2, 4, 8, 16, 32, 40)
LOAD, BATCH, LARGEST = 0.7, 128, 1024
ALONE, BESIDE, ADDING = "no slow-down", "as beside one", "each adds as much"
SOCKET = 20  # cores that share caches and memory channels


def service_tables(model: ModelConfig, device: str) -> dict[str, ServiceTable]:
    """A core's times in each world.

    The profile beside a neighbour is the reference: alone is it over the slow-down.
    """
    measured = latency_profile(load_device(accelerator_root("accelerator/"), device), model)
    if 1 not in measured.busy_ms:
        raise ConfigError(
            "profile", f"{device} was not measured beside a neighbour (profiler.py --neighbours 1)"
        )
    pairs = pd.read_csv(HERE / "pairs.csv")
    own = pairs[(pairs["model"] == model.name) & (pairs["neighbour"] == model.name)].sort_values(
        "batch"
    )
    beside_ms = measured.busy_ms[1]

    def slowdown(n_items: int) -> float:
        return max(float(np.interp(np.log(n_items), np.log(own["batch"]), own["slowdown"])), 1.0)

    def world(n_busy: Sequence[int]) -> ServiceTable:
        alone = {n: ms / slowdown(n) for n, ms in beside_ms.items()}
        busy = {k: {n: ms * (1 + (slowdown(n) - 1) * k) for n, ms in alone.items()} for k in n_busy}
        return table_of_profiles(
            replace(measured, batch_ms=alone, busy_ms=busy), [], LARGEST, seed=5
        )

    return {ALONE: world(()), BESIDE: world((1,)), ADDING: world(range(1, SOCKET))}


def rows_of(name: str, device: str, n_queries: int) -> list[dict[str, object]]:
    """A row a number of engines and world, on the same arrivals and sizes."""
    config = parse(
        [
            "--config_file",
            str(model_configs()[name]),
            "--queue",
            "--num_batches",
            "32",
            "--arrival_qps",
            "1",
            "--max_mini_batch_size",
            str(LARGEST),
            "--batch_size_distribution",
            "production",
        ]
    )
    tables = service_tables(config.model, device)
    rows: list[dict[str, object]] = []
    for n_engines in ENGINES:
        sessions = {
            world: SimulatedSession({CPU: n_engines}, table, keep_tasks=False)
            for world, table in tables.items()
        }
        for world in (BESIDE, ADDING):
            rate = LOAD * capacity_qps(sessions[world], config, Policy(BATCH), n_engines)
            schedule = draw_schedule(config, n_queries, n_queries // 10, rate, n_engines)
            for label in (world, ALONE):
                latency = latencies_ms(sessions[label].run(schedule, [Stage(Policy(BATCH))]))[
                    schedule.n_warmup :
                ]
                p50, p95, p99 = np.quantile(latency, (0.5, 0.95, 0.99))
                rows.append(
                    {
                        "model": name,
                        "engines": n_engines,
                        "world": world,
                        "service": label,
                        "rate_qps": rate,
                        "p50_ms": p50,
                        "p95_ms": p95,
                        "p99_ms": p99,
                    }
                )
    return rows


def ratios(rows: pd.DataFrame, world: str) -> pd.DataFrame:
    """p95 in a world over p95 without a slow-down at the same rate: a row a model, a column a
    number of engines.
    """
    own = rows[rows["world"] == world]
    shape = {"index": "model", "columns": "engines", "values": "p95_ms", "sort": False}
    slowed, alone = (own[own["service"] == label].pivot_table(**shape) for label in (world, ALONE))
    return slowed / alone


def draw(rows: pd.DataFrame) -> Figure:
    """p95 over that without a slow-down, by engines, in each world."""
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    for world, axes in zip((BESIDE, ADDING), figure.subplots(1, 2), strict=True):
        for model, line in ratios(rows, world).iterrows():
            axes.plot(
                line.index, line, "o-", color=color(str(model)), markersize=3, label=str(model)
            )
        plain_log(axes, "x")
        axes.set_xticks(ENGINES, [str(n) for n in ENGINES])
        style(axes, "CPU engines", "p95 over p95 without a slow-down", f"slow-down {world}")
    figure.axes[0].legend(fontsize=8, frameon=False, ncols=2)
    return figure


def main(argv: Sequence[str]) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--profile", default="amd_epyc_zen4", help="folder of accelerator/ with a profiled CPU core"
    )
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
    for world in (BESIDE, ADDING):
        shown = ratios(table, world).reset_index()
        console().print(frame(f"p95 over p95 without a slow-down, by engines; {world}", shown))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
