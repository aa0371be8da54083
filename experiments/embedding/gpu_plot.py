"""Figures of the GPU study from its rows (`gpu.py --plot FOLDER` draws them again)."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.common.panels import finish, legend_below, panels
from experiments.embedding.plot import PUBLISHED

COLD = "device, rows not in L2"
WARM = "device, rows in L2"
WALL = "wall, ids on the host"
BOUND = "bound"
OURS = ("ours, fused", "ours, grouped")
GRAPHED = "per table, graph"
ONCE = "every row once at the stated bandwidth"
COLORS = {
    "ours, fused": "#1f77b4",
    "ours, fused, graph": "#9ecae1",
    "ours, grouped": "#17507d",
    "ours, grouped, graph": "#6f8fae",
    "ours, one schedule": "#2a9d8f",
    "per table": "#d1495b",
    GRAPHED: "#edae49",
    "FBGEMM": "#6a4c93",
    "TorchRec": "#b5838d",
}
RIVALS = ("ours, one schedule", "per table", GRAPHED, "FBGEMM", "TorchRec")
CAPTION = (
    "Device time, rows not in L2. Dashed: RecFlex's published means over its rivals (SC 2024 and "
    "its release).\nWhat differs: their GPU is not named, their batches are mixed and tuned for "
    "together, rows may be in L2,\ntheir TorchRec is 0.6, HugeCTR and RECom are not run here."
)


def draw_figure(rows: pd.DataFrame) -> Figure:
    """Bars by method at each batch, with quartiles, the bound as a line.

    A row of panels for each time, a panel for each model.
    """
    times = [time for time in (COLD, WARM, WALL) if time in set(rows["time"])]
    models = [*dict.fromkeys(rows["model"])]
    figure, axes_of = panels(len(times) * len(models), 3.8, 3.1, n_columns=len(models))
    bounds = rows[rows["method"] == ONCE].set_index(["model", "batch"])["us"]
    for axes, (time, model) in zip(axes_of, itertools.product(times, models), strict=True):
        measured = rows[(rows["model"] == model) & (rows["time"] == time)]
        table = measured.pivot_table(
            index="batch", columns="method", values=["us", "low_us", "high_us"]
        )
        _bars(axes, table["us"], table["us"] - table["low_us"], table["high_us"] - table["us"])
        for k, batch in enumerate(table.index):
            us = bounds.get((model, batch), np.nan)
            label = None if k else "every row once"
            axes.plot([k - 0.42, k + 0.42], [us, us], color="black", lw=1, label=label)
        finish(axes, "batch (items)", "time of a look-up (us)", f"{model}: {time}", log="y")
    legend_below(figure, 4, 8)
    return figure


def _bars(axes: Axes, heights: pd.DataFrame, *errors: pd.DataFrame) -> None:
    """The methods' bars (columns) side by side at each batch (rows)."""
    names = [name for name in COLORS if name in heights]
    width = 0.8 / max(len(names), 1)
    for k, name in enumerate(names):
        places = np.arange(len(heights)) + (k - (len(names) - 1) / 2) * width
        yerr = [error[name] for error in errors] or None
        axes.bar(
            places,
            heights[name],
            width * 0.92,
            yerr=yerr,
            color=COLORS[name],
            label=name,
            error_kw={"lw": 0.7},
        )
    axes.set_xticks(range(len(heights)), heights.index.astype(str))


def speedups(rows: pd.DataFrame) -> pd.DataFrame:
    """Each rival's time on the device, rows not in L2, over our faster one's.

    A row for each model and batch, a column for each rival.
    """
    us = rows[rows["time"] == COLD].pivot_table(
        index=["model", "batch"], columns="method", values="us", sort=False
    )
    ours = us[[name for name in OURS if name in us]].min(axis=1)
    return us[[name for name in RIVALS if name in us]].div(ours, axis=0)


def draw_speedups(rows: pd.DataFrame) -> Figure:
    """How many times as fast as each rival we are; RecFlex's published means dashed.

    A panel a model.
    """
    table = speedups(rows)
    models = table.index.unique("model")
    figure, axes_of = panels(len(models), 3.8, 4.2)
    for axes, model in zip(axes_of, models, strict=True):
        _bars(axes, table.loc[model].sort_index())
        for name, ratio in PUBLISHED.items():
            axes.axhline(ratio, color="#666666", lw=0.9, ls="--")
            axes.annotate(f"{name} {ratio}", (-0.4, ratio), va="bottom", fontsize=7)
        axes.axhline(1, color="black", lw=0.8)
        finish(axes, "batch (items)", "time over that of our faster one", model, log="y")
    figure.suptitle(CAPTION, fontsize=8)
    legend_below(figure, 5, 8)
    return figure
