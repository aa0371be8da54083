#!/usr/bin/env python3
"""Quality and tail latency on one axis: pipelines of one, two and three stages on cores, and with a
GPU.

python experiments/recpipe/pipelines.py [--data clicks|movielens] [--rate_qps 500] [--floor 0.995] [--quick]

In virtual time, 32 cores and the measured times of the trained rankers; every quality is that of
the very lists that the timed filters hand on. RecPipe's figures 7 (quality against p95; p95 against
rate at equal quality) and 8 (a GPU in front, behind, alone), its published points beside them.
pipelines_<data>.csv, .png; some 3 minutes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.recpipe.datasets import rankers
from experiments.recpipe.quality import KEPT, SHADES, Chain, Scored, chains
from experiments.recpipe.world import GPU, KIND_SHADES, Design, World, cpu_profiles, pareto
from infra.messages import CPU
from infra.progress import Progress
from infra.results.figures import plain_log, style
from infra.results.report import console, frame

HERE = Path(__file__).resolve().parent
SHARES = (0.0625, 0.125, 0.25, 0.5, 1.0)
BATCHES = (64, 256, 1024, 4096)
RATES_QPS = (25, 50, 100, 200, 500, 1000, 1500, 2000, 3000, 5000, 10_000)
STAGE_SHADES = {1: "#d1495b", 2: "#17507d", 3: "#2a9d8f"}
PUBLISHED_FLOOR = 0.9225  # of its own NDCG@64, which calls it equal quality
PUBLISHED_KINDS = {"gpu+cpu": "GPU in front", "cpu+gpu": "GPU behind", "gpu": "GPU"}


def designs(kept: Sequence[int], k: int, quick: bool) -> Iterator[Design]:
    """Every chain on shared cores, with a GPU in front, behind, alone; single rankers also on a
    part of the items.
    """
    batches = BATCHES[1::2] if quick else BATCHES
    for chain in chains(kept, k):
        n = len(chain.rankers)
        for batch in batches:
            yield Design(chain, (CPU,) * n, batch)
            if n > 1:
                yield Design(chain, (GPU, *(CPU,) * (n - 1)), batch)
                yield Design(chain, (*(CPU,) * (n - 1), GPU), batch)
        yield Design(chain, (GPU,) * n)
    for name in SHADES:
        for share in SHARES[:-1]:
            for batch in batches:
                yield Design(Chain((name,), (k,)), (CPU,), batch, share=share)


def measure(
    world: World, todo: Sequence[Design], rates: Sequence[float], progress: Progress
) -> pd.DataFrame:
    """A row per design and rate; p95 is infinite where the rate is not carried."""
    lines: list[dict[str, Any]] = []
    with progress.step(f"{len(todo)} designs") as on_fraction:
        for i, design in enumerate(todo):
            quality = world.quality(design.chain, design.share)
            for rate in rates:
                shown = world.run(design, rate)
                lines.append(
                    {
                        "chain": design.chain.label,
                        "stages": len(design.devices),
                        "kind": design.kind,
                        "mapping": design.mapping,
                        "batch_items": design.batch_items if CPU in design.devices else 0,
                        "share": design.share,
                        "ndcg": quality.value,
                        "ndcg_low": quality.low,
                        "ndcg_high": quality.high,
                        "rate_qps": rate,
                        "p95_ms": shown.p95_ms if shown.carried else np.inf,
                    }
                )
                if not shown.carried:
                    break  # nor are higher ones
            on_fraction((i + 1) / len(todo), design.chain.label)
    return pd.DataFrame(lines)


def lowest(rows: pd.DataFrame, floor: float, by: str) -> pd.DataFrame:
    """The design of the lowest p95 at each rate among those of enough quality."""
    enough = rows[(rows["ndcg"] >= floor) & np.isfinite(rows["p95_ms"])]
    return enough.loc[enough.groupby([by, "rate_qps"])["p95_ms"].idxmin()]


def published() -> pd.DataFrame:
    """Figures 7 and 8: the lowest p95 at each nominal rate among points that it calls equal in
    quality.
    """
    rows = pd.read_csv(HERE / "published_pipelines.csv", comment="#", dtype={"figure": str})
    own = rows[(rows["figure"] == "7/8") & (rows["dcg64"] >= PUBLISHED_FLOOR)].copy()
    own["kind"] = own["devices"].map(PUBLISHED_KINDS).fillna("CPU")
    own["rate_qps"] = own["nominal_qps"]
    return own[own["p95_ms"] < 500]


def draw(rows: pd.DataFrame, floor: float, rate_qps: float, k: int) -> Figure:
    """a) one ranker on some of the items, b) fronts by stages, c) p95 by rate on cores, d) with a
    GPU.
    """
    figure = Figure(figsize=(12.5, 9), layout="constrained")
    (few, fronts), (rates, gpus) = figure.subplots(2, 2)
    at_rate = rows[(rows["rate_qps"] == rate_qps) & np.isfinite(rows["p95_ms"])]
    cpu = at_rate[at_rate["kind"] == "CPU"]
    for name, shade in SHADES.items():
        own = cpu[cpu["chain"] == name]
        own = own.loc[own.groupby("share")["p95_ms"].idxmin()].sort_values("share")
        few.errorbar(
            own["p95_ms"],
            own["ndcg"],
            [own["ndcg"] - own["ndcg_low"], own["ndcg_high"] - own["ndcg"]],
            fmt="o-",
            color=shade,
            markersize=4,
            elinewidth=0.6,
            label=name,
        )
    for n_stages, own in cpu.groupby("stages"):
        _front(fronts, own, STAGE_SHADES[int(n_stages)], _stages(n_stages))
    fronts.axhline(floor, color="#c1121f", linestyle="--", linewidth=1)
    for axes, word in (
        (few, "One ranker on 1/16 to all of the candidates"),
        (fronts, "Chains that no other one beats"),
    ):
        plain_log(axes, "x")
        style(axes, f"p95 at {rate_qps:g} QPS (ms)", f"NDCG@{k}", f"{word}, 32 cores")
        axes.legend(frameon=False, fontsize=8)
    _by_rate(rates, rows[rows["kind"] == "CPU"], "stages", floor, STAGE_SHADES)
    _by_rate(gpus, rows, "kind", floor, KIND_SHADES)
    style(
        rates,
        "arrivals per second",
        "p95 (ms)",
        f"NDCG >= {floor:.3f}; squares: published, 32 Cascade Lake engines",
    )
    style(
        gpus,
        "arrivals per second",
        "p95 (ms)",
        "Same, by mapping; GPU: a T4 by its roofline, published: measured",
    )
    return figure


def _front(axes: Axes, own: pd.DataFrame, shade: str, label: str) -> None:
    kept = own.iloc[pareto(list(zip(own["ndcg"], -own["p95_ms"], strict=True)))].sort_values(
        "p95_ms"
    )
    axes.plot(own["p95_ms"], own["ndcg"], ".", color=shade, alpha=0.3, markersize=4)
    axes.plot(kept["p95_ms"], kept["ndcg"], "o-", color=shade, markersize=4, label=label)


def _stages(name: Any) -> str:
    """A kind by its name, a number of stages in words."""
    return str(name) if isinstance(name, str) else f"{name} stage{'s' if name > 1 else ''}"


def _by_rate(axes: Axes, rows: pd.DataFrame, by: str, floor: float, shades: dict[Any, str]) -> None:
    best = lowest(rows, floor, by)
    theirs = published()
    if by == "stages":
        theirs = theirs[theirs["kind"] == "CPU"]
    for name, own in best.groupby(by, sort=False):
        axes.plot(
            own["rate_qps"],
            own["p95_ms"],
            "o-",
            color=shades[name],
            markersize=4,
            label=_stages(name),
        )
        points = theirs[theirs[by] == name].groupby("rate_qps")["p95_ms"].min()
        axes.plot(
            points.index, points, "s--", color=shades[name], markersize=4, linewidth=0.6, alpha=0.6
        )
    plain_log(axes, "x")
    plain_log(axes, "y")
    axes.legend(frameon=False, fontsize=8)


def main(argv: Sequence[str]) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    rankers.add_flags(parser)
    parser.add_argument(
        "--rate_qps", type=float, default=500.0, help="at which quality is set against p95"
    )
    parser.add_argument(
        "--floor", type=float, default=0.995, help="share of the large ranker's NDCG: equal quality"
    )
    parser.add_argument("--cores", type=int, default=32)
    parser.add_argument("--out", type=Path, default=HERE)
    args = parser.parse_args(argv)
    rankers.check_positive(parser, args, "rate_qps", "floor", "cores")
    args.out.mkdir(parents=True, exist_ok=True)
    try:
        scored = Scored.of(rankers.load(args))
        with Progress("auto") as progress:
            world = World(scored, cpu_profiles(scored, args.out / "profiles", progress), args.cores)
            rates = sorted({*RATES_QPS, args.rate_qps})
            kept = [n for n in KEPT[args.data][:: 2 if args.quick else 1] if n < world.sizes.max()]
            rows = measure(world, list(designs(kept, scored.data.k, args.quick)), rates, progress)
    except ValueError as error:
        parser.error(str(error))
    floor = args.floor * world.quality(Chain(("large",), (scored.data.k,))).value
    rows.to_csv(args.out / f"pipelines_{args.data}.csv", index=False, float_format="%.5g")
    draw(rows, floor, args.rate_qps, scored.data.k).savefig(
        args.out / f"pipelines_{args.data}.png", dpi=110
    )
    out = console()
    shown = ["stages", "rate_qps", "chain", "batch_items", "ndcg", "p95_ms"]
    best = lowest(rows[rows["kind"] == "CPU"], floor, "stages")
    out.print(
        frame(
            f"Lowest p95 on {args.cores} cores with NDCG >= {floor:.4f}, by stages and rate",
            best[shown],
        )
    )
    shown[0] = "kind"
    out.print(frame("The same by mapping", lowest(rows, floor, "kind")[shown]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
