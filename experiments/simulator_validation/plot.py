"""Figure and tables of the validation from its rows."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from infra.results.figures import MODEL_COLORS, color, style

KINDS = {"replay": 0.1, "model": 0.6, "model, drift removed": 0.6}  # and how far the axis reaches


def figure_errors(rows: pd.DataFrame) -> Figure:
    """Error of the simulated p95 by load with its interval; a row a kind, a column a mode."""
    modes = list(dict.fromkeys(rows["mode"]))
    rows = rows[rows["quantile"] == 0.95]
    figure = Figure(figsize=(11, 9), layout="constrained")
    panels = figure.subplots(len(KINDS), len(modes), squeeze=False, sharex=True)
    for line, (kind, reach) in zip(panels, KINDS.items(), strict=True):
        for axes, mode in zip(line, modes, strict=True):
            part = rows[(rows["kind"] == kind) & (rows["mode"] == mode)]
            _errors_by_load(axes, part)
            limit = 7 if kind == "replay" else 10
            axes.axhspan(-limit, limit, color="black", alpha=0.06, linewidth=0)
            axes.set_ylim(-100 * reach, 100 * reach)
            x = "offered load over the capacity" if line is panels[-1] else ""
            style(axes, x, "error of p95, %", f"{kind}, {mode}")
    panels[0][0].legend(fontsize=7, frameon=False, ncols=4)
    return figure


def _errors_by_load(axes: Axes, rows: pd.DataFrame) -> None:
    models = [model for model in MODEL_COLORS if model in set(rows["model"])]
    for i, model in enumerate(models):
        part = rows[rows["model"] == model].sort_values("load")
        x = part["load"] + 0.012 * (i - len(models) / 2)
        error, low, high = (100 * part[name] for name in ("error", "low", "high"))
        spread = [(error - low).clip(lower=0), (high - error).clip(lower=0)]
        shade = color(model)
        axes.errorbar(
            x, error, spread, fmt="o", color=shade, markersize=4, elinewidth=0.8, label=model
        )
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xticks(sorted(set(rows["load"])))


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Median and worst size of the error, and its median with sign, by kind and quantile, in %."""
    size = rows.assign(size=100 * rows["error"].abs(), error=100 * rows["error"])
    grouped = size.groupby(["kind", "quantile"], sort=False)
    return pd.DataFrame(
        {
            "median": grouped["size"].median(),
            "worst": grouped["size"].max(),
            "median, signed": grouped["error"].median(),
            "within 5 %": 100 * grouped["size"].apply(lambda x: (x <= 5).mean()),
            "within 10 %": 100 * grouped["size"].apply(lambda x: (x <= 10).mean()),
        }
    )


def by_load(rows: pd.DataFrame) -> pd.DataFrame:
    """Median size of the p95's error in % by kind and load, and the service times' drift."""
    p95 = rows[rows["quantile"] == 0.95].assign(error=lambda t: 100 * t["error"].abs())
    table = p95.pivot_table(index="load", columns="kind", values="error", aggfunc="median")
    modelled = p95[p95["kind"] == "model"]
    drift = (100 * (modelled["service_ratio"] - 1).abs()).groupby(modelled["load"])
    return table[list(KINDS)].assign(drift=drift.median(), most=drift.max())


def rate_errors(rates: pd.DataFrame) -> pd.DataFrame:
    """The rates by model and mode, with their errors in %."""
    return rates.assign(error=100 * rates["error"]).set_index(["model", "mode"])


def rate_summary(rates: pd.DataFrame) -> pd.DataFrame:
    """Median and worst size of the rates' error in %."""
    size = 100 * rates["error"].abs()
    return pd.DataFrame({"median": [size.median()], "worst": [size.max()]})
