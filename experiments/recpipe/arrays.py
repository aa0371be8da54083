#!/usr/bin/env python3
"""How large should a sub-array be, and how be the embedding cache split between two stages?

RecPipe's figure 10.

python experiments/recpipe/arrays.py [--out FOLDER]

utilisation.csv: cycles and utilisation of the released array model by its size (10a; the release
ships no numbers). cache_split.csv: mean access time by the share of the cache that stage 1 has
(10c), of LRU caches on Zipf streams whose exponent is fitted to the published hit rates, beside the
published points. arrays.png; some seconds.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure

from accelerator.rpaccel import CHIP_SIDE, RANKERS, Ranker, SubArray, compute_cycles
from experiments.common.panels import finish, legend
from experiments.common.study import NoOptions, Study, View
from experiments.recpipe.chip import CHIP_NAMES
from experiments.recpipe.datasets.published import published
from experiments.recpipe.drawing import line, lines
from infra.rng import stream
from models.inputs.stack_distance import Locality, locality_of
from models.inputs.zipf import draw_rows

SIDES = (128, 64, 32, 16, 8)
ROW_BYTES = (16, 128)  # of stage 1 and of stage 2
RELEASED_ENTRY = (128, 128)  # what a row takes of the released caches: a whole line
HIT_CYCLES, MISS_CYCLES = 1.0, 100.0  # as the release states them
SHOWN = ((4.0, 0.125), (12.0, 0.125), (12.0, 0.0625))  # MB of cache, share that stage 2 ranks
CURVE = ["cache_mb", "filter_ratio"]
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ArraysCase:
    """Items of a query, and the Zipf streams that are tried: exponents, rows, length, seed.

    `n_rows`: about those of the five large tables together.
    """

    n_items: int = 4096
    alphas: tuple[float, ...] = tuple(np.arange(0.5, 1.31, 0.05).tolist())
    n_rows: int = 3_000_000
    n_ids: int = 1_000_000
    seed: int = 5


@dataclass(frozen=True)
class UtilisationRow:
    """A ranker on an array of some side; `chip_cycles`: where all arrays of the chip work."""

    ranker: str
    side: int
    cycles: float
    utilisation: float
    chip_cycles: float


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
    """Mean time of an access by bytes: stage 1 has `fraction` of the cache.

    Stage 2 ranks `ratio` of its items. `entry_bytes`: what a row of each stage takes of its cache.
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


def published_curves() -> pd.DataFrame:
    """The release's points of the three curves shown."""
    rows = published("cache_split")
    ratio = rows["filter_ratio"]
    return rows[
        np.logical_or.reduce(
            [(rows["cache_mb"] == mb) & np.isclose(ratio, shown) for mb, shown in SHOWN]
        )
    ]


def with_ours(
    rows: pd.DataFrame, locality: Locality, entry_bytes: tuple[int, int], name: str
) -> pd.DataFrame:
    """The published points with our access time as a column."""
    curves = rows.groupby(CURVE, sort=False)["stage1_fraction"]
    ours = [
        pd.Series(amat_cycles(part, float(mb), float(ratio), locality, entry_bytes), part.index)
        for (mb, ratio), part in curves
    ]
    return rows.assign(**{name: pd.concat(ours)})


def fitted(rows: pd.DataFrame, case: ArraysCase) -> tuple[float, Locality]:
    """The Zipf exponent with the least squared error to the published curves, and its profile."""
    fits = []
    for alpha in case.alphas:
        ids = draw_rows(case.n_rows, alpha, case.n_ids, stream(case.seed, "ids"))
        locality = locality_of(ids)
        table = with_ours(rows, locality, RELEASED_ENTRY, "ours")
        fits.append((((table["ours"] - table["amat_cycles"]) ** 2).sum(), alpha, locality))
    _, alpha, locality = min(fits, key=lambda fit: fit[0])
    return alpha, locality


def draw(arrays: pd.DataFrame, split: pd.DataFrame) -> Figure:
    """Utilisation and cycles by array size; access time by split."""
    figure = Figure(figsize=(14, 4.4), layout="constrained")
    used, cycles, cache = figure.subplots(1, 3)
    lines(used, arrays, "ranker", "side", "utilisation", "o-", markersize=6)
    lines(cycles, arrays, "ranker", "side", "chip_cycles", "o-", markersize=6)
    x = "multipliers along a side"
    finish(used, x, "share of the multipliers at work", "Figure 10a: 4096 items", "x")
    legend(used)
    y = "cycles, all sub-arrays of the chip at work"
    finish(cycles, x, y, "the same multipliers, split", "xy")
    for axes in (used, cycles):
        axes.set_xticks(SIDES, [str(side) for side in SIDES])
    for i, ((mb, ratio), part) in enumerate(split.groupby(CURVE, sort=False)):
        label = f"{mb:g} MB (1/{1 / ratio:.0f})"
        line(cache, part, "stage1_fraction", "ours", "-", color=f"C{i}", label=label)
        line(cache, part, "stage1_fraction", "amat_cycles", "s", color=f"C{i}")
        line(cache, part, "stage1_fraction", "packed", ":", color=f"C{i}")
    title = "Figure 10c: squares published; dotted: rows packed"
    finish(cache, "share of the cache for stage 1", "mean access (cycles)", title)
    legend(cache)
    return figure


def run(case: ArraysCase) -> dict[str, Any]:
    """The rows of both tables, and of the fit."""
    used = []
    for name, side in itertools.product(CHIP_NAMES.values(), SIDES):
        cycles, share = utilisation(RANKERS[name], side, case.n_items)
        used.append(UtilisationRow(name, side, cycles, share, cycles / (CHIP_SIDE // side) ** 2))
    alpha, locality = fitted(published_curves(), case)
    split = with_ours(published_curves(), locality, RELEASED_ENTRY, "ours")
    split = with_ours(split, locality, ROW_BYTES, "packed")
    error = (split["ours"] / split["amat_cycles"] - 1).abs()
    fit = {"zipf": alpha, "median_error": error.median(), "most_error": error.max()}
    return {
        "utilisation": used,
        "cache_split": split.to_dict("records"),
        "cache_fit": [fit],
    }


def by_side(rows: pd.DataFrame) -> pd.DataFrame:
    """Share of the multipliers at work, a row for each ranker."""
    return rows.pivot_table(index="ranker", columns="side", values="utilisation", sort=False)


STUDY = Study(
    "recpipe_arrays",
    "How large should a sub-array be, and how should the cache be split between two stages?",
    lambda _effort, _options: [ArraysCase()],
    run,
    efforts={"quick": None, "full": None},
    options=NoOptions,
    float_format="%.4g",
    figures={"arrays": View(draw, "utilisation", "cache_split")},
    report={
        "Share of the multipliers at work by side of the array": View(by_side, "utilisation"),
        "Mean access time off the published": View(pd.DataFrame, "cache_fit"),
    },
)

if __name__ == "__main__":
    STUDY.main()
