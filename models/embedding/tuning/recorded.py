"""Tables and batches of ids in a folder: the text files of RecFlex's release, or Parquet."""

# B items, T tables, L ids

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from models.embedding.plan.spec import TableSpec

Int32Array = npt.NDArray[np.int32]
Int64Array = npt.NDArray[np.int64]
FORMATS = ("text", "parquet")


@dataclass(frozen=True, slots=True)
class Jagged:
    """One batch, feature-major: table t's ids are ids_L[offsets[t * B] : offsets[(t + 1) * B]]."""

    n_items: int
    ids_L: Int32Array
    offsets: Int64Array  # (T * B + 1,)

    def ids_of(self, table: int) -> Int32Array:
        """Ids of one table, item after item."""
        first, end = self.offsets[[table * self.n_items, (table + 1) * self.n_items]]
        return self.ids_L[first:end]

    def lengths_of(self, table: int) -> Int64Array:
        """Ids of each item's bag in one table; (B,)."""
        return np.diff(self.offsets[table * self.n_items : (table + 1) * self.n_items + 1])

    def first(self, n_items: int) -> Jagged:
        """The first items."""
        n_tables = (len(self.offsets) - 1) // self.n_items
        parts = [
            self.ids_L[self.offsets[t * self.n_items] : self.offsets[t * self.n_items + n_items]]
            for t in range(n_tables)
        ]
        lengths = np.diff(self.offsets).reshape(n_tables, self.n_items)[:, :n_items]
        return joined(np.concatenate(parts), lengths)


def joined(ids_L: Int32Array, lengths_TB: Int64Array) -> Jagged:
    """A batch of ids that lie table after table."""
    offsets = np.concatenate(([0], np.cumsum(lengths_TB.reshape(-1)))).astype(np.int64)
    return Jagged(lengths_TB.shape[1], np.ascontiguousarray(ids_L, dtype=np.int32), offsets)


@dataclass(frozen=True, slots=True)
class Recorded:
    """Tables with batches of ids for them."""

    specs: tuple[TableSpec, ...]
    batches: tuple[Jagged, ...]

    def save_text(self, folder: Path) -> None:
        """table_config.txt, data/batch_sizes.txt and data/f<t>.txt: a line a sample, ids with
        commas between.
        """
        (folder / "data").mkdir(parents=True, exist_ok=True)
        _lines(folder / "table_config.txt", [f"{spec.rows},{spec.dim}" for spec in self.specs])
        _lines(folder / "bags_config.txt", [str(spec.bag_ids or "") for spec in self.specs])
        _lines(folder / "data" / "batch_sizes.txt", [str(batch.n_items) for batch in self.batches])
        for table in range(len(self.specs)):
            rows = []
            for batch in self.batches:
                bags = np.split(batch.ids_of(table), np.cumsum(batch.lengths_of(table))[:-1])
                rows += [",".join(map(str, bag.tolist())) for bag in bags]
            _lines(folder / "data" / f"f{table}.txt", rows)

    def save_parquet(self, folder: Path) -> None:
        """tables.parquet (rows, dim, bag_ids) and batches.parquet (batch, table, lengths, ids)."""
        folder.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(
            {
                "rows": [spec.rows for spec in self.specs],
                "dim": [spec.dim for spec in self.specs],
                "bag_ids": pd.array([spec.bag_ids for spec in self.specs], dtype="Int64"),
            }
        ).to_parquet(folder / "tables.parquet", index=False)
        rows = [
            {
                "batch": i,
                "table": t,
                "lengths": batch.lengths_of(t).astype(np.int32),
                "ids": batch.ids_of(t),
            }
            for i, batch in enumerate(self.batches)
            for t in range(len(self.specs))
        ]
        pd.DataFrame(rows, columns=["batch", "table", "lengths", "ids"]).to_parquet(
            folder / "batches.parquet", index=False
        )


def read(folder: Path) -> Recorded:
    """What `save_text` or `save_parquet` wrote; raises ValueError in one line."""
    if (folder / "batches.parquet").is_file():
        recorded = _read_parquet(folder)
    elif (folder / "table_config.txt").is_file():
        recorded = _read_text(folder)
    else:
        raise ValueError(f"{folder}: neither table_config.txt nor batches.parquet is there")
    for batch in recorded.batches:
        _check(folder, recorded.specs, batch)
    return recorded


def _read_parquet(folder: Path) -> Recorded:
    tables = pd.read_parquet(folder / "tables.parquet")
    specs = tuple(
        TableSpec(int(row.rows), int(row.dim), None if pd.isna(row.bag_ids) else int(row.bag_ids))
        for row in tables.itertuples()
    )
    batches = []
    for _, own in pd.read_parquet(folder / "batches.parquet").groupby("batch", sort=True):
        if own["table"].tolist() != [*range(len(specs))]:
            raise ValueError(
                f"{folder}: a batch has {len(own)} tables, not the {len(specs)} of tables.parquet "
                "in order"
            )
        batches.append(
            joined(
                np.concatenate(own["ids"].tolist()),
                np.stack(own["lengths"].tolist()).astype(np.int64),
            )
        )
    return Recorded(specs, tuple(batches))


def _read_text(folder: Path) -> Recorded:
    bags = (
        folder / "bags_config.txt"
    )  # not in the release: how many ids every bag of a table has, where that is fixed
    tables = [
        _numbers(folder / "table_config.txt", line)
        for line in _read_lines(folder / "table_config.txt")
    ]
    declared = _read_lines(bags) if bags.is_file() else [""] * len(tables)
    if len(declared) != len(tables) or any(len(table) != 2 for table in tables):
        raise ValueError(
            f"{folder}: table_config.txt needs `rows,dim` a line, bags_config.txt as many lines"
        )
    specs = tuple(
        TableSpec(rows, dim, int(ids) if ids else None)
        for (rows, dim), ids in zip(tables, declared, strict=True)
    )
    sizes = [int(line) for line in _read_lines(folder / "data" / "batch_sizes.txt")]
    ids: list[list[Int32Array]] = []
    lengths: list[Int64Array] = []
    for table in range(len(specs)):
        file = folder / "data" / f"f{table}.txt"
        samples = [_numbers(file, line) for line in _read_lines(file)]
        if len(samples) != sum(sizes):
            raise ValueError(f"{file}: {len(samples)} samples; batch_sizes.txt has {sum(sizes)}")
        own = np.array([len(sample) for sample in samples], dtype=np.int64)
        flat = np.array([number for sample in samples for number in sample], dtype=np.int32)
        edges = np.concatenate(([0], np.cumsum(own)))[np.concatenate(([0], np.cumsum(sizes)))]
        ids.append([flat[a:b] for a, b in itertools.pairwise(edges)])
        lengths.append(own)
    starts = np.concatenate(([0], np.cumsum(sizes)))
    batches = [
        joined(
            np.concatenate([own[i] for own in ids]), np.stack(lengths)[:, starts[i] : starts[i + 1]]
        )
        for i in range(len(sizes))
    ]
    return Recorded(specs, tuple(batches))


def _check(folder: Path, specs: Sequence[TableSpec], batch: Jagged) -> None:
    for table, spec in enumerate(specs):
        ids = batch.ids_of(table)
        lengths = batch.lengths_of(table)
        if len(ids) and not (ids.min() >= 0 and ids.max() < spec.rows):
            raise ValueError(
                f"{folder}: table {table} has {spec.rows} rows, but ids {ids.min()} to {ids.max()}"
            )
        if spec.bag_ids is not None and (lengths != spec.bag_ids).any():
            raise ValueError(
                f"{folder}: table {table} declares {spec.bag_ids} ids a bag, but has bags of others"
            )


def _lines(file: Path, lines: Sequence[str]) -> None:
    file.write_text("".join(f"{line}\n" for line in lines))


def _read_lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except OSError as error:
        raise ValueError(f"{file}: {error.strerror}") from error


def _numbers(file: Path, line: str) -> list[int]:
    try:
        return [int(part) for part in line.split(",")] if line.strip() else []
    except ValueError as error:
        raise ValueError(
            f"{file}: {line[:40]!r}; expected whole numbers with commas between"
        ) from error
