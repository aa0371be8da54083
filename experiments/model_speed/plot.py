"""From the rounds of run.py to a table of ratios and a figure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from experiments.common.panels import finish, legend_below, panels

PEERS = ("plain", "compiled", "fbgemm")
RELEASED = Path(__file__).parent / "data" / "released_times.csv"
_STYLES = {"plain": "C0o-", "compiled": "C1o-", "fbgemm": "C2o-", "released": "C3s--"}


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """One row a model and batch: ours in ms, and the time of each peer over ours.

    Ratios are medians of the paired rounds [smallest, largest]; bfloat16 comes with its largest
    error over the largest score; the last columns are the released harness over ours and the share
    of the limit that is reached.
    """
    released = pd.read_csv(RELEASED, comment="#").set_index(["model", "batch_size"])
    lines = []
    for (model, batch), part in rows.groupby(["model", "batch"], sort=False):
        times = part.pivot_table(index="round", columns="contender", values="ms")
        ours_ms = times["ours"].dropna().median()
        line = {"model": model, "batch": batch, "ours ms": f"{ours_ms:.4g}"}
        for peer in PEERS:
            line[f"{peer}/ours"] = _ratio(times, peer, "ours")
        line["float32/bfloat16"] = _ratio(times, "ours", "bfloat16")
        errors = part.loc[part["contender"] == "bfloat16", "error"]
        line["bfloat16 error"] = f"{errors.iloc[0]:.1e}" if len(errors) else "-"
        line["look-up, plain/ours"] = _ratio(times, "plain look-up", "ours look-up")
        line["released/ours"] = "-"
        if (model, batch) in released.index and model != "din":
            line["released/ours"] = f"{released.loc[(model, batch), 'total_ms'] / ours_ms:.2f}"
        line["limit share"] = f"{times['limit'].dropna().iloc[0] / ours_ms:.0%}"
        lines.append(line)
    return pd.DataFrame(lines)


def _ratio(times: pd.DataFrame, peer: str, ours: str) -> str:
    if not {peer, ours} <= {*times}:
        return "-"
    ratios = (times[peer] / times[ours]).dropna()
    return f"{ratios.median():.2f} [{ratios.min():.2f}, {ratios.max():.2f}]"


def draw(rows: pd.DataFrame) -> Figure:
    """Speed of ours over each peer, and the share of the limit, by batch; one panel a model."""
    table = summary(rows)
    models = list(dict.fromkeys(table["model"]))
    figure, axes_of = panels(len(models), 3.1, 3.0, n_columns=-(-len(models) // 2))
    for axes, model in zip(axes_of, models, strict=True):
        of_model = table[table["model"] == model]
        batches = of_model["batch"]
        for peer, line in _STYLES.items():
            ratios = of_model[f"{peer}/ours"].str.split(" ").str[0].replace("-", np.nan)
            axes.plot(batches, ratios.astype(float), line, markersize=4, label=peer)
        share = of_model["limit share"].str.rstrip("%").astype(float) / 100
        axes.plot(batches, share, "k:", label="limit of the core")
        axes.axhline(1, color="grey", linewidth=0.8)
        finish(axes, "batch (items)", "time over ours", model, log="xy")
        axes.set_xticks(batches, batches.astype(str), minor=False)
    legend_below(figure, 5)
    figure.suptitle("Above 1: ours is faster", fontsize=9)
    return figure
