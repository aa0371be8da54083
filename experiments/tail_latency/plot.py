#!/usr/bin/env python3
"""Tail latency by model: table and figure of the runs that run_DeepRecInfra.sh leaves in a folder.

python experiments/tail_latency/plot.py FOLDER
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
from rich.table import Table

from experiments.common.panels import finish, legend_below
from infra.results import run_folder
from infra.results.figures import color
from infra.results.report import console, interval, number, verdict
from infra.results.run_folder import SavedRun
from infra.results.stats import Summary, summarize

MARKERS = {"p50": "o", "p95": "D", "p99": ">"}
SLA_SHADE = "#c1121f"


@dataclass(frozen=True)
class ModelTail:
    """A run: what ran, with which batch, and its latencies."""

    label: str
    model: str
    batch_items: int
    summary: Summary

    @classmethod
    def of(cls, run: SavedRun) -> ModelTail:
        """The run, summarised from its rows."""
        settings = run.document["config"]
        rows = run.rows()
        sla = settings["target_latency"], settings["sla_percentile"]
        model = settings["model_name"] or settings["model_type"]
        label = f"{model} + accel" if settings["model_accel"] else model
        summary = summarize(rows.queries, rows.tasks, *sla, rows.notes)
        return cls(label, model, settings["sub_task_batch_size"], summary)

    @property
    def name(self) -> str:
        """What the figure calls the run."""
        note = "" if self.summary.valid else " (INVALID)"
        return f"{self.label}, {self.summary.achieved_qps:.0f} QPS{note}"

    def cells(self) -> dict[str, str]:
        """The run's line of the table, by column."""
        s = self.summary
        return {
            "model": self.label,
            "batch": str(self.batch_items),
            "QPS": number(s.achieved_qps, 1),
            "p50 ms": number(s.p50_ms.value),
            "p95 ms": number(s.p95_ms.value),
            "p95 95 % interval": interval(s.p95_ms),
            "p99 ms": number(s.p99_ms.value),
            "SLA ms": f"{s.sla_ms:g}",
            "SLA": "met" if s.meets_sla else "MISSED",
            "offloaded": f"{s.accel_query_share:.0%}",
            "run": verdict(s),
        }


def load(folder: Path) -> list[ModelTail]:
    """The runs below a folder; an interrupted search, which has no rows, is left out."""
    runs = run_folder.find(folder)
    return [ModelTail.of(run) for run in runs if (run.folder / "queries.parquet").is_file()]


def table(tails: Sequence[ModelTail]) -> Table:
    """A line a run."""
    shown = Table(title="Tail latency at a fixed policy", title_justify="left", title_style="bold")
    lines = [tail.cells() for tail in tails]
    for name in lines[0]:
        shown.add_column(name, justify="left" if name in ("model", "run") else "right")
    for line in lines:
        shown.add_row(*line.values())
    return shown


def tail_by_model(tails: Sequence[ModelTail]) -> Figure:
    """p50, p95 (with its interval) and p99 of the runs beside their SLAs; log scale."""
    figure = Figure(figsize=(7.2, 0.45 * len(tails) + 1.7), layout="constrained")
    axes = figure.add_subplot()
    for y, tail in enumerate(reversed(tails)):
        s = tail.summary
        shade = color(tail.model)
        values = s.p50_ms.value, s.p95_ms.value, s.p99_ms.value
        low = s.p95_ms.low if math.isfinite(s.p95_ms.low) else values[0]
        high = s.p95_ms.high if math.isfinite(s.p95_ms.high) else values[-1]
        axes.hlines(y, values[0], values[-1], shade, alpha=0.35, linewidth=2)
        axes.hlines(y, low, high, shade, alpha=0.5, linewidth=7)
        for marker, value in zip(MARKERS.values(), values, strict=True):
            axes.plot(value, y, marker, color=shade, markersize=5)
        axes.plot(s.sla_ms, y, "|", color=SLA_SHADE, markersize=16, markeredgewidth=2)
    for name, marker in MARKERS.items():
        axes.plot([], [], marker, color="black", markersize=5, label=name)
    axes.plot([], [], color="black", linewidth=7, alpha=0.3, label="95 % interval of p95")
    axes.plot([], [], "|", color=SLA_SHADE, markersize=12, markeredgewidth=2, label="SLA (p95)")
    legend_below(figure, 5, size=8)
    axes.set_yticks(range(len(tails)), [tail.name for tail in reversed(tails)])
    title = "Tail latency by model at a fixed policy"
    finish(axes, "latency from the intended arrival (ms)", "", title, log="x")
    return figure


def main(argv: Sequence[str]) -> int:
    """Command line; returns the exit code."""
    folder = Path(*argv[:1])
    tails = load(folder) if len(argv) == 1 else []
    if not tails:
        problem = "expected one argument, a folder with runs (run.json) in it"
        sys.stderr.write(f"experiments/tail_latency/plot.py: {problem}\n")
        return 2
    file = folder / "tail_latency.png"
    tail_by_model(tails).savefig(file, dpi=120)
    out = console()
    out.print(table(tails))
    out.print(f"Figure: {file}", soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
