"""What a run prints: a readable table, then the closing lines that scripts of the release read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from infra.results.stats import Estimate, Summary


def console() -> Console:
    """Standard output; wide enough for the tables where it is not a terminal."""
    out = Console(highlight=False)
    return out if out.is_terminal else Console(highlight=False, width=120)


def number(value: float, digits: int = 2) -> str:
    """'-' for what is not known."""
    return f"{value:,.{digits}f}" if math.isfinite(value) else "-"


def frame(title: str, rows: pd.DataFrame) -> Table:
    """Table of a study's rows: floats with three digits, '-' for what is not known."""
    table = Table(title=title, title_justify="left", title_style="bold")
    for name in rows:
        table.add_column(str(name), justify="left" if rows[name].dtype == object else "right")
    for row in rows.itertuples(index=False):
        table.add_row(*(_cell(value) for value in row))
    return table


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.3g}" if math.isfinite(value) and abs(value) < 1000 else number(value, 0)
    return f"{value:,}" if isinstance(value, int) else str(value)


def interval(estimate: Estimate) -> str:
    """[low, high], open where the data gives no bound."""
    low = number(estimate.low) if math.isfinite(estimate.low) else "..."
    high = number(estimate.high) if math.isfinite(estimate.high) else "..."
    return f"[{low}, {high}]"


def verdict(summary: Summary) -> str:
    """VALID, or INVALID with the reasons."""
    return "VALID" if summary.valid else f"INVALID: {'; '.join(summary.invalid_reasons)}"


def measurement(title: str, summary: Summary, memory: dict[str, Any]) -> Table:
    """Table of one measuring run."""
    table = Table(title=title, title_justify="left", title_style="bold", show_header=True)
    table.add_column("what")
    table.add_column("value", justify="right")
    table.add_column("95 % interval, or meaning")
    table.add_row("queries measured", f"{summary.n_queries:,}", "after the warm-up")
    table.add_row("offered rate", f"{number(summary.offered_qps)} QPS", "arrivals of the schedule")
    table.add_row(
        "achieved rate",
        f"{number(summary.achieved_qps)} QPS",
        "answers, first arrival to last answer",
    )
    for name, estimate in (
        ("p50", summary.p50_ms),
        ("p95", summary.p95_ms),
        ("p99", summary.p99_ms),
    ):
        table.add_row(f"latency {name}", f"{number(estimate.value)} ms", interval(estimate))
    table.add_row(
        "mean latency",
        f"{number(summary.mean_latency_ms)} ms",
        f"= {number(summary.mean_queue_ms)} to the first start + "
        f"{number(summary.mean_compute_ms)} to the answer",
    )
    met = "met" if summary.meets_sla else "MISSED"
    table.add_row(
        "SLA",
        met,
        f"p{summary.sla_percentile:g} {number(summary.p_sla_ms.value)} ms, target "
        f"{summary.sla_ms:g} ms",
    )
    table.add_row(
        "offloaded",
        f"{summary.accel_query_share:.1%}",
        f"of the queries; {summary.accel_item_share:.1%} of the items",
    )
    table.add_row(
        "generator lateness",
        f"{number(summary.lateness_p50_ms, 3)} ms",
        f"median; p99 {number(summary.lateness_p99_ms, 3)} ms",
    )
    if memory:  # virtual time has none
        private = memory.get("engine_private_mib", [])
        table.add_row(
            "memory",
            f"{memory.get('driver_rss_mib', 0):,.0f} MiB",
            f"driver with tables and inputs; each engine adds {max(private, default=0):,.0f} MiB "
            "at most",
        )
    table.add_row(
        "verdict",
        "VALID" if summary.valid else "INVALID",
        "; ".join(summary.invalid_reasons) or "can be trusted",
    )
    return table


def search(title: str, lines: Sequence[dict[str, Any]], percentile: float = 95.0) -> Table:
    """Table of a search: one line a phase."""
    table = Table(title=title, title_justify="left", title_style="bold")
    per_watt = any(line["qps_per_watt"] is not None for line in lines)
    columns = ["batch", "threshold", "QPS", f"p{percentile:g} ms", "offloaded", "gain", "run"]
    if per_watt:
        columns.insert(3, "QPS/W")
    table.add_column("policy", no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right")
    for line in lines:
        summary: Summary | None = line["summary"]
        threshold = "-" if line["offload_items"] is None else str(line["offload_items"])
        cells = [str(line["batch_items"]), threshold]
        if summary is None:
            cells += ["none", *["-"] * per_watt, "-", "-", "-"]
        else:
            cells += [
                number(line["rate_qps"], 1),
                *([number(line["qps_per_watt"], 3)] if per_watt else []),
                f"{number(summary.p_sla_ms.value)} {interval(summary.p_sla_ms)}",
                f"{summary.accel_query_share:.0%}",
                f"{line['gain']:.2f}x" if line["gain"] else "-",
            ]
        verdict = (
            "no rate meets the SLA" if summary is None else "VALID" if summary.valid else "INVALID"
        )
        table.add_row(line["name"], *cells, verdict)
    return table


def search_notes(lines: Sequence[dict[str, Any]], confidence: float) -> list[str]:
    """What the table has no room for: how sure each limit is, how far from the best possible, why a
    run is INVALID.
    """
    notes = []
    for line in lines:
        limit = line["limit_qps"]
        low, high = (number(limit[k], 1) if limit[k] else "?" for k in ("low", "high"))
        known = low != "?" or high != "?"
        sure = (
            f": shown to hold at {low} and to fail at {high} QPS (confidence {confidence:.0%} each)"
            if known
            else ""
        )
        share = line["of_exhaustive"]
        regret = f"; {share:.1%} of the exhaustive search's rate" if share else ""
        cost = (
            f"{line['n_trials']} trials, {line['n_queries']:,} queries, "
            f"{number(line['seconds'], 0)} s"
        )
        notes.append(
            f"{line['name']}: limit about {number(limit['value'], 1)} QPS{sure}{regret}; {cost}"
        )
        summary: Summary | None = line["summary"]
        if summary is not None and not summary.valid:
            notes.append(f"{line['name']}: {verdict(summary)}")
    return notes


def tuned_lines(
    summary: Summary, batch_items: int, offload_items: int | None, rate_qps: float
) -> list[str]:
    """The release's last lines of a tuning run, and ours."""
    accel = (
        []
        if offload_items is None
        else [f"Scheduler's Optimal accel_size configuration:  {offload_items}"]
    )
    threshold = "none" if offload_items is None else offload_items
    tail = f"p{summary.sla_percentile:g} {summary.p_sla_ms.value:.2f} ms"
    best = f"Best: batch {batch_items}, threshold {threshold}, {rate_qps:.1f} QPS, {tail}"
    return [
        *closing_lines(summary),
        f"Scheduler's Optimal batch_size configuration:  {batch_items}",
        *accel,
        f"Scheduler's Optimal arrival gap:  {1000 / rate_qps:.4g}  ms",
        best,
    ]


def closing_lines(summary: Summary) -> list[str]:
    """The release's last lines."""
    return [
        f"Measured QPS:  {summary.achieved_qps:.4g}",
        f"Measured p95 tail-latency:  {summary.p95_ms.value:.4g}  ms",
        f"Measured p99 tail-latency:  {summary.p99_ms.value:.4g}  ms",
    ]
