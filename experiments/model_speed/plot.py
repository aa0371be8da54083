"""From the rounds of run.py to a table of ratios and a figure."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

PEERS = ("plain", "compiled", "fbgemm")
_STYLES = {"plain": "C0o-", "compiled": "C1o-", "fbgemm": "C2o-", "released": "C3s--"}


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """One row a model and batch: ours in ms, and the time of each other over ours.

    Ratios are medians of the paired rounds [smallest, largest]; bfloat16 comes with its largest
    error over the largest score; the last columns are the released harness over ours and the share
    of the limit that is reached.
    """
    released = pd.read_csv(Path(__file__).parent / "released_times.csv", comment="#").set_index(
        ["model", "batch_size"]
    )
    lines = []
    for (model, batch), own in rows.groupby(["model", "batch"], sort=False):
        times = own.pivot_table(index="round", columns="contender", values="ms")
        ours = times["ours"].dropna()
        line = {"model": model, "batch": batch, "ours ms": f"{ours.median():.4g}"}
        for peer in PEERS:
            line[f"{peer}/ours"] = _ratio(times, peer, "ours")
        line["float32/bfloat16"] = _ratio(times, "ours", "bfloat16")
        line["bfloat16 error"] = f"{own.loc[own['contender'] == 'bfloat16', 'error'].iloc[0]:.1e}"
        line["look-up, plain/ours"] = _ratio(times, "plain look-up", "ours look-up")
        has_released = (model, batch) in released.index and model != "din"
        line["released/ours"] = (
            f"{released.loc[(model, batch), 'total_ms'] / ours.median():.2f}"
            if has_released
            else "-"
        )
        line["limit share"] = f"{times['limit'].dropna().iloc[0] / ours.median():.0%}"
        lines.append(line)
    return pd.DataFrame(lines)


def _ratio(times: pd.DataFrame, peer: str, ours: str) -> str:
    if peer not in times:
        return "-"
    ratios = (times[peer] / times[ours]).dropna()
    return f"{ratios.median():.2f} [{ratios.min():.2f}, {ratios.max():.2f}]"


def draw(table: pd.DataFrame) -> Figure:
    """Speed of ours over each peer, and the share of the limit, by batch; one panel a model."""
    models = list(dict.fromkeys(table["model"]))
    figure, axes = plt.subplots(
        2,
        -(-len(models) // 2),
        figsize=(3.1 * -(-len(models) // 2), 6),
        sharex=True,
        squeeze=False,
        layout="constrained",
    )
    lines = {}
    for axis, model in zip(axes.flat, models, strict=False):
        own = table[table["model"] == model]
        for peer, style in _STYLES.items():
            values = own[f"{peer}/ours"].str.split(" ").str[0].replace("-", np.nan).astype(float)
            known = values.notna().to_numpy()
            if known.any():
                (lines[peer],) = axis.plot(own["batch"][known], values[known], style, markersize=4)
        share = own["limit share"].str.rstrip("%").astype(float) / 100
        (lines["limit of the core"],) = axis.plot(own["batch"], share, "k:")
        axis.axhline(1, color="grey", linewidth=0.8)
        axis.set(title=model, xscale="log", yscale="log")
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter("{x:.2g}")
        axis.set_xticks(own["batch"], [str(n) for n in own["batch"]])
    for axis in axes.flat[len(models) :]:
        axis.set_axis_off()
    figure.legend(
        lines.values(), lines.keys(), frameon=False, ncols=len(lines), loc="outside upper center"
    )
    figure.supxlabel("batch (items)")
    figure.supylabel("time over ours (above 1: ours is faster)")
    return figure
