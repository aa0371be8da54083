#!/usr/bin/env python3
"""From which batch on is an accelerator faster than a CPU core?

Speedup by model and batch, beside the published one.

python experiments/speedup/sweep_rt.py [--devices nvidia_t4,nvidia_h200] [--baseline amd_epyc_zen4] [--out FOLDER]

Takes whatever the device folders know: measured profiles, rooflines, published speedups; a second
or two. speedup.csv gets a line a device, model and batch; crossover.csv the batch from which on the
device is faster. accelerator/profiler.py measures a device of this machine (--baseline cpu_core
reads what it wrote for the CPU core).
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from accelerator.devices import (
    Device,
    accelerator_root,
    latency_profile,
    load_device,
    model_configs,
    published_speedups,
)
from accelerator.latency import Profile
from infra.results.figures import plain_log, style
from infra.results.report import console, frame
from infra.settings.cli import parse
from infra.settings.config import ConfigError, ModelConfig

HERE = Path(__file__).resolve().parent
BATCHES = (1, 4, 16, 64, 256, 1024, 4096)
MODELS = ("rm1", "rm2", "rm3", "ncf", "wnd", "mtwnd", "din", "dien")
SHADES = ("#17507d", "#1f77b4", "#2a9d8f", "#edae49", "#d1495b", "#6a4c93", "#8c564b", "#b185db")


def speedups(device: Device, model: ModelConfig, baseline: Profile) -> dict[int, float]:
    """{batch: baseline's time over the device's}; as published for a device that is known by its
    speedup.
    """
    if device.kind == "speedup":
        return published_speedups(device, model.name)
    profile = latency_profile(device, model)
    return {n: baseline.ms(n) / profile.ms(n) for n in BATCHES}


def crossover(batches: Sequence[float], speedup: Sequence[float]) -> float:
    """The smallest batch from which on the speedup stays at 1 or more, between two by logarithms;
    inf: never.
    """
    below = np.flatnonzero(np.asarray(speedup) < 1)
    if not len(below):
        return float(batches[0])
    last = int(below[-1])
    if last == len(batches) - 1:
        return math.inf
    logs = np.log(speedup[last : last + 2])
    return float(np.exp(np.interp(0.0, logs, np.log(batches[last : last + 2]))))


def sweep(names: Sequence[str], root: Path, baseline_name: str) -> pd.DataFrame:
    """device, kind, model, batch, speedup; raises ConfigError for a device without times."""
    baseline_device = load_device(root, baseline_name)
    rows = []
    for model_name in MODELS:
        model = parse(
            ["--config_file", str(model_configs()[model_name]), "--num_batches", "1"]
        ).model
        baseline = latency_profile(baseline_device, model)
        for name in names:
            device = load_device(root, name)
            rows += [
                {
                    "device": name,
                    "name": device.name,
                    "kind": device.kind,
                    "model": model_name,
                    "batch": n,
                    "speedup": s,
                }
                for n, s in sorted(speedups(device, model, baseline).items())
            ]
    return pd.DataFrame(rows)


def crossovers(rows: pd.DataFrame) -> pd.DataFrame:
    """A line a device: from which batch on it is faster, by model ('-': at no batch of the sweep)."""
    lines = []
    for device, own in rows.groupby("device", sort=False):
        line: dict[str, object] = {"device": device, "times are": own["kind"].iloc[0]}
        for model, part in own.groupby("model", sort=False):
            batch = crossover(part["batch"].to_list(), part["speedup"].to_list())
            line[str(model)] = f"{batch:.0f}" if math.isfinite(batch) else "-"
        lines.append(line)
    return pd.DataFrame(lines)


def draw(rows: pd.DataFrame, baseline: str) -> Figure:
    """A panel a model: speedup by batch, a line a device; published ones dashed."""
    figure = Figure(figsize=(14, 6.6), layout="constrained")
    devices = list(dict.fromkeys(rows["device"]))
    lines = {}
    for i, model in enumerate(MODELS):
        axes = figure.add_subplot(2, 4, i + 1)
        for k, device in enumerate(devices):
            own = rows[(rows["model"] == model) & (rows["device"] == device)]
            published = own["kind"].iloc[0] == "speedup"
            (line,) = axes.plot(
                own["batch"],
                own["speedup"],
                "s--" if published else "o-",
                markersize=3,
                color="black" if published else SHADES[k % len(SHADES)],
            )
            lines[
                own["name"].iloc[0] + (" (published)" if published else f" ({own['kind'].iloc[0]})")
            ] = line
        axes.axhline(1, color="grey", linewidth=0.8)
        plain_log(axes, "x")
        plain_log(axes, "y")
        axes.set_xticks(BATCHES[::2], [str(n) for n in BATCHES[::2]])
        style(
            axes,
            "batch (items)" if i >= 4 else "",
            "speedup over one CPU core" if i % 4 == 0 else "",
            model,
        )
    figure.legend(
        lines.values(), lines.keys(), loc="outside lower center", ncols=3, frameon=False, fontsize=8
    )
    figure.suptitle(
        f"Time of one core ({baseline}) over the device's; above 1 the device is faster",
        fontsize=11,
    )
    return figure


def main(argv: Sequence[str]) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--devices", help="folders of accelerator/, with commas (default: every GPU)"
    )
    parser.add_argument("--baseline", default="amd_epyc_zen4", help="folder of the CPU core")
    parser.add_argument("--accel_root_dir", default="accelerator/")
    parser.add_argument("--out", type=Path, default=HERE)
    args = parser.parse_args(argv)
    root = accelerator_root(args.accel_root_dir)
    names = (
        args.devices.split(",") if args.devices else sorted(f.name for f in root.glob("nvidia_*"))
    )
    try:
        rows = sweep(names, root, args.baseline)
    except ConfigError as error:
        parser.error(str(error))
    args.out.mkdir(parents=True, exist_ok=True)
    rows.to_csv(args.out / "speedup.csv", index=False, float_format="%.4g")
    table = crossovers(rows)
    table.to_csv(args.out / "crossover.csv", index=False)
    baseline = load_device(root, args.baseline).name
    draw(rows, baseline).savefig(args.out / "speedup.png", dpi=110)
    console().print(frame(f"Batch from which on the device is faster than {baseline}", table))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
