#!/usr/bin/env python3
"""How fast can RPAccel rank without losing quality?

RecPipe's figures 13 and 14, quality computed and never assumed.

python experiments/recpipe/iso_quality.py [--queries 20000] [--cache FOLDER] [--quick] [--out FOLDER]

Every chain of the trained click rankers on every split of the chip, whole queries or sub-batches,
at every published rate: the corrected model, caches on real ids, Poisson arrivals in virtual time.
at_floor.csv: lowest p95 by stages and rate among the chains whose NDCG@64 on clicks keeps the
published share of the large ranker's; figure14.csv: beside the published ones; frontier.csv: NDCG
and lowest p95 of every chain at 400 QPS; figure13.csv: quality and p95 by items; parts.csv: what
sub-batches cost in quality. iso_quality.png; two minutes, two more to train.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from accelerator.rpaccel import Corrections, sub_array_splits
from experiments.recpipe.accelerator import QUICK_POOLS, WORST_MS
from experiments.recpipe.chip import CHIP_NAMES, Design, Int64Array, Misses, arrivals_ns, p95_ms
from experiments.recpipe.datasets import rankers
from experiments.recpipe.quality import KEPT, Chain, Scored, chains, quality, quality_of
from infra.clock import NS_PER_MS, NS_PER_S
from infra.progress import OnFraction, Progress
from infra.ranking import mean_with_interval, paired
from infra.results.figures import plain_log, style
from infra.results.report import console, frame

HERE = Path(__file__).resolve().parent
K, ITEMS = 64, 4096
FLOOR = (
    0.9225 / 0.92469
)  # of the large ranker's quality: the published floor over the published best
PARTS = (1, 2, 4, 8, 16)  # sub-batches of a query
RATES_QPS = (100.0, 200.0, 400.0, 1000.0, 2000.0)
FRONTIER_QPS, SCALING_QPS = 400.0, 250.0
POOLS = ((ITEMS, 240), (12_288, 48))
SCALED = {
    4096: 512,
    6140: 1024,
    8192: 1024,
    10_240: 1280,
    12_288: 1280,
}  # items: what the first of two stages hands on
LEVELS = {"low": 15.0, "medium": 2.5, "high": 0.5}  # published: ms between queries, at most
SHADES = ("#17507d", "#d1495b", "#2a9d8f")


@dataclass(frozen=True)
class Trial:
    """A chain on a split of the chip, and how long a sub-batch takes in each stage."""

    chain: Chain
    design: Design
    stage_ms: tuple[float, ...]

    def carries(self, rate_qps: float) -> bool:
        """Whether every stage has more time than work."""
        n = self.design.n_sub_batches
        return all(
            rate_qps * n * ms * NS_PER_MS / NS_PER_S < engines
            for ms, engines in zip(self.stage_ms, self.design.engines, strict=True)
        )

    def p95_ms(self, arrival_ns: Int64Array, rate_qps: float) -> float:
        """inf where a stage has more work than time."""
        if not self.carries(rate_qps):
            return np.inf
        return p95_ms(self.stage_ms, self.design.engines, arrival_ns, self.design.n_sub_batches)


def designs_of(own: Chain, n_items: int) -> Iterator[Design]:
    """Every split of the chip that the release tries, evenly shared among the stages; whole queries
    and sub-batches.
    """
    names = tuple(CHIP_NAMES[name] for name in own.rankers)
    n_stages = len(own.rankers)
    for split in sub_array_splits(n_stages):
        engines = tuple(max(n // n_stages, 1) for n in split)
        for n_parts in PARTS:
            yield Design(names, (n_items, *own.keeps[:-1]), split, engines, n_parts)


def trials_of(own: Chain, n_items: int, misses: Misses) -> list[Trial]:
    """Service times with all corrections."""
    fixes = Corrections.all()
    return [
        Trial(own, design, tuple(design.stage_ms(fixes, misses.of(design, fixes))))
        for design in designs_of(own, n_items)
    ]


@cache
def poisson(rate_qps: float, n_queries: int) -> Int64Array:
    """The same arrivals for every design."""
    return arrivals_ns("exponential", rate_qps, n_queries)


def measure(
    scored: Scored, misses: Misses, n_queries: int, on_fraction: OnFraction
) -> pd.DataFrame:
    """p95 of every chain, split and rate, with the quality of the chain as its filters work: whole
    or in parts.
    """
    lines = []
    every = [*chains(KEPT["clicks"], K)]
    for i, own in enumerate(every):
        for trial in trials_of(own, ITEMS, misses):
            ndcg = mean_with_interval(quality_of(own, scored, trial.design.n_sub_batches)["ndcg"])
            lines += [
                {
                    "stages": len(own.rankers),
                    "chain": own.label,
                    "design": trial.design.label,
                    "sub_batches": trial.design.n_sub_batches,
                    "rate_qps": rate,
                    "p95_ms": trial.p95_ms(poisson(rate, n_queries), rate),
                    "ndcg": ndcg.value,
                    "ndcg_low": ndcg.low,
                    "ndcg_high": ndcg.high,
                }
                for rate in RATES_QPS
            ]
        on_fraction((i + 1) / len(every), own.label)
    return pd.DataFrame(lines)


def parts_of(scored: Scored) -> pd.DataFrame:
    """What filters lose that see only a sub-batch, query by query against filters that see all."""
    lines = []
    for own, n in itertools.product(chains(KEPT["clicks"], K), PARTS[1:]):
        if len(own.rankers) > 1:
            whole, cut = (quality_of(own, scored, parts)["ndcg"] for parts in (1, n))
            loss = paired(cut, whole).difference
            lines.append(
                {
                    "chain": own.label,
                    "sub_batches": n,
                    "ndcg": float(cut.mean()),
                    "less_than_whole": loss.value,
                    "less_low": loss.low,
                    "less_high": loss.high,
                }
            )
    return pd.DataFrame(lines)


def lowest(rows: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """The line with the lowest p95 of each group; above WORST_MS it counts as not carried: inf, no
    design.
    """
    best = rows.loc[rows.groupby(by, sort=False)["p95_ms"].idxmin()].copy()
    over = best["p95_ms"] > WORST_MS
    best["p95_ms"] = best["p95_ms"].mask(over, np.inf)
    hidden = [name for name in ("chain", "design") if name not in by]
    best[hidden] = best[hidden].mask(over, "-")
    return best


def at_floor(rows: pd.DataFrame, floor: float) -> pd.DataFrame:
    """The lowest p95 by stages and rate, of what has the quality."""
    return lowest(rows[rows["ndcg"] >= floor], ["stages", "rate_qps"])


def published_levels() -> pd.DataFrame:
    """Figure 14 from the release's points: lowest p95 of 92.25 % or more on CPUs and with a GPU at
    each level of load, and RPAccel's, whose quality was a constant there.
    """
    pipelines = pd.read_csv(HERE / "published_pipelines.csv", comment="#", dtype={"figure": str})
    pipelines = pipelines[(pipelines["figure"] == "7/8") & (pipelines["dcg64"] >= 0.9225)]
    with_gpu = pipelines["devices"].str.contains("gpu")
    accel = pd.read_csv(HERE / "published_accelerator.csv", comment="#")
    accel = accel[accel["figure"] == 12]
    kinds = {
        "CPU, published": pipelines[~with_gpu],
        "GPU, published": pipelines[with_gpu],
        "RPAccel, published": accel,
    }
    lines = []
    for kind, rows in kinds.items():
        for n_stages, own in rows.groupby("stages"):
            lines += [
                {"kind": kind, "stages": n_stages, "level": level, **_at_gap(own, gap_ms)}
                for level, gap_ms in LEVELS.items()
            ]
    return pd.DataFrame(lines)


def _at_gap(rows: pd.DataFrame, gap_ms: float) -> dict[str, float]:
    """The lowest p95 at this rate or above, as published, and its rate."""
    loaded = rows[rows["gap_ms"] <= gap_ms]
    if loaded.empty or loaded["p95_ms"].min() > WORST_MS:
        return {"rate_qps": np.nan, "p95_ms": np.inf}
    best = loaded.loc[loaded["p95_ms"].idxmin()]
    return {"rate_qps": 1e3 / best["gap_ms"], "p95_ms": best["p95_ms"]}


def figure_14(rows: pd.DataFrame, floor: float) -> pd.DataFrame:
    """Published and ours, by level of load."""
    rates = dict(
        zip(LEVELS, (100.0, 400.0, 2000.0), strict=True)
    )  # the published RPAccel's at these levels
    kinds = {"RPAccel, here": rows, "RPAccel, here, whole queries": rows[rows["sub_batches"] == 1]}
    lines = [
        {
            "kind": kind,
            "stages": line.stages,
            "level": level,
            "rate_qps": rate,
            "p95_ms": line.p95_ms,
        }
        for kind, own in kinds.items()
        for level, rate in rates.items()
        for line in at_floor(own[own["rate_qps"] == rate], floor).itertuples(index=False)
    ]
    return pd.concat((published_levels(), pd.DataFrame(lines)))


def figure_13(scored: Scored, misses: Misses, n_queries: int) -> pd.DataFrame:
    """Quality and lowest p95 by the number of candidates, large alone and small before large; the
    ideal list is the best of all candidates of the largest pools.
    """
    published = pd.read_csv(HERE / "published_pipelines.csv", comment="#", dtype={"figure": str})
    published = (
        published[published["figure"] == "13"].astype({"items": int}).set_index("items")["dcg64"]
    )
    lines = []
    for n_items, keep in SCALED.items():
        for own in (Chain(("large",), (K,)), Chain(("small", "large"), (keep, K))):
            found = {}
            for trial in trials_of(own, n_items, misses):
                found[trial.p95_ms(poisson(SCALING_QPS, n_queries), SCALING_QPS)] = trial
            p95 = min(found)
            n_parts = found[p95].design.n_sub_batches
            values = quality(own, scored, [np.arange(n_items)] * len(scored.data.queries), n_parts)[
                "ndcg"
            ]
            ndcg = mean_with_interval(values)
            lines.append(
                {
                    "stages": len(own.rankers),
                    "items": n_items,
                    "chain": own.label,
                    "design": found[p95].design.label,
                    "p95_ms": p95,
                    "ndcg": ndcg.value,
                    "ndcg_low": ndcg.low,
                    "ndcg_high": ndcg.high,
                    "published dcg64": published[n_items] if len(own.rankers) == 1 else np.nan,
                }
            )
    return pd.DataFrame(lines)


def draw(
    levels: pd.DataFrame, frontier: pd.DataFrame, scaling: pd.DataFrame, floor: float
) -> Figure:
    """Figure 14; quality against p95; figure 13."""
    figure = Figure(figsize=(14, 8.4), layout="constrained")
    (bars, front), (quality_axes, tails) = figure.subplots(2, 2)
    _bars(bars, levels)
    for n_stages, own in frontier.groupby("stages"):
        finite = own[np.isfinite(own["p95_ms"])]
        front.plot(
            finite["p95_ms"],
            finite["ndcg"],
            "o^s"[int(n_stages) - 1],
            color=SHADES[int(n_stages) - 1],
            label=f"{n_stages} stage{'s' * (n_stages > 1)}",
        )
    front.axhline(floor, color="black", linewidth=0.8, linestyle="--", label="floor")
    plain_log(front, "x")
    front.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    style(
        front,
        "lowest p95 (ms)",
        f"NDCG@{K} on clicks",
        f"Every chain at {FRONTIER_QPS:g} queries per second",
    )
    front.legend(frameon=False, fontsize=8)
    for n_stages, own in scaling.groupby("stages"):
        shade = SHADES[int(n_stages) - 1]
        name = ("large alone", "small, then large")[int(n_stages) - 1]
        quality_axes.plot(
            own["items"], own["ndcg"], ("o-", "^--")[int(n_stages) - 1], color=shade, label=name
        )
        quality_axes.fill_between(
            own["items"], own["ndcg_low"], own["ndcg_high"], color=shade, alpha=0.12
        )
        tails.plot(
            own["items"],
            own["p95_ms"],
            "o-",
            color=shade,
            label=f"{n_stages} stage{'s' * (n_stages > 1)}",
        )
    one = scaling[scaling["stages"] == 1]
    quality_axes.plot(
        one["items"],
        one["published dcg64"],
        "s:",
        color=SHADES[0],
        markersize=4,
        label="published: Criteo, its ideal 64 clicks",
    )
    style(
        quality_axes,
        "candidates of a query",
        f"NDCG@{K}",
        "Figure 13: the ideal is of all 12,288 candidates",
    )
    quality_axes.legend(frameon=False, fontsize=8)
    published = pd.read_csv(HERE / "scaling.csv")
    for n_stages, own in published.groupby("stages"):
        tails.plot(
            own["items"],
            own["published p95_ms"],
            "s:",
            color=SHADES[int(n_stages) - 1],
            markersize=4,
        )
    plain_log(tails, "y")
    style(
        tails,
        "candidates of a query",
        "lowest p95 (ms)",
        f"Figure 13 at {SCALING_QPS:g} queries per second; squares: published, whole-ms gaps",
    )
    tails.legend(frameon=False, fontsize=8)
    return figure


def _bars(axes: Axes, levels: pd.DataFrame) -> None:
    """Lowest p95 by level of load; a cross: not carried."""
    kinds = [*levels["kind"].unique()]
    hatch = dict(zip(kinds, ("", "..", "//", "xx", "oo"), strict=True))
    series = levels.drop_duplicates(["kind", "stages"])[["kind", "stages"]]
    width = 0.8 / len(series)
    for i, (kind, n_stages) in enumerate(series.itertuples(index=False)):
        own = (
            levels[(levels["kind"] == kind) & (levels["stages"] == n_stages)]
            .set_index("level")
            .reindex(LEVELS)
        )
        at = np.arange(len(LEVELS)) - 0.4 + (i + 0.5) * width
        shade = SHADES[int(n_stages) - 1]
        axes.bar(
            at,
            own["p95_ms"].where(np.isfinite(own["p95_ms"])),
            width * 0.9,
            color=shade,
            hatch=hatch[kind],
            edgecolor="white",
            linewidth=0.3,
            label=f"{kind}, {n_stages}",
        )
        missing = ~np.isfinite(own["p95_ms"].to_numpy())
        axes.plot(at[missing], np.full(missing.sum(), 1.0), "x", color=shade, markersize=4)
    axes.set_xticks(
        range(len(LEVELS)),
        [f"{level} ({1000 / gap:.0f} QPS or more)" for level, gap in LEVELS.items()],
    )
    plain_log(axes, "y")
    style(
        axes,
        "load",
        "lowest p95 (ms); cross: above 500",
        "Figure 14, legend with the number of stages",
    )
    axes.legend(frameon=False, fontsize=7, ncols=2, loc="upper right")


def main(argv: Sequence[str]) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--queries", type=int, default=20_000, help="of a run on Poisson arrivals")
    rankers.add_cache_flags(parser)
    parser.add_argument("--out", type=Path, default=HERE)
    args = parser.parse_args(argv)
    if args.queries < 100:
        parser.error(f"--queries is {args.queries}; expected at least 100")
    args.out.mkdir(parents=True, exist_ok=True)
    with Progress("auto") as progress:
        data = rankers.clicks(args, progress, QUICK_POOLS if args.quick else POOLS)
        with progress.step("scores"):
            scored, large = (Scored.of(own) for own in data)
        misses = Misses((scored, large))
        with progress.step("designs") as on_fraction:
            rows = measure(scored, misses, args.queries, on_fraction)
        scaling = figure_13(large, misses, args.queries)
    floor = FLOOR * mean_with_interval(quality_of(Chain(("large",), (K,)), scored)["ndcg"]).value
    best = at_floor(rows, floor)
    frontier = lowest(rows[rows["rate_qps"] == FRONTIER_QPS], ["stages", "chain"])
    levels = figure_14(rows, floor)
    tables = {
        "at_floor": best,
        "frontier": frontier,
        "parts": parts_of(scored),
        "figure14": levels,
        "figure13": scaling,
    }
    for name, table in tables.items():
        table.to_csv(args.out / f"{name}.csv", index=False, float_format="%.5g")
    draw(levels, frontier, scaling, floor).savefig(args.out / "iso_quality.png", dpi=110)
    out = console()
    out.print(frame(f"Lowest p95 with an NDCG@{K} of {floor:.4f} or more", best))
    wide = levels.pivot_table(
        index=["kind", "stages"], columns="level", values="p95_ms", sort=False
    ).reset_index()
    out.print(
        frame("Figure 14, ms; published on whole-ms gaps, RPAccel's quality assumed there", wide)
    )
    out.print(frame(f"Figure 13 at {SCALING_QPS:g} QPS", scaling))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
