#!/usr/bin/env python3
"""gpu.csv -> gpu.png and gpu_speedups.png: python experiments/embedding/gpu_plot.py [--folder
FOLDER].

Needs pandas and matplotlib alone.
"""

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
COLD = "device, rows not in L2"
WARM = "device, rows in L2"
WALL = "wall, ids on the host"
BOUND = "bound"
OURS = ("ours, fused", "ours, grouped")
GRAPHED = "per table, graph"
ONCE = "every row once at the stated bandwidth"
COLORS = {
    "ours, fused": "#1f77b4", "ours, fused, graph": "#9ecae1", "ours, grouped": "#17507d",
    "ours, grouped, graph": "#6f8fae",
    "ours, one schedule": "#2a9d8f",
    "per table": "#d1495b", GRAPHED: "#edae49", "FBGEMM": "#6a4c93", "TorchRec": "#b5838d",
}  # fmt: skip
RIVALS = ("ours, one schedule", "per table", GRAPHED, "FBGEMM", "TorchRec")
PUBLISHED = {"TorchRec": 1.95, "HugeCTR": 11.57, "RECom": 7.92}  # RecFlex, SC 2024 and its release


def draw_figure(rows: pd.DataFrame) -> Figure:
    """A row of panels for each time, a panel a model: bars by method at each batch, quartiles, the
    bound as a line.
    """
    times = [what for what in (COLD, WARM, WALL) if what in set(rows["time"])]
    models = [*dict.fromkeys(rows["model"])]
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
    batches = sorted(set(rows["batch"]))
    methods = [name for name in COLORS if name in set(rows["method"])]
    width = 0.8 / max(len(methods), 1)
    for k, name in enumerate(methods):
        own = rows[rows["method"] == name].set_index("batch").reindex(batches)
        at = np.arange(len(batches)) + (k - (len(methods) - 1) / 2) * width
        errors = np.vstack((own["us"] - own["low_us"], own["high_us"] - own["us"]))
        axes.bar(
            at,
            own["us"],
            width * 0.92,
            yerr=errors,
            color=COLORS[name],
            label=name,
            error_kw={"lw": 0.7},
        )
    once = bounds[bounds["method"] == ONCE].set_index("batch").reindex(batches)["us"]
    for k, us in enumerate(once):
        axes.plot(
            [k - 0.42, k + 0.42],
            [us, us],
            color="black",
            lw=1,
            label="every row once" if k == 0 else None,
        )
    _dress(axes, batches)


def _dress(axes: Axes, batches: Sequence[int]) -> None:
    axes.set_yscale("log")
    axes.set_xticks(range(len(batches)), [str(batch) for batch in batches])
    axes.grid(axis="y", alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def speedups(rows: pd.DataFrame) -> pd.DataFrame:
    """A row a model and batch, a column a rival: its time on the device, rows not in L2, over our
    faster one's.
    """
    us = rows[rows["time"] == COLD].pivot_table(
        index=["model", "batch"], columns="method", values="us", sort=False
    )
    ours = us[[name for name in OURS if name in us]].min(axis=1)
    return us[[name for name in RIVALS if name in us]].div(ours, axis=0)


def draw_speedups(rows: pd.DataFrame) -> Figure:
    """A panel a model: how many times as fast as each rival we are, and RecFlex's published means,
    dashed.
    """
    table = speedups(rows)
    models = [*dict.fromkeys(table.index.get_level_values("model"))]
    figure = Figure(figsize=(3.4 * len(models) + 1.5, 4.2), layout="constrained")
    every = figure.subplots(1, len(models), squeeze=False, sharey=True)[0]
    for axes, model in zip(every, models, strict=True):
        own = table.loc[model].sort_index()
        width = 0.8 / max(len(own.columns), 1)
        for k, name in enumerate(own.columns):
            at = np.arange(len(own)) + (k - (len(own.columns) - 1) / 2) * width
            axes.bar(at, own[name], width * 0.92, color=COLORS[name], label=name)
        for name, ratio in PUBLISHED.items():
            axes.axhline(ratio, color="#666666", lw=0.9, ls="--")
            axes.annotate(
                f"{name} {ratio}",
                (1, ratio),
                xycoords=("axes fraction", "data"),
                ha="right",
                va="bottom",
                fontsize=7,
                color="#444444",
            )
        axes.axhline(1, color="black", lw=0.8)
        axes.set_title(model, fontsize=9, loc="left")
        axes.set_xlabel("batch (items)")
        _dress(axes, own.index.tolist())
    every[0].set_ylabel("time over that of our faster one")
    figure.suptitle(
        "Device time, rows not in L2. Dashed: RecFlex's published means over its rivals (SC 2024 "
        "and its release).\nWhat differs: their GPU is not named, their batches are mixed and "
        "tuned for together, rows may be in L2,\ntheir TorchRec is 0.6, HugeCTR and RECom are not "
        "run here.",
        fontsize=8,
    )
    figure.legend(
        *every[0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=5,
        frameon=False,
        fontsize=8,
    )
    return figure


def main(argv: Sequence[str]) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=HERE)
    folder = parser.parse_args(argv).folder
    rows = pd.read_csv(folder / "gpu.csv")
    draw_figure(rows).savefig(folder / "gpu.png", dpi=110)
    draw_speedups(rows).savefig(folder / "gpu_speedups.png", dpi=110)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
