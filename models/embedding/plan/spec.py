"""What the tables of a look-up are, and where each lies in the weights and in the output."""

# T tables, R rows, D width of a row, E elements of all tables

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from infra.settings.model_config import ModelConfig
from models.embedding.offsets import Int64Array, starts_of

if TYPE_CHECKING:  # a plan can be read and checked without PyTorch
    from torch import Tensor

LINE_ELEMENTS = 16  # float32 of a 64-byte line


@dataclass(frozen=True, slots=True, order=True)
class TableSpec:
    """A table's rows and width, and its ids a bag.

    `bag_ids`: every bag has exactly so many ids (1: one-hot); None: from none to any number.
    """

    rows: int
    dim: int
    bag_ids: int | None = None

    def __post_init__(self) -> None:
        bag_ids = 1 if self.bag_ids is None else self.bag_ids
        for name, value in (("rows", self.rows), ("dim", self.dim), ("bag_ids", bag_ids)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(
                    f"a table's {name} is {value!r}; expected a whole number of at least 1"
                )

    def __str__(self) -> str:
        ids = "" if self.bag_ids is None else f", {self.bag_ids} id{'s' * (self.bag_ids > 1)} a bag"
        return f"{self.rows} x {self.dim}{ids}"

    @property
    def n_elements(self) -> int:
        """Numbers in all its rows."""
        return self.rows * self.dim


def model_specs(config: ModelConfig) -> tuple[TableSpec, ...]:
    """The tables of a model."""
    bag_ids = config.num_indices_per_lookup if config.num_indices_per_lookup_fixed else None
    width = config.arch_sparse_feature_size
    return tuple(TableSpec(rows, width, bag_ids) for rows in config.table_rows)


def specs_hash(specs: Sequence[TableSpec]) -> str:
    """16 hexadecimal digits; equal for equal tables in the same order, on any machine."""
    numbers = [(spec.rows, spec.dim, spec.bag_ids) for spec in specs]
    text = json.dumps(numbers, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def alike(specs: Sequence[TableSpec]) -> dict[TableSpec, list[int]]:
    """The tables of each kind."""
    tables_of: dict[TableSpec, list[int]] = {}
    for table, spec in enumerate(specs):
        tables_of.setdefault(spec, []).append(table)
    return tables_of


def difference(planned: Sequence[TableSpec], actual: Sequence[TableSpec]) -> str | None:
    """The first difference in words, None if there is none."""
    for table, (plan_spec, spec) in enumerate(zip(planned, actual, strict=False)):
        if plan_spec != spec:
            return f"table {table}: plan has {plan_spec}, model has {spec}"
    if len(planned) != len(actual):
        return f"plan has {len(planned)} tables, model has {len(actual)}"
    return None


def column_offsets(specs: Sequence[TableSpec]) -> Int64Array:
    """(T + 1,), first column of each table in the output (B, sum of D); the last = its width."""
    return starts_of([spec.dim for spec in specs])


def element_offsets(specs: Sequence[TableSpec]) -> Int64Array:
    """(T + 1,), first element of each table in the flat weight buffer; the last = its length.

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
        end = start + spec.n_elements
    return np.array([*starts, end], dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Layout:
    """Where T tables lie in a flat weight buffer and in the output, and how their ids count."""

    specs: tuple[TableSpec, ...]
    elements_T: Int64Array  # first element of each table; a multiple of its width
    first_ids_T: Int64Array  # id of each table's first row: 0, unless ids count through all tables
    n_elements: int  # of the buffer

    @classmethod
    def apart(cls, specs: Sequence[TableSpec]) -> Layout:
        """Each table by itself: its ids from 0 on, its rows from a line on."""
        offsets = element_offsets(specs)
        return cls(tuple(specs), offsets[:-1], np.zeros(len(specs), np.int64), int(offsets[-1]))

    @classmethod
    def joined(cls, specs: Sequence[TableSpec]) -> Layout:
        """Tables of one width as one dense matrix whose rows the ids count, as in the models."""
        first_T1 = starts_of([spec.rows for spec in specs])
        width = specs[0].dim if specs else 1
        return cls(tuple(specs), first_T1[:-1] * width, first_T1[:-1], int(first_T1[-1]) * width)

    @property
    def columns(self) -> Int64Array:
        """(T + 1,), first column of each table in the output; the last = the output's width."""
        return column_offsets(self.specs)

    def rows_of(self, table: int, weight_E: Tensor) -> Tensor:
        """(R, D): a table's rows in the buffer, a view."""
        spec = self.specs[table]
        first = int(self.elements_T[table])
        return weight_E[first : first + spec.n_elements].view(spec.rows, spec.dim)


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
