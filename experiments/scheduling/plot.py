#!/usr/bin/env python3
"""Figures and tables of the scheduling study from its rows: python experiments/scheduling/plot.py
[FOLDER].
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from infra.results.figures import MODEL_COLORS, color, plain_log, style

HERE = Path(__file__).resolve().parent
SLAS = ("low", "medium", "high")
# Geometric means over the static baseline as published (Gupta et al., ISCA 2020), by SLA.
PUBLISHED = {
    "hill, CPU": (1.7, 2.1, 2.7),
    "hill, CPU + accelerator": (4.0, 5.1, 5.8),
    "hill, QPS per watt": (2.0, 2.6, 2.9),
}


def gains(rows: pd.DataFrame) -> pd.DataFrame:
    """model, sla, search, gain over static: of what the policy truly carries, per watt where that
    was the goal.
    """
    static = rows[rows["search"] == "static"].set_index(["model", "sla"])
    base = static.loc[pd.MultiIndex.from_frame(rows[["model", "sla"]])]
    per_watt = rows["search"].str.contains("watt").to_numpy()
    gain = rows["true_qps"].to_numpy() / base["true_qps"].to_numpy()
    gain = np.where(per_watt, gain * base["watts"].to_numpy() / rows["watts"].to_numpy(), gain)
    return rows[["model", "sla", "search"]].assign(gain=gain)


def geometric_means(rows: pd.DataFrame) -> pd.DataFrame:
    """search x sla: geometric mean of the gain over the models, beside the published one."""
    with np.errstate(divide="ignore"):  # a search that found no rate: a mean of 0
        table = np.exp(
            gains(rows)
            .assign(gain=lambda t: np.log(t["gain"]))
            .pivot_table("gain", "search", "sla")
        )
    table = table[[sla for sla in SLAS if sla in table]]
    for search, published in PUBLISHED.items():
        for sla, value in zip(SLAS, published, strict=True):
            if search in table.index:
                table.loc[search, f"paper, {sla}"] = value
    return table


def regret(rows: pd.DataFrame) -> pd.DataFrame:
    """Each search beside the exhaustive one over the same knobs: share of its true rate, and of its
    queries.
    """
    parts = []
    for knobs in ("CPU", "CPU + accelerator"):
        oracle = rows[rows["search"] == f"exhaustive, {knobs}"].set_index(["model", "sla"])
        for kind in ("hill", "released"):
            own = rows[rows["search"] == f"{kind}, {knobs}"].set_index(["model", "sla"])
            parts.append(
                pd.DataFrame(
                    {
                        "search": f"{kind}, {knobs}",
                        "share_of_best": own["true_qps"] / oracle["true_qps"],
                        "claimed_over_true": own["found_qps"] / own["true_qps"],
                        "queries": own["queries"],
                        "share_of_queries": own["queries"] / oracle["queries"],
                        "trials": own["trials"],
                    }
                ).reset_index()
            )
    return pd.concat(parts, ignore_index=True)


def regret_summary(table: pd.DataFrame) -> pd.DataFrame:
    """A line per search: median and worst."""
    grouped = table.groupby("search")
    return pd.DataFrame(
        {
            "share of best, median": grouped["share_of_best"].median(),
            "worst": grouped["share_of_best"].min(),
            "claimed / true, median": grouped["claimed_over_true"].median(),
            "largest": grouped["claimed_over_true"].max(),
            "queries, median": grouped["queries"].median(),
            "of the exhaustive's, median": grouped["share_of_queries"].median(),
            "at most": grouped["share_of_queries"].max(),
            "trials, median": grouped["trials"].median(),
        }
    )


def figure_gains(rows: pd.DataFrame) -> Figure:
    """Gain over the static baseline by model, one panel per SLA; the published geometric means as
    lines.
    """
    table = gains(rows)
    slas = [sla for sla in SLAS if sla in set(rows["sla"])]
    figure = Figure(figsize=(4.2 * len(slas), 4.2), layout="constrained")
    bars = {
        "hill, CPU": "#1f77b4",
        "exhaustive, CPU": "#a6cbe6",
        "hill, CPU + accelerator": "#2a9d8f",
        "exhaustive, CPU + accelerator": "#a8d8d2",
        "hill, QPS per watt": "#edae49",
    }
    for axes, sla in zip(
        np.atleast_1d(figure.subplots(1, len(slas), sharey=True)), slas, strict=True
    ):
        own = table[table["sla"] == sla].pivot_table(index="model", columns="search", values="gain")
        models = [model for model in MODEL_COLORS if model in own.index]
        for i, (search, shade) in enumerate(bars.items()):
            values = [*own.loc[models, search], float(np.exp(np.log(own[search]).mean()))]
            axes.bar(
                np.arange(len(values)) + 0.16 * (i - 2), values, 0.15, color=shade, label=search
            )
        for search, published in PUBLISHED.items():
            axes.plot(
                [len(models) - 0.45, len(models) + 0.45],
                [published[SLAS.index(sla)]] * 2,
                color=bars[search],
                linestyle=":",
                linewidth=2,
                label=f"paper: {search}",
            )
        axes.axhline(1, color="black", linewidth=0.8)
        axes.set_xticks(range(len(models) + 1), [*models, "geo-\nmean"], fontsize=8)
        style(axes, "", "over the static baseline" if sla == slas[0] else "", f"{sla} SLA")
    figure.legend(
        *axes.get_legend_handles_labels(),
        loc="outside lower center",
        ncols=4,
        fontsize=7,
        frameon=False,
    )
    figure.suptitle(
        "QPS under p95 <= SLA (yellow: QPS per watt) over the static baseline, 40 cores",
        fontsize=10,
    )
    return figure


def figure_curves(curves: pd.DataFrame, knob: str, sla: str = "medium") -> Figure:
    """QPS under the SLA against one knob, a panel per model; the band is the interval of the
    verdicts.
    """
    own = curves[(curves["knob"] == knob) & (curves["sla"] == sla)]
    models = [model for model in MODEL_COLORS if model in set(own["model"])]
    figure = Figure(figsize=(11, 5), layout="constrained")
    panels = np.atleast_1d(figure.subplots(2, -(-len(models) // 2), squeeze=False).ravel())
    for axes, model in zip(panels, models, strict=False):
        part = own[(own["model"] == model) & own["value"].notna()].sort_values("value")
        high = part["high_qps"].where(np.isfinite(part["high_qps"]), part["qps"])
        axes.fill_between(
            part["value"], part["low_qps"], high, color=color(model), alpha=0.2, linewidth=0
        )
        axes.plot(part["value"], part["qps"], ".-", color=color(model), markersize=4)
        _best(axes, part)
        without = own[(own["model"] == model) & own["value"].isna()]
        if len(without):
            axes.axhline(
                without["qps"].iloc[0],
                color="black",
                linestyle=":",
                linewidth=1,
                label="no offload",
            )
            axes.legend(fontsize=7, frameon=False)
        plain_log(axes, "x")
        axes.set_ylim(0, 1.15 * high.where(high < 2 * part["qps"].max(), 0).max())
        name = "per-core batch (items)" if knob == "batch_items" else "offload threshold (items)"
        style(axes, name, "QPS under the SLA", f"{model}, {sla} SLA")
    for axes in panels[len(models) :]:
        axes.remove()
    return figure


def figure_map(grid: pd.DataFrame, sla: str = "medium") -> Figure:
    """QPS under the SLA over per-core batch and offload threshold, a panel per model, over the
    model's best.
    """
    own = grid[grid["sla"] == sla]
    models = [model for model in MODEL_COLORS if model in set(own["model"])]
    figure = Figure(figsize=(12, 5.6), layout="constrained")
    panels = np.atleast_1d(figure.subplots(2, -(-len(models) // 2), squeeze=False).ravel())
    shown = None
    for axes, model in zip(panels, models, strict=False):
        part = own[own["model"] == model].assign(
            offload_items=lambda t: t["offload_items"].fillna(np.inf)
        )
        table = part.pivot_table(index="batch_items", columns="offload_items", values="qps")
        values = table.to_numpy() / table.to_numpy().max()
        shown = axes.imshow(values, origin="lower", aspect="auto", cmap="viridis", vmin=0, vmax=1)
        batch, threshold = np.unravel_index(values.argmax(), values.shape)
        axes.plot([threshold], [batch], "D", color="#c1121f", markersize=6)
        names = ["none" if np.isinf(n) else f"{n:.0f}" for n in table.columns]
        step = max(1, len(names) // 6)
        axes.set_xticks(range(0, len(names), step), names[::step], fontsize=7)
        axes.set_yticks(range(0, len(table), 2), [f"{n}" for n in table.index[::2]], fontsize=7)
        chosen = f"{table.index[batch]}, {names[threshold]}: {table.to_numpy().max():,.0f} QPS"
        style(axes, "offload threshold (items)", "per-core batch (items)", f"{model}: {chosen}")
        axes.grid(visible=False)
    for axes in panels[len(models) :]:
        axes.remove()
    if shown is not None:
        figure.colorbar(
            shown, ax=panels[: len(models)].tolist(), label="QPS under the SLA, share of the best"
        )
    return figure


def _best(axes: Axes, part: pd.DataFrame) -> None:
    top = part.loc[part["qps"].idxmax()]
    axes.plot([top["value"]], [top["qps"]], "D", color="black", markersize=5)
    axes.annotate(
        f"{top['value']:.0f}",
        (top["value"], top["qps"]),
        textcoords="offset points",
        xytext=(0, 5),
        fontsize=8,
        ha="center",
    )


def figure_regret(table: pd.DataFrame) -> Figure:
    """Share of the best rate against the share of the oracle's queries: the top left corner is
    where to be.
    """
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    marks = {
        "hill, CPU": ("o", "#1f77b4"),
        "hill, CPU + accelerator": ("D", "#2a9d8f"),
        "released, CPU": ("x", "#d1495b"),
        "released, CPU + accelerator": ("+", "#8c564b"),
    }
    for search, (marker, shade) in marks.items():
        own = table[table["search"] == search]
        axes.plot(
            own["queries"], 100 * own["share_of_best"], marker, color=shade, label=search, alpha=0.8
        )
    axes.axhline(98, color="black", linestyle=":", linewidth=1)
    plain_log(axes, "x")
    style(
        axes, "queries that the search sent", "true rate of its policy, % of the exhaustive's", ""
    )
    axes.legend(fontsize=8, frameon=False, loc="lower right")
    return figure


def best_batches(rows: pd.DataFrame) -> pd.DataFrame:
    """The exhaustive search's per-core batch by model and SLA, CPU alone."""
    own = rows[rows["search"] == "exhaustive, CPU"].pivot_table(
        index="model", columns="sla", values="batch_items"
    )
    return own[[sla for sla in SLAS if sla in own]].astype(int)


def main(argv: Sequence[str]) -> int:
    """Command line; returns the exit code."""
    folder = Path(argv[0]) if argv else HERE
    rows, curves = (pd.read_csv(folder / f"{name}.csv") for name in ("virtual", "virtual_curves"))
    table = regret(rows)
    figure_gains(rows).savefig(folder / "gains.png", dpi=120)
    figure_regret(table).savefig(folder / "regret.png", dpi=120)
    for knob, name in (("batch_items", "qps_by_batch"), ("offload_items", "qps_by_threshold")):
        figure_curves(curves, knob).savefig(folder / f"{name}.png", dpi=120)
    figure_map(pd.read_csv(folder / "virtual_map.csv")).savefig(folder / "qps_map.png", dpi=120)
    for title, part in (
        ("Regret", regret_summary(table)),
        ("Gain over static, geometric means", geometric_means(rows)),
        ("Best per-core batch, CPU", best_batches(rows)),
    ):
        print(f"\n{title}\n{part.round(3).to_string()}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
