#!/usr/bin/env python3
"""What locality does to the look-up's time and to p95: uniform ids against Zipf's law, on full
tables.

python experiments/locality/look_ups.py [--models rm1,rm2] [--quick] [--out FOLDER] [flags of DeepRecSys.py]

look_ups.csv: SparseLengthsSum's and the whole model's time with ids of each law, in turn, over the
time with uniform ids. p95.csv: the real engines at the same rate and schedule with each law. Some 7
minutes, --quick (one model) some 2.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from accelerator.devices import model_configs
from backends.opening import open_session
from backends.tuning.probe import capacity_qps, latencies_ms
from infra.progress import OnFraction, Progress
from infra.results.figures import color, style
from infra.results.report import console, frame
from infra.results.stats import quantile
from infra.settings.cli import parse
from infra.settings.config import RunConfig
from loadGenerator import draw_schedule
from models import build
from models.inputs.synthetic import InputPool
from scheduler import Policy, Stage

HERE = Path(__file__).resolve().parent
MODELS = ("rm1", "rm2", "wnd")
ALPHAS = (0.0, 0.8, 1.05, 1.2)
ITEMS = 256
LARGEST = 1024
N_INPUTS = 8
SEED = 4
BATCH, LOAD = 128, 0.6
COMMON = [
    "--queue",
    "--num_batches",
    str(N_INPUTS),
    "--max_mini_batch_size",
    str(LARGEST),
    "--inference_engines",
    "1",
    "--batch_size_distribution",
    "production",
    "--batch_configs",
    str(BATCH),
    "--progress",
    "none",
]


@dataclass(frozen=True)
class Effort:
    """How much is measured."""

    models: Sequence[str] = MODELS
    rounds: int = 9
    seconds: float = 8.0  # of a run on engines
    p95_rounds: int = 2


QUICK = Effort(("rm2",), 5, 4.0, 1)


def config_of(name: str, alpha: float, flags: Sequence[str]) -> RunConfig:
    """A model whose ids follow Zipf's law; 0: uniform, drawn as ever."""
    law = ["--data_generation", "zipf", "--zipf_alpha", str(alpha)] if alpha else []
    return parse(["--config_file", str(model_configs()[name]), *COMMON, *law, *flags])


def law_name(alpha: float) -> str:
    """For tables and legends."""
    return f"Zipf {alpha:g}" if alpha else "uniform"


@torch.inference_mode()
def look_ups(
    name: str, effort: Effort, flags: Sequence[str], on_fraction: OnFraction
) -> list[dict[str, object]]:
    """A row a law: medians of paired rounds, of the look-up alone and of the whole model, over
    uniform ids.
    """
    model = build(config_of(name, 0.0, flags).model, SEED, device=torch.device("cpu"))
    pools = {}
    for i, alpha in enumerate(ALPHAS):
        on_fraction(0.5 * i / len(ALPHAS), f"{name}: drawing {law_name(alpha)} ids")
        pools[alpha] = InputPool.of(config_of(name, alpha, flags))
    slices = [(i, first) for first in range(0, LARGEST, ITEMS) for i in range(N_INPUTS)]
    times: dict[tuple[float, str], list[float]] = {}
    for round_id in range(-1, effort.rounds):
        on_fraction(0.5 + 0.5 * max(round_id, 0) / effort.rounds, f"{name}: look-ups")
        for alpha, pool in pools.items():
            for part, call in (("SparseLengthsSum", model.tables), ("model", model)):
                own = []
                for input_id, first in slices:
                    batch = pool.batch(input_id, first, ITEMS)
                    start = time.perf_counter()
                    call(batch)
                    own.append((time.perf_counter() - start) * 1e3)
                if round_id >= 0:
                    times.setdefault((alpha, part), []).append(float(np.median(own)))
    rows: list[dict[str, object]] = []
    for (alpha, part), own in times.items():
        ratios = np.array(own) / np.array(times[0.0, part])
        rows.append(
            {
                "model": name,
                "law": law_name(alpha),
                "part": part,
                "ms": np.median(own),
                "over_uniform": np.median(ratios),
                "least": ratios.min(),
                "most": ratios.max(),
            }
        )
    return rows


def tails(
    name: str, effort: Effort, flags: Sequence[str], on_fraction: OnFraction
) -> list[dict[str, object]]:
    """A row a law and round: quantiles on real engines at LOAD of what they carry with uniform ids."""
    rows: list[dict[str, object]] = []
    rate_qps = 0.0
    for round_id in range(effort.p95_rounds):
        for alpha in ALPHAS if round_id % 2 == 0 else ALPHAS[::-1]:
            on_fraction(
                len(rows) / len(ALPHAS) / effort.p95_rounds,
                f"{name}: engines with {law_name(alpha)} ids",
            )
            config = config_of(name, alpha, flags)
            with Progress("none") as progress, open_session(config, progress) as opened:
                rate_qps = rate_qps or LOAD * capacity_qps(
                    opened.session, config, Policy(BATCH), opened.n_engines
                )
                n = max(int(rate_qps * effort.seconds), 200)
                schedule = draw_schedule(config, n, n // 10, rate_qps, round_id)
                found = opened.session.run(schedule, [Stage(Policy(BATCH))])
            latency = latencies_ms(found)[schedule.n_warmup :]
            p95 = quantile(latency, 0.95)
            service_ms = (found.tasks["end_ns"] - found.tasks["start_ns"]).mean() / 1e6
            rows.append(
                {
                    "model": name,
                    "law": law_name(alpha),
                    "round": round_id,
                    "rate_qps": rate_qps,
                    "queries": len(latency),
                    "service_ms": service_ms,
                    "p50_ms": float(np.median(latency)),
                    "p95_ms": p95.value,
                    "p95_low": p95.low,
                    "p95_high": p95.high,
                }
            )
            gc.collect()
    return rows


def draw(rows: pd.DataFrame, p95: pd.DataFrame) -> Figure:
    """Left: look-up (solid) and model (dashed) over uniform ids; right: p95 over that with uniform
    ids.
    """
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    laws = [law_name(alpha) for alpha in ALPHAS]
    for (model, part), own in rows.groupby(["model", "part"], sort=False):
        line = own.set_index("law").reindex(laws)
        solid = part == "SparseLengthsSum"
        left.plot(
            range(len(laws)),
            line["over_uniform"],
            "o-" if solid else "o--",
            color=color(str(model)),
            markersize=4,
            label=f"{model} {part}",
        )
        left.fill_between(
            range(len(laws)), line["least"], line["most"], color=color(str(model)), alpha=0.08
        )
    for model, own in p95.groupby("model", sort=False):
        mean = own.groupby("law")["p95_ms"].median().reindex(laws)
        right.plot(
            range(len(laws)),
            mean / mean.iloc[0],
            "o-",
            color=color(str(model)),
            markersize=4,
            label=str(model),
        )
    for axes, title in (
        (left, "Time of one call, 256 items"),
        (right, f"p95 at the same rate ({LOAD:.0%} load when uniform)"),
    ):
        axes.set_xticks(range(len(laws)), laws)
        axes.axhline(1, color="grey", linewidth=0.8)
        style(axes, "ids", "over uniform ids", title)
        axes.legend(fontsize=7, frameon=False)
    return figure


def main(argv: Sequence[str]) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", help=f"default: {','.join(MODELS)}")
    parser.add_argument("--quick", action="store_true", help="one model, shorter runs")
    parser.add_argument("--seconds", type=float, help="of a run on engines")
    parser.add_argument("--out", type=Path, default=HERE)
    args, flags = parser.parse_known_args(argv)
    effort = QUICK if args.quick else Effort()
    if args.models:
        effort = replace(effort, models=tuple(args.models.split(",")))
    if args.seconds:
        effort = replace(effort, seconds=args.seconds)
    if unknown := set(effort.models) - set(model_configs()):
        parser.error(
            f"--models: {', '.join(sorted(unknown))} unknown; expected of "
            f"{', '.join(model_configs())}"
        )
    for name in effort.models:
        config_of(name, 0.0, flags)  # bad flags end here
    args.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, object]] = []
    p95: list[dict[str, object]] = []
    with Progress("auto") as progress, progress.step("locality") as on_fraction:
        for i, name in enumerate(effort.models):
            for k, part in enumerate((tails, look_ups)):

                def tell(fraction: float, detail: str = "", /, at: float = i + k / 2) -> None:
                    on_fraction((at + fraction / 2) / len(effort.models), detail)

                (p95 if part is tails else rows).extend(part(name, effort, flags, tell))
            pd.DataFrame(p95).to_csv(args.out / "p95.csv", index=False, float_format="%.4g")
            pd.DataFrame(rows).to_csv(args.out / "look_ups.csv", index=False, float_format="%.4g")
            gc.collect()
    draw(pd.DataFrame(rows), pd.DataFrame(p95)).savefig(args.out / "look_ups.png", dpi=110)
    out = console()
    out.print(
        frame("Time of one call of 256 items over the time with uniform ids", pd.DataFrame(rows))
    )
    out.print(frame("On engines, same rate", pd.DataFrame(p95)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
