"""From the rows of the studies on a core to tables and figures; the ablations' on a GPU as well."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from experiments.common.panels import finish, legend, panels
from experiments.common.study import View

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
    """A row for each model, batch and rival: its time over the tuned plan's.

    Median of the paired rounds, least, most. `limit`: the least time of any gather over the tuned
    plan's median, which is the share of the limit that is reached.
    """
    lines = []
    for (model, batch), part in rows.groupby(["model", "batch"], sort=False):
        times = part.pivot_table(index="round", columns="contender", values="ms")
        over_tuned = {name: times[name] / times["tuned"] for name in RIVALS if name in times}
        limit_ms = times[[name for name in LIMITS if name in times]].min().min()
        over_tuned["limit"] = limit_ms / times["tuned"]
        lines += [
            (model, batch, rival, ratio.median(), ratio.min(), ratio.max())
            for rival, ratio in over_tuned.items()
        ]
    return pd.DataFrame(lines, columns=["model", "batch", "rival", "ratio", "least", "most"])


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """The tuned plan's ms and each rival's ratio by model and batch; means over A to E."""
    table = ratios(rows).pivot_table(
        index=["model", "batch"], columns="rival", values="ratio", sort=False
    )
    tuned = rows[rows["contender"] == "tuned"].groupby(["model", "batch"], sort=False)
    table.insert(0, "tuned ms", tuned["ms"].median())
    table = table.reset_index()
    drawn = table[table["model"].isin(BENCHMARKS)]
    if drawn["model"].nunique() < 2:
        return table
    columns = drawn.drop(columns=["model", "tuned ms"])
    means = columns.groupby("batch").agg(lambda ratio: np.exp(np.log(ratio).mean()))
    means = means.reset_index().assign(model="mean A-E")
    return pd.concat([table, means], ignore_index=True)


def draw(rows: pd.DataFrame) -> Figure:
    """How many times as fast as each rival the tuned plan is, and the share of the limit, by batch.

    A panel a model.
    """
    table = ratios(rows)
    models = list(dict.fromkeys(table["model"]))
    figure, axes_of = panels(len(models), 3.0, 3.1, n_columns=5)
    for axes, model in zip(axes_of, models, strict=True):
        for rival, part in table[table["model"] == model].groupby("rival", sort=False):
            shade = COLORS[rival]
            line = ":" if rival == "limit" else "o-"
            axes.plot(part["batch"], part["ratio"], line, markersize=3, color=shade, label=rival)
            axes.fill_between(part["batch"], part["least"], part["most"], color=shade, alpha=0.12)
        axes.axhline(1, color="grey", linewidth=0.8)
        for name, ratio in PUBLISHED.items() if model in BENCHMARKS else ():
            axes.axhline(ratio, color="grey", linewidth=0.7, linestyle="--")
            axes.annotate(name, (1, ratio), fontsize=6, color="grey", va="bottom")
        finish(axes, "batch (items)", "time over the tuned plan's", model, log="xy")
        axes.set_xticks([1, 8, 64, 512], ["1", "8", "64", "512"], minor=False)
    title = "One core. Dashed: RecFlex over its rivals as published, on a GPU, kernels only"
    figure.suptitle(f"{title}, other rivals", fontsize=9)
    entries = {
        label: line
        for axes in axes_of
        for line, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        entries.values(), entries.keys(), ncols=7, loc="outside lower center", frameon=False
    )
    return figure


def draw_ablations(
    methods: pd.DataFrame, spread: pd.DataFrame, mutated: pd.DataFrame, *, by: str, title: str
) -> Figure:
    """Plans over two-stage; worst over best candidate of a kind of table; one schedule changed.

    The points of the first panel are called `by` model or plan.
    """
    figure, (left, middle, right) = panels(3, 4.0, 3.8)
    for label, part in methods.groupby(by, sort=False):
        places = [f"{row.model}, {row.batch}" for row in part.itertuples()]
        over = part["over_two_stage"]
        errors = [over - part["low"], part["high"] - over]
        left.errorbar(places, over, errors, fmt="o", label=label, capsize=3)
    for axes, rows, column in (
        (middle, spread, "worst_over_best"),
        (right, mutated, "over_two_stage"),
    ):
        for (model, batch), part in rows.groupby(["model", "batch"], sort=False):
            shares = np.linspace(0, 100, len(part))
            label = f"{model}, batch {batch}"
            axes.plot(shares, sorted(part[column]), "o-", markersize=3, label=label)
    finish(left, "model, batch (items)", "time over that of the two-stage plan", title)
    kinds = "kinds of table (%)"
    finish(middle, kinds, "worst over best candidate", "Spread of the candidates", log="y")
    finish(right, kinds, "time over that of the final plan", "One kind of table changed")
    for axes in (left, middle, right):
        axes.axhline(1, color="grey", linewidth=0.8)
        legend(axes, 7)
    return figure


def ablation_report(prefix: str = "") -> dict[str, View]:
    """The tables that an ablation study prints."""
    return {
        "Time over the two-stage plan's": View(pd.DataFrame, f"{prefix}ablations"),
        "One kind of table changed": View(pd.DataFrame, f"{prefix}mutated"),
    }
