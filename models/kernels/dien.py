"""DIEN's plain recurrent layer for one CPU core: a few items take all steps, their state in L1."""

# B items, S steps, H hidden width, R rows of states

# mypy: allow-untyped-defs, allow-incomplete-defs
# ruff: noqa: ANN001, ANN202 (numba types what it compiles)

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numba import njit

from models.kernels.mlp import add_product
from models.kernels.vectors import FLOAT_BYTES

# floats: half of the vector registers of AVX-512, so that each weight loaded serves 256 / H items
_ACCUMULATORS = 256
_SIGNATURE = (
    "void(float32[:,:,::1], float32[:,::1], float32[::1], float32[:,::1], float32[:,:,::1])"
)
_FAST: Any = {
    "error_model": "numpy",
    "fastmath": {"reassoc", "contract", "nnan", "ninf", "nsz", "arcp"},
}

_LOG2_E = np.float32(1.4426950408889634)
_LN_2_HIGH = np.float32(0.693359375)
_LN_2_LOW = np.float32(-2.12194440e-4)
_TAYLOR = tuple(np.float32(1 / n) for n in (5040, 720, 120, 24, 6, 2, 1, 1))
_HALF = np.float32(0.5)
_ONE = np.float32(1)
_LARGE = np.float32(9)  # tanh(9) is 1 in float32
_BIAS = np.int32(127)
_MANTISSA_BITS = np.int32(23)


@njit(inline="always", **_FAST)
def _exp(x):
    """exp(x) for |x| < 80, within 2e-7 of it: a power of two times a Taylor series of the rest."""
    k = np.floor(x * _LOG2_E + _HALF)
    rest = x - k * _LN_2_HIGH - k * _LN_2_LOW
    series = _TAYLOR[0]
    series = series * rest + _TAYLOR[1]
    series = series * rest + _TAYLOR[2]
    series = series * rest + _TAYLOR[3]
    series = series * rest + _TAYLOR[4]
    series = series * rest + _TAYLOR[5]
    series = series * rest + _TAYLOR[6]
    series = series * rest + _TAYLOR[7]
    return series * np.int32((np.int32(k) + _BIAS) << _MANTISSA_BITS).view(np.float32)


@njit(inline="always", **_FAST)
def _tanh(x):
    """tanh(x) within 1.4e-7: (e - 1) / (e + 1), e = exp(2 x)."""
    e = _exp(np.float32(2) * min(max(x, -_LARGE), _LARGE))
    return (e - _ONE) / (e + _ONE)


@cache
def add_softmax() -> Callable[..., None]:
    """add(states_RH, to_RH): to += each row's softmax; states are a tanh's, within [-1, 1]."""

    def add(states_RH, to_RH):
        n_rows, width = states_RH.shape
        row_H = np.empty(width, np.float32)
        for row in range(n_rows):
            total = np.float32(0)
            for i in range(width):
                row_H[i] = _exp(states_RH[row, i])
            for i in range(width):
                total += row_H[i]
            share = _ONE / total
            for i in range(width):
                to_RH[row, i] += row_H[i] * share

    return njit("void(float32[:,::1], float32[:,::1])", nogil=True, **_FAST)(add)


@njit(inline="always")
def _keep(states_SBH, step, first, state_BH, n_items, width):
    for item in range(n_items):
        for i in range(width):
            states_SBH[step, first + item, i] = state_BH[item, i]


@cache
def recurrence(width: int) -> Callable[..., None]:
    """recur(x_SBI, weight_IH, bias_H, weight_HH, states_SBH): h_s = tanh(x_s U + b + h_{s-1} W).

    h_-1 = 0; weights are (from, to). Where `states_SBH` holds one step only, it takes the last.
    """
    block = max(_ACCUMULATORS // width, 1)
    several = add_product(width, block)
    single = add_product(width, 1)
    row = width * FLOAT_BYTES

    def recur(x_SBI, weight_IH, bias_H, weight_HH, states_SBH):
        n_steps, n_items, n_in = x_SBI.shape
        step_bytes = x_SBI.strides[0]
        item_bytes = x_SBI.strides[1]
        from_input = weight_IH.ctypes.data
        from_state = weight_HH.ctypes.data
        bias = bias_H.ctypes.data
        state_BH = np.zeros((block, width), np.float32)
        sums_BH = np.empty((block, width), np.float32)
        state = state_BH.ctypes.data
        sums = sums_BH.ctypes.data
        keep_all = len(states_SBH) > 1
        first = 0
        while first < n_items:
            n = block if first + block <= n_items else 1
            state_BH[:] = 0
            for step in range(n_steps):
                x = x_SBI.ctypes.data + step * step_bytes + first * item_bytes
                if n == block:
                    several(x, item_bytes, n_in, from_input, bias, 0, sums, row)
                    several(state, row, width, from_state, sums, row, sums, row)
                else:
                    single(x, item_bytes, n_in, from_input, bias, 0, sums, row)
                    single(state, row, width, from_state, sums, row, sums, row)
                for item in range(n):
                    for i in range(width):
                        state_BH[item, i] = _tanh(sums_BH[item, i])
                if keep_all or step == n_steps - 1:
                    _keep(states_SBH, step if keep_all else 0, first, state_BH, n, width)
            first += n

    return njit(_SIGNATURE, nogil=True, **_FAST)(recur)
