"""What a study has computed: finished cases by the digest of their settings, and tables of rows."""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Self

import pandas as pd

Row = dict[str, Any]
RowTables = dict[str, list[Row]]  # rows by the name of their table
PARQUET = "parquet"


def plain(value: Any) -> Any:
    """`value` as JSON holds it: records become mappings. Raises TypeError for a live object."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item"):  # a number of numpy's
        return value.item()
    if value is None or isinstance(value, str | int | float):
        return value
    raise TypeError(f"{value!r}: a case and its rows hold plain values only")


def row_of(row: Any) -> Row:
    """A row's columns by name; a record within the record adds its columns in its place."""
    if not is_dataclass(row):
        return dict(plain(row))
    columns: Row = {}
    for field in fields(row):
        value = getattr(row, field.name)
        columns |= row_of(value) if is_dataclass(value) else {field.name: plain(value)}
    return columns


def digest_of(study: str, version: int, case: Any) -> str:
    """Key of the case's rows: 16 hex digits of all that makes them."""
    settings = json.dumps([study, version, type(case).__name__, plain(case)], sort_keys=True)
    return hashlib.sha256(settings.encode()).hexdigest()[:16]


def label_fields(case: Any) -> Row:
    """The fields of a case that a command line can name."""
    values = {field.name: getattr(case, field.name) for field in fields(case)}
    return {k: v for k, v in values.items() if v is None or isinstance(v, str | int | float)}


def label(case: Any) -> str:
    """model=wnd, sla=medium."""
    return ", ".join(f"{name}={value}" for name, value in label_fields(case).items())


class CaseLog:
    """Finished cases with their rows: a line a case in `file`, also after a kill in mid-write.

    A context manager; raises ValueError where another process writes to the file.
    """

    def __init__(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self._file = file.open("a+b")
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with this process
        except OSError:
            self._file.close()
            raise ValueError(f"--out: {file} is being written by another run") from None
        self._file.seek(0)
        content = self._file.read()
        whole = content.rfind(b"\n") + 1
        self._file.truncate(whole)
        lines = [json.loads(line) for line in content[:whole].splitlines()]
        self.finished: dict[str, RowTables] = {line["case"]: line["tables"] for line in lines}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, digest: str, effort: str, case: Any, tables: RowTables) -> None:
        """Keep a finished case."""
        line = {"case": digest, "effort": effort, "settings": plain(case), "tables": tables}
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()
        self.finished[digest] = tables

    def tables(self, digests: Iterable[str]) -> RowTables:
        """The rows of these cases, in their order; a table without a row is empty."""
        joined: RowTables = {name: [] for case in self.finished.values() for name in case}
        for digest in digests:
            for name, rows in self.finished.get(digest, {}).items():
                joined[name] += rows
        return joined


def frame_of(rows: list[Row]) -> pd.DataFrame:
    """Table of rows; whole numbers stay whole where some are missing."""
    table = pd.DataFrame(rows)
    for name in table.select_dtypes("float"):
        values = (row.get(name) for row in rows)
        if all(isinstance(value, int) for value in values if value is not None):
            table[name] = table[name].astype("Int64")
    return table


def table_file(folder: Path, name: str, layout: str) -> Path:
    """Where a table lies; `layout` is PARQUET or a CSV's format of floats."""
    return folder / f"{name}.{'parquet' if layout == PARQUET else 'csv'}"


def write_table(folder: Path, name: str, table: pd.DataFrame, layout: str) -> Path:
    """Put a table into its file, whole or not at all."""
    file = table_file(folder, name, layout)
    partial = file.with_name(f".{file.name}")
    if layout == PARQUET:
        table.to_parquet(partial, index=False)
    else:
        table.to_csv(partial, index=False, float_format=layout)
    return partial.replace(file)


def read_table(folder: Path, name: str, layout: str) -> pd.DataFrame | None:
    """A table from its file; None where there is none."""
    file = table_file(folder, name, layout)
    if not file.is_file():
        return None
    return pd.read_parquet(file) if layout == PARQUET else pd.read_csv(file, comment="#")
