"""Figures from rows: pure functions, one idea each, the same colour for a model everywhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from infra.clock import NS_PER_MS, NS_PER_S

if TYPE_CHECKING:  # SciPy comes with them; figures of studies on a GPU machine do without
    from infra.results.disturbance import Disturbance
    from infra.results.quantiles import Estimate
    from infra.results.stats import Summary

MODEL_COLORS = {
    "rm1": "#1f77b4", "rm2": "#2a9d8f", "rm3": "#17507d", "ncf": "#8c564b",
    "wnd": "#d1495b", "mtwnd": "#edae49", "din": "#6a4c93", "dien": "#b185db",
}  # fmt: skip
_OTHER_MODEL = "#444444"
_SLA = "#c1121f"
_LONG_RUN = "#1f77b4"
_PHASES = ("#d1495b", "#1f77b4", "#2a9d8f", "#6a4c93")
_STAGE_PARTS = {"queue": "#bbbbbb", "compute": "#1f77b4", "filter": "#d1495b"}
_LOST = ("#d1495b", "#24303c", "#dddddd")  # robbed, still, other waits
_VERDICTS = {"met": "o", "missed": "x", "undecided": "_"}


def color(model: str) -> str:
    """The model's colour."""
    return MODEL_COLORS.get(model, _OTHER_MODEL)


def style(axes: Axes, x: str, y: str, title: str) -> None:
    """Name the axes, with units, and draw a quiet grid."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_title(title, fontsize=10, loc="left")
    axes.grid(alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def plain_log(axes: Axes, which: str) -> None:
    """Make an axis ('x' or 'y') logarithmic, with numbers and not powers of ten along it."""
    axes.set(**{f"{which}scale": "log"})
    axis = axes.xaxis if which == "x" else axes.yaxis
    low, high = axis.get_view_interval()
    plain = FuncFormatter(lambda x, _: f"{x:,.0f}" if x >= 1000 else f"{x:g}")
    axis.set_major_formatter(plain)
    axis.set_minor_formatter(plain if high / max(low, 1e-9) < 8 else NullFormatter())


def latency_cdf(queries: pd.DataFrame, summary: Summary, model: str) -> Figure:
    """Share of queries answered within a time; percentiles with 95 % intervals, and the SLA."""
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    done = queries[~queries["is_warmup"] & queries["done_ns"].notna()]
    latency_ms = np.sort((done["done_ns"] - done["arrival_ns"]).to_numpy(np.int64) / NS_PER_MS)
    n = len(latency_ms)
    shares = np.arange(1, n + 1) / max(n, 1)
    name = f"{model}, {n} queries"
    axes.step(latency_ms, shares, where="post", color=color(model), label=name)
    if n:
        _percentile(axes, 0.50, "o", summary.p50_ms, latency_ms[-1])
        _percentile(axes, 0.95, "D", summary.p95_ms, latency_ms[-1])
        _percentile(axes, 0.99, ">", summary.p99_ms, latency_ms[-1])
    _long_run_marks(axes, summary)
    sla = f"SLA: p{summary.sla_percentile:g} <= {summary.sla_ms:g} ms"
    axes.axvline(summary.sla_ms, color=_SLA, linestyle="--", label=sla)
    if n and max(latency_ms[-1], summary.sla_ms) > 20 * latency_ms[0]:
        plain_log(axes, "x")
    axes.set_ylim(0, 1.02)
    word = "VALID" if summary.valid else "INVALID"
    title = f"{model}: {summary.offered_qps:.1f} QPS offered, {word}"
    style(axes, "latency from the intended arrival (ms)", "share of queries", title)
    axes.legend(loc="lower right", fontsize=8, frameon=False)
    return figure


def _percentile(axes: Axes, p: float, marker: str, estimate: Estimate, largest_ms: float) -> None:
    """A percentile of the run, with its interval where there is one."""
    name = f"p{p * 100:g} {estimate.value:.2f} ms"
    if math.isfinite(estimate.low) or math.isfinite(estimate.high):
        low = max(estimate.low, 0.0)
        high = min(estimate.high, largest_ms)
        axes.plot([low, high], [p, p], color="black", lw=2.5, solid_capstyle="butt", alpha=0.6)
        above = f"{estimate.high:.2f}" if math.isfinite(estimate.high) else "?"
        name += f" ({low:.2f} to {above})"
    axes.plot([estimate.value], [p], marker, color="black", markersize=5, label=name)


def _long_run_marks(axes: Axes, summary: Summary) -> None:
    """The percentiles of the endless run, beside those of this one."""
    told = summary.long_run.percentiles if summary.long_run is not None else {}
    label = "long run, with its 95 % interval"
    for percentile, tail in told.items():
        spread = [[tail.value - tail.low], [tail.high - tail.value]]
        y = [percentile / 100]
        axes.errorbar(
            [tail.value], y, xerr=spread, fmt="s", color=_LONG_RUN, markersize=4, label=label
        )
        label = ""


def rate_curve(summary: Summary, model: str) -> Figure:
    """Long-run latency by rate with its band, the SLA, the run itself and the highest rate."""
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    curve = summary.long_run.curve if summary.long_run is not None else None
    if curve is None:
        style(axes, "", "", f"{model}: the run tells no rate curve")
        return figure
    low, value, high = np.array([[x.low, x.value, x.high] for x in curve.tail_ms]).T
    p = f"p{curve.percentile:g}"
    axes.fill_between(curve.rate_qps, low, high, color=_LONG_RUN, alpha=0.2, lw=0)
    axes.plot(curve.rate_qps, value, "-", color=_LONG_RUN, label=f"{p} of the long run, 95 % band")
    run_ms = summary.p_sla_ms.value
    axes.plot([summary.offered_qps], [run_ms], "o", color="black", label=f"{p} of this run")
    axes.axhline(curve.sla_ms, color=_SLA, linestyle="--", label=f"SLA {curve.sla_ms:g} ms")
    best = curve.highest_qps
    if best.value > 0:
        name = f"highest rate {best.value:,.4g} QPS ({best.low:,.4g} to {best.high:,.4g})"
        axes.axvspan(best.low, best.high, color=_SLA, alpha=0.15, lw=0)
        axes.axvline(best.value, color=_SLA, linewidth=1, label=name)
    if high.max() > 5 * low.min():
        plain_log(axes, "y")
    style(axes, "offered rate (QPS)", f"{p} latency (ms)", f"{model}: rate curve from one run")
    axes.legend(loc="upper left", fontsize=8, facecolor="white", edgecolor="none")
    return figure


def disturbed_seconds(queries: pd.DataFrame, seen: Disturbance, summary: Summary) -> Figure:
    """Latency over the run, and below by second the share of the engines' time that was lost."""
    figure = Figure(figsize=(7.5, 5.0), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    done = queries[queries["done_ns"].notna()]
    arrival_s = done["arrival_ns"].to_numpy(float) / NS_PER_S
    latency_ms = (done["done_ns"] - done["arrival_ns"]).to_numpy(float) / NS_PER_MS
    top.plot(arrival_s, latency_ms, ".", color="#bbbbbb", markersize=3, label="query")
    p = summary.sla_percentile
    tail = pd.Series(latency_ms).groupby(arrival_s.astype(int)).quantile(p / 100)
    top.plot(tail.index + 0.5, tail, "o-", color="black", markersize=3, label=f"p{p:g} by second")
    sla = f"SLA {summary.sla_ms:g} ms"
    top.axhline(summary.sla_ms, color=_SLA, linestyle="--", label=sla)
    if len(latency_ms) and latency_ms.max() > 10 * max(latency_ms.min(), 1e-9):
        plain_log(top, "y")
    _lost_time(bottom, seen)
    word = "VALID" if summary.valid else "INVALID"
    title = f"{seen.robbed_share:.1%} of the engines' time was robbed; the run is {word}"
    style(top, "", "latency (ms)", title)
    style(bottom, "time since the run's start (s)", "share of engine time", "")
    for axes in (top, bottom):
        axes.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def _lost_time(axes: Axes, seen: Disturbance) -> None:
    """Stacked bars by second: robbed, standing still, waiting for the driver or a neighbour."""
    names = ["span_ms", "waited_ms", "robbed_ms", "stopped_ms", "deaths"]
    sums = seen.by_second.groupby("second")[names].sum()
    robbed = sums["robbed_ms"] / sums["span_ms"]
    still = sums["stopped_ms"] / sums["span_ms"]
    waited = (sums["waited_ms"] - sums["robbed_ms"]).clip(lower=0) / sums["span_ms"]
    widths = seen.by_second.groupby("second")["span_ms"].first() / 1e3
    below = 0.0 * robbed
    parts = {"robbed by others": robbed, "stood still": still, "other waits": waited}
    for (label, share), shade in zip(parts.items(), _LOST, strict=True):
        axes.bar(sums.index, share, widths, below, align="edge", color=shade, label=label)
        below += share
    for second in sums.index[sums["deaths"] > 0]:
        axes.annotate(f"{int(sums['deaths'][second])} died", (second, 0.9), fontsize=7)
    axes.set_ylim(0, 1)


def search_walk(trials: pd.DataFrame, sla_ms: float, percentile: float) -> Figure:
    """Rate and tail latency of a search by trial; a band a policy, the marker is the verdict."""
    figure = Figure(figsize=(9.0, 5.2), layout="constrained")
    rate_axes, tail_axes = figure.subplots(2, 1, sharex=True)
    trials = trials.assign(
        trial=range(1, len(trials) + 1), offload_items=trials["offload_items"].fillna(0)
    )
    shades = {phase: _PHASES[i % 4] for i, phase in enumerate(dict.fromkeys(trials["phase"]))}
    policy = trials[["phase", "batch_items", "offload_items"]]
    groups = (policy != policy.shift()).any(axis=1).cumsum()
    for number, band in trials.groupby(groups):
        shade = shades[band["phase"].iloc[0]]
        for axes, column in ((rate_axes, "rate_qps"), (tail_axes, "p_sla_ms")):
            _band(axes, band, column, shade, shaded=bool(number % 2 == 0))
        _name_policy(rate_axes, band)
    _told_limits(rate_axes, trials, shades)
    for phase, shade in shades.items():
        rate_axes.plot([], [], color=shade, label=phase)
    for verdict, marker in _VERDICTS.items():
        if (trials["verdict"] == verdict).any():
            rate_axes.plot([], [], marker, color="black", label=f"SLA {verdict}", markersize=4)
    tail_axes.axhline(sla_ms, color=_SLA, linestyle="--", label=f"SLA {sla_ms:g} ms")
    style(rate_axes, "", "offered rate (QPS)", "")
    style(tail_axes, "trial", f"p{percentile:g} of the trial (ms)", "")
    figure.suptitle("Search: per-core batch, and offload threshold, above each band", fontsize=10)
    for axes in (rate_axes, tail_axes):
        plain_log(axes, "y")
        axes.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def _told_limits(axes: Axes, trials: pd.DataFrame, shades: dict[str, str]) -> None:
    """The policies' limits where one trial told them, with their intervals."""
    if "limit_qps" not in trials:
        return
    told = trials[trials["limit_qps"].notna() & (trials["limit_qps"] > 0)]
    label = "highest rate told, 95 %"
    for row in told.to_dict("records"):
        value = row["limit_qps"]
        spread = [[value - row["limit_low_qps"]], [row["limit_high_qps"] - value]]
        shade = shades[row["phase"]]
        axes.errorbar(row["trial"], value, yerr=spread, fmt="D", color=shade, ms=5, label=label)
        label = ""


def _band(axes: Axes, band: pd.DataFrame, column: str, shade: str, *, shaded: bool) -> None:
    axes.plot(band["trial"], band[column].astype(float), color=shade, linewidth=1)
    for verdict, marker in _VERDICTS.items():
        judged = band[band["verdict"] == verdict]
        axes.plot(judged["trial"], judged[column].astype(float), marker, color=shade, markersize=4)
    if shaded:
        first, last = band["trial"].iloc[[0, -1]]
        axes.axvspan(first - 0.5, last + 0.5, color="black", alpha=0.05, lw=0)


def _name_policy(axes: Axes, band: pd.DataFrame) -> None:
    offload = band["offload_items"].iloc[0]
    axes.annotate(
        f"{band['batch_items'].iloc[0]}" + (f", >={int(offload)}" if offload > 0 else ""),
        (band["trial"].iloc[[0, -1]].mean(), 1.0),
        xycoords=("data", "axes fraction"),
        fontsize=6.5,
        ha="center",
        va="bottom",
        rotation=90,
    )


def stage_bars(parts: pd.DataFrame, labels: Sequence[str], title: str) -> Figure:
    """Where a pipeline's queries spend their time: means of each stage's parts, in a row.

    `parts` as `infra.results.stages.stage_parts` gives it.
    """
    figure = Figure(figsize=(7.5, 1.2 + 0.55 * len(parts)), layout="constrained")
    axes = figure.add_subplot()
    if not len(parts):
        style(axes, "", "", f"{title}: no query was answered")
        return figure
    begin = 0.0
    for i, row in enumerate(parts.to_dict("records")):
        name = f"{row['stage']}: {labels[row['stage']]}, {row['items']:,.0f} items"
        for part, shade in _STAGE_PARTS.items():
            width = float(row[f"{part}_ms"])
            label = None if i else part
            axes.barh(name, width, left=begin, color=shade, height=0.6, label=label)
            begin += width
    axes.invert_yaxis()
    x = "mean time since the intended arrival (ms)"
    style(axes, x, "", f"{title}: {begin:,.1f} ms in the mean")
    axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure
