"""Tables in fewer bytes: copies of the rows in float16, bfloat16 or int8 with a scale and a bias a
row.
"""

# E elements of all tables, R rows, D width

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from models.embedding.cpu.jobs import Stored
from models.embedding.cpu.stored_rows import SCALE_BYTES, row_bytes
from models.embedding.plan.spec import Layout

_LEVELS = 255
ERRORS = {"float32": 0.0, "float16": 2.0**-11, "bfloat16": 2.0**-8, "int8": 1 / _LEVELS}
"""Largest error of an element over the largest weight of its table: rounding to 11 and 8 bits, half a step of int8 (a
row spans at most twice the largest weight)."""


def store(layout: Layout, weight_E: Tensor, tables: tuple[int, ...], storage: str) -> Stored:
    """The tables' rows for the compiled kernels; float32 is the buffer itself, others are copies
    made now.
    """
    first_T = layout.elements_T
    low_T = layout.first_ids_T
    dim_T = np.array([spec.dim for spec in layout.specs], dtype=np.int64)
    if storage == "float32":
        return Stored(storage, weight_E.data_ptr() + 4 * (first_T - low_T * dim_T), weight_E)
    zero_T = np.zeros(len(layout.specs), np.int64)
    ends = [0]
    for table in tables:
        spec = layout.specs[table]
        ends.append(-(-(ends[-1] + spec.rows * row_bytes(spec.dim, storage)) // 64) * 64)
    memory = torch.zeros(ends[-1] + 64, dtype=torch.uint8)
    base = -(-memory.data_ptr() // 64) * 64
    for table, start in zip(tables, ends[:-1], strict=True):
        spec = layout.specs[table]
        first = int(first_T[table])
        n_bytes = row_bytes(spec.dim, storage)
        rows_RD = weight_E[first : first + spec.rows * spec.dim].view(spec.rows, spec.dim)
        at = start + base - memory.data_ptr()
        memory[at : at + spec.rows * n_bytes] = encoded(rows_RD, storage).view(-1)
        zero_T[table] = base + start - low_T[table] * n_bytes
    return Stored(storage, zero_T, memory)


def encoded(rows_RD: Tensor, storage: str) -> Tensor:
    """(R, bytes of a row) uint8."""
    if storage == "float16":
        return rows_RD.to(torch.float16).view(torch.uint8)
    if storage == "bfloat16":
        return rows_RD.to(torch.bfloat16).view(torch.uint8)
    low_R1 = rows_RD.amin(1, keepdim=True)
    high_R1 = rows_RD.amax(1, keepdim=True)
    scale_R1 = (high_R1 - low_R1) / _LEVELS
    steps_RD = torch.where(
        scale_R1 > 0, (rows_RD - low_R1) / scale_R1.clamp_min(1e-45), 0.0
    ).round()
    out = torch.empty(len(rows_RD), SCALE_BYTES + rows_RD.shape[1], dtype=torch.uint8)
    out[:, :SCALE_BYTES] = torch.cat((scale_R1, low_R1), 1).view(torch.uint8)
    out[:, SCALE_BYTES:] = steps_RD.clamp(0, _LEVELS).to(torch.uint8)
    return out


def decoded(stored: Tensor, width: int, storage: str) -> Tensor:
    """(R, D) float32: `encoded`'s inverse but for rounding."""
    if storage == "float16":
        return stored.view(torch.float16).float()
    if storage == "bfloat16":
        return stored.view(torch.bfloat16).float()
    scale_bias = stored[:, :SCALE_BYTES].contiguous().view(torch.float32)
    return (
        stored[:, SCALE_BYTES : SCALE_BYTES + width].float() * scale_bias[:, :1] + scale_bias[:, 1:]
    )
