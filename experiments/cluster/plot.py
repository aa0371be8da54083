"""Figures and tables of the fleet study from its rows."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from infra.results.figures import MODEL_COLORS, color, plain_log, style

PUBLISHED = {"p95": 1.39, "p99": 1.31}  # in production, Gupta et al., ISCA 2020
ROUTE_COLORS = {
    "random": "#8c564b",
    "round_robin": "#1f77b4",
    "size_aware": "#edae49",
    "power_of_two": "#2a9d8f",
    "shortest_queue": "#c1121f",
}
GAIN_COLORS = {"p50": "#bbbbbb", "p95": "#1f77b4", "p99": "#2a9d8f"}


def figure_routing(rows: pd.DataFrame) -> Figure:
    """p95 and p99 by load, a line per rule."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    title = f"{rows['model'].iloc[0]}, {rows['servers'].iloc[0]} servers"
    for axes, name in zip(figure.subplots(1, 2), ("p95_ms", "p99_ms"), strict=True):
        for route, shade in ROUTE_COLORS.items():
            part = rows[rows["route"] == route].sort_values("load")
            label = route.replace("_", " ")
            axes.plot(part["load"], part[name], "o-", color=shade, label=label, markersize=4)
        plain_log(axes, "y")
        style(axes, "offered load over the capacity", f"{name[:3]} of the fleet, ms", title)
    axes.legend(fontsize=8, frameon=False)
    return figure


def figure_tuning(rows: pd.DataFrame) -> Figure:
    """The static policy's tail over that tuned for it, by model, beside the published ratio."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.add_subplot()
    tuned = rows[rows["policies"] == "tuned for the tail"].set_index("model")
    models = [model for model in MODEL_COLORS if model in tuned.index]
    ends = [len(models) - 0.4, len(models) + 0.4]
    for i, (name, shade) in enumerate(GAIN_COLORS.items()):
        gains = tuned.loc[models, f"{name} gain"]
        values = [*gains, float(np.exp(np.log(gains).mean()))]
        axes.bar(np.arange(len(values)) + 0.27 * (i - 1), values, 0.25, color=shade, label=name)
        if name in PUBLISHED:
            ratio = PUBLISHED[name]
            label = f"paper: {name} {ratio}x"
            axes.plot(ends, [ratio, ratio], ":", color=shade, linewidth=2, label=label)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xticks(range(len(models) + 1), [*models, "geo-\nmean"])
    title = f"latency of {tuned['servers'].iloc[0]} servers over a day of load"
    style(axes, "", "static over tuned for the tail", title)
    axes.legend(fontsize=8, frameon=False, ncols=5)
    return figure


def figure_sampling(rows: pd.DataFrame) -> Figure:
    """Error of the p95 of k machines that 95 % of the samples keep, a line per model."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for model in [model for model in MODEL_COLORS if model in set(rows["model"])]:
        part = rows[rows["model"] == model]
        error = 100 * part["error_95"]
        axes.plot(part["machines"], error, "o-", color=color(model), label=model, markersize=4)
    axes.axhline(10, color="black", linestyle=":", linewidth=1)
    plain_log(axes, "x")
    plain_log(axes, "y")
    title = f"of {rows['servers'].iloc[0]} servers"
    style(axes, "machines in the sample", "error of p95 in 95 % of samples, %", title)
    axes.legend(fontsize=8, frameon=False, ncols=2)
    return figure


def by_route(rows: pd.DataFrame) -> pd.DataFrame:
    """p95 and p99 by rule and load."""
    return rows.pivot_table(index="route", columns="load", values=["p95_ms", "p99_ms"])


def tuning_gains(rows: pd.DataFrame) -> pd.DataFrame:
    """Latency at the static policies over that at the tuned ones, and these."""
    tuned = rows[rows["policies"] != "static"].set_index(["policies", "model"])
    return tuned[[*(f"{name} gain" for name in GAIN_COLORS), "batch, threshold"]].sort_index()


def mean_gains(rows: pd.DataFrame) -> pd.DataFrame:
    """Geometric means of the gains over the models."""
    gains = tuning_gains(rows).drop(columns="batch, threshold")
    return np.exp(np.log(gains).groupby("policies").mean())


def machines_needed(rows: pd.DataFrame) -> pd.Series:
    """The fewest machines tried whose p95 is within 10 % in 95 % of the samples, by model."""
    enough = rows[rows["error_95"] <= 0.1]
    return enough.groupby("model")["machines"].min().reindex(dict.fromkeys(rows["model"]))


def speed_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Seconds by servers, queries and rule."""
    return rows.pivot_table(index=["servers", "queries"], columns="route", values="seconds")
