"""What a run prints: a readable table, then the closing lines that scripts of the release read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from infra.stats import Estimate, Summary


def console() -> Console:
    """Standard output; wide enough for the tables where it is not a terminal."""
    out = Console(highlight=False)
    return out if out.is_terminal else Console(highlight=False, width=120)


def number(value: float, digits: int = 2) -> str:
    """'-' for what is not known."""
    return f"{value:,.{digits}f}" if math.isfinite(value) else "-"


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
    table.add_row("achieved rate", f"{number(summary.achieved_qps)} QPS", "answers, first arrival to last answer")
    for name, estimate in (("p50", summary.p50_ms), ("p95", summary.p95_ms), ("p99", summary.p99_ms)):
        table.add_row(f"latency {name}", f"{number(estimate.value)} ms", interval(estimate))
    table.add_row(
        "mean latency",
        f"{number(summary.mean_latency_ms)} ms",
        f"= {number(summary.mean_queue_ms)} to the first start + {number(summary.mean_compute_ms)} to the answer",
    )
    met = "met" if summary.meets_sla else "MISSED"
    table.add_row(
        "SLA", met, f"p{summary.sla_percentile:g} {number(summary.p_sla_ms.value)} ms, target {summary.sla_ms:g} ms"
    )
    table.add_row(
        "offloaded", f"{summary.accel_query_share:.1%}", f"of the queries; {summary.accel_item_share:.1%} of the items"
    )
    table.add_row(
        "generator lateness",
        f"{number(summary.lateness_p50_ms, 3)} ms",
        f"median; p99 {number(summary.lateness_p99_ms, 3)} ms",
    )
    private = memory.get("engine_private_mib", [])
    table.add_row(
        "memory",
        f"{memory.get('driver_rss_mib', 0):,.0f} MiB",
        f"driver with tables and inputs; each engine adds {max(private, default=0):,.0f} MiB at most",
    )
    table.add_row(
        "verdict", "VALID" if summary.valid else "INVALID", "; ".join(summary.invalid_reasons) or "can be trusted"
    )
    return table


def search(title: str, lines: Sequence[dict[str, Any]]) -> Table:
    """Table of a search: one line a phase."""
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("policy")
    for name in ("batch", "threshold", "QPS", "p95 ms", "p99 ms", "offloaded", "gain", "run"):
        table.add_column(name, justify="right")
    for line in lines:
        summary: Summary | None = line["summary"]
        threshold = "-" if line["offload_items"] is None else str(line["offload_items"])
        if summary is None:
            table.add_row(
                line["name"], str(line["batch_items"]), threshold, "none", "-", "-", "-", "-", "no rate meets the SLA"
            )
            continue
        table.add_row(
            line["name"], str(line["batch_items"]), threshold, number(line["rate_qps"], 1),
            f"{number(summary.p95_ms.value)} {interval(summary.p95_ms)}", number(summary.p99_ms.value),
            f"{summary.accel_query_share:.0%}", f"{line['gain']:.2f}x" if line["gain"] else "-",
            "VALID" if summary.valid else "INVALID",
        )  # fmt: skip
    return table


def closing_lines(summary: Summary) -> list[str]:
    """The release's last lines."""
    return [
        f"Measured QPS:  {summary.achieved_qps:.4g}",
        f"Measured p95 tail-latency:  {summary.p95_ms.value:.4g}  ms",
        f"Measured p99 tail-latency:  {summary.p99_ms.value:.4g}  ms",
    ]
