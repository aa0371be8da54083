#!/usr/bin/env python3
"""How large should a sub-array be, and how should the embedding cache be split between two stages?

RecPipe's figure 10.

python experiments/recpipe/arrays.py [--out FOLDER]

utilisation.csv: cycles and utilisation of the released array model by its size (10a; the release
ships no numbers). cache_split.csv: mean access time by the share of the cache that stage 1 has
(10c), of LRU caches on Zipf streams whose exponent is fitted to the published hit rates, beside the
published points. arrays.png; some seconds.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure

from accelerator.rpaccel import RANKERS, Ranker, SubArray, compute_cycles
from infra.results.figures import plain_log, style
from infra.results.report import console, frame
from infra.rng import stream
from models.inputs.stack_distance import Locality, locality_of
from models.inputs.zipf import draw_rows

HERE = Path(__file__).resolve().parent
SIDES = (128, 64, 32, 16, 8)
ITEMS = 4096
NAMES = ("rm-small", "rm-med", "rm-large")
ROW_BYTES = (16, 128)  # of stage 1 and of stage 2
RELEASED_ENTRY = (128, 128)  # what a row takes of the released caches: a whole line
HIT_CYCLES, MISS_CYCLES = 1.0, 100.0  # as the release states them
SHOWN = (
    (4.0, 0.125),
    (12.0, 0.125),
    (12.0, 0.0625),
)  # MB of cache, share of the items that stage 2 ranks
ALPHAS = np.arange(0.5, 1.31, 0.05)
ROWS, N_IDS = 3_000_000, 1_000_000  # of the five large tables together, about; of the stream
FloatArray = npt.NDArray[np.float64]


def utilisation(ranker: Ranker, side: int, n_items: int) -> tuple[float, float]:
    """Cycles of both MLPs without loading, and the share of the array's multipliers at work."""
    array = SubArray(side, 1.0)
    cycles = macs = 0.0
    for widths in (ranker.bottom, ranker.top_widths(dot=False)):
        for n_in, n_out in itertools.pairwise(widths):
            cycles += compute_cycles(n_in, n_out, n_items, array)
            macs += n_in * n_out * n_items
    return cycles, macs / (cycles * side * side)


def amat_cycles(
    fraction: npt.ArrayLike,
    cache_mb: float,
    ratio: float,
    locality: Locality,
    entry_bytes: tuple[int, int] = RELEASED_ENTRY,
) -> FloatArray:
    """Mean time of an access by bytes: stage 1 has `fraction` of the cache, stage 2 ranks `ratio`
    of its items.

    `entry_bytes`: what a row of each stage takes of its cache.
    """
    share = np.asarray(fraction, dtype=np.float64)
    hits = [
        locality.hit_rate(np.floor(part * cache_mb * 1e6 / n_bytes))
        for part, n_bytes in zip((share, 1 - share), entry_bytes, strict=True)
    ]
    weights = (ROW_BYTES[0], ROW_BYTES[1] * ratio)
    hit = (hits[0] * weights[0] + hits[1] * weights[1]) / sum(weights)
    cycles: FloatArray = hit * HIT_CYCLES + (1 - hit) * MISS_CYCLES
    return cycles


def published() -> pd.DataFrame:
    """The release's points of the three curves shown."""
    rows = pd.read_csv(HERE / "published_cache_split.csv", comment="#")
    kept = [
        (rows["cache_mb"] == mb) & np.isclose(rows["filter_ratio"], ratio) for mb, ratio in SHOWN
    ]
    return rows[np.logical_or.reduce(kept)]


def fitted(rows: pd.DataFrame) -> tuple[float, Locality]:
    """The Zipf exponent with the least squared error to the published curves, and its stream's
    profile.
    """
    best: tuple[float, float, Locality] | None = None
    for alpha in ALPHAS:
        locality = locality_of(draw_rows(ROWS, float(alpha), N_IDS, stream(5, "ids")))
        error = sum(
            float(
                (
                    (amat_cycles(own["stage1_fraction"], mb, ratio, locality) - own["amat_cycles"])
                    ** 2
                ).sum()
            )
            for (mb, ratio), own in rows.groupby(["cache_mb", "filter_ratio"])
        )
        if best is None or error < best[0]:
            best = (error, float(alpha), locality)
    assert best is not None
    return best[1], best[2]


def draw(arrays: pd.DataFrame, split: pd.DataFrame) -> Figure:
    """Utilisation and cycles by array size; access time by split."""
    figure = Figure(figsize=(14, 4.4), layout="constrained")
    used, cycles, cache = figure.subplots(1, 3)
    shades = dict(zip(NAMES, ("#2a9d8f", "#edae49", "#d1495b"), strict=True))
    for name, own in arrays.groupby("ranker", sort=False):
        used.plot(own["side"], own["utilisation"], "o-", color=shades[str(name)], label=str(name))
        cycles.plot(own["side"], own["chip_cycles"], "o-", color=shades[str(name)])
    for axes in (used, cycles):
        plain_log(axes, "x")
        axes.set_xticks(SIDES, [str(side) for side in SIDES])
    plain_log(cycles, "y")
    style(
        used,
        "multipliers along a side",
        "share of the multipliers at work",
        f"Figure 10a: {ITEMS} items",
    )
    style(
        cycles,
        "multipliers along a side",
        "cycles, all sub-arrays of the chip at work",
        "the same multipliers, split",
    )
    used.legend(frameon=False, fontsize=8)
    for i, ((mb, ratio), own) in enumerate(split.groupby(["cache_mb", "filter_ratio"], sort=False)):
        cache.plot(
            own["stage1_fraction"],
            own["ours"],
            "-",
            color=f"C{i}",
            label=f"{mb:g} MB (1/{1 / ratio:.0f})",
        )
        cache.plot(own["stage1_fraction"], own["amat_cycles"], "s", color=f"C{i}", markersize=4)
        cache.plot(own["stage1_fraction"], own["packed"], ":", color=f"C{i}")
    style(
        cache,
        "share of the cache for stage 1",
        "mean access (cycles)",
        "Figure 10c: squares published; dotted: rows packed",
    )
    cache.legend(frameon=False, fontsize=8)
    return figure


def main(argv: Sequence[str]) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=HERE)
    out = parser.parse_args(argv).out
    out.mkdir(parents=True, exist_ok=True)
    lines = []
    for name, side in itertools.product(NAMES, SIDES):
        cycles, share = utilisation(RANKERS[name], side, ITEMS)
        n_arrays = (SIDES[0] // side) ** 2
        lines.append(
            {
                "ranker": name,
                "side": side,
                "cycles": cycles,
                "utilisation": share,
                "chip_cycles": cycles / n_arrays,
            }
        )
    arrays = pd.DataFrame(lines)
    rows = published()
    alpha, locality = fitted(rows)
    curves = [
        own.assign(
            ours=amat_cycles(own["stage1_fraction"], float(mb), float(ratio), locality),
            packed=amat_cycles(
                own["stage1_fraction"], float(mb), float(ratio), locality, ROW_BYTES
            ),
        )
        for (mb, ratio), own in rows.groupby(["cache_mb", "filter_ratio"], sort=False)
    ]
    split = pd.concat(curves)
    arrays.to_csv(out / "utilisation.csv", index=False, float_format="%.4g")
    split.to_csv(out / "cache_split.csv", index=False, float_format="%.4g")
    draw(arrays, split).savefig(out / "arrays.png", dpi=110)
    table = arrays.pivot_table(
        index="ranker", columns="side", values="utilisation", sort=False
    ).reset_index()
    console().print(
        frame(f"Share of the multipliers at work, {ITEMS} items, by side of the array", table)
    )
    error = (split["ours"] / split["amat_cycles"] - 1).abs()
    off = f"{error.median():.1%} off the published in the median, {error.max():.1%} at most"
    console().print(f"Mean access time, Zipf {alpha:.2f}: {off}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
