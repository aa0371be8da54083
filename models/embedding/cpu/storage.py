"""Tables in fewer bytes: copies of the rows in float16, bfloat16 or int8."""

# E elements of all tables, R rows, D width

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.embedding.cpu.stored_rows import SCALE_BYTES, row_bytes
from models.embedding.offsets import Int64Array
from models.embedding.plan.spec import Layout

_LEVELS = 255
_LINE_BYTES = 64
# Largest error of an element over the largest weight of its table: rounding to 11 and 8 bits, half
# a step of int8 (a row spans at most twice the largest weight).
ERRORS = {"float32": 0.0, "float16": 2.0**-11, "bfloat16": 2.0**-8, "int8": 1 / _LEVELS}
_HALVES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Stored:
    """Rows in memory: `zero_T` is the address of the row that id 0 has, or would have."""

    storage: str
    zero_T: Int64Array
    memory: Tensor  # keeps it alive


def store(layout: Layout, weight_E: Tensor, tables: Sequence[int], storage: str) -> Stored:
    """The tables' rows for the compiled kernels: the float32 buffer itself, or copies made now."""
    dim_T = np.array([spec.dim for spec in layout.specs], dtype=np.int64)
    low_T = layout.first_ids_T
    if storage == "float32":
        zero_T = weight_E.data_ptr() + 4 * (layout.elements_T - low_T * dim_T)
        return Stored(storage, zero_T, weight_E)
    zero_T = np.zeros_like(dim_T)
    row_bytes_T = [row_bytes(spec.dim, storage) for spec in layout.specs]
    sizes = [_whole_lines(layout.specs[table].rows * row_bytes_T[table]) for table in tables]
    memory = torch.zeros(sum(sizes) + _LINE_BYTES, dtype=torch.uint8)
    address = _whole_lines(memory.data_ptr())
    for table, size in zip(tables, sizes, strict=True):
        at = address - memory.data_ptr()
        rows = encoded(layout.rows_of(table, weight_E), storage).view(-1)
        memory[at : at + len(rows)] = rows
        zero_T[table] = address - low_T[table] * row_bytes_T[table]
        address += size
    return Stored(storage, zero_T, memory)


def _whole_lines(n_bytes: int) -> int:
    return -(-n_bytes // _LINE_BYTES) * _LINE_BYTES


def encoded(rows_RD: Tensor, storage: str) -> Tensor:
    """(R, bytes of a row) uint8: int8 has a scale and a bias a row, then the steps."""
    if storage in _HALVES:
        return rows_RD.to(_HALVES[storage]).view(torch.uint8)
    low_R1 = rows_RD.amin(1, keepdim=True)
    scale_R1 = (rows_RD.amax(1, keepdim=True) - low_R1) / _LEVELS
    steps_RD = (rows_RD - low_R1) / scale_R1.clamp_min(1e-45)
    steps_RD = torch.where(scale_R1 > 0, steps_RD, 0.0).round().clamp(0, _LEVELS)
    out = torch.empty(len(rows_RD), SCALE_BYTES + rows_RD.shape[1], dtype=torch.uint8)
    out[:, :SCALE_BYTES] = torch.cat((scale_R1, low_R1), 1).view(torch.uint8)
    out[:, SCALE_BYTES:] = steps_RD.to(torch.uint8)
    return out


def decoded(stored: Tensor, width: int, storage: str) -> Tensor:
    """(R, D) float32: `encoded`'s inverse but for rounding."""
    if storage in _HALVES:
        return stored.view(_HALVES[storage]).float()
    scale_bias_R2 = stored[:, :SCALE_BYTES].contiguous().view(torch.float32)
    steps_RD = stored[:, SCALE_BYTES : SCALE_BYTES + width].float()
    return steps_RD * scale_bias_R2[:, :1] + scale_bias_R2[:, 1:]
