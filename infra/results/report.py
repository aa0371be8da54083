"""What a run prints: a readable table, then the closing lines that scripts of the release read."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:  # a GPU machine may lack rich and scipy; `show` does without
    from rich.console import Console
    from rich.table import Table

    from infra.results.long_run import LongRun
    from infra.results.quantiles import Estimate
    from infra.results.stats import Summary


def console() -> Console:
    """Standard output; wide enough for the tables where it is not a terminal."""
    from rich.console import Console  # noqa: PLC0415 (see above)

    out = Console(highlight=False)
    return out if out.is_terminal else Console(highlight=False, width=120)


def table(
    title: str, columns: Iterable[str], rows: Iterable[Sequence[str]], left: Collection[str]
) -> Table:
    """Table of cells; the columns `left` are aligned so, the others to the right."""
    from rich.table import Table  # noqa: PLC0415 (see above)

    filled = Table(title=title, title_justify="left", title_style="bold")
    for name in columns:
        filled.add_column(name, justify="left" if name in left else "right")
    for cells in rows:
        filled.add_row(*cells)
    return filled


def show(title: str, rows: pd.DataFrame) -> None:
    """Print a study's rows as a table, plainly where rich is not installed."""
    try:
        console().print(frame(title, rows))
    except ImportError:
        print(f"{title}\n{rows.to_string(index=False)}")


def frame(title: str, rows: pd.DataFrame) -> Table:
    """Table of a study's rows: floats with three digits, '-' for what is not known."""
    cells = ([_cell(value) for value in row] for row in rows.itertuples(index=False))
    left = [str(name) for name in rows if rows[name].dtype == object]
    return table(title, map(str, rows), cells, left)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.3g}" if math.isfinite(value) and abs(value) < 1000 else number(value, 0)
    return f"{value:,}" if isinstance(value, int) else str(value)


def number(value: float, digits: int = 2) -> str:
    """The number with so many digits after the point; '-' where it is not known."""
    return f"{value:,.{digits}f}" if math.isfinite(value) else "-"


def interval(estimate: Estimate) -> str:
    """[low, high], open where the data gives no bound."""
    low = number(estimate.low) if math.isfinite(estimate.low) else "..."
    high = number(estimate.high) if math.isfinite(estimate.high) else "..."
    return f"[{low}, {high}]"


def verdict(summary: Summary) -> str:
    """VALID, or INVALID with the reasons."""
    return "VALID" if summary.valid else f"INVALID: {'; '.join(summary.invalid_reasons)}"


def measurement(
    title: str, summary: Summary, memory: dict[str, Any], n_items: pd.Series[int]
) -> Table:
    """Table of a measuring run; virtual time has no `memory`; `n_items`: sizes of its queries."""
    s = summary
    waited = f"{number(s.mean_queue_ms)} to the first start"
    computed = f"{number(s.mean_compute_ms)} to the answer"
    offloaded = f"of the queries; {s.accel_item_share:.1%} of the items"
    late = f"median; p99 {number(s.lateness_p99_ms, 3)} ms"
    lines = [
        f"queries measured | {s.n_queries:,} | after the warm-up",
        f"query size | {_sizes(n_items)}",
        f"offered rate | {number(s.offered_qps)} QPS | arrivals of the schedule",
        f"achieved rate | {number(s.achieved_qps)} QPS | answers, first arrival to last answer",
        f"latency p50 | {number(s.p50_ms.value)} ms | {_run_interval(s.p50_ms)}",
        f"latency p95 | {number(s.p95_ms.value)} ms | {_run_interval(s.p95_ms)}",
        f"latency p99 | {number(s.p99_ms.value)} ms | {_run_interval(s.p99_ms)}",
        f"mean latency | {number(s.mean_latency_ms)} ms | = {waited} + {computed}",
        *_long_run_lines(s.long_run),
        f"SLA | {s.sla_verdict.replace('missed', 'MISSED')} | {_sla(s)}",
        f"offloaded | {s.accel_query_share:.1%} | {offloaded}",
        f"generator lateness | {number(s.lateness_p50_ms, 3)} ms | {late}",
    ]
    if memory:
        private_mib = max(memory.get("engine_private_mib", []), default=0)
        lines.append(
            f"memory | {memory.get('driver_rss_mib', 0):,.0f} MiB | driver with tables and inputs; "
            f"each engine adds {private_mib:,.0f} MiB at most"
        )
    lines.append(f"verdict | {_valid(s)} | {'; '.join(s.invalid_reasons) or 'can be trusted'}")
    columns = ("what", "value", "95 % interval, or meaning")
    return table(title, columns, (line.split(" | ", 2) for line in lines), left=columns[::2])


def _run_interval(estimate: Estimate) -> str:
    """Of a percentile of this run: where the long run's lies as far as the latencies tell."""
    if math.isfinite(estimate.high):
        return f"{interval(estimate)}, by these latencies alone"
    return "of this run; too short to tell an interval by these latencies alone"


def _long_run_lines(long_run: LongRun | None) -> list[str]:
    if long_run is None:
        return []
    lines = [
        f"long-run p{p:g} | {number(x.value)} ms | {interval(x)}"
        for p, x in long_run.percentiles.items()
    ]
    if long_run.withheld:
        lines.append(f"long run | withheld | {long_run.withheld}")
    for pool, x in long_run.utilisation.items():
        lines.append(f"utilisation, {pool} | {x.value:.1%} | [{x.low:.1%}, {x.high:.1%}]")
    if long_run.curve is not None:
        best = long_run.curve.highest_qps
        inside = f"p{long_run.curve.percentile:g} <= {long_run.curve.sla_ms:g} ms"
        bounds = f"{interval(best)} inside {inside}" if best.value else f"none is inside {inside}"
        lines.append(f"highest rate | {number(best.value)} QPS | {bounds}")
    elif long_run.no_curve:
        lines.append(f"highest rate | - | {long_run.no_curve}")
    return lines


def _sla(summary: Summary) -> str:
    """What decided about the SLA."""
    s = summary
    target = f"p{s.sla_percentile:g}, target {s.sla_ms:g} ms"
    if s.long_run is not None and s.long_run.is_above_capacity:
        return f"{target}; above capacity the latency grows without end"
    tail = s.sla_tail_ms
    whose = "this run" if tail is s.p_sla_ms else "the long run"
    return f"{target}; {whose} {number(tail.value)} ms {interval(tail)}"


def _sizes(n_items: pd.Series[int]) -> str:
    """The mean, and whether it is every query's size or between which the sizes lie."""
    if n_items.empty:
        return "- | no query was sent"
    smallest = n_items.min()
    largest = n_items.max()
    if smallest == largest:
        return f"{largest:,} items | of every query"
    return f"{number(n_items.mean(), 1)} items | mean; {smallest:,} to {largest:,}"


def _valid(summary: Summary) -> str:
    return "VALID" if summary.valid else "INVALID"


def search(title: str, lines: Sequence[dict[str, Any]], percentile: float = 95.0) -> Table:
    """Table of a search: a line a phase."""
    per_watt = any(line["qps_per_watt"] is not None for line in lines)
    columns = ["policy", "batch", "threshold", "QPS", f"p{percentile:g} ms", "offloaded", "gain"]
    if per_watt:
        columns.insert(4, "QPS/W")
    rows = (_phase_cells(line, per_watt=per_watt) for line in lines)
    shown = table(title, [*columns, "run"], rows, left=["policy"])
    shown.columns[0].no_wrap = True
    return shown


def _phase_cells(line: dict[str, Any], *, per_watt: bool) -> list[str]:
    summary: Summary | None = line["summary"]
    threshold = "-" if line["offload_items"] is None else str(line["offload_items"])
    policy = [line["name"], str(line["batch_items"]), threshold]
    if summary is None:
        return [*policy, "none", *["-"] * (3 + per_watt), "no rate meets the SLA"]
    return [
        *policy,
        _rate(line),
        *([number(line["qps_per_watt"], 3)] if per_watt else []),
        number(summary.p_sla_ms.value),
        f"{summary.accel_query_share:.0%}",
        _gain(line),
        _valid(summary),
    ]


def _rate(line: dict[str, Any]) -> str:
    """The rate, with the limit's interval where it is the limit itself."""
    digits = 0 if line["rate_qps"] >= 1000 else 1
    rate = number(line["rate_qps"], digits)
    if not line["is_told"]:
        return rate
    low, high = (number(line["limit_qps"][bound], digits) for bound in ("low", "high"))
    return f"{rate} [{low}, {high}]"


def _gain(line: dict[str, Any]) -> str:
    if line["gain"] is None:
        return "-"
    gain = f"{line['gain']:.2f}x"
    bounds = line["gain_interval"]
    if bounds["low"] is None or bounds["low"] == bounds["high"]:
        return gain
    return f"{gain} [{bounds['low']:.2f}, {bounds['high']:.2f}]"


def search_notes(lines: Sequence[dict[str, Any]], confidence: float) -> list[str]:
    """What the table of a search has no room for.

    That is how sure each limit is, how far it is from the best possible, why a run is INVALID.
    """
    notes = []
    for line in lines:
        notes.append(f"{line['name']}: {_limit_note(line, confidence)}{_no_gain(line)}")
        summary: Summary | None = line["summary"]
        if summary is not None and not summary.valid:
            notes.append(f"{line['name']}: {verdict(summary)}")
    return notes


def _limit_note(line: dict[str, Any], confidence: float) -> str:
    if line["is_told"]:
        low, high = line["foreseen_ms"]
        shown = number(line["summary"].p_sla_ms.value)
        note = f"a run at this rate ended at {shown} ms, {low:.2f} to {high:.2f} were foreseen"
        return _with_cost(note, line)
    limit = line["limit_qps"]
    if not limit["value"]:
        return _with_cost("no rate meets the SLA", line)
    low, high = (number(limit[bound], 1) if limit[bound] else "?" for bound in ("low", "high"))
    note = f"limit about {number(limit['value'], 1)} QPS"
    if limit["low"] or limit["high"]:
        note += f": shown to hold at {low} and to fail at {high} QPS"
        note += f" (confidence {confidence:.0%} each)"
    return _with_cost(note, line)


def _with_cost(note: str, line: dict[str, Any]) -> str:
    if line["of_exhaustive"]:
        note += f"; {line['of_exhaustive']:.1%} of the exhaustive search's rate"
    cost = f"{line['n_trials']} trials, {line['n_queries']:,} queries"
    took = f", {number(line['seconds'], 0)} s" if line["seconds"] else ""  # walks take no time
    return f"{note}; {cost}{took}"


def _no_gain(line: dict[str, Any]) -> str:
    """That the phase is not shown to be better than the baseline, where that is so."""
    bounds = line["gain_interval"]
    if line["name"] == "static" or bounds is None or bounds["low"] is None or bounds["low"] > 1:
        return ""
    return "; no gain could be shown"


def tuned_lines(
    summary: Summary, batch_items: int, offload_items: int | None, rate_qps: float
) -> list[str]:
    """The release's last lines of a tuning run, and ours."""
    threshold = "none" if offload_items is None else offload_items
    tail = f"p{summary.sla_percentile:g} {summary.p_sla_ms.value:.2f} ms"
    lines = [
        *closing_lines(summary),
        f"Scheduler's Optimal batch_size configuration:  {batch_items}",
        f"Scheduler's Optimal arrival gap:  {1000 / rate_qps:.4g}  ms",
        f"Best: batch {batch_items}, threshold {threshold}, {rate_qps:.1f} QPS, {tail}",
    ]
    if offload_items is not None:
        lines.insert(-2, f"Scheduler's Optimal accel_size configuration:  {offload_items}")
    return lines


def closing_lines(summary: Summary) -> list[str]:
    """The release's last lines."""
    return [
        f"Measured QPS:  {summary.achieved_qps:.4g}",
        f"Measured p95 tail-latency:  {summary.p95_ms.value:.4g}  ms",
        f"Measured p99 tail-latency:  {summary.p99_ms.value:.4g}  ms",
    ]
