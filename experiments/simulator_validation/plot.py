#!/usr/bin/env python3
"""Figure and tables of the validation from its rows: python
experiments/simulator_validation/plot.py [FOLDER].
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import pandas as pd
from matplotlib.figure import Figure

from infra.results.figures import MODEL_COLORS, color, style

HERE = Path(__file__).resolve().parent
KINDS = {"replay": 0.1, "model": 0.6, "model, drift removed": 0.6}  # and how far the axis reaches


def figure_errors(rows: pd.DataFrame) -> Figure:
    """Error of the simulated p95 by load, a line per model, with its interval; a row a kind, a
    column a mode.
    """
    modes = list(dict.fromkeys(rows["mode"]))
    figure = Figure(figsize=(11, 9), layout="constrained")
    panels = figure.subplots(len(KINDS), len(modes), squeeze=False, sharex=True)
    for i_kind, (kind, reach) in enumerate(KINDS.items()):
        for axes, mode in zip(panels[i_kind], modes, strict=True):
            own = rows[(rows["kind"] == kind) & (rows["mode"] == mode) & (rows["quantile"] == 0.95)]
            models = [model for model in MODEL_COLORS if model in set(own["model"])]
            for i, model in enumerate(models):
                part = own[own["model"] == model].sort_values("load")
                x = part["load"] + 0.012 * (i - len(models) / 2)
                error, low, high = (100 * part[name] for name in ("error", "low", "high"))
                spread = [(error - low).clip(lower=0), (high - error).clip(lower=0)]
                axes.errorbar(
                    x,
                    error,
                    spread,
                    fmt="o",
                    color=color(model),
                    markersize=4,
                    elinewidth=0.8,
                    label=model,
                )
            limit = 7 if kind == "replay" else 10
            axes.axhspan(-limit, limit, color="black", alpha=0.06, linewidth=0)
            axes.axhline(0, color="black", linewidth=0.8)
            axes.set_ylim(-100 * reach, 100 * reach)
            axes.set_xticks(sorted(set(own["load"])))
            style(
                axes,
                "offered load over the capacity" if i_kind == len(KINDS) - 1 else "",
                "error of p95, %",
                f"{kind}, {mode}",
            )
    panels[0][0].legend(fontsize=7, frameon=False, ncols=4)
    return figure


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
    """Median size of the p95's error in % by kind and load, and how far service times were from the
    samples'.
    """
    own = rows[rows["quantile"] == 0.95].assign(error=lambda t: 100 * t["error"].abs())
    table = own.pivot_table(index="load", columns="kind", values="error", aggfunc="median")[
        list(KINDS)
    ]
    drift = own[own["kind"] == "model"].assign(drift=lambda t: 100 * (t["service_ratio"] - 1).abs())
    return table.assign(
        drift=drift.groupby("load")["drift"].median(), most=drift.groupby("load")["drift"].max()
    )


def main(argv: Sequence[str]) -> int:
    """Command line; returns the exit code."""
    folder = Path(argv[0]) if argv else HERE
    rows, rates = (pd.read_csv(folder / f"{name}.csv") for name in ("validation", "rates"))
    figure_errors(rows).savefig(folder / "validation.png", dpi=120)
    shown = rates.assign(error=100 * rates["error"])
    size = shown["error"].abs()
    for title, part in (
        ("Size of the error, %", summary(rows)),
        ("p95 by load, %", by_load(rows)),
        ("Rate under an SLA", shown.set_index(["model", "mode"])),
        ("Its error, %", pd.DataFrame({"median": [size.median()], "worst": [size.max()]})),
    ):
        print(f"\n{title}\n{part.round(2).to_string()}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
