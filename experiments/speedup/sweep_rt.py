#!/usr/bin/env python3
"""From which batch on is an accelerator faster than a CPU core, beside the published speedups?

python experiments/speedup/sweep_rt.py [--devices nvidia_t4,nvidia_h200] [--baseline amd_epyc_zen4]
    [--out FOLDER]

Takes whatever the device folders know: measured profiles, rooflines, published speedups; a second
or two. speedup.csv gets a line a device, model and batch; crossover.csv the batch from which on the
device is faster. accelerator/profiler.py measures a device of this machine (--baseline cpu_core
reads what it wrote for the CPU core).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from accelerator.devices import (
    Device,
    accelerator_root,
    latency_profile,
    load_device,
    published_speedups,
)
from accelerator.latency import Profile
from experiments.common.panels import finish, legend_below, panels
from experiments.common.released import MODELS, net_of
from experiments.common.study import Study, View
from infra.settings.config import ModelConfig
from infra.settings.fields import flag

BATCHES = (1, 4, 16, 64, 256, 1024, 4096)
SHADES = ("#17507d", "#1f77b4", "#2a9d8f", "#edae49", "#d1495b", "#6a4c93", "#8c564b", "#b185db")


@dataclass(frozen=True)
class DeviceChoice:
    """Flags of the study, and its only case."""

    devices: tuple[str, ...] = flag((), "folders of accelerator/, with commas; none: all GPUs")
    baseline: str = flag("amd_epyc_zen4", "folder of the CPU core")
    accel_root_dir: str = flag("accelerator/", "folder of the device folders")

    def load(self) -> dict[str, Device]:
        """The devices by their folders; raises ConfigError for one that is not there."""
        root = accelerator_root(self.accel_root_dir)
        folders = self.devices or sorted(folder.name for folder in root.glob("nvidia_*"))
        return {folder: load_device(root, folder) for folder in folders}

    def core(self) -> Device:
        """The baseline; raises ConfigError if it is not there."""
        return load_device(accelerator_root(self.accel_root_dir), self.baseline)


@dataclass(frozen=True)
class SpeedupRow:
    """The baseline's time over the device's, at one batch."""

    device: str
    name: str
    kind: str
    model: str
    batch: int
    speedup: float


def cases(_: object, choice: DeviceChoice) -> list[DeviceChoice]:
    """The one case there is; raises ConfigError for a device that is not there."""
    choice.load()
    choice.core()
    return [choice]


def speedups(device: Device, model: ModelConfig, baseline: Profile) -> dict[int, float]:
    """{batch: baseline's time over the device's}, or the published speedups where that is known."""
    if device.kind == "speedup":
        return published_speedups(device, model.name)
    profile = latency_profile(device, model)
    return {n: baseline.ms(n) / profile.ms(n) for n in BATCHES}


def sweep(choice: DeviceChoice) -> dict[str, list[Any]]:
    """Speedups and crossovers; raises ConfigError for a device without times."""
    rows = []
    for model in map(net_of, MODELS):
        baseline = latency_profile(choice.core(), model)
        for folder, device in choice.load().items():
            names = folder, device.name, device.kind, model.name
            points = sorted(speedups(device, model, baseline).items())
            rows += [SpeedupRow(*names, batch, speedup) for batch, speedup in points]
    return {"speedup": rows, "crossover": crossovers(pd.DataFrame(rows))}


def crossover(batches: Sequence[float], speedup: Sequence[float]) -> float:
    """Batch from which on the speedup stays at 1 or more, between two by logarithms; inf: none."""
    below = np.flatnonzero(np.asarray(speedup) < 1)
    if not len(below):
        return float(batches[0])
    last = int(below[-1])
    if last == len(batches) - 1:
        return math.inf
    logs = np.log(speedup[last : last + 2])
    return float(np.exp(np.interp(0.0, logs, np.log(batches[last : last + 2]))))


def crossovers(rows: pd.DataFrame) -> list[dict[str, object]]:
    """From which batch on a device is faster: a line a device, a column a model; '-': from none."""
    lines = []
    for device, points in rows.groupby("device", sort=False):
        line: dict[str, object] = {"device": device, "times are": points["kind"].iloc[0]}
        for model, part in points.groupby("model", sort=False):
            batch = crossover(part["batch"].to_list(), part["speedup"].to_list())
            line[str(model)] = f"{batch:.0f}" if math.isfinite(batch) else "-"
        lines.append(line)
    return lines


def draw(rows: pd.DataFrame) -> Figure:
    """A panel a model: speedup by batch, a line a device; published ones dashed."""
    figure, all_axes = panels(len(MODELS), 3.5, 3.3, n_columns=4)
    for axes, model in zip(all_axes, MODELS, strict=True):
        devices = rows[rows["model"] == model].groupby(["name", "kind"], sort=False)
        for k, ((name, kind), points) in enumerate(devices):
            published = kind == "speedup"
            axes.plot(
                points["batch"],
                points["speedup"],
                "s--" if published else "o-",
                markersize=3,
                color="black" if published else SHADES[k % len(SHADES)],
                label=f"{name} ({'published' if published else kind})",
            )
        axes.axhline(1, color="grey", linewidth=0.8)
        finish(axes, "batch (items)", "speedup over one CPU core", model, log="xy")
        axes.set_xticks(BATCHES[::2], [str(n) for n in BATCHES[::2]])
    legend_below(figure, 3, size=8)
    title = "Time of one core over the device's; above 1 the device is faster"
    figure.suptitle(title, fontsize=11)
    return figure


STUDY = Study(
    "speedup",
    "From which batch on is an accelerator faster than a CPU core?",
    cases,
    sweep,
    efforts={"quick": None, "full": None},  # it takes a second
    options=DeviceChoice,
    figures={"speedup": View(draw, "speedup")},
    report={"Batch from which on the device is faster": View(pd.DataFrame, "crossover")},
    float_format="%.4g",
)

if __name__ == "__main__":
    STUDY.main()
