"""From the rows of the studies to tables and figures."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from infra.results.figures import plain_log, style

RIVALS = ("per table", "torch.compile", "FBGEMM", "best single", "untuned")
LIMITS = ("gather none", "gather table", "gather ids")
COLORS = {
    "per table": "#8c564b",
    "torch.compile": "#444444",
    "FBGEMM": "#1f77b4",
    "best single": "#2a9d8f",
    "untuned": "#edae49",
    "limit": "#c1121f",
}
PUBLISHED = {"TorchRec": 1.95, "HugeCTR": 11.57, "RECom": 7.92}  # RecFlex, SC 2024 and its release
BENCHMARKS = tuple("ABCDEF")


def ratios(rows: pd.DataFrame) -> pd.DataFrame:
    """A row a model, batch and rival: its time over the tuned plan's, median of the paired rounds,
    least, most.

    `limit`: the least time of any gather over the tuned plan's median: the share of the limit that
    is reached.
    """
    lines = []
    for (model, batch), own in rows.groupby(["model", "batch"], sort=False):
        times = own.pivot_table(index="round", columns="contender", values="ms")
        for rival in RIVALS:
            if rival in times:
                ratio = times[rival] / times["tuned"]
                lines.append((model, batch, rival, ratio.median(), ratio.min(), ratio.max()))
        limit = times[[name for name in LIMITS if name in times]].min().min() / times["tuned"]
        lines.append((model, batch, "limit", limit.median(), limit.min(), limit.max()))
    return pd.DataFrame(lines, columns=["model", "batch", "rival", "ratio", "least", "most"])


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """A line a model and batch: the tuned plan's ms and every rival's ratio; then geometric means
    over A to E.
    """
    found = ratios(rows)
    table = found.pivot_table(index=["model", "batch"], columns="rival", values="ratio", sort=False)
    tuned = (
        rows[rows["contender"] == "tuned"].groupby(["model", "batch"], sort=False)["ms"].median()
    )
    table.insert(0, "tuned ms", tuned)
    table = table.reset_index()
    own = table[table["model"].isin(BENCHMARKS)]
    if len({*own["model"]}) > 1:
        means = (
            own.drop(columns=["model", "tuned ms"])
            .groupby("batch")
            .agg(lambda x: np.exp(np.log(x).mean()))
        )
        table = pd.concat([table, means.reset_index().assign(model="mean A-E")], ignore_index=True)
    return table


def draw(rows: pd.DataFrame) -> Figure:
    """A panel a model: how many times as fast as each rival the tuned plan is, and the share of the
    limit, by batch.
    """
    found = ratios(rows)
    models = list(dict.fromkeys(found["model"]))
    n_columns = min(len(models), 5)
    n_rows = -(-len(models) // n_columns)
    figure = Figure(figsize=(3.0 * n_columns, 2.9 * n_rows + 1.0), layout="constrained")
    axes = figure.subplots(n_rows, n_columns, squeeze=False)
    lines = {}
    for place, (own_axes, model) in enumerate(zip(axes.flat, models, strict=False)):
        for rival, own in found[found["model"] == model].groupby("rival", sort=False):
            marker = ":" if rival == "limit" else "o-"
            (lines[rival],) = own_axes.plot(
                own["batch"], own["ratio"], marker, markersize=3, color=COLORS[str(rival)]
            )
            own_axes.fill_between(
                own["batch"], own["least"], own["most"], color=COLORS[str(rival)], alpha=0.12
            )
        own_axes.axhline(1, color="grey", linewidth=0.8)
        if model in BENCHMARKS:
            for name, value in PUBLISHED.items():
                own_axes.axhline(value, color="grey", linewidth=0.7, linestyle="--")
                own_axes.annotate(name, (1, value), fontsize=6, color="grey", va="bottom")
        own_axes.set(xscale="log")
        own_axes.set_xticks([1, 8, 64, 512], ["1", "8", "64", "512"])
        plain_log(own_axes, "y")
        style(
            own_axes,
            "batch (items)" if place >= len(models) - n_columns else "",
            "time over the tuned plan's" if place % n_columns == 0 else "",
            str(model),
        )
    for own_axes in axes.flat[len(models) :]:
        own_axes.set_axis_off()
    figure.suptitle(
        "One core. Dashed: RecFlex over its rivals as published, on a GPU, kernels only, other "
        "rivals",
        fontsize=9,
    )
    figure.legend(
        lines.values(),
        lines.keys(),
        frameon=False,
        ncols=len(lines),
        loc="outside lower center",
        fontsize=8,
    )
    return figure
