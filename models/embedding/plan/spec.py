"""What the tables of a look-up are: rows, widths, ids a bag; and where each lies in the weights and
in the output.
"""

# T tables, R rows, D width of a row

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from infra.settings.model_config import ModelConfig

Int64Array = npt.NDArray[np.int64]
LINE_ELEMENTS = 16  # float32 of a 64-byte line


@dataclass(frozen=True, slots=True, order=True)
class TableSpec:
    """One table. `bag_ids`: every bag has exactly so many ids (1: one-hot); None: from none to any
    number.
    """

    rows: int
    dim: int
    bag_ids: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("rows", self.rows), ("dim", self.dim), ("bag_ids", self.bag_ids)):
            if name == "bag_ids" and value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(
                    f"a table's {name} is {value!r}; expected a whole number of at least 1"
                )

    def __str__(self) -> str:
        ids = "" if self.bag_ids is None else f", {self.bag_ids} id{'s' * (self.bag_ids > 1)} a bag"
        return f"{self.rows} x {self.dim}{ids}"


def model_specs(config: ModelConfig) -> tuple[TableSpec, ...]:
    """The tables of a model."""
    bag_ids = config.num_indices_per_lookup if config.num_indices_per_lookup_fixed else None
    return tuple(
        TableSpec(rows, config.arch_sparse_feature_size, bag_ids) for rows in config.table_rows
    )


def specs_hash(specs: Sequence[TableSpec]) -> str:
    """16 hexadecimal digits; equal for equal tables in the same order, on any machine."""
    text = json.dumps(
        [(spec.rows, spec.dim, spec.bag_ids) for spec in specs], separators=(",", ":")
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def difference(planned: Sequence[TableSpec], own: Sequence[TableSpec]) -> str | None:
    """The first difference in words, None if there is none."""
    for table, (one, other) in enumerate(zip(planned, own, strict=False)):
        if one != other:
            return f"table {table}: plan has {one}, model has {other}"
    if len(planned) != len(own):
        return f"plan has {len(planned)} tables, model has {len(own)}"
    return None


def column_offsets(specs: Sequence[TableSpec]) -> Int64Array:
    """First column of each table in the output (B, sum of D); (T + 1,), the last = width of the
    output.
    """
    return np.concatenate(([0], np.cumsum([spec.dim for spec in specs], dtype=np.int64))).astype(
        np.int64
    )


def element_offsets(specs: Sequence[TableSpec]) -> Int64Array:
    """First element of each table in the one flat weight buffer; (T + 1,), the last = elements of
    the buffer.

    Every table starts on a line and at a whole multiple of its own width, so the tables of one
    width are rows of one matrix: the buffer viewed as (elements // D, D), table t from row
    `element_offsets[t] // D` on.
    """
    starts = []
    end = 0
    for spec in specs:
        step = math.lcm(LINE_ELEMENTS, spec.dim)
        start = -(-end // step) * step
        starts.append(start)
        end = start + spec.rows * spec.dim
    return np.array([*starts, end], dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Layout:
    """Where T tables lie in a flat weight buffer and in the output (B, sum of D), and how their ids
    count.
    """

    specs: tuple[TableSpec, ...]
    elements_T: Int64Array  # first element of each table; a multiple of its width
    first_ids_T: (
        Int64Array  # the id of each table's first row: 0, unless ids count through all tables
    )
    n_elements: int  # of the buffer

    @classmethod
    def apart(cls, specs: Sequence[TableSpec]) -> Layout:
        """Each table by itself: its ids from 0 on, its rows from a line on."""
        offsets = element_offsets(specs)
        return cls(tuple(specs), offsets[:-1], np.zeros(len(specs), np.int64), int(offsets[-1]))

    @classmethod
    def joined(cls, specs: Sequence[TableSpec]) -> Layout:
        """Tables of one width as one dense matrix whose rows the ids count, as in the eight models."""
        first_T1 = np.concatenate(([0], np.cumsum([spec.rows for spec in specs]))).astype(np.int64)
        width = specs[0].dim if specs else 1
        return cls(tuple(specs), first_T1[:-1] * width, first_T1[:-1], int(first_T1[-1]) * width)

    @property
    def columns(self) -> Int64Array:
        """(T + 1,), first column of each table in the output; the last = the output's width."""
        return column_offsets(self.specs)


def ranges(tables: Iterable[int]) -> str:
    """(0, 1, 2, 5) -> '0-2 5'; `from_ranges` is its inverse for ascending numbers."""
    parts = []
    for _, run in itertools.groupby(enumerate(tables), key=lambda pair: pair[1] - pair[0]):
        members = [table for _, table in run]
        parts.append(str(members[0]) if len(members) == 1 else f"{members[0]}-{members[-1]}")
    return " ".join(parts)


def from_ranges(text: str) -> tuple[int, ...]:
    """'0-2 5' -> (0, 1, 2, 5); raises ValueError."""
    numbers: list[int] = []
    for part in text.split():
        ends = part.split("-")
        if not all(end.isdecimal() for end in ends) or len(ends) > 2:
            raise ValueError(f"tables are {text!r}; expected numbers and ranges like '0-2 5'")
        numbers += range(int(ends[0]), int(ends[-1]) + 1)
    return tuple(numbers)
