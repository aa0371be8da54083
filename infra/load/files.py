"""Files that a load is read from: numbers, traces of arrivals and sizes, rate curves.

Bad files raise ConfigError.
"""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from infra.clock import NS_PER_MS, NS_PER_S
from infra.load.arrivals import RateCurve
from infra.settings.config import ConfigError

Int64Array = npt.NDArray[np.int64]
Int32Array = npt.NDArray[np.int32]
FloatArray = npt.NDArray[np.float64]
LATEST_NS = 2.0**62  # what an int64 holds, with room
ARRIVAL_COLUMNS = {"arrival_ns": 1.0, "arrival_ms": NS_PER_MS, "arrival_s": NS_PER_S}  # name: ns


def read_numbers(flag: str, path: str) -> FloatArray:
    """One finite number a line, no header."""
    file = existing(flag, path, "one number a line")
    try:
        lines = file.read_text().splitlines()
    except UnicodeDecodeError as error:
        raise ConfigError(flag, f"{path}: is no text; expected one number a line") from error
    numbers = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = float(line)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise ConfigError(
                flag,
                f"{path}, line {number}: {line.strip()!r} is no finite number; expected one a "
                "line and no header",
            )
        numbers.append(value)
    if not numbers:
        raise ConfigError(flag, f"{path}: is empty; expected one finite number a line")
    return np.array(numbers)


def read_arrivals_ns(path: str, n: int) -> Int64Array:
    """The first n arrival times of a file with one time in ms a line, ascending."""
    times_ns = read_numbers("arrival_file", path) * NS_PER_MS
    return _ascending(path, times_ns, n)


def read_trace(path: str, n: int, time_scale: float) -> Int64Array:
    """The first n arrivals of a CSV or Parquet table in ns from its first row, times `time_scale`.

    One column is arrival_ns, arrival_ms or arrival_s, as in a saved run's queries.parquet.
    """
    table = read_table("arrival_file", path)
    column = next((name for name in ARRIVAL_COLUMNS if name in table), None)
    if column is None:
        raise ConfigError(
            "arrival_file",
            f"{path}: has columns {', '.join(map(str, table))}; expected one of "
            f"{', '.join(ARRIVAL_COLUMNS)}",
        )
    times = table[column]
    if pd.api.types.is_integer_dtype(times) and not times.isna().any():
        times = (
            times - times.iloc[0]
        )  # before they become floats: an epoch's nanoseconds have more digits than those
    from_first = _numeric(path, times)
    return _ascending(path, (from_first - from_first[0]) * ARRIVAL_COLUMNS[column] * time_scale, n)


def read_sizes(path: str, n: int, max_items: int) -> Int32Array:
    """The first n query sizes of the same table: column n_items; none may be larger than
    `max_items`.
    """
    table = read_table("arrival_file", path)
    if "n_items" not in table or len(table) < n:
        raise ConfigError(
            "arrival_file",
            f"{path}: has no column n_items of {n} rows, which batch_size_distribution trace reads",
        )
    sizes = _numeric(path, table["n_items"])[:n]
    wrong = np.flatnonzero((sizes < 1) | (sizes != np.rint(sizes)) | (sizes > max_items))
    if len(wrong):
        raise ConfigError(
            "arrival_file",
            f"{path}, row {wrong[0] + 1}: n_items is {sizes[wrong[0]]:g}; expected a whole number "
            f"from 1 to max_mini_batch_size, {max_items}",
        )
    return sizes.astype(np.int32)


def read_rate_curve(path: str, time_scale: float) -> RateCurve:
    """A CSV or Parquet table with columns time_s (from 0) and rate (any unit: the mean is scaled to
    the run's).
    """
    table = read_table("arrival_file", path)
    if not {"time_s", "rate"} <= {*table}:
        raise ConfigError(
            "arrival_file",
            f"{path}: has columns {', '.join(map(str, table))}; expected time_s and rate",
        )
    try:
        return RateCurve(
            _numeric(path, table["time_s"]) * time_scale, _numeric(path, table["rate"])
        )
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError("arrival_file", f"{path}: {error}") from error


def read_table(flag: str, path: str) -> pd.DataFrame:
    """A CSV (with a header; lines after # are comments) or Parquet file of at least one row."""
    file = existing(flag, path, "a CSV or Parquet table")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "error", pd.errors.ParserWarning
            )  # rows with more fields than the header
            parquet = file.suffix == ".parquet"
            table = (
                pd.read_parquet(file)
                if parquet
                else pd.read_csv(file, comment="#", index_col=False)
            )
    except (
        ValueError,
        OSError,
        pd.errors.ParserWarning,
    ) as error:  # pandas' and pyarrow's errors are of these kinds
        raise ConfigError(
            flag, f"{path}: not readable as a table: {' '.join(str(error).split())}"
        ) from error
    if table.empty:
        raise ConfigError(flag, f"{path}: has no rows")
    return table


def existing(flag: str, path: str, expected: str) -> Path:
    """The file; raises ConfigError if there is none."""
    file = Path(path)
    if not file.is_file():
        raise ConfigError(flag, f"{path}: no such file; expected {expected}")
    return file


def _numeric(path: str, column: pd.Series) -> FloatArray:
    if not (pd.api.types.is_numeric_dtype(column) or pd.api.types.is_string_dtype(column)):
        raise ConfigError(
            "arrival_file", f"{path}: {column.name} is of type {column.dtype}; expected numbers"
        )
    values: FloatArray = pd.to_numeric(column, errors="coerce").to_numpy(np.float64)
    wrong = np.flatnonzero(~np.isfinite(values))
    if len(wrong):
        raise ConfigError(
            "arrival_file",
            f"{path}, row {wrong[0] + 1}: {column.name} is {column.iloc[wrong[0]]}; expected a "
            "finite number",
        )
    return values


def _ascending(path: str, times_ns: FloatArray, n: int) -> Int64Array:
    if len(times_ns) < n:
        raise ConfigError(
            "arrival_file", f"{path}: {len(times_ns)} arrivals, but the run has {n} queries"
        )
    back = np.flatnonzero(np.diff(times_ns) < 0)
    if times_ns[0] < 0 or len(back):
        at = int(back[0]) + 1 if len(back) else 0
        raise ConfigError(
            "arrival_file",
            f"{path}, arrival {at + 1}: time runs backwards; times begin at 0 and must not descend",
        )
    if times_ns[n - 1] > LATEST_NS:
        raise ConfigError(
            "arrival_file", f"{path}: the last arrival is at {times_ns[n - 1] / NS_PER_S:.3g} s"
        )
    return np.rint(times_ns[:n]).astype(np.int64)
