"""Draws the benchmark models of RecFlex (A to F) and MLPerf's tables: how wide, how many ids a bag,
which ids.

python -m models.embedding.synthesis A --out FOLDER [--batches 8] [--items 512] [--tables_frac 0.1] [--alpha 1.05]
"""

# B items, T tables

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from infra.progress import OnFraction, Progress
from infra.results.report import show
from infra.rng import stream
from models.embedding.plan.spec import TableSpec
from models.embedding.tuning.recorded import FORMATS, Int32Array, Int64Array, Recorded, joined
from models.inputs.zipf import draw_rows

CONFIG: dict[str, Any] = json.loads(Path(__file__).with_name("benchmarks.json").read_text())
BENCHMARKS = tuple(CONFIG["benchmarks"])
LARGEST_BATCH = 512
_WORDS = {
    "one-hot": 1,
    "multi-hot": 4,
    "multi-hot-static": 2,
    "multi-hot-one-side": 3,
}  # numbers behind the count
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Line:
    """Features of one kind: their bags have as many ids and are empty together.

    `coverage`: share of bags with ids.
    """

    kind: str
    n_tables: int
    numbers: tuple[
        float, ...
    ]  # as in the release: mean, standard deviation, most; or the fixed number
    coverage: float

    @property
    def bag_ids(self) -> int | None:
        """Where every bag has as many."""
        if self.coverage < 1:
            return None
        return {"one-hot": 1, "multi-hot-static": int(self.numbers[0]) if self.numbers else 1}.get(
            self.kind
        )

    def draw_lengths(self, n_items: int, rng: np.random.Generator) -> Int64Array:
        """(B,) ids of each item's bag; normal numbers outside of the bounds are drawn again."""
        if self.kind in ("one-hot", "multi-hot-static"):
            lengths = np.full(n_items, int(self.numbers[0]) if self.numbers else 1)
        else:
            most = self.numbers[2] if self.kind == "multi-hot" else math.inf
            lengths = _truncated(self.numbers[0], self.numbers[1], most, n_items, rng).astype(
                np.int64
            )
        return np.where(rng.random(n_items) < self.coverage, lengths, 0)


def _truncated(
    mean: float, spread: float, most: float, n: int, rng: np.random.Generator
) -> FloatArray:
    drawn = rng.normal(mean, spread, n)
    while len(wrong := np.flatnonzero((drawn < 0) | (drawn > most))):
        drawn[wrong] = rng.normal(mean, spread, len(wrong))
    return drawn


def parse_line(text: str) -> Line:
    """'multi-hot,50,10,10,50,0.8': kind, features, its numbers, coverage; raises ValueError."""
    kind, *words = text.split(",")
    if kind not in _WORDS or len(words) != _WORDS[kind] + 1:
        raise ValueError(
            f"{text!r}: expected one of {', '.join(_WORDS)}, the number of features and its numbers"
        )
    count, *numbers, coverage = (float(word) for word in words)
    return Line(kind, int(count), tuple(numbers), coverage)


def lines_of(name: str, tables_frac: float = 1.0) -> list[Line]:
    """The lines of a benchmark; of every line so large a part of the tables, at least one."""
    own = CONFIG["benchmarks"][name]
    if "rows" in own:
        return [Line("multi-hot-static", 1, (float(n),), 1.0) for n in own["bag_ids"]]
    lines = [parse_line(text) for text in CONFIG["benchmarks"][own.get("like", name)]["lines"]]
    scale = own.get("times", 1) * tables_frac
    return [
        Line(line.kind, max(round(line.n_tables * scale), 1), line.numbers, line.coverage)
        for line in lines
    ]


def draw_specs(
    name: str, seed: int, tables_frac: float = 1.0, row_scale: float = 1.0
) -> list[TableSpec]:
    """The tables, line after line; widths by the released weights where the benchmark has no single
    one.
    """
    own = CONFIG["benchmarks"][name]
    rng = stream(seed, "embedding widths")
    specs: list[TableSpec] = []
    for place, line in enumerate(lines_of(name, tables_frac)):
        weights = np.array(
            CONFIG["dim_weights"]["one-hot" if line.kind == "one-hot" else "multi-hot"], dtype=float
        )
        dims = rng.choice(CONFIG["dims"], line.n_tables, p=weights / weights.sum())
        n_rows = own["rows"][place] if "rows" in own else CONFIG["row_counts"][line.kind]
        rows = max(round(n_rows * row_scale), 1)
        specs += [TableSpec(rows, own.get("dim") or int(dim), line.bag_ids) for dim in dims]
    return specs


def draw_ids(n_rows: int, n: int, alpha: float | None, rng: np.random.Generator) -> Int32Array:
    """n ids; alpha None: as released, row weights u^(1/3) with u uniform, so the hottest is 1.34
    times the mean.
    """
    if alpha is not None:
        return draw_rows(n_rows, alpha, n, rng).astype(np.int32)
    edges = np.cumsum(rng.power(3, n_rows))
    found: Int32Array = np.searchsorted(edges, rng.random(n) * edges[-1], side="right").astype(
        np.int32
    )
    return found.clip(max=n_rows - 1)


def draw_sizes(n: int, rng: np.random.Generator) -> Int64Array:
    """Batch sizes as released: log-normal about 256, those beyond 512 are 512, or seldom what is
    left over.
    """
    sizes = np.maximum(rng.lognormal(math.log(256), math.log(128), n), 1.0)
    blocks = np.ceil(sizes / LARGEST_BATCH)
    rest = np.maximum(np.fmod(sizes, LARGEST_BATCH), 1)
    large = np.where(rng.random(n) < 1 / blocks, rest, LARGEST_BATCH)
    return np.where(sizes > LARGEST_BATCH, large, sizes).astype(np.int64)


def draw(
    name: str,
    sizes: Sequence[int],
    seed: int,
    alpha: float | None = None,
    tables_frac: float = 1.0,
    row_scale: float = 1.0,
    on_fraction: OnFraction | None = None,
) -> Recorded:
    """A benchmark's tables and a batch of each size; which rows are hot is the same in all batches.

    Features of a line share their lengths, as released.
    """
    lines = lines_of(name, tables_frac)
    specs = draw_specs(name, seed, tables_frac, row_scale)
    edges = np.cumsum(sizes)[:-1]
    ids: list[list[Int32Array]] = []
    lengths: list[Int64Array] = []
    for place, line in enumerate(lines):
        own = line.draw_lengths(sum(sizes), stream(seed, "embedding lengths", place))
        ends = [int(part.sum()) for part in np.split(own, edges)]
        for _ in range(line.n_tables):
            table = len(ids)
            drawn = draw_ids(
                specs[table].rows, int(own.sum()), alpha, stream(seed, "embedding ids", table)
            )
            ids.append(np.split(drawn, np.cumsum(ends)[:-1]))
            lengths.append(own)
            if on_fraction is not None:
                on_fraction(len(ids) / len(specs))
    starts = [0, *edges.tolist(), sum(sizes)]
    batches = [
        joined(np.concatenate([own[i] for own in ids]), np.stack([own[a:b] for own in lengths]))
        for i, (a, b) in enumerate(itertools.pairwise(starts))
    ]
    return Recorded(tuple(specs), tuple(batches))


def statistics(recorded: Recorded, one_hot: Sequence[bool] | None = None) -> dict[str, float]:
    """The numbers that RecFlex's benchmarks are described by."""
    specs = recorded.specs
    batches = recorded.batches
    is_one = np.array([spec.bag_ids == 1 for spec in specs] if one_hot is None else one_hot)
    n_items = sum(batch.n_items for batch in batches)
    ids_T = sum(
        (np.diff(batch.offsets[:: batch.n_items]) for batch in batches), np.zeros(len(specs))
    )
    multi = ids_T[~is_one].sum() / max(n_items * (~is_one).sum(), 1)
    return {
        "tables": len(specs),
        "one_hot_frac": float(is_one.mean()),
        "sum_dim": sum(spec.dim for spec in specs),
        "table_mb": sum(spec.rows * spec.dim * 4 for spec in specs) / 1e6,
        "lookups_per_item": ids_T.sum() / n_items,
        "mean_multi_hot_ids": multi,
        "hottest_tenth_frac": hottest_frac(recorded),
    }


def hottest_frac(recorded: Recorded, part: float = 0.1) -> float:
    """Share of the look-ups that go to the hottest tenth of the rows, in the table with the most
    ids.

    Every second id says which rows are hot, the others are counted, so that chance makes no row
    hot.
    """
    counts_T = sum(np.diff(batch.offsets[:: batch.n_items]) for batch in recorded.batches)
    table = int(np.argmax(counts_T))
    ids = np.concatenate([batch.ids_of(table) for batch in recorded.batches])
    n_rows = recorded.specs[table].rows
    hot = np.argsort(-np.bincount(ids[::2], minlength=n_rows), kind="stable")[
        : max(int(n_rows * part), 1)
    ]
    counts = np.bincount(ids[1::2], minlength=n_rows)
    return float(counts[hot].sum() / max(counts.sum(), 1))


def compared(name: str, recorded: Recorded, tables_frac: float) -> pd.DataFrame:
    """Drawn statistics beside the published ones; those that grow with the tables scaled with them."""
    published = CONFIG["benchmarks"][name]["published"]
    grow = {"tables", "sum_dim", "table_mb", "lookups_per_item"}
    return pd.DataFrame(
        [
            {
                "statistic": key,
                "drawn": float(value),
                "published": float(published[key]) * (tables_frac if key in grow else 1)
                if key in published
                else math.nan,
            }
            for key, value in statistics(recorded).items()
        ]
    )


def main(argv: Sequence[str]) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="models.embedding.synthesis", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("benchmark", choices=BENCHMARKS)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--items", type=int, default=0, help="of every batch; 0: drawn as released")
    parser.add_argument(
        "--tables_frac", type=float, default=1.0, help="part of every line's tables"
    )
    parser.add_argument("--row_scale", type=float, default=1.0, help="factor on all rows")
    parser.add_argument(
        "--alpha", type=float, help="Zipf's law of the ids; without it: as released, nearly uniform"
    )
    parser.add_argument("--format", choices=FORMATS, default="text")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args(argv)
    if args.batches < 1 or args.items < 0 or args.tables_frac <= 0 or args.row_scale <= 0:
        parser.error(
            "--batches, --tables_frac and --row_scale must be more than 0, --items at least 0"
        )
    sizes = draw_sizes(args.batches, stream(args.seed, "batch sizes")).tolist()
    sizes = [args.items] * args.batches if args.items else sizes
    with Progress("auto") as progress, progress.step(f"drawing {args.benchmark}") as on_fraction:
        recorded = draw(
            args.benchmark,
            sizes,
            args.seed,
            args.alpha,
            args.tables_frac,
            args.row_scale,
            on_fraction,
        )
    (recorded.save_text if args.format == "text" else recorded.save_parquet)(args.out)
    show(f"{args.benchmark}: {args.out}", compared(args.benchmark, recorded, args.tables_frac))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
