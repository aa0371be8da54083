"""Tables and batches of ids in a folder: the text files of RecFlex's release, or Parquet."""

# B items of a batch, N items of all batches, T tables, L ids

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from models.embedding.offsets import Int64Array, starts_of
from models.embedding.plan.spec import TableSpec

Int32Array = npt.NDArray[np.int32]
FORMATS = ("text", "parquet")


@dataclass(frozen=True, slots=True)
class Jagged:
    """One batch, feature-major: table t's ids are ids_L[offsets[t * B] : offsets[(t + 1) * B]]."""

    n_items: int
    ids_L: Int32Array
    offsets: Int64Array  # (T * B + 1,)

    @classmethod
    def of(cls, ids_L: Int32Array, lengths_TB: Int64Array) -> Jagged:
        """A batch of ids that lie table after table."""
        ids_L = np.ascontiguousarray(ids_L, dtype=np.int32)
        return cls(lengths_TB.shape[1], ids_L, starts_of(lengths_TB.reshape(-1)))

    def ids_of(self, table: int) -> Int32Array:
        """Ids of one table, item after item."""
        first, end = self.offsets[[table * self.n_items, (table + 1) * self.n_items]]
        return self.ids_L[first:end]

    def lengths_of(self, table: int) -> Int64Array:
        """Ids of each item's bag in one table; (B,)."""
        return np.diff(self.offsets[table * self.n_items : (table + 1) * self.n_items + 1])


def cut(
    ids_T: Sequence[Int32Array], lengths_TN: Int64Array, sizes: Sequence[int]
) -> tuple[Jagged, ...]:
    """Batches of these sizes, out of each table's ids of all items; what is left is dropped."""
    edges = starts_of(sizes)
    edges_T = [starts_of(lengths_N)[edges] for lengths_N in lengths_TN]
    batches = []
    for i in range(len(sizes)):
        parts = [ids[at[i] : at[i + 1]] for ids, at in zip(ids_T, edges_T, strict=True)]
        lengths_TB = lengths_TN[:, edges[i] : edges[i + 1]]
        batches.append(Jagged.of(np.concatenate(parts), lengths_TB))
    return tuple(batches)


@dataclass(frozen=True, slots=True)
class Recorded:
    """Tables with batches of ids for them."""

    specs: tuple[TableSpec, ...]
    batches: tuple[Jagged, ...]

    def save_text(self, folder: Path) -> None:
        """table_config.txt, data/batch_sizes.txt and data/f<t>.txt: a line a sample, ids by commas.

        And bags_config.txt, which is not in the release: how many ids every bag of a table has,
        where that is fixed.
        """
        data = folder / "data"
        data.mkdir(parents=True, exist_ok=True)
        _write(folder / "table_config.txt", (f"{spec.rows},{spec.dim}" for spec in self.specs))
        _write(folder / "bags_config.txt", (spec.bag_ids or "" for spec in self.specs))
        _write(data / "batch_sizes.txt", (batch.n_items for batch in self.batches))
        for table in range(len(self.specs)):
            samples = []
            for batch in self.batches:
                bags = np.split(batch.ids_of(table), np.cumsum(batch.lengths_of(table))[:-1])
                samples += [",".join(map(str, bag.tolist())) for bag in bags]
            _write(data / f"f{table}.txt", samples)

    def save_parquet(self, folder: Path) -> None:
        """tables.parquet (rows, dim, bag_ids) and batches.parquet (batch, table, lengths, ids)."""
        folder.mkdir(parents=True, exist_ok=True)
        tables = pd.DataFrame(self.specs, columns=["rows", "dim", "bag_ids"])
        tables = tables.astype({"bag_ids": "Int64"})
        tables.to_parquet(folder / "tables.parquet", index=False)
        rows = [
            (i, t, batch.lengths_of(t).astype(np.int32), batch.ids_of(t))
            for i, batch in enumerate(self.batches)
            for t in range(len(self.specs))
        ]
        batches = pd.DataFrame(rows, columns=["batch", "table", "lengths", "ids"])
        batches.to_parquet(folder / "batches.parquet", index=False)


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
    for _, part in pd.read_parquet(folder / "batches.parquet").groupby("batch", sort=True):
        if part["table"].tolist() != [*range(len(specs))]:
            raise ValueError(
                f"{folder}: a batch has {len(part)} tables, not the {len(specs)} of tables.parquet "
                "in order"
            )
        lengths_TB = np.stack(part["lengths"].tolist()).astype(np.int64)
        batches.append(Jagged.of(np.concatenate(part["ids"].tolist()), lengths_TB))
    return Recorded(specs, tuple(batches))


def _read_text(folder: Path) -> Recorded:
    tables = _read_numbers(folder / "table_config.txt")
    bags = folder / "bags_config.txt"
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
    ids_T = []
    lengths_TN = []
    for table in range(len(specs)):
        file = folder / "data" / f"f{table}.txt"
        samples = _read_numbers(file)
        if len(samples) != sum(sizes):
            raise ValueError(f"{file}: {len(samples)} samples; batch_sizes.txt has {sum(sizes)}")
        ids_T.append(np.array([number for bag in samples for number in bag], dtype=np.int32))
        lengths_TN.append([len(bag) for bag in samples])
    return Recorded(specs, cut(ids_T, np.array(lengths_TN, dtype=np.int64), sizes))


def _check(folder: Path, specs: Sequence[TableSpec], batch: Jagged) -> None:
    for table, spec in enumerate(specs):
        ids = batch.ids_of(table)
        if len(ids) and not (ids.min() >= 0 and ids.max() < spec.rows):
            raise ValueError(
                f"{folder}: table {table} has {spec.rows} rows, but ids {ids.min()} to {ids.max()}"
            )
        if spec.bag_ids is not None and (batch.lengths_of(table) != spec.bag_ids).any():
            raise ValueError(
                f"{folder}: table {table} declares {spec.bag_ids} ids a bag, but has bags of others"
            )


def _write(file: Path, lines: Iterable[object]) -> None:
    file.write_text("".join(f"{line}\n" for line in lines))


def _read_lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except OSError as error:
        raise ValueError(f"{file}: {error.strerror}") from error


def _read_numbers(file: Path) -> list[list[int]]:
    return [_numbers(file, line) for line in _read_lines(file)]


def _numbers(file: Path, line: str) -> list[int]:
    try:
        return [int(word) for word in line.split(",")] if line.strip() else []
    except ValueError as error:
        raise ValueError(
            f"{file}: {line[:40]!r}; expected whole numbers with commas between"
        ) from error
