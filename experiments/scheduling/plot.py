"""Figures and tables of the scheduling study from its rows."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from infra.results.figures import MODEL_COLORS, color, plain_log, style

SLAS = ("low", "medium", "high")
# Geometric means over the static baseline as published (Gupta et al., ISCA 2020), by SLA.
PUBLISHED = {
    "hill, CPU": (1.7, 2.1, 2.7),
    "hill, CPU + accelerator": (4.0, 5.1, 5.8),
    "hill, QPS per watt": (2.0, 2.6, 2.9),
}
GAIN_COLORS = {
    "hill, CPU": "#1f77b4",
    "exhaustive, CPU": "#a6cbe6",
    "hill, CPU + accelerator": "#2a9d8f",
    "exhaustive, CPU + accelerator": "#a8d8d2",
    "hill, QPS per watt": "#edae49",
}
REGRET_MARKS = {
    "hill, CPU": ("o", "#1f77b4"),
    "hill, CPU + accelerator": ("D", "#2a9d8f"),
    "released, CPU": ("x", "#d1495b"),
    "released, CPU + accelerator": ("+", "#8c564b"),
}


def gains(rows: pd.DataFrame) -> pd.DataFrame:
    """model, sla, search and the gain over static of what the policy truly carries.

    Per watt where that was the goal.
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
        logs = gains(rows).assign(gain=lambda t: np.log(t["gain"]))
        table = np.exp(logs.pivot_table("gain", "search", "sla"))
    table = table[[sla for sla in SLAS if sla in table]]
    for search, published in PUBLISHED.items():
        for sla, value in zip(SLAS, published, strict=True):
            if search in table.index:
                table.loc[search, f"paper, {sla}"] = value
    return table


def regret(rows: pd.DataFrame) -> pd.DataFrame:
    """Each search beside the exhaustive one over the same knobs: its shares of rate and queries."""
    by_search = {name: part.set_index(["model", "sla"]) for name, part in rows.groupby("search")}
    parts = []
    for knobs in ("CPU", "CPU + accelerator"):
        oracle = by_search[f"exhaustive, {knobs}"]
        for search in (f"hill, {knobs}", f"released, {knobs}"):
            part = by_search[search]
            columns = {
                "search": search,
                "share_of_best": part["true_qps"] / oracle["true_qps"],
                "claimed_over_true": part["found_qps"] / part["true_qps"],
                "queries": part["queries"],
                "share_of_queries": part["queries"] / oracle["queries"],
                "trials": part["trials"],
            }
            parts.append(pd.DataFrame(columns).reset_index())
    return pd.concat(parts, ignore_index=True)


def regret_summary(rows: pd.DataFrame) -> pd.DataFrame:
    """A line per search: median and worst."""
    grouped = regret(rows).groupby("search")
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


def best_batches(rows: pd.DataFrame) -> pd.DataFrame:
    """The exhaustive search's per-core batch by model and SLA, CPU alone."""
    oracle = rows[rows["search"] == "exhaustive, CPU"]
    table = oracle.pivot_table(index="model", columns="sla", values="batch_items")
    return table[[sla for sla in SLAS if sla in table]].astype(int)


def figure_gains(rows: pd.DataFrame) -> Figure:
    """Gain over the static baseline by model, a panel per SLA; lines: the published means."""
    table = gains(rows)
    slas = [sla for sla in SLAS if sla in set(rows["sla"])]
    figure = Figure(figsize=(4.2 * len(slas), 4.2), layout="constrained")
    panels = figure.subplots(1, len(slas), sharey=True, squeeze=False)[0]
    for axes, sla in zip(panels, slas, strict=True):
        _gain_bars(axes, table[table["sla"] == sla], sla)
        style(axes, "", "over the static baseline" if sla == slas[0] else "", f"{sla} SLA")
    handles = panels[-1].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=4, fontsize=7, frameon=False)
    title = "QPS under p95 <= SLA (yellow: QPS per watt) over the static baseline, 40 cores"
    figure.suptitle(title, fontsize=10)
    return figure


def _gain_bars(axes: Axes, table: pd.DataFrame, sla: str) -> None:
    by_model = table.pivot_table(index="model", columns="search", values="gain")
    models = [model for model in MODEL_COLORS if model in by_model.index]
    for i, (search, shade) in enumerate(GAIN_COLORS.items()):
        values = [*by_model.loc[models, search], float(np.exp(np.log(by_model[search]).mean()))]
        at = np.arange(len(values)) + 0.16 * (i - 2)
        axes.bar(at, values, 0.15, color=shade, label=search)
    ends = [len(models) - 0.45, len(models) + 0.45]
    for search, published in PUBLISHED.items():
        mean = published[SLAS.index(sla)]
        line = axes.plot(ends, [mean, mean], ":", color=GAIN_COLORS[search], linewidth=2)
        line[0].set_label(f"paper: {search}")
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xticks(range(len(models) + 1), [*models, "geo-\nmean"], fontsize=8)


def _model_panels(rows: pd.DataFrame, size: tuple[float, float]) -> tuple[Figure, dict[str, Axes]]:
    """A figure with a panel for each model of the rows."""
    models = [model for model in MODEL_COLORS if model in set(rows["model"])]
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(2, -(-len(models) // 2), squeeze=False).ravel()
    for axes in panels[len(models) :]:
        axes.remove()
    return figure, dict(zip(models, panels, strict=False))


def figure_curves(curves: pd.DataFrame, knob: str, sla: str = "medium") -> Figure:
    """QPS under the SLA against one knob, a panel per model; the band is the verdicts' interval."""
    shown = curves[(curves["knob"] == knob) & (curves["sla"] == sla)]
    name = "per-core batch (items)" if knob == "batch_items" else "offload threshold (items)"
    figure, panels = _model_panels(shown, (11, 5))
    for model, axes in panels.items():
        _curve(axes, shown[shown["model"] == model], color(model))
        style(axes, name, "QPS under the SLA", f"{model}, {sla} SLA")
    return figure


def _curve(axes: Axes, rows: pd.DataFrame, shade: str) -> None:
    part = rows[rows["value"].notna()].sort_values("value")
    high = part["high_qps"].where(np.isfinite(part["high_qps"]), part["qps"])
    axes.fill_between(part["value"], part["low_qps"], high, color=shade, alpha=0.2, linewidth=0)
    axes.plot(part["value"], part["qps"], ".-", color=shade, markersize=4)
    top = part.loc[part["qps"].idxmax()]
    best = (top["value"], top["qps"])
    axes.plot(*best, "D", color="black", markersize=5)
    axes.annotate(
        f"{best[0]:.0f}", best, (0, 5), textcoords="offset points", fontsize=8, ha="center"
    )
    for qps in rows.loc[rows["value"].isna(), "qps"].head(1):
        axes.axhline(qps, color="black", linestyle=":", linewidth=1, label="no offload")
        axes.legend(fontsize=7, frameon=False)
    plain_log(axes, "x")
    axes.set_ylim(0, 1.15 * high.where(high < 2 * part["qps"].max(), 0).max())


def figure_map(grid: pd.DataFrame, sla: str = "medium") -> Figure:
    """QPS under the SLA over per-core batch and offload threshold, over the model's best."""
    shown = grid[grid["sla"] == sla].fillna({"offload_items": np.inf})
    figure, panels = _model_panels(shown, (12, 5.6))
    images = [
        _heat_map(axes, model, shown[shown["model"] == model]) for model, axes in panels.items()
    ]
    label = "QPS under the SLA, share of the best"
    figure.colorbar(images[-1], ax=list(panels.values()), label=label)
    return figure


def _heat_map(axes: Axes, model: str, rows: pd.DataFrame) -> AxesImage:
    table = rows.pivot_table(index="batch_items", columns="offload_items", values="qps")
    best_qps = table.to_numpy().max()
    values = table.to_numpy() / best_qps
    image = axes.imshow(values, origin="lower", aspect="auto", cmap="viridis", vmin=0, vmax=1)
    batch, threshold = np.unravel_index(values.argmax(), values.shape)
    axes.plot([threshold], [batch], "D", color="#c1121f", markersize=6)
    names = ["none" if np.isinf(n) else f"{n:.0f}" for n in table.columns]
    step = max(1, len(names) // 6)
    axes.set_xticks(range(0, len(names), step), names[::step], fontsize=7)
    axes.set_yticks(range(0, len(table), 2), [f"{n}" for n in table.index[::2]], fontsize=7)
    title = f"{model}: {table.index[batch]}, {names[threshold]}: {best_qps:,.0f} QPS"
    style(axes, "offload threshold (items)", "per-core batch (items)", title)
    axes.grid(visible=False)
    return image


def figure_regret(rows: pd.DataFrame) -> Figure:
    """Share of the best rate against the queries sent: the top left corner is where to be."""
    table = regret(rows)
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for search, (marker, shade) in REGRET_MARKS.items():
        part = table[table["search"] == search]
        share = 100 * part["share_of_best"]
        axes.plot(part["queries"], share, marker, color=shade, label=search, alpha=0.8)
    axes.axhline(98, color="black", linestyle=":", linewidth=1)
    plain_log(axes, "x")
    y = "true rate of its policy, % of the exhaustive's"
    style(axes, "queries that the search sent", y, "")
    axes.legend(fontsize=8, frameon=False, loc="lower right")
    return figure
