#!/usr/bin/env python3
"""Table and figure of the runs below a folder (what run_DeepRecInfra.sh leaves): tail latency by
model.

python experiments/tail_latency/plot.py FOLDER
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import math

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from rich.table import Table

from infra.results import report, run_folder
from infra.results.figures import color, plain_log, style
from infra.results.stats import Summary, summarize

MARKERS = {"p50": "o", "p95": "D", "p99": ">"}


@dataclass(frozen=True)
class Line:
    """One run."""

    label: str
    model: str
    batch_items: int
    summary: Summary


def load(folder: Path) -> list[Line]:
    """The runs below a folder, each summarised from its rows."""
    lines = []
    for run in run_folder.find(folder):
        if not (run.folder / "queries.parquet").is_file():
            continue  # an interrupted search
        settings = run.document["config"]
        rows = run.rows()
        summary = summarize(
            rows.queries,
            rows.tasks,
            settings["target_latency"],
            settings["sla_percentile"],
            rows.notes,
        )
        model = settings["model_name"] or settings["model_type"]
        label = f"{model} + accel" if settings["model_accel"] else model
        lines.append(Line(label, model, settings["sub_task_batch_size"], summary))
    return lines


def table(lines: Sequence[Line]) -> Table:
    """One line a run."""
    shown = Table(title="Tail latency at a fixed policy", title_justify="left", title_style="bold")
    for name in (
        "model",
        "batch",
        "QPS",
        "p50 ms",
        "p95 ms",
        "p95 95 % interval",
        "p99 ms",
        "SLA ms",
        "SLA",
        "offloaded",
        "run",
    ):
        shown.add_column(name, justify="left" if name in ("model", "run") else "right")
    for line in lines:
        s = line.summary
        shown.add_row(
            line.label,
            str(line.batch_items),
            report.number(s.achieved_qps, 1),
            report.number(s.p50_ms.value),
            report.number(s.p95_ms.value),
            report.interval(s.p95_ms),
            report.number(s.p99_ms.value),
            f"{s.sla_ms:g}",
            "met" if s.meets_sla else "MISSED",
            f"{s.accel_query_share:.0%}",
            report.verdict(s),
        )
    return shown


def tail_by_model(lines: Sequence[Line]) -> Figure:
    """p50, p95 (with its interval) and p99 of every run beside its SLA; log scale."""
    figure = Figure(figsize=(7.2, 0.45 * len(lines) + 1.7), layout="constrained")
    axes = figure.add_subplot()
    for y, line in enumerate(reversed(lines)):
        s = line.summary
        shade = color(line.model)
        axes.plot([s.p50_ms.value, s.p99_ms.value], [y, y], color=shade, alpha=0.35, linewidth=2)
        high = s.p95_ms.high if math.isfinite(s.p95_ms.high) else s.p99_ms.value
        low = s.p95_ms.low if math.isfinite(s.p95_ms.low) else s.p50_ms.value
        axes.plot([low, high], [y, y], color=shade, linewidth=7, alpha=0.5, solid_capstyle="butt")
        for name, estimate in (("p50", s.p50_ms), ("p95", s.p95_ms), ("p99", s.p99_ms)):
            axes.plot([estimate.value], [y], MARKERS[name], color=shade, markersize=5)
        axes.plot([s.sla_ms], [y], "|", color="#c1121f", markersize=16, markeredgewidth=2)
    keys = [
        Line2D([], [], color="black", marker=m, linestyle="", markersize=5, label=n)
        for n, m in MARKERS.items()
    ]
    keys += [
        Line2D([], [], color="black", linewidth=7, alpha=0.3, label="95 % interval of p95"),
        Line2D(
            [],
            [],
            color="#c1121f",
            marker="|",
            linestyle="",
            markersize=12,
            markeredgewidth=2,
            label="SLA (p95)",
        ),
    ]
    figure.legend(
        handles=keys, loc="outside lower center", ncols=len(keys), fontsize=8, frameon=False
    )
    axes.set_yticks(
        range(len(lines)),
        [
            f"{line.label}, {line.summary.achieved_qps:.0f} "
            f"QPS{'' if line.summary.valid else ' (INVALID)'}"
            for line in reversed(lines)
        ],
    )
    plain_log(axes, "x")
    style(
        axes,
        "latency from the intended arrival (ms)",
        "",
        "Tail latency by model at a fixed policy",
    )
    return figure


def main(argv: Sequence[str]) -> int:
    """Command line; returns the exit code."""
    folder = Path(argv[0]) if len(argv) == 1 else None
    if folder is None or not folder.is_dir():
        sys.stderr.write(
            "experiments/tail_latency/plot.py: expected one argument, a folder of runs\n"
        )
        return 2
    lines = load(folder)
    if not lines:
        sys.stderr.write(f"experiments/tail_latency/plot.py: no run (run.json) below {folder}\n")
        return 2
    file = folder / "tail_latency.png"
    tail_by_model(lines).savefig(file, dpi=120)
    out = report.console()
    out.print(table(lines))
    out.print(f"Figure: {file}", soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
