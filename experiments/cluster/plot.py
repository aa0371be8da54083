#!/usr/bin/env python3
"""Figures and tables of the fleet study from its rows: python experiments/cluster/plot.py [FOLDER]."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from infra.results.figures import MODEL_COLORS, color, plain_log, style

HERE = Path(__file__).resolve().parent
PUBLISHED = {"p95": 1.39, "p99": 1.31}  # in production, Gupta et al., ISCA 2020
ROUTE_COLORS = {
    "random": "#8c564b",
    "round_robin": "#1f77b4",
    "size_aware": "#edae49",
    "power_of_two": "#2a9d8f",
    "shortest_queue": "#c1121f",
}


def figure_routing(rows: pd.DataFrame) -> Figure:
    """p95 and p99 by load, a line per rule."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2), ("p95_ms", "p99_ms"), strict=True):
        for route, shade in ROUTE_COLORS.items():
            own = rows[rows["route"] == route].sort_values("load")
            axes.plot(
                own["load"],
                own[name],
                "o-",
                color=shade,
                label=route.replace("_", " "),
                markersize=4,
            )
        plain_log(axes, "y")
        title = f"{rows['model'].iloc[0]}, {rows['servers'].iloc[0]} servers"
        style(axes, "offered load over the capacity", f"{name[:3]} of the fleet, ms", title)
    axes.legend(fontsize=8, frameon=False)
    return figure


def figure_tuning(rows: pd.DataFrame) -> Figure:
    """The fleet's tail at the static policy over that at the tuned one, by model, beside the
    published ratio.
    """
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.add_subplot()
    rows = rows[rows["policies"] == "tuned for the tail"]
    models = [model for model in MODEL_COLORS if model in set(rows["model"])]
    own = rows.set_index("model").loc[models]
    for i, (name, shade) in enumerate((("p50", "#bbbbbb"), ("p95", "#1f77b4"), ("p99", "#2a9d8f"))):
        gains = own[f"{name} gain"]
        values = [*gains, float(np.exp(np.log(gains).mean()))]
        axes.bar(np.arange(len(values)) + 0.27 * (i - 1), values, 0.25, color=shade, label=name)
        if name in PUBLISHED:
            axes.plot(
                [len(models) - 0.4, len(models) + 0.4],
                [PUBLISHED[name]] * 2,
                color=shade,
                linestyle=":",
                linewidth=2,
                label=f"paper: {name} {PUBLISHED[name]}x",
            )
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xticks(range(len(models) + 1), [*models, "geo-\nmean"])
    style(
        axes,
        "",
        "static over tuned for the tail",
        f"latency of {own['servers'].iloc[0]} servers over a day of load",
    )
    axes.legend(fontsize=8, frameon=False, ncols=5)
    return figure


def figure_sampling(rows: pd.DataFrame) -> Figure:
    """How far the p95 of k machines is from the fleet's: the error that 95 % of the samples keep."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for model in [model for model in MODEL_COLORS if model in set(rows["model"])]:
        own = rows[rows["model"] == model]
        axes.plot(
            own["machines"],
            100 * own["error_95"],
            "o-",
            color=color(model),
            label=model,
            markersize=4,
        )
    axes.axhline(10, color="black", linestyle=":", linewidth=1)
    plain_log(axes, "x")
    plain_log(axes, "y")
    style(
        axes,
        "machines in the sample",
        "error of p95 in 95 % of samples, %",
        f"of {rows['servers'].iloc[0]} servers",
    )
    axes.legend(fontsize=8, frameon=False, ncols=2)
    return figure


def machines_needed(rows: pd.DataFrame) -> pd.Series:
    """The fewest machines of those tried whose p95 is within 10 % of the fleet's in 95 % of the
    samples, by model.
    """
    enough = rows[rows["error_95"] <= 0.1]
    return enough.groupby("model")["machines"].min().reindex(dict.fromkeys(rows["model"]))


def main(argv: Sequence[str]) -> int:
    """Command line; returns the exit code."""
    folder = Path(argv[0]) if argv else HERE
    rows = {
        name: pd.read_csv(folder / f"{name}.csv")
        for name in ("routing", "tuning", "sampling", "speed")
    }
    figure_routing(rows["routing"]).savefig(folder / "routing.png", dpi=120)
    figure_tuning(rows["tuning"]).savefig(folder / "tuning.png", dpi=120)
    figure_sampling(rows["sampling"]).savefig(folder / "sampling.png", dpi=120)
    routing = rows["routing"].pivot_table(
        index="route", columns="load", values=["p95_ms", "p99_ms"]
    )
    tuned = rows["tuning"][rows["tuning"]["policies"] != "static"]
    gains = tuned.set_index(["policies", "model"])[
        ["p50 gain", "p95 gain", "p99 gain", "batch, threshold"]
    ].sort_index()
    numbers = gains.drop(columns="batch, threshold")
    for title, part in (
        ("p95 and p99 by routing and load, ms", routing),
        ("Static over tuned", gains),
        ("Geometric means", np.exp(np.log(numbers).groupby("policies").mean())),
        ("Machines for p95 within 10 %", machines_needed(rows["sampling"]).to_frame().T),
        ("Speed", rows["speed"]),
    ):
        print(f"\n{title}\n{part.round(2).to_string()}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
