#!/usr/bin/env python3
"""gpu.csv -> gpu.png: python experiments/embedding/gpu_plot.py [--folder FOLDER]. Needs pandas and matplotlib alone."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

HERE = Path(__file__).resolve().parent
COLD, WARM, WALL, BOUND = "device, rows not in L2", "device, rows in L2", "wall, ids on the host", "bound"
COLORS = {
    "ours, fused": "#1f77b4", "ours, fused, graph": "#9ecae1", "ours, grouped": "#17507d",
    "ours, one schedule": "#2a9d8f",
    "per table": "#d1495b", "per table, graph": "#edae49", "FBGEMM": "#6a4c93",
}  # fmt: skip


def draw_figure(rows: pd.DataFrame) -> Figure:
    """A row of panels for each time, a panel a model: bars by method at each batch, quartiles, the bound as a line."""
    times, models = [what for what in (COLD, WARM, WALL) if what in set(rows["time"])], [*dict.fromkeys(rows["model"])]
    figure = Figure(figsize=(3.6 * len(models) + 1, 2.9 * len(times) + 0.8), layout="constrained")
    every = figure.subplots(len(times), len(models), squeeze=False, sharey="row")
    for i, what in enumerate(times):
        for j, model in enumerate(models):
            own = rows[(rows["model"] == model)]
            _panel(every[i, j], own[own["time"] == what], own[own["time"] == BOUND])
            every[i, j].set_title(f"{model}: {what}", fontsize=9, loc="left")
        every[i, 0].set_ylabel("time of a look-up (us)")
    for axes in every[-1]:
        axes.set_xlabel("batch (items)")
    handles, labels = every[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return figure


def _panel(axes: Axes, rows: pd.DataFrame, bounds: pd.DataFrame) -> None:
    batches, methods = sorted(set(rows["batch"])), [name for name in COLORS if name in set(rows["method"])]
    width = 0.8 / max(len(methods), 1)
    for k, name in enumerate(methods):
        own = rows[rows["method"] == name].set_index("batch").reindex(batches)
        at = np.arange(len(batches)) + (k - (len(methods) - 1) / 2) * width
        errors = np.vstack((own["us"] - own["low_us"], own["high_us"] - own["us"]))
        axes.bar(at, own["us"], width * 0.92, yerr=errors, color=COLORS[name], label=name, error_kw={"lw": 0.7})
    once = bounds[bounds["method"].str.startswith("every row once")].set_index("batch").reindex(batches)["us"]
    for k, us in enumerate(once):
        axes.plot([k - 0.42, k + 0.42], [us, us], color="black", lw=1, label="every row once" if k == 0 else None)
    axes.set_yscale("log")
    axes.set_xticks(range(len(batches)), [str(batch) for batch in batches])
    axes.grid(axis="y", alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def main(argv: Sequence[str]) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=HERE)
    folder = parser.parse_args(argv).folder
    draw_figure(pd.read_csv(folder / "gpu.csv")).savefig(folder / "gpu.png", dpi=110)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
