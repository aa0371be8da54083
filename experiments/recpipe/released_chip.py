#!/usr/bin/env python3
"""RecPipe's accelerator: its released model against its published runs, and its faults corrected.

python experiments/recpipe/released_chip.py [--queries 20000] [--cache FOLDER] [--quick]
    [--out FOLDER]

Service times of all published designs (figures 12 and 13) are computed and compared; every design
is then run in virtual time, on the release's whole-ms gaps and on Poisson arrivals; corrected, also
with sub-batches, with the miss rates of its caches on the ids that its stages get of the synthetic
clicks. service.csv, designs.csv, best.csv, scaling.csv, corrections.csv, misses.csv,
accelerator.png (p95 against rate; area and power; corrections); half a minute, two more to train.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from accelerator import rpaccel
from accelerator.rpaccel import RELEASED, RELEASED_ARRAYS, Corrections
from experiments.common.panels import finish, legend
from experiments.common.study import Study, View, progress
from experiments.recpipe.chains import Scored
from experiments.recpipe.chip import (
    CHIP_NAMES,
    ChipDesign,
    Misses,
    TimedDesign,
    arrivals_ns,
    cache_rows,
)
from experiments.recpipe.datasets import rankers
from experiments.recpipe.datasets.published import RELEASED_NAMES, WORST_MS, published
from experiments.recpipe.datasets.rankers import CacheOptions, RankerSource
from experiments.recpipe.drawing import SHADES, line, words
from infra.settings.fields import flag

RELEASED_QUERIES = 2000  # of a published run
SCALING_QPS = 250.0  # of figure 13
N_SUB_BATCHES = 4
Pools = tuple[tuple[int, int], ...]
POOLS = ((4096, 64), (12_288, 24))  # candidates and queries whose ids the caches see
QUICK_POOLS = ((4096, 12), (12_288, 4))
KINDS = ["published p95_ms", "whole-ms gaps", "Poisson", "Poisson, corrected", "+ sub-batches"]
LINES = {"published p95_ms": "s", "Poisson": "-", "Poisson, corrected": ":", "+ sub-batches": "--"}


@dataclass(frozen=True)
class ChipOptions(CacheOptions):
    """The study's flags."""

    queries: int = flag(20_000, "of a run on Poisson arrivals", low=100)


@dataclass(frozen=True)
class ChipCase:
    """Everything on so many queries; the caches see those of the pools."""

    source: RankerSource
    pools: Pools
    n_queries: int


@dataclass(frozen=True)
class CorrectionRow:
    """Time of one query with a correction alone, and with all up to it."""

    design: str
    correction: str
    alone_ms: float
    together_ms: float


@dataclass(frozen=True)
class MissRow:
    """Miss rate of a cache."""

    items: str
    ranker: str
    sub_arrays: int
    cache_rows: int
    miss: float


def design_of(run: Any) -> ChipDesign:
    """The design of a published run."""
    names = tuple(CHIP_NAMES[RELEASED_NAMES[name]] for name in run.models.split("+"))
    items, sub_arrays, engines = (
        tuple(int(n) for n in str(column).split("+"))
        for column in (run.items, run.sub_arrays, run.engines)
    )
    return ChipDesign(names, items, sub_arrays, engines)


def compare_services(rows: pd.DataFrame) -> pd.DataFrame:
    """Published and computed service time of every published run, and their relative difference."""
    columns = ["figure", "stages", "models", "items", "sub_arrays", "engines", "service_ms"]
    table = rows[columns].copy()
    designs = [design_of(run) for run in rows.itertuples(index=False, name="Run")]
    table["computed_ms"] = [sum(TimedDesign.of(design, RELEASED).stage_ms) for design in designs]
    table["error"] = table["computed_ms"] / table["service_ms"] - 1
    return table


def run_designs(rows: pd.DataFrame, n_queries: int, misses: Misses) -> pd.DataFrame:
    """p95 of every design at every published rate, as published and in virtual time.

    On whole-ms gaps, on Poisson arrivals, corrected in all but sub-batches, and with them.
    """
    whole = replace(Corrections.all(), sub_batches=False)
    timed = {}
    lines = []
    for run in rows.itertuples(index=False, name="Run"):
        design = design_of(run)
        if design not in timed:
            cut = replace(design, n_sub_batches=N_SUB_BATCHES)
            timed[design] = (
                TimedDesign.of(design, RELEASED),
                TimedDesign.of(design, whole, misses),
                TimedDesign.of(cut, Corrections.all(), misses),
            )
        released, corrected, parts = timed[design]
        rate_qps = 1e3 / run.gap_ms
        gaps = arrivals_ns("legacy", rate_qps, RELEASED_QUERIES)
        poisson = arrivals_ns("exponential", rate_qps, n_queries)
        tails = [
            run.p95_ms,
            released.p95_ms(gaps),
            released.p95_ms(poisson),
            corrected.p95_ms(poisson),
            parts.p95_ms(poisson),
        ]
        lines.append([run.figure, run.stages, run.items, design.label, rate_qps, *tails])
    return pd.DataFrame(lines, columns=["figure", "stages", "items", "design", "rate_qps", *KINDS])


def best_by_rate(runs: pd.DataFrame) -> pd.DataFrame:
    """The lowest p95 over all designs by stages and rate (figure 12); inf: above WORST_MS."""
    best = runs[runs["figure"] == "12"].groupby(["stages", "rate_qps"])[KINDS].min()
    return best.mask(best > WORST_MS, np.inf).reset_index()


def by_items(runs: pd.DataFrame, kinds: Sequence[str] = KINDS) -> pd.DataFrame:
    """The lowest p95 over all designs at SCALING_QPS by the number of items (figure 13)."""
    scaling = runs[(runs["figure"] == "13") & np.isclose(runs["rate_qps"], SCALING_QPS)]
    first = scaling["items"].astype(str).str.split("+").str[0].astype(int)
    return scaling.assign(items=first).groupby(["stages", "items"])[[*kinds]].min().reset_index()


def corrections_of(designs: dict[str, ChipDesign], misses: Misses) -> list[CorrectionRow]:
    """Service time of each design: as released, with each correction alone, with all up to it."""

    def idle_ms(design: ChipDesign, fixes: Corrections) -> float:
        n_parts = N_SUB_BATCHES if fixes.sub_batches else 1
        return TimedDesign.of(replace(design, n_sub_batches=n_parts), fixes, misses).idle_ms()

    rows = []
    names = [field.name for field in fields(Corrections)]
    for label, design in designs.items():
        released_ms = idle_ms(design, RELEASED)
        rows.append(CorrectionRow(label, "as released", released_ms, released_ms))
        for i, name in enumerate(names, start=1):
            alone_ms = idle_ms(design, Corrections(**{name: True}))
            together_ms = idle_ms(design, Corrections(**dict.fromkeys(names[:i], True)))
            rows.append(CorrectionRow(label, name, alone_ms, together_ms))
    return rows


def misses_of(misses: Misses) -> list[MissRow]:
    """Miss rates of the first stage, and behind a small ranker that lets so many items through."""
    streams: dict[str, tuple[tuple[str, ...], tuple[int, ...]]] = {
        "all 4096 candidates": ((), (4096,)),
        **{f"best {n} of small": (("rm-small",), (4096, n)) for n in (1024, 512, 128)},
    }
    sizes = itertools.product(streams.items(), CHIP_NAMES.values(), RELEASED_ARRAYS.items())
    rows = []
    for (label, (before, items)), ranker, (n_arrays, array) in sizes:
        split_sram = replace(RELEASED, partitioned_sram=True)
        n_rows = cache_rows(array, split_sram, rpaccel.RANKERS[ranker].width)
        rows.append(MissRow(label, ranker, n_arrays, n_rows, misses.rate(before, items, n_rows)))
    return rows


def draw(best: pd.DataFrame, scaling: pd.DataFrame, corrections: pd.DataFrame) -> Figure:
    """p95 against rate and against items; area and power; service time by correction."""
    figure = Figure(figsize=(13, 8.8), layout="constrained")
    (tails, items), (chip, fixes) = figure.subplots(2, 2)
    _tails(tails, best, "rate_qps")
    _tails(items, scaling, "items")
    y = "p95 of the best design (ms)"
    finish(tails, "arrivals per second", y, "Figure 12: published on whole-ms gaps", "xy")
    legend(tails, 7)
    title = f"Figure 13: {SCALING_QPS:g} arrivals per second"
    finish(items, "items of a query", y, title, "y")
    _chip(chip)
    for i, (label, part) in enumerate(corrections.groupby("design", sort=False)):
        places = np.arange(len(part)) + 0.2 - 0.4 * i
        fixes.barh(places, part["together_ms"], 0.38, label=label, color=SHADES[i + 1])
    names = corrections["correction"].drop_duplicates().str.replace("_", " ")
    fixes.set_yticks(range(len(names)), ["as released", *("+ " + names[1:])])
    fixes.invert_yaxis()
    x = "time of one query, idle pipeline (ms)"
    finish(fixes, x, "", "Corrections, one after the other")
    legend(fixes, 7)
    return figure


def _tails(axes: Axes, rows: pd.DataFrame, x: str) -> None:
    for n_stages, part in rows.groupby("stages"):
        for kind, mark in LINES.items():
            able = part[part[kind] < WORST_MS]
            label = f"{words(n_stages)}, {kind.removesuffix(' p95_ms')}"
            line(axes, able, x, kind, mark, color=SHADES[n_stages], label=label)


def _chip(axes: Axes) -> None:
    """Area of the baseline and of RPAccel by kind of block, with their power."""
    chips = {"baseline": rpaccel.BASELINE_CHIP, "RPAccel": rpaccel.RPACCEL_CHIP}
    areas = pd.DataFrame({name: rpaccel.area_mm2(blocks) for name, blocks in chips.items()})
    tops = areas.fillna(0.0).cumsum()
    for i, block in enumerate(areas.index):
        below = tops.loc[block] - areas.fillna(0.0).loc[block]
        axes.bar([*chips], areas.loc[block], 0.6, bottom=below, label=block, color=f"C{i}")
    for i, blocks in enumerate(chips.values()):
        watts = sum(rpaccel.power_mw(blocks).values()) / 1e3
        mm2 = tops.iloc[-1, i]
        axes.annotate(f"{mm2:.1f} mm2\n{watts:.2f} W", (i, mm2 + 0.5), ha="center", fontsize=8)
    axes.set_ylim(0, tops.max(axis=None) * 1.45)
    finish(axes, "", "area (mm2)", "Figure 11: published synthesis")
    legend(axes, 7, ncols=2, loc="upper center")


def cases(quick: bool, options: ChipOptions, pools: Pools = POOLS) -> list[ChipCase]:
    """One case: designs share their caches' streams."""
    source = RankerSource("clicks", quick, options.cache)
    return [ChipCase(source, QUICK_POOLS if quick else pools, options.queries)]


def scored_pools(case: ChipCase) -> Misses:
    """The case's pools, with the scores of all their candidates."""
    data = rankers.clicks(case.source, progress(), case.pools)
    with progress().step("scores"):
        return Misses(tuple(Scored.of(pool) for pool in data))


def run(case: ChipCase) -> dict[str, Any]:
    """The rows of all tables."""
    rows = published("accelerator")
    misses = scored_pools(case)
    with progress().step("designs"):
        runs = run_designs(rows, case.n_queries, misses)
    designs = {
        "1 stage: RM-large": ChipDesign(("rm-large",), (4096,), (1,), (1,)),
        "2 stages: 4,4 x 2,2": ChipDesign(("rm-small", "rm-large"), (4096, 512), (4, 4), (2, 2)),
    }
    tables = {
        "service": compare_services(rows),
        "designs": runs,
        "best": best_by_rate(runs),
        "scaling": by_items(runs),
    }
    return {
        **{name: table.to_dict("records") for name, table in tables.items()},
        "corrections": corrections_of(designs, misses),
        "misses": misses_of(misses),
    }


STUDY = Study(
    "recpipe_released_chip",
    "Is the released model of RecPipe's accelerator what was published, and what do its faults do?",
    cases,
    run,
    efforts={"quick": True, "full": False},
    options=ChipOptions,
    float_format="%.6g",
    figures={"accelerator": View(draw, "best", "scaling", "corrections")},
    report={
        "Service times of published runs: relative difference, at most": View(
            lambda services: services[["error"]].abs().max(), "service"
        ),
        "Lowest p95 (ms) over all designs by rate, figure 12": View(pd.DataFrame, "best"),
        f"Lowest p95 (ms) by items at {SCALING_QPS:g} QPS, figure 13": View(
            pd.DataFrame, "scaling"
        ),
        "Time of one query through an idle pipeline": View(pd.DataFrame, "corrections"),
    },
)

if __name__ == "__main__":
    STUDY.main()
