#!/usr/bin/env python3
"""RecPipe's accelerator: its released model against its published runs, and what each correction of it changes.

python experiments/recpipe/accelerator.py [--queries 20000] [--out FOLDER]

Service times of all published designs (figures 12 and 13) are computed and compared; every design is then run in
virtual time, on the release's whole-ms gaps and on Poisson arrivals. service.csv, designs.csv, best.csv,
corrections.csv, accelerator.png (p95 against rate; area and power; corrections); some seconds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numba
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from accelerator import rpaccel
from accelerator.rpaccel import RANKERS, RELEASED_ARRAYS, Corrections, shared, stage_parts, stage_s
from infra.arrivals import draw_gaps_ns
from infra.clock import NS_PER_MS
from infra.config import LoadConfig
from infra.figures import plain_log, style
from infra.report import console, frame
from infra.rng import stream
from models.inputs.stack_distance import Locality, locality_of
from models.inputs.zipf import draw_rows

HERE = Path(__file__).resolve().parent
NAMES = {"dim_4_0": "rm-small", "dim_16": "rm-med", "dim_32_0": "rm-large"}
GAPS = ("legacy", "exponential")
LIST_ITEMS = 64  # of the answer
RELEASED_QUERIES = 2000  # of a published run
SCALING_QPS = 250.0  # of figure 13
WORST_MS = 500.0  # what the release calls unachievable
TABLE_ROWS, N_IDS, ZIPF_ALPHA = 1_000_000, 1_000_000, 1.05  # of the stream whose misses stand for the cache's
N_SUB_BATCHES = 4
FloatArray = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Design:
    """A pipeline on sub-arrays: per stage the ranker, items in, sub-arrays a chip, and how many are its own."""

    rankers: tuple[str, ...]
    items: tuple[int, ...]
    sub_arrays: tuple[int, ...]
    engines: tuple[int, ...]

    @property
    def label(self) -> str:
        """Sub-arrays a chip x engines, stage by stage."""
        return f"{','.join(map(str, self.sub_arrays))} x {','.join(map(str, self.engines))}"

    def stage_ms(self, fixes: Corrections, miss: Sequence[float]) -> list[float]:
        """Service time of each stage for one query."""
        times = []
        for i, (name, n_items, n_arrays) in enumerate(zip(self.rankers, self.items, self.sub_arrays, strict=True)):
            array, last = RELEASED_ARRAYS[n_arrays], i == len(self.items) - 1
            n_kept = (LIST_ITEMS if last else self.items[i + 1]) if fixes.top_k_unit else 0
            parts = stage_parts(RANKERS[name], n_items, n_kept, array, fixes, miss[i], first=i == 0, last=last)
            times.append(stage_s(parts, array) * 1e3)
        return times


def designs_of(rows: pd.DataFrame) -> list[Design]:
    """The published designs, each once."""
    columns = rows[["models", "items", "sub_arrays", "engines"]].drop_duplicates().astype(str)
    return [
        Design(tuple(NAMES[name] for name in models.split("+")), _plus(items), _plus(arrays), _plus(engines))
        for models, items, arrays, engines in columns.itertuples(index=False)
    ]


def _plus(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in text.split("+"))


@numba.njit(cache=True)
def departures_ns(arrival_ns: Int64Array, n_engines: int, service_ns: int) -> Int64Array:
    """When each query leaves a FIFO of engines that all take equally long: order is kept."""
    out = np.empty_like(arrival_ns)
    for i in range(len(arrival_ns)):
        begin = arrival_ns[i]
        if i >= n_engines and out[i - n_engines] > begin:
            begin = out[i - n_engines]
        out[i] = begin + service_ns
    return out


def p95_ms(stage_ms: Sequence[float], engines: Sequence[int], arrival_ns: Int64Array) -> float:
    """Of a tandem of such stages."""
    at = arrival_ns
    for ms, n_engines in zip(stage_ms, engines, strict=True):
        at = departures_ns(at, n_engines, round(ms * NS_PER_MS))
    return float(np.quantile(at - arrival_ns, 0.95)) / NS_PER_MS


def arrivals_ns(process: str, rate_qps: float, n: int) -> Int64Array:
    """Whole-ms gaps as released, or Poisson arrivals."""
    gaps = draw_gaps_ns(LoadConfig(arrival_process=process), rate_qps, n, stream(7, process))
    return np.cumsum(gaps)


def miss_rates(design: Design, fixes: Corrections) -> list[float]:
    """Of an LRU cache of the sub-array's size over a Zipf stream, for the rows of each stage's width."""
    rates = []
    for name, n_arrays in zip(design.rankers, design.sub_arrays, strict=True):
        array = RELEASED_ARRAYS[n_arrays]
        own = shared(array) if fixes.partitioned_sram else array
        rows = own.cache_bytes / (rpaccel.FLOAT_BYTES * RANKERS[name].width)
        rates.append(1 - float(_locality().hit_rate(int(rows))))
    return rates


@cache
def _locality() -> Locality:
    return locality_of(draw_rows(TABLE_ROWS, ZIPF_ALPHA, N_IDS, stream(3, "ids")))


def compare_services(rows: pd.DataFrame) -> pd.DataFrame:
    """Published and computed service time of every published run; the last column is their relative difference."""
    computed = []
    for run in rows.itertuples(index=False):
        one = designs_of(pd.DataFrame([run]))[0]
        computed.append(sum(one.stage_ms(rpaccel.RELEASED, [0.5] * len(one.items))))
    table = rows[["figure", "stages", "models", "items", "sub_arrays", "engines", "service_ms"]].copy()
    table["computed_ms"] = computed
    table["error"] = table["computed_ms"] / table["service_ms"] - 1
    return table


def run_designs(rows: pd.DataFrame, n_queries: int) -> pd.DataFrame:
    """Every design at every published rate: p95 as published, on whole-ms gaps, on Poisson arrivals, corrected (all but
    sub-batches)."""
    lines = []
    all_fixes = replace(Corrections.all(), sub_batches=False)  # a query is one task of each stage here
    known = {}
    for design in designs_of(rows):
        known[design] = (design.stage_ms(rpaccel.RELEASED, [0.5] * len(design.items)),
                         design.stage_ms(all_fixes, miss_rates(design, all_fixes)))  # fmt: skip
    for run in rows.itertuples(index=False):
        design = designs_of(pd.DataFrame([run]))[0]
        rate = 1e3 / run.gap_ms
        released, corrected = known[design]
        poisson = arrivals_ns("exponential", rate, n_queries)
        lines.append({
            "figure": run.figure, "stages": run.stages, "items": run.items, "design": design.label, "rate_qps": rate,
            "published p95_ms": run.p95_ms,
            "whole-ms gaps": p95_ms(released, design.engines, arrivals_ns("legacy", rate, RELEASED_QUERIES)),
            "Poisson": p95_ms(released, design.engines, poisson),
            "Poisson, corrected": p95_ms(corrected, design.engines, poisson),
        })  # fmt: skip
    return pd.DataFrame(lines)


def best_by_rate(runs: pd.DataFrame) -> pd.DataFrame:
    """The lowest p95 over all designs of so many stages at each rate (figure 12); inf: above WORST_MS."""
    own = runs[runs["figure"] == 12]
    kinds = ["published p95_ms", "whole-ms gaps", "Poisson", "Poisson, corrected"]
    best = own.groupby(["stages", "rate_qps"])[kinds].min().reset_index()
    return best.mask(best[kinds].gt(WORST_MS).reindex(columns=best.columns, fill_value=False), np.inf)


def by_items(runs: pd.DataFrame) -> pd.DataFrame:
    """The lowest p95 over all designs at SCALING_QPS by the number of items (figure 13)."""
    own = runs[(runs["figure"] == 13) & np.isclose(runs["rate_qps"], SCALING_QPS)]
    first = own["items"].astype(str).str.split("+").str[0].astype(int)
    kinds = ["published p95_ms", "whole-ms gaps", "Poisson", "Poisson, corrected"]
    return own.assign(items=first).groupby(["stages", "items"])[kinds].min().reset_index()


def corrections_of(designs: dict[str, Design]) -> pd.DataFrame:
    """Service time of each design: as released, with each correction alone, with all of them one after the other."""
    lines = []
    names = [field.name for field in fields(Corrections)]
    for label, design in designs.items():
        base = total_ms(design, rpaccel.RELEASED)
        lines.append({"design": label, "correction": "as released", "alone_ms": base, "together_ms": base})
        for i, name in enumerate(names):
            alone, together = Corrections(**{name: True}), Corrections(**dict.fromkeys(names[: i + 1], True))
            lines.append({"design": label, "correction": name, "alone_ms": total_ms(design, alone),
                          "together_ms": total_ms(design, together)})  # fmt: skip
    return pd.DataFrame(lines)


def total_ms(design: Design, fixes: Corrections) -> float:
    """Time of one query through an idle pipeline."""
    n = N_SUB_BATCHES if fixes.sub_batches else 1
    part = replace(design, items=tuple(-(-n_items // n) for n_items in design.items))
    return rpaccel.pipelined_s(part.stage_ms(fixes, miss_rates(design, fixes)), n)


def draw(best: pd.DataFrame, scaling: pd.DataFrame, corrections: pd.DataFrame) -> Figure:
    """p95 against rate and against items; area and power; service time by correction."""
    figure = Figure(figsize=(13, 8.8), layout="constrained")
    (tails, items), (chip, fixes) = figure.subplots(2, 2)
    for n_stages, own in best.groupby("stages"):
        shade = ("#17507d", "#d1495b", "#2a9d8f")[int(n_stages) - 1]
        for kind, line in (("published p95_ms", "s"), ("Poisson", "-"), ("Poisson, corrected", ":")):
            finite = own[np.isfinite(own[kind])]
            word = kind.split(" ")[0] if kind.startswith("published") else kind
            tails.plot(
                finite["rate_qps"], finite[kind], line, color=shade, markersize=4, label=f"{n_stages} stages, {word}"
            )
    plain_log(tails, "x")
    plain_log(tails, "y")
    style(tails, "arrivals per second", "p95 of the best design (ms)", "Figure 12: published on whole-ms gaps")
    tails.legend(fontsize=7, frameon=False)
    for n_stages, own in scaling.groupby("stages"):
        shade = ("#17507d", "#d1495b")[int(n_stages) - 1]
        for kind, line in (("published p95_ms", "s"), ("Poisson", "-"), ("Poisson, corrected", ":")):
            finite = own[own[kind] < WORST_MS]
            items.plot(finite["items"], finite[kind], line, color=shade, markersize=4)
    plain_log(items, "y")
    style(items, "items of a query", "p95 of the best design (ms)", f"Figure 13: {SCALING_QPS:g} arrivals per second")
    _chip(chip)
    for i, (label, own) in enumerate(corrections.groupby("design", sort=False)):
        fixes.barh(
            np.arange(len(own)) + 0.2 - 0.4 * i, own["together_ms"], 0.38, label=label, color=("#17507d", "#d1495b")[i]
        )
    names = corrections["correction"].drop_duplicates()
    fixes.set_yticks(range(len(names)), ["as released", *(f"+ {name.replace('_', ' ')}" for name in names[1:])])
    fixes.invert_yaxis()
    style(fixes, "time of one query, idle pipeline (ms)", "", "Corrections, one after the other")
    fixes.legend(fontsize=7, frameon=False)
    return figure


def _chip(axes: Axes) -> None:
    """Area of the baseline and of RPAccel by kind of block, with their power."""
    low = np.zeros(2)
    chips = [rpaccel.area_mm2(rpaccel.BASELINE_CHIP), rpaccel.area_mm2(rpaccel.RPACCEL_CHIP)]
    for i, block in enumerate(dict.fromkeys([*chips[0], *chips[1]])):
        heights = np.array([chip.get(block, 0.0) for chip in chips])
        axes.bar(["baseline", "RPAccel"], heights, 0.6, bottom=low, label=block, color=f"C{i}")
        low += heights
    powers = [sum(rpaccel.power_mw(blocks).values()) / 1e3 for blocks in (rpaccel.BASELINE_CHIP, rpaccel.RPACCEL_CHIP)]
    for i, watts in enumerate(powers):
        axes.annotate(f"{low[i]:.1f} mm2\n{watts:.2f} W", (i, low[i] + 0.5), ha="center", fontsize=8)
    axes.set_ylim(0, low.max() * 1.45)
    style(axes, "", "area (mm2)", "Figure 11: published synthesis")
    axes.legend(fontsize=7, frameon=False, ncols=2, loc="upper center")


def main(argv: Sequence[str]) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=20_000, help="of a run on Poisson arrivals")
    parser.add_argument("--out", type=Path, default=HERE)
    args = parser.parse_args(argv)
    if args.queries < 100:
        parser.error(f"--queries is {args.queries}; expected at least 100")
    args.out.mkdir(parents=True, exist_ok=True)
    rows = pd.read_csv(HERE / "published_accelerator.csv", comment="#")
    services, runs = compare_services(rows), run_designs(rows, args.queries)
    best, scaling = best_by_rate(runs), by_items(runs)
    two = Design(("rm-small", "rm-large"), (4096, 512), (4, 4), (2, 2))
    corrections = corrections_of(
        {"1 stage: RM-large": Design(("rm-large",), (4096,), (1,), (1,)), "2 stages: 4,4 x 2,2": two}
    )
    for name, table in (
        ("service", services),
        ("designs", runs),
        ("best", best),
        ("scaling", scaling),
        ("corrections", corrections),
    ):
        table.to_csv(args.out / f"{name}.csv", index=False, float_format="%.6g")
    draw(best, scaling, corrections).savefig(args.out / "accelerator.png", dpi=110)
    out = console()
    worst = services["error"].abs().max()
    out.print(f"Service times of {len(services)} published runs: computed within {worst:.1e} (relative)")
    out.print(frame("Lowest p95 (ms) over all designs by rate, figure 12", best))
    out.print(frame(f"Lowest p95 (ms) by items at {SCALING_QPS:g} QPS, figure 13", scaling))
    out.print(frame("Time of one query through an idle pipeline", corrections))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
