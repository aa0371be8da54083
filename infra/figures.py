"""Figures from rows: pure functions, one idea each, the same colour for the same model everywhere."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, StrMethodFormatter

from infra.clock import NS_PER_MS
from infra.stats import Estimate, Summary

MODEL_COLORS = {
    "rm1": "#1f77b4", "rm2": "#2a9d8f", "rm3": "#17507d", "ncf": "#8c564b",
    "wnd": "#d1495b", "mtwnd": "#edae49", "din": "#6a4c93", "dien": "#b185db",
}  # fmt: skip
_OTHER, _SLA = "#444444", "#c1121f"


def color(model: str) -> str:
    """The model's colour."""
    return MODEL_COLORS.get(model, _OTHER)


def style(axes: Axes, x: str, y: str, title: str) -> None:
    """Named axes with units, a quiet grid."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_title(title, fontsize=10, loc="left")
    axes.grid(alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def plain_log(axes: Axes, which: str) -> None:
    """A logarithmic axis ('x' or 'y') with numbers, not powers of ten, along it."""
    axes.set(**{f"{which}scale": "log"})
    axis = axes.xaxis if which == "x" else axes.yaxis
    low, high = axis.get_view_interval()
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(StrMethodFormatter("{x:g}") if high / max(low, 1e-9) < 8 else NullFormatter())


def latency_cdf(queries: pd.DataFrame, summary: Summary, model: str) -> Figure:
    """Share of queries answered within a time; percentiles with their 95 % intervals, and the SLA."""
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    done = queries[~queries["is_warmup"] & queries["done_ns"].notna()]
    latency_ms = np.sort((done["done_ns"] - done["arrival_ns"]).to_numpy(np.int64) / NS_PER_MS)
    shares = np.arange(1, len(latency_ms) + 1) / max(len(latency_ms), 1)
    axes.step(latency_ms, shares, where="post", color=color(model), label=f"{model}, {len(latency_ms)} queries")
    for p, estimate in ((0.50, summary.p50_ms), (0.95, summary.p95_ms), (0.99, summary.p99_ms)):
        if len(latency_ms):
            _percentile(axes, p, estimate, latency_ms[-1])
    axes.axvline(
        summary.sla_ms, color=_SLA, linestyle="--", label=f"SLA: p{summary.sla_percentile:g} <= {summary.sla_ms:g} ms"
    )
    if len(latency_ms) and max(latency_ms[-1], summary.sla_ms) > 20 * latency_ms[0]:
        plain_log(axes, "x")
    axes.set_ylim(0, 1.02)
    word = "VALID" if summary.valid else "INVALID"
    style(
        axes,
        "latency from the intended arrival (ms)",
        "share of queries",
        f"{model}: {summary.offered_qps:.1f} QPS offered, {word}",
    )
    axes.legend(loc="lower right", fontsize=8, frameon=False)
    return figure


def _percentile(axes: Axes, p: float, estimate: Estimate, largest_ms: float) -> None:
    high = min(estimate.high, largest_ms)
    low = max(estimate.low, 0.0)
    axes.plot([low, high], [p, p], color="black", linewidth=2.5, solid_capstyle="butt", alpha=0.6)
    marker = {0.50: "o", 0.95: "D", 0.99: ">"}[p]
    bounds = f"{low:.2f} to " + (f"{estimate.high:.2f}" if math.isfinite(estimate.high) else "?")
    axes.plot(
        [estimate.value],
        [p],
        marker,
        color="black",
        markersize=5,
        label=f"p{p * 100:g} {estimate.value:.2f} ms ({bounds})",
    )


def search_walk(updates: pd.DataFrame, sla_ms: float, percentile: float) -> Figure:
    """The scheduler's search: rate and tail latency by update, one band per configuration."""
    figure = Figure(figsize=(9.0, 5.2), layout="constrained")
    rate_axes, tail_axes = figure.subplots(2, 1, sharex=True)
    phases = list(dict.fromkeys(updates["phase"]))
    shades = {phase: ("#d1495b", "#1f77b4", "#2a9d8f", "#6a4c93")[i % 4] for i, phase in enumerate(phases)}
    offload = updates["offload_items"].fillna(0)
    change = (updates["phase"] != updates["phase"].shift()) | (updates["batch_items"] != updates["batch_items"].shift())
    groups = (change | (offload != offload.shift())).cumsum()
    for number, part in updates.groupby(groups):
        phase, shade = part["phase"].iloc[0], shades[part["phase"].iloc[0]]
        label = phase if not any(line.get_label() == phase for line in rate_axes.lines) else None
        rate_axes.plot(part["update"], part["rate_qps"], ".-", color=shade, label=label, markersize=4, linewidth=1)
        tail_axes.plot(part["update"], part["p_sla_ms"], ".-", color=shade, markersize=4, linewidth=1)
        name = f"{part['batch_items'].iloc[0]}"
        if offload[part.index[0]] > 0:
            name += f"\n>={int(offload[part.index[0]])}"
        for axes in (rate_axes, tail_axes):
            if number % 2 == 0:
                axes.axvspan(
                    part["update"].iloc[0] - 0.5, part["update"].iloc[-1] + 0.5, color="black", alpha=0.05, lw=0
                )
        rate_axes.annotate(
            name, (part["update"].mean(), 1.0), xycoords=("data", "axes fraction"), fontsize=7, ha="center", va="bottom"
        )
    tail_axes.axhline(sla_ms, color=_SLA, linestyle="--", label=f"SLA {sla_ms:g} ms")
    plain_log(tail_axes, "y")
    style(rate_axes, "", "offered rate (QPS)", "")
    figure.suptitle("Search: per-core batch (and offload threshold) above each band", fontsize=10)
    style(tail_axes, "scheduler update", f"p{percentile:g} of the update (ms)", "")
    rate_axes.legend(fontsize=8, frameon=False, loc="lower right")
    tail_axes.legend(fontsize=8, frameon=False, loc="upper left")
    return figure
