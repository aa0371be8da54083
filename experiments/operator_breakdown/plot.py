"""The rows of sweep_p.py beside the published shares: agreement, and a figure of stacked shares."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.common.panels import finish, legend_below, panels
from experiments.common.released import MODELS
from models.operator_times import OTHER, RELEASED

PUBLISHED_FILE = Path(__file__).resolve().parent / "data" / "published_operator_breakdown.csv"
PUBLISHED = "published"
AS_RELEASED = "as released"
OURS = "ours"
BARS = {PUBLISHED: "P", AS_RELEASED: "R", OURS: "O"}
SURE = 0.6  # from this share on the published dominant operator should be ours too
# slicing, calls, Python: time in no operator, which the published shares leave out
BETWEEN = "between operators"
OPERATORS = (*RELEASED, OTHER, BETWEEN)
SHADES = "#17507d #d1495b #edae49 #2a9d8f #8c564b #6a4c93 #b185db #808080 #e4e4e4".split()
COLORS = dict(zip(OPERATORS, SHADES, strict=True))


def published(device: str) -> pd.DataFrame:
    """The published shares as rows like ours: model, batch, execution, operator, share."""
    rows = pd.read_csv(PUBLISHED_FILE, comment="#")
    rows = rows[rows["device"] == ("gpu" if device == "cuda" else "cpu")]
    share = rows["percent_of_runtime"] / 100
    rows = rows.assign(batch=rows["batch_size"], execution=PUBLISHED, share=share)
    return rows[["model", "batch", "execution", "operator", "share"]]


def with_published(rows: pd.DataFrame) -> pd.DataFrame:
    """The published rows of the device, then ours."""
    return pd.concat([published(rows["device"].iloc[0]), rows])


def agreement(rows: pd.DataFrame) -> pd.DataFrame:
    """The dominant operator published and here, and whether they agree, by model and batch of both.

    Shares are of the time in operators, as the published ones are.
    """
    lines = []
    for (model, batch), part in with_published(rows).groupby(["model", "batch"], sort=False):
        in_operators = part[part["operator"] != BETWEEN]
        share = in_operators.pivot_table("share", index="operator", columns="execution")
        if not {PUBLISHED, AS_RELEASED} <= set(share):
            continue
        share /= share.sum()
        top = share.idxmax()
        most = share.max()
        agrees = "yes" if top[PUBLISHED] == top[AS_RELEASED] else "unsure"
        if agrees == "unsure" and most[PUBLISHED] >= SURE:
            agrees = "NO"
        line = {
            "model": model,
            "batch": batch,
            "published": top[PUBLISHED],
            "share": most[PUBLISHED],
            "here": top[AS_RELEASED],
            "share here": most[AS_RELEASED],
            "of theirs here": share.loc[top[PUBLISHED], AS_RELEASED],
            "agrees": agrees,
            "ours": top[OURS],
            "share ours": most[OURS],
        }
        lines.append(line)
    return pd.DataFrame(lines)


def draw_bar(axes: Axes, x: float, letter: str, share: pd.Series) -> None:
    """The shares of one execution on top of each other, and its letter."""
    low = 0.0
    for operator, height in share.items():
        axes.bar(x, height, 0.25, bottom=low, color=COLORS[operator], label=operator)
        low += height
    axes.annotate(letter, (x, 1.01), ha="center", fontsize=6, color="#444444")


def draw(rows: pd.DataFrame) -> Figure:
    """A panel a model; at each batch stacked shares: published, as released, ours."""
    batches = sorted(set(rows["batch"]))
    models = [model for model in MODELS if model in set(rows["model"])]
    figure, all_axes = panels(len(models), 4.2, 3.3, n_columns=4)
    for axes, model in zip(all_axes, models, strict=True):
        part = with_published(rows).query("model == @model and batch in @batches")
        bars = part.pivot_table("share", index=["batch", "execution"], columns="operator")
        bars = bars.reindex(columns=OPERATORS, fill_value=0.0).fillna(0.0)
        for (batch, execution), share in bars.iterrows():
            if execution in BARS:
                x = batches.index(batch) + ([*BARS].index(execution) - 1) * 0.27
                draw_bar(axes, x, BARS[execution], share)
        axes.set_xticks(range(len(batches)), [str(batch) for batch in batches])
        axes.set_ylim(0, 1.07)
        axes.yaxis.set_major_formatter("{x:.0%}")
        finish(axes, "batch (items)", "share of the run time", model)
    device = rows["device"].iloc[0]
    theirs = "GTX 1080 Ti" if device == "cuda" else "Skylake"
    title = f"Run time by operator, {device}: P published (Caffe2, {theirs}), R as released "
    figure.suptitle(f"{title}(operator by operator), O ours", fontsize=11)
    legend_below(figure, len(OPERATORS), most=len(OPERATORS))
    return figure
