"""Files that a load is read from: numbers, traces of arrivals and sizes, rate curves.

Bad files raise ConfigError.
"""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

from infra.arrays import FloatArray, Int32Array, Int64Array
from infra.clock import NS_PER_MS, NS_PER_S
from infra.load.arrivals import RateCurve
from infra.settings.config import ConfigError

LATEST_NS = 2.0**62  # what an int64 holds, with room
ARRIVAL_COLUMNS = {"arrival_ns": 1.0, "arrival_ms": NS_PER_MS, "arrival_s": NS_PER_S}  # name: ns


def read_numbers(flag: str, path: str) -> FloatArray:
    """The numbers in a file of one finite number a line, no header."""
    file = existing(flag, path, "one number a line")
    try:
        lines = file.read_text().splitlines()
    except UnicodeDecodeError as error:
        raise ConfigError(flag, f"{path}: is no text; expected one number a line") from error
    numbers = [_number(flag, path, i, line) for i, line in enumerate(lines, 1) if line.strip()]
    if not numbers:
        raise ConfigError(flag, f"{path}: is empty; expected one finite number a line")
    return np.array(numbers)


def _number(flag: str, path: str, line_number: int, line: str) -> float:
    try:
        value = float(line)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ConfigError(
            flag,
            f"{path}, line {line_number}: {line.strip()!r} is no finite number; expected one a "
            "line and no header",
        )
    return value


def read_arrivals_ns(path: str, n: int) -> Int64Array:
    """The first n arrival times of a file with one time in ms a line, ascending."""
    return _ascending(path, read_numbers("arrival_file", path) * NS_PER_MS, n)


def read_trace(path: str, n: int, time_scale: float) -> Int64Array:
    """The first n arrivals of a CSV or Parquet table in ns from its first row, times `time_scale`.

    One column is arrival_ns, arrival_ms or arrival_s, as in a saved run's queries.parquet.
    """
    table = read_table("arrival_file", path)
    column = next((name for name in ARRIVAL_COLUMNS if name in table), None)
    if column is None:
        raise _wrong_columns(path, table, f"one of {', '.join(ARRIVAL_COLUMNS)}")
    times = table[column]
    if pd.api.types.is_integer_dtype(times) and not times.isna().any():
        # Before they become floats: an epoch's nanoseconds have more digits than those.
        times = times - times.iloc[0]
    from_first = _numeric(path, times)
    return _ascending(path, (from_first - from_first[0]) * ARRIVAL_COLUMNS[column] * time_scale, n)


def read_sizes(path: str, n: int, max_items: int) -> Int32Array:
    """The first n query sizes of the same table (column n_items), each at most `max_items`."""
    table = read_table("arrival_file", path)
    if "n_items" not in table or len(table) < n:
        raise _unusable(
            f"{path}: has no column n_items of {n} rows, which batch_size_distribution trace reads"
        )
    sizes = _numeric(path, table["n_items"])[:n]
    wrong = np.flatnonzero((sizes < 1) | (sizes != np.rint(sizes)) | (sizes > max_items))
    if len(wrong):
        raise _unusable(
            f"{path}, row {wrong[0] + 1}: n_items is {sizes[wrong[0]]:g}; expected a whole number "
            f"from 1 to max_mini_batch_size, {max_items}"
        )
    return sizes.astype(np.int32)


def read_rate_curve(path: str, time_scale: float) -> RateCurve:
    """The curve in a CSV or Parquet table with columns time_s (from 0) and rate.

    The rate's unit does not matter: its mean is scaled to the run's.
    """
    table = read_table("arrival_file", path)
    if not {"time_s", "rate"} <= {*table}:
        raise _wrong_columns(path, table, "time_s and rate")
    time_s = _numeric(path, table["time_s"]) * time_scale
    rate = _numeric(path, table["rate"])
    try:
        return RateCurve(time_s, rate)
    except ValueError as error:
        raise _unusable(f"{path}: {error}") from error


def read_table(flag: str, path: str) -> pd.DataFrame:
    """A CSV (with a header; lines after # are comments) or Parquet file of at least one row."""
    file = existing(flag, path, "a CSV or Parquet table")
    try:
        table = pd.read_parquet(file) if file.suffix == ".parquet" else _read_csv(file)
    except (ValueError, OSError, pd.errors.ParserWarning) as error:  # pandas' and pyarrow's kinds
        reason = " ".join(str(error).split())
        raise ConfigError(flag, f"{path}: not readable as a table: {reason}") from error
    if table.empty:
        raise ConfigError(flag, f"{path}: has no rows")
    return table


def _read_csv(file: Path) -> pd.DataFrame:
    with warnings.catch_warnings():
        # Rows with more fields than the header.
        warnings.simplefilter("error", pd.errors.ParserWarning)
        return pd.read_csv(file, comment="#", index_col=False)


def existing(flag: str, path: str, expected: str) -> Path:
    """The file; raises ConfigError if there is none."""
    file = Path(path)
    if not file.is_file():
        raise ConfigError(flag, f"{path}: no such file; expected {expected}")
    return file


def _numeric(path: str, column: pd.Series) -> FloatArray:
    if not (pd.api.types.is_numeric_dtype(column) or pd.api.types.is_string_dtype(column)):
        raise _unusable(f"{path}: {column.name} is of type {column.dtype}; expected numbers")
    values: FloatArray = pd.to_numeric(column, errors="coerce").to_numpy(np.float64)
    wrong = np.flatnonzero(~np.isfinite(values))
    if len(wrong):
        raise _unusable(
            f"{path}, row {wrong[0] + 1}: {column.name} is {column.iloc[wrong[0]]}; expected a "
            "finite number"
        )
    return values


def _ascending(path: str, times_ns: FloatArray, n: int) -> Int64Array:
    if len(times_ns) < n:
        raise _unusable(f"{path}: {len(times_ns)} arrivals, but the run has {n} queries")
    back = np.flatnonzero(np.diff(times_ns) < 0)
    if times_ns[0] < 0 or len(back):
        at = int(back[0]) + 1 if len(back) else 0
        raise _unusable(
            f"{path}, arrival {at + 1}: time runs backwards; times begin at 0 and must not descend"
        )
    if times_ns[n - 1] > LATEST_NS:
        raise _unusable(f"{path}: the last arrival is at {times_ns[n - 1] / NS_PER_S:.3g} s")
    return np.rint(times_ns[:n]).astype(np.int64)


def _wrong_columns(path: str, table: pd.DataFrame, expected: str) -> ConfigError:
    columns = ", ".join(map(str, table))
    return _unusable(f"{path}: has columns {columns}; expected {expected}")


def _unusable(problem: str) -> ConfigError:
    return ConfigError("arrival_file", problem)
