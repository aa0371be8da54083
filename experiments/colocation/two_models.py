#!/usr/bin/env python3
"""Two models on one machine, each with its own SLA: how much of its load does each still carry?

python experiments/colocation/two_models.py [--pairs wnd+ncf,rm1+dien] [--quick] [--out FOLDER] [flags of DeepRecSys.py]

Real engines, one a model, each model with its own driver and Poisson load, at equal fractions of
what its engine carries alone. At every fraction: the first alone, the second alone, both at once.
two_models.csv gets a line a run as it ends; two_models.png is made of it. Needs two cores; some 4
minutes, --quick some 2.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import sys
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from accelerator.devices import model_configs
from backends.opening import open_session
from backends.tuning.probe import capacity_qps, latencies_ms
from experiments.common.servers import MEDIUM_SLA_MS
from infra.progress import Progress
from infra.results.figures import color, plain_log, style
from infra.results.report import console, frame
from infra.settings.cli import parse
from infra.settings.config import RunConfig
from loadGenerator import draw_schedule
from scheduler import Policy, Stage

HERE = Path(__file__).resolve().parent
PAIRS = "wnd+ncf,rm1+dien,rm2+rm3"
FRACTIONS = (0.3, 0.5, 0.7, 0.85)
SECONDS, QUICK_SECONDS = 8.0, 4.0  # of a run
BATCH, LARGEST = 128, 1024
ALONE, TOGETHER = "alone", "both at once"
COMMON = [
    "--queue",
    "--inference_engines",
    "1",
    "--num_batches",
    "16",
    "--max_mini_batch_size",
    str(LARGEST),
    "--batch_size_distribution",
    "production",
    "--batch_configs",
    str(BATCH),
    "--progress",
    "none",
]


def config_of(name: str, flags: Sequence[str]) -> RunConfig:
    """One engine of one model under its medium SLA."""
    sla = ["--target_latency", str(MEDIUM_SLA_MS[name])]
    return parse(["--config_file", str(model_configs()[name]), *COMMON, *sla, *flags])


def serve(config: RunConfig, pipe: Connection) -> None:
    """A model's driver: says its capacity, then answers each (rate, seconds, run) with quantiles;
    None ends it.
    """
    with (
        contextlib.suppress(EOFError),
        Progress("none") as progress,
        open_session(config, progress) as opened,
    ):
        pipe.send(capacity_qps(opened.session, config, Policy(BATCH), opened.n_engines))
        while (order := pipe.recv()) is not None:
            rate_qps, seconds, run_id = order
            n = max(int(rate_qps * seconds), 100)
            schedule = draw_schedule(config, n, n // 10, rate_qps, run_id)
            latency = latencies_ms(opened.session.run(schedule, [Stage(Policy(BATCH))]))[
                schedule.n_warmup :
            ]
            p50, p95, p99 = (float(np.quantile(latency, p)) for p in (0.5, 0.95, 0.99))
            pipe.send({"queries": len(latency), "p50_ms": p50, "p95_ms": p95, "p99_ms": p99})


@contextlib.contextmanager
def server(config: RunConfig) -> Iterator[tuple[Connection, float]]:
    """A driver process of its own with its engine; the pipe to it and what its engine carries
    (QPS).
    """
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(config, theirs))
    process.start()
    theirs.close()
    try:
        yield ours, float(ours.recv())
    finally:
        with contextlib.suppress(OSError):
            ours.send(None)
        ours.close()
        process.join()


def rows_of(
    pair: tuple[str, str], seconds: float, flags: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """A row a model, fraction and company, as the runs end."""
    configs = [config_of(name, flags) for name in pair]
    with server(configs[0]) as first, server(configs[1]) as second:
        both = dict(zip(pair, (first, second), strict=True))
        for run_id, fraction in enumerate(FRACTIONS):
            for company in ((pair[0],), (pair[1],), pair):
                for name in company:
                    pipe, capacity = both[name]
                    pipe.send((fraction * capacity, seconds, run_id))
                for name in company:
                    pipe, capacity = both[name]
                    sla_ms = MEDIUM_SLA_MS[name]
                    found = pipe.recv()
                    yield {
                        "pair": "+".join(pair),
                        "model": name,
                        "company": TOGETHER if len(company) > 1 else ALONE,
                        "fraction": fraction,
                        "rate_qps": fraction * capacity,
                        "sla_ms": sla_ms,
                        **found,
                        "meets_sla": found["p95_ms"] <= sla_ms,
                    }


def draw(rows: pd.DataFrame) -> Figure:
    """A panel a pair: p95 over the SLA by the fraction of the load carried alone."""
    pairs = list(dict.fromkeys(rows["pair"]))
    figure = Figure(figsize=(4.6 * len(pairs), 4.2), layout="constrained")
    for i, pair in enumerate(pairs):
        axes = figure.add_subplot(1, len(pairs), i + 1)
        for (model, company), own in rows[rows["pair"] == pair].groupby(
            ["model", "company"], sort=False
        ):
            together = company == TOGETHER
            axes.plot(
                own["fraction"],
                own["p95_ms"] / own["sla_ms"],
                "o-" if together else "o--",
                color=color(str(model)),
                markersize=4,
                label=f"{model} {company}",
            )
        axes.axhline(1, color="#c1121f", linestyle=":", label="SLA")
        plain_log(axes, "y")
        style(
            axes,
            "load, of what the engine carries alone",
            "p95 over the SLA" if i == 0 else "",
            pair,
        )
        axes.legend(fontsize=7, frameon=False)
    return figure


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """A line a pair and model: the largest fraction of the load that meets the SLA, alone and with
    the other.
    """
    lines = []
    for (pair, model), own in rows.groupby(["pair", "model"], sort=False):
        line: dict[str, object] = {
            "pair": pair,
            "model": model,
            "SLA ms": float(own["sla_ms"].iloc[0]),
        }
        for company in (ALONE, TOGETHER):
            met = own[(own["company"] == company) & own["meets_sla"]]
            best = met.loc[met["fraction"].idxmax()] if len(met) else None
            line[f"QPS, {company}"] = best["rate_qps"] if best is not None else 0.0
            line[f"p95 ms, {company}"] = best["p95_ms"] if best is not None else np.nan
        grid = own.pivot_table(index="fraction", columns="company", values="p95_ms")
        line["p95 together/alone"] = float((grid[TOGETHER] / grid[ALONE]).median())
        lines.append(line)
    return pd.DataFrame(lines)


def main(argv: Sequence[str]) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", default=PAIRS, help="model+model, with commas")
    parser.add_argument("--quick", action="store_true", help="shorter runs")
    parser.add_argument("--seconds", type=float, help=f"of a run (default: {SECONDS:g})")
    parser.add_argument("--out", type=Path, default=HERE)
    args, flags = parser.parse_known_args(argv)
    pairs = [tuple(pair.split("+")) for pair in args.pairs.split(",")]
    for pair in pairs:
        if len(pair) != 2 or len(set(pair)) != 2 or not set(pair) <= set(MEDIUM_SLA_MS):
            parser.error(
                f"--pairs: {'+'.join(pair)}; expected two different ones of "
                f"{', '.join(MEDIUM_SLA_MS)}"
            )
        for name in pair:
            config_of(name, flags)  # bad flags end here
    seconds = args.seconds or (QUICK_SECONDS if args.quick else SECONDS)
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "two_models.csv"
    rows = []
    n_runs = len(pairs) * len(FRACTIONS) * 4
    try:
        with Progress("auto") as progress, progress.step("two models") as on_fraction:
            for pair in pairs:
                for row in rows_of((pair[0], pair[1]), seconds, flags):
                    rows.append(row)
                    pd.DataFrame(rows).to_csv(file, index=False, float_format="%.4g")
                    on_fraction(
                        len(rows) / n_runs, f"{row['pair']}: {row['model']} {row['company']}"
                    )
    except EOFError:
        sys.stderr.write("two_models: a model's driver ended early; what it said is above\n")
        return 1
    table = pd.DataFrame(rows)
    draw(table).savefig(args.out / "two_models.png", dpi=110)
    console().print(frame("Highest load of the sweep under each model's own SLA", summary(table)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
