"""Small MLPs for one CPU core: a few items go through all layers while what they give stays in L1.

One call for the whole stack. Up to some dozens of items that is faster than a call of a BLAS for
every layer.
"""

# B items, I input width, O output width

# mypy: allow-untyped-defs, allow-incomplete-defs
# ruff: noqa: ANN001, ANN202 (numba types what it compiles)

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit
from numba.core import cgutils

from models.kernels.vectors import FLOAT_BYTES, RowBuilder, instruction, long

NONE, RELU, SIGMOID = range(3)
# Items and columns of a block: 4 x 64 sums fill half of AVX-512's registers.
_ITEMS = 4
_WIDE = 64
_NARROW = 16
_SIGNATURE = "void(float32[:,:], float32[::1], int64[::1], int64[::1], float32[:,::1])"


@cache
def add_product(width: int, n_items: int) -> Any:
    """add_product(x, x_step, n_in, panel, start, start_step, out, out_step): out = start + x panel.

    Addresses, and bytes from a row to the next; `n_items` rows of `n_in` numbers; the panel is
    dense, (n_in, width).
    """

    @instruction()
    def product(builder, x, x_step, n_in, panel, start, start_step, out, out_step):
        rows = RowBuilder(builder, width)
        items = [long(i) for i in range(n_items)]
        inputs = [builder.add(x, builder.mul(i, x_step)) for i in items]
        totals = [
            cgutils.alloca_once_value(builder, rows.load(start, builder.mul(i, start_step)))
            for i in items
        ]
        with cgutils.for_range(builder, n_in) as loop:
            weight = rows.load(panel, rows.nth(loop.index))
            for input_, total in zip(inputs, totals, strict=True):
                spread = rows.spread(rows.scalar(input_, loop.index))
                builder.store(rows.multiply_add(spread, weight, builder.load(total)), total)
        for i, total in zip(items, totals, strict=True):
            rows.store(builder.load(total), out, builder.mul(i, out_step))

    return product


def panels(
    layers: Sequence[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]],
) -> npt.NDArray[np.float32]:
    """All (O, I) weights and (O,) biases as the kernel reads them, flat.

    A layer's bias, then its columns in panels of 64, the rest in panels of 16 (I, columns); padded
    with zeros.
    """
    parts = []
    for weight_OI, bias_O in layers:
        n_out, n_in = weight_OI.shape
        padded = -(-n_out // _NARROW) * _NARROW
        weight_IO = np.zeros((n_in, padded), np.float32)
        weight_IO[:, :n_out] = weight_OI.T
        parts.append(np.concatenate((bias_O, np.zeros(padded - n_out, np.float32))))
        n_wide = padded // _WIDE * _WIDE
        edges = [*range(0, n_wide, _WIDE), *range(n_wide, padded, _NARROW), padded]
        parts += [weight_IO[:, a:b].ravel() for a, b in itertools.pairwise(edges)]
    return np.concatenate(parts).astype(np.float32)


def _layer() -> Any:
    """layer(n, x, x_step, n_in, weights, n_out, out, out_step): where the next weights begin."""
    wide = add_product(_WIDE, _ITEMS)
    narrow = add_product(_NARROW, _ITEMS)
    wide_single = add_product(_WIDE, 1)
    narrow_single = add_product(_NARROW, 1)

    @njit
    def layer(n, x, x_step, n_in, weights, n_out, out, out_step):
        padded = (n_out + _NARROW - 1) // _NARROW * _NARROW
        panel = weights + padded * FLOAT_BYTES
        place = 0
        while padded > 0:
            width = _WIDE if padded >= _WIDE else _NARROW
            bias = weights + place
            target = out + place
            if width == _WIDE and n == _ITEMS:
                wide(x, x_step, n_in, panel, bias, 0, target, out_step)
            elif width == _WIDE:
                wide_single(x, x_step, n_in, panel, bias, 0, target, out_step)
            elif n == _ITEMS:
                narrow(x, x_step, n_in, panel, bias, 0, target, out_step)
            else:
                narrow_single(x, x_step, n_in, panel, bias, 0, target, out_step)
            padded -= width
            place += width * FLOAT_BYTES
            panel += n_in * width * FLOAT_BYTES
        return panel

    return layer


@njit
def _activate(values_BO, n, width, code):
    if code == RELU:
        for i in range(n):
            for j in range(width):
                values_BO[i, j] = max(values_BO[i, j], np.float32(0))
    elif code == SIGMOID:
        for i in range(n):
            for j in range(width):
                values_BO[i, j] = np.float32(1) / (np.float32(1) + np.exp(-values_BO[i, j]))


@cache
def mlp_kernel() -> Callable[..., None]:
    """run(x_BI, weights, widths, activations, out_BO): a whole stack; compiled once a process."""
    layer = _layer()

    def run(x_BI, weights, widths, activations, out_BO):
        n_items, n_out = out_BO.shape
        widest = (widths.max() + _NARROW - 1) // _NARROW * _NARROW
        values = np.empty((_ITEMS, widest), np.float32)
        spare = np.empty((_ITEMS, widest), np.float32)
        first = 0
        while first < n_items:
            n = _ITEMS if first + _ITEMS <= n_items else 1
            x = x_BI.ctypes.data + first * x_BI.strides[0]
            x_step = x_BI.strides[0]
            place = weights.ctypes.data
            for i in range(len(activations)):
                values, spare = spare, values
                out = values.ctypes.data
                out_step = values.strides[0]
                place = layer(n, x, x_step, widths[i], place, widths[i + 1], out, out_step)
                _activate(values, n, widths[i + 1], activations[i])
                x = out
                x_step = out_step
            for i in range(n):
                for j in range(n_out):
                    out_BO[first + i, j] = values[i, j]
            first += n

    return njit(_SIGNATURE, nogil=True, error_model="numpy")(run)
