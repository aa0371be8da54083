"""Figures from rows: pure functions, one idea each, the same colour for the same model everywhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from infra.clock import NS_PER_MS

if TYPE_CHECKING:  # SciPy comes with them; figures of studies on a GPU machine do without
    from infra.results.stats import Estimate, Summary

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
    plain = FuncFormatter(lambda x, _: f"{x:,.0f}" if x >= 1000 else f"{x:g}")
    axis.set_major_formatter(plain)
    axis.set_minor_formatter(plain if high / max(low, 1e-9) < 8 else NullFormatter())


def latency_cdf(queries: pd.DataFrame, summary: Summary, model: str) -> Figure:
    """Share of queries answered within a time; percentiles with their 95 % intervals, and the SLA."""
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    done = queries[~queries["is_warmup"] & queries["done_ns"].notna()]
    latency_ms = np.sort((done["done_ns"] - done["arrival_ns"]).to_numpy(np.int64) / NS_PER_MS)
    shares = np.arange(1, len(latency_ms) + 1) / max(len(latency_ms), 1)
    axes.step(
        latency_ms,
        shares,
        where="post",
        color=color(model),
        label=f"{model}, {len(latency_ms)} queries",
    )
    for p, estimate in ((0.50, summary.p50_ms), (0.95, summary.p95_ms), (0.99, summary.p99_ms)):
        if len(latency_ms):
            _percentile(axes, p, estimate, latency_ms[-1])
    axes.axvline(
        summary.sla_ms,
        color=_SLA,
        linestyle="--",
        label=f"SLA: p{summary.sla_percentile:g} <= {summary.sla_ms:g} ms",
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


_VERDICTS = {"met": "o", "missed": "x", "undecided": "_"}


def search_walk(trials: pd.DataFrame, sla_ms: float, percentile: float) -> Figure:
    """A search: rate and tail latency by trial, one band per policy, the marker tells the verdict."""
    figure = Figure(figsize=(9.0, 5.2), layout="constrained")
    rate_axes, tail_axes = figure.subplots(2, 1, sharex=True)
    trials = trials.assign(
        trial=range(1, len(trials) + 1), offload_items=trials["offload_items"].fillna(0)
    )
    phases = list(dict.fromkeys(trials["phase"]))
    shades = {
        phase: ("#d1495b", "#1f77b4", "#2a9d8f", "#6a4c93")[i % 4] for i, phase in enumerate(phases)
    }
    policy = trials[["phase", "batch_items", "offload_items"]]
    groups = (policy != policy.shift()).any(axis=1).cumsum()
    for number, part in trials.groupby(groups):
        _band(
            rate_axes, tail_axes, part, shades[part["phase"].iloc[0]], shaded=bool(number % 2 == 0)
        )
    for phase, shade in shades.items():
        rate_axes.plot([], [], color=shade, label=phase)
    for verdict, marker in _VERDICTS.items():
        if (trials["verdict"] == verdict).any():
            rate_axes.plot([], [], marker, color="black", label=f"SLA {verdict}", markersize=4)
    tail_axes.axhline(sla_ms, color=_SLA, linestyle="--", label=f"SLA {sla_ms:g} ms")
    plain_log(tail_axes, "y")
    plain_log(rate_axes, "y")
    style(rate_axes, "", "offered rate (QPS)", "")
    figure.suptitle("Search: per-core batch, and offload threshold, above each band", fontsize=10)
    style(tail_axes, "trial", f"p{percentile:g} of the trial (ms)", "")
    rate_axes.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    tail_axes.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def _band(
    rate_axes: Axes, tail_axes: Axes, part: pd.DataFrame, shade: str, *, shaded: bool
) -> None:
    first = part["trial"].iloc[0] - 0.5
    last = part["trial"].iloc[-1] + 0.5
    for axes, column in ((rate_axes, "rate_qps"), (tail_axes, "p_sla_ms")):
        axes.plot(part["trial"], part[column].astype(float), color=shade, linewidth=1)
        for verdict, marker in _VERDICTS.items():
            own = part[part["verdict"] == verdict]
            axes.plot(own["trial"], own[column].astype(float), marker, color=shade, markersize=4)
        if shaded:
            axes.axvspan(first, last, color="black", alpha=0.05, lw=0)
    offload = part["offload_items"].iloc[0]
    name = f"{part['batch_items'].iloc[0]}" + (f", >={int(offload)}" if offload > 0 else "")
    rate_axes.annotate(
        name,
        ((first + last) / 2, 1.0),
        xycoords=("data", "axes fraction"),
        fontsize=6.5,
        ha="center",
        va="bottom",
        rotation=90,
    )


def stage_bars(parts: pd.DataFrame, labels: Sequence[str], title: str) -> Figure:
    """Where a pipeline's queries spend their time: mean waiting, computing and choosing of each
    stage, in a row.

    `parts` as `infra.results.stages.stage_parts` gives it.
    """
    figure = Figure(figsize=(7.5, 1.2 + 0.55 * len(parts)), layout="constrained")
    axes = figure.add_subplot()
    shades = {"queue": "#bbbbbb", "compute": "#1f77b4", "filter": "#d1495b"}
    if not len(parts):
        style(axes, "", "", f"{title}: no query was answered")
        return figure
    names = [
        f"{row.stage}: {labels[row.stage]}, {row.items:,.0f} items" for row in parts.itertuples()
    ]
    begin = 0.0
    for name, row in zip(names, parts.itertuples(), strict=True):
        for part, shade in shades.items():
            width = float(getattr(row, f"{part}_ms"))
            axes.barh(
                name,
                width,
                left=begin,
                color=shade,
                height=0.6,
                label=part if row.Index == 0 else None,
            )
            begin += width
    axes.invert_yaxis()
    style(
        axes,
        "mean time since the intended arrival (ms)",
        "",
        f"{title}: {begin:,.1f} ms in the mean",
    )
    axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure
