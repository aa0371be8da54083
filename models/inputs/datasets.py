"""Data sets as streams of samples in the order of time: MovieLens-style, and Criteo's click logs.

Categories become 64-bit hashes; who uses them takes them modulo a table's rows.
"""

# N samples in the order of time

from __future__ import annotations

import csv
import importlib.util
import itertools
import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from models.embedding.offsets import Int64Array

UInt64Array = npt.NDArray[np.uint64]
FloatArray = npt.NDArray[np.float32]

CRITEO_DENSE = 13
CRITEO_SPARSE = 26
# File of a MovieLens-style set: separator, whether a header names the columns.
_LAYOUTS = {
    ".inter": ("\t", True),
    "u.data": ("\t", False),
    "ratings.dat": ("::", False),
    "ratings.csv": (",", True),
}
_COLUMNS = ("user", "item", "rating", "time")


@dataclass(frozen=True)
class Interactions:
    """Who took what when, by ascending time.

    `user`, `item` int64[N] as numbers from 0, `time` and `rating` float64[N].
    """

    user: Int64Array
    item: Int64Array
    rating: npt.NDArray[np.float64]
    time: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.user)

    def item_before(self, k: int) -> Int64Array:
        """int64[N]: the item that the same user took k interactions earlier (k >= 1).

        Whoever has fewer: counted round and round in what came before; the first one of a user: its
        own item.
        """
        order, begin, n_before = self._by_user
        back = n_before - 1 - (k - 1) % np.maximum(n_before, 1)
        source = begin + np.where(n_before > 0, back, 0)
        before = np.empty_like(self.item)
        before[order] = self.item[order][source]
        return before

    @cached_property
    def _by_user(self) -> tuple[Int64Array, Int64Array, Int64Array]:
        """Order of the samples by user, then where their user begins and how many came before."""
        order = np.argsort(self.user, kind="stable")
        user = self.user[order]
        begin = np.searchsorted(user, user, side="left")
        return order, begin, np.arange(len(user)) - begin


@dataclass(frozen=True)
class Criteo:
    """Click logs.

    `dense_NF` float32 (N, 13), log(1 + x) with missing and negative ones 0; `sparse_NC` hashes (N,
    26); `label_N` float32, 1 = clicked.
    """

    dense_NF: FloatArray
    sparse_NC: UInt64Array
    label_N: FloatArray

    def __len__(self) -> int:
        return len(self.dense_NF)


def read_interactions(path: str) -> Interactions:
    """Interactions of a file or of the first one of its kind in a folder.

    *.inter, u.data, ratings.dat, ratings.csv. Raises ValueError naming the file, what is wrong and
    what is expected.
    """
    file = _ratings_file(Path(path))
    table, has_header = _ratings_table(file)
    rating, time = (
        pd.to_numeric(table[name], errors="coerce").to_numpy(np.float64)
        for name in ("rating", "time")
    )
    is_empty = table[["user", "item"]].isna().any(axis=1)
    bad = np.flatnonzero(~(np.isfinite(rating) & np.isfinite(time)) | is_empty)
    if len(bad):
        words = ", ".join(str(word) for word in table.iloc[bad[0]])
        header = "" if has_header else " and no header"
        raise ValueError(
            f"{file}, line {bad[0] + 1 + has_header}: {words}; expected user, item, rating, "
            f"time{header}"
        )
    order = np.argsort(time, kind="stable")
    user, item = (pd.factorize(table[name])[0][order].astype(np.int64) for name in ("user", "item"))
    return Interactions(user, item, rating[order], time[order])


def _ratings_table(file: Path) -> tuple[pd.DataFrame, bool]:
    """The file's four columns as text, by name, and whether it has a header."""
    layout = next(kind for kind in _LAYOUTS if file.name.endswith(kind))
    separator, has_header = _LAYOUTS[layout]
    try:
        with warnings.catch_warnings():
            # rows with more fields than the header
            warnings.simplefilter("error", pd.errors.ParserWarning)
            table = pd.read_csv(
                file,
                sep=separator,
                header=0 if has_header else None,
                engine="python" if len(separator) > 1 else "c",
                dtype=str,
                encoding="latin-1",
                index_col=False,
            )
    except (ValueError, OSError, pd.errors.ParserWarning) as error:
        raise ValueError(f"{file}: not readable: {' '.join(str(error).split())}") from error
    if len(table) == 0:
        raise ValueError(f"{file}: is empty; expected a line for every interaction")
    if table.shape[1] < len(_COLUMNS):
        raise ValueError(f"{file}: {table.shape[1]} columns; expected user, item, rating, time")
    table = _by_name(table, file) if has_header else table.iloc[:, : len(_COLUMNS)]
    table.columns = pd.Index(_COLUMNS)
    return table, has_header


def _ratings_file(path: Path) -> Path:
    if path.is_dir():
        for kind in _LAYOUTS:
            for file in sorted(path.glob(f"*{kind}")):
                return file
        raise ValueError(f"{path}: has none of {', '.join('*' + kind for kind in _LAYOUTS)}")
    if not path.is_file():
        raise ValueError(f"{path}: no such file or folder; expected MovieLens-style interactions")
    if not any(path.name.endswith(kind) for kind in _LAYOUTS):
        raise ValueError(
            f"{path}: unknown layout; expected a name that ends in {', '.join(_LAYOUTS)}"
        )
    return path


def _by_name(table: pd.DataFrame, file: Path) -> pd.DataFrame:
    """The four columns by what their headers begin with (user_id:token, userId, movieId, ...)."""
    columns = []
    for name in _COLUMNS:
        starts = ("item", "movie") if name == "item" else (name,)
        match = [column for column in table.columns if str(column).lower().startswith(starts)]
        if not match:
            raise ValueError(
                f"{file}: its header has no column for the {name}: "
                f"{', '.join(map(str, table.columns))}"
            )
        columns.append(match[0])
    return table[columns].copy()


def movielens_folder() -> Path | None:
    """MovieLens 100K as recbole's wheel ships it; None where that is not installed.

    Nothing of recbole is imported.
    """
    package = importlib.util.find_spec("recbole")
    if package is None or not package.submodule_search_locations:
        return None
    folder = Path(package.submodule_search_locations[0]) / "dataset_example" / "ml-100k"
    return folder if folder.is_dir() else None


def read_criteo(path: str, n: int) -> Criteo:
    """The first n rows (fewer if the file has fewer) of tab-separated click logs without header.

    A row: label, 13 integers, 26 categories; missing ones are empty. Raises ValueError naming the
    file and the line.
    """
    n_columns = 1 + CRITEO_DENSE + CRITEO_SPARSE
    if not Path(path).is_file():
        raise ValueError(
            f"{path}: no such file; expected Criteo's click logs (train.txt: {n_columns} columns, "
            "tabs)"
        )
    with Path(path).open(encoding="latin-1") as lines:
        for number, line in enumerate(itertools.islice(lines, n), start=1):
            n_found = line.count("\t") + 1
            if n_found != n_columns:
                raise ValueError(
                    f"{path}, line {number}: {n_found} columns; expected {n_columns} with tabs "
                    "between"
                )
    try:
        table = pd.read_csv(
            path,
            sep="\t",
            header=None,
            nrows=n,
            dtype="string[pyarrow]",
            keep_default_na=False,
            quoting=csv.QUOTE_NONE,
        )
    except (ValueError, OSError) as error:
        raise ValueError(f"{path}: not readable: {' '.join(str(error).split())}") from error
    words = table.iloc[:, : 1 + CRITEO_DENSE].replace("", "0")
    numbers = words.apply(pd.to_numeric, errors="coerce")
    finite = np.isfinite(numbers.to_numpy(np.float64)).all(axis=1)
    bad = np.flatnonzero(~finite | ~numbers[0].isin((0, 1)).to_numpy())
    if len(bad):
        first = ", ".join(table.iloc[bad[0], :4])
        raise ValueError(
            f"{path}, line {bad[0] + 1}: {first}, ...; expected a label 0 or 1, 13 integers and "
            "no header"
        )
    dense_NF = np.log1p(np.maximum(numbers.iloc[:, 1:].to_numpy(np.float32), 0))
    columns = [
        pd.util.hash_array(table[c].to_numpy(object)) for c in range(1 + CRITEO_DENSE, n_columns)
    ]
    return Criteo(dense_NF, np.stack(columns, axis=1), numbers[0].to_numpy(np.float32))
