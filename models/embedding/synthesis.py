"""Draws the benchmark models of RecFlex (A to F) and MLPerf's tables: widths, ids a bag, which ids.

python -m models.embedding.synthesis A --out FOLDER [--batches 8] [--items 512]
"""

# B items, N items of all batches, T tables

from __future__ import annotations

import argparse
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
from models.embedding.offsets import Int64Array
from models.embedding.plan.spec import TableSpec
from models.embedding.tuning.recorded import FORMATS, Int32Array, Recorded, cut
from models.inputs.zipf import draw_rows

CONFIG: dict[str, Any] = json.loads(Path(__file__).with_name("benchmarks.json").read_text())
BENCHMARKS = tuple(CONFIG["benchmarks"])
LARGEST_BATCH = 512
# kind: numbers behind the count
_WORDS = {"one-hot": 1, "multi-hot": 4, "multi-hot-static": 2, "multi-hot-one-side": 3}
_GROWING = {"tables", "sum_dim", "table_mb", "lookups_per_item"}  # with the tables
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class FeatureLine:
    """Features of one kind: their bags have as many ids and are empty together.

    `numbers` as in the release: mean, standard deviation, most; or the fixed number. `coverage`:
    share of bags with ids.
    """

    kind: str
    n_tables: int
    numbers: tuple[float, ...]
    coverage: float

    @property
    def _fixed_ids(self) -> int | None:
        if self.kind in ("one-hot", "multi-hot-static"):
            return int(self.numbers[0]) if self.numbers else 1
        return None

    @property
    def bag_ids(self) -> int | None:
        """Ids of every bag, where all have as many."""
        return None if self.coverage < 1 else self._fixed_ids

    def draw_lengths(self, n_items: int, rng: np.random.Generator) -> Int64Array:
        """(B,) ids of each item's bag; normal numbers outside of the bounds are drawn again."""
        if self._fixed_ids is not None:
            lengths = np.full(n_items, self._fixed_ids)
        else:
            mean, spread, *most = self.numbers
            drawn = _truncated(mean, spread, most[0] if most else math.inf, n_items, rng)
            lengths = drawn.astype(np.int64)
        return np.where(rng.random(n_items) < self.coverage, lengths, 0)


def _truncated(
    mean: float, spread: float, most: float, n: int, rng: np.random.Generator
) -> FloatArray:
    drawn = rng.normal(mean, spread, n)
    while len(wrong := np.flatnonzero((drawn < 0) | (drawn > most))):
        drawn[wrong] = rng.normal(mean, spread, len(wrong))
    return drawn


def parse_line(text: str) -> FeatureLine:
    """'multi-hot,50,10,10,50,0.8': kind, features, its numbers, coverage; raises ValueError."""
    kind, *words = text.split(",")
    if kind not in _WORDS or len(words) != _WORDS[kind] + 1:
        raise ValueError(
            f"{text!r}: expected one of {', '.join(_WORDS)}, the number of features and its numbers"
        )
    count, *numbers, coverage = (float(word) for word in words)
    return FeatureLine(kind, int(count), tuple(numbers), coverage)


def lines_of(name: str, tables_frac: float = 1.0) -> list[FeatureLine]:
    """The lines of a benchmark; of every line so large a part of the tables, at least one."""
    benchmark = CONFIG["benchmarks"][name]
    if "rows" in benchmark:
        return [FeatureLine("multi-hot-static", 1, (float(n),), 1.0) for n in benchmark["bag_ids"]]
    texts = CONFIG["benchmarks"][benchmark.get("like", name)]["lines"]
    scale = benchmark.get("times", 1) * tables_frac
    return [
        FeatureLine(line.kind, max(round(line.n_tables * scale), 1), line.numbers, line.coverage)
        for line in map(parse_line, texts)
    ]


def draw_specs(
    name: str, seed: int, tables_frac: float = 1.0, row_scale: float = 1.0
) -> list[TableSpec]:
    """The tables, line after line.

    Widths follow the released weights where the benchmark has no single one.
    """
    benchmark = CONFIG["benchmarks"][name]
    rng = stream(seed, "embedding widths")
    specs: list[TableSpec] = []
    for place, line in enumerate(lines_of(name, tables_frac)):
        kind = "one-hot" if line.kind == "one-hot" else "multi-hot"
        weights = np.array(CONFIG["dim_weights"][kind], dtype=float)
        dims = rng.choice(CONFIG["dims"], line.n_tables, p=weights / weights.sum())
        n_rows = (
            benchmark["rows"][place] if "rows" in benchmark else CONFIG["row_counts"][line.kind]
        )
        rows = max(round(n_rows * row_scale), 1)
        specs += [TableSpec(rows, benchmark.get("dim") or int(dim), line.bag_ids) for dim in dims]
    return specs


def draw_ids(n_rows: int, n: int, alpha: float | None, rng: np.random.Generator) -> Int32Array:
    """n ids by Zipf's law; alpha None: as released.

    Then row weights are u^(1/3) with u uniform, so the hottest is 1.34 times the mean.
    """
    if alpha is not None:
        return draw_rows(n_rows, alpha, n, rng).astype(np.int32)
    edges = np.cumsum(rng.power(3, n_rows))
    ids: Int64Array = np.searchsorted(edges, rng.random(n) * edges[-1], side="right")
    return np.minimum(ids, n_rows - 1).astype(np.int32)


def draw_sizes(n: int, rng: np.random.Generator) -> Int64Array:
    """Batch sizes as released: log-normal about 256.

    Those beyond 512 are 512, or seldom what is left over.
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
    specs = draw_specs(name, seed, tables_frac, row_scale)
    ids_T: list[Int32Array] = []
    lengths_TN: list[Int64Array] = []
    for place, line in enumerate(lines_of(name, tables_frac)):
        lengths_N = line.draw_lengths(sum(sizes), stream(seed, "embedding lengths", place))
        for _ in range(line.n_tables):
            table = len(ids_T)
            rng = stream(seed, "embedding ids", table)
            ids_T.append(draw_ids(specs[table].rows, int(lengths_N.sum()), alpha, rng))
            lengths_TN.append(lengths_N)
            if on_fraction is not None:
                on_fraction(len(ids_T) / len(specs))
    return Recorded(tuple(specs), cut(ids_T, np.stack(lengths_TN), sizes))


def statistics(recorded: Recorded, one_hot: Sequence[bool] | None = None) -> dict[str, float]:
    """The numbers that RecFlex's benchmarks are described by."""
    specs = recorded.specs
    is_one = np.array([spec.bag_ids == 1 for spec in specs] if one_hot is None else one_hot)
    n_items = sum(batch.n_items for batch in recorded.batches)
    ids_T = _counts(recorded)
    multi = ids_T[~is_one].sum() / max(n_items * (~is_one).sum(), 1)
    return {
        "tables": len(specs),
        "one_hot_frac": float(is_one.mean()),
        "sum_dim": sum(spec.dim for spec in specs),
        "table_mb": sum(spec.n_elements * 4 for spec in specs) / 1e6,
        "lookups_per_item": ids_T.sum() / n_items,
        "mean_multi_hot_ids": multi,
        "hottest_tenth_frac": hottest_frac(recorded),
    }


def _counts(recorded: Recorded) -> Int64Array:
    """(T,) ids of each table in all batches."""
    counts = [np.diff(batch.offsets[:: batch.n_items]) for batch in recorded.batches]
    return np.asarray(sum(counts))


def hottest_frac(recorded: Recorded, part: float = 0.1) -> float:
    """Share of the look-ups of the hottest tenth of the rows, in the table with the most ids.

    Every second id says which rows are hot, the others are counted, so that chance makes no row
    hot.
    """
    table = int(np.argmax(_counts(recorded)))
    ids = np.concatenate([batch.ids_of(table) for batch in recorded.batches])
    n_rows = recorded.specs[table].rows
    by_heat = np.argsort(-np.bincount(ids[::2], minlength=n_rows), kind="stable")
    counts = np.bincount(ids[1::2], minlength=n_rows)
    return float(counts[by_heat[: max(int(n_rows * part), 1)]].sum() / max(counts.sum(), 1))


def compared(name: str, recorded: Recorded, tables_frac: float) -> pd.DataFrame:
    """Drawn statistics beside the published ones; those that grow with the tables are scaled."""
    published = CONFIG["benchmarks"][name]["published"]
    rows = [
        (
            key,
            float(value),
            float(published.get(key, math.nan)) * (tables_frac if key in _GROWING else 1),
        )
        for key, value in statistics(recorded).items()
    ]
    return pd.DataFrame(rows, columns=["statistic", "drawn", "published"])


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="models.embedding.synthesis", description=(__doc__ or "").split("\n")[0]
    )
    add = parser.add_argument
    add("benchmark", choices=BENCHMARKS)
    add("--out", type=Path, required=True)
    add("--batches", type=int, default=8)
    add("--items", type=int, default=0, help="of every batch; 0: drawn as released")
    add("--tables_frac", type=float, default=1.0, help="part of every line's tables")
    add("--row_scale", type=float, default=1.0, help="factor on all rows")
    add(
        "--alpha", type=float, help="Zipf's law of the ids; without it: as released, nearly uniform"
    )
    add("--format", choices=FORMATS, default="text")
    add("--seed", type=int, default=1)
    args = parser.parse_args(argv)
    if args.batches < 1 or args.items < 0 or args.tables_frac <= 0 or args.row_scale <= 0:
        parser.error(
            "--batches, --tables_frac and --row_scale must be more than 0, --items at least 0"
        )
    return args


def main(argv: Sequence[str]) -> int:
    """Command line; returns the exit code."""
    args = _arguments(argv)
    name = args.benchmark
    sizes = [args.items] * args.batches
    if not args.items:
        sizes = draw_sizes(args.batches, stream(args.seed, "batch sizes")).tolist()
    with Progress("auto") as progress, progress.step(f"drawing {name}") as on_fraction:
        recorded = draw(
            name, sizes, args.seed, args.alpha, args.tables_frac, args.row_scale, on_fraction
        )
    (recorded.save_text if args.format == "text" else recorded.save_parquet)(args.out)
    show(f"{name}: {args.out}", compared(name, recorded, args.tables_frac))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
