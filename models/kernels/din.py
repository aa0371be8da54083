"""DIN's released attention for one CPU core: one hidden number a unit, one pass over an item."""

# B items, N behaviours, D embedding width

# mypy: allow-untyped-defs, allow-incomplete-defs
# ruff: noqa: ANN001, ANN202 (numba types what it compiles)

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from numba import njit
from numba.core import cgutils

from models.kernels.vectors import RowBuilder, instruction, long

_SIGNATURE = (
    "void(float32[:,:,:], float32[:,::1], float32[:,::1], float32[:,::1], "
    "float32[:,::1], float32[:,:])"
)


def _sum_units(width: int) -> Any:
    """sum_units(behaviours, first, of_ad, weight, bias, n, target): addresses; n behaviours.

    target = sum over k of relu(weight_k h_k + bias_k),
    where h_k = relu(<behaviour_k, first_k> + of_ad_k).
    """

    @instruction()
    def sum_units(builder, behaviours, first, of_ad, weight, bias, n, target):
        rows = RowBuilder(builder, width)
        total = cgutils.alloca_once_value(builder, rows.zero)
        with cgutils.for_range_slice(builder, long(0), n, long(1)) as (k, _):
            place = rows.nth(k)
            product = builder.fmul(rows.load(behaviours, place), rows.load(first, place))
            hidden = rows.relu(rows.sum_lanes(rows.scalar(of_ad, k), product))
            weighted = rows.multiply_add(
                rows.spread(hidden), rows.load(weight, place), rows.load(bias, place)
            )
            rows.add_to(total, rows.relu(weighted))
        rows.store(builder.load(total), target, long(0))

    return sum_units


@cache
def attention(width: int) -> Callable[..., None]:
    """attend(behaviours_BND, of_ad_BN, first_ND, weight_ND, bias_ND, out_BD): the units' sum.

    `behaviours_BND` may be a part of a wider buffer; an item's rows are dense.
    """
    sum_units = _sum_units(width)

    def attend(behaviours_BND, of_ad_BN, first_ND, weight_ND, bias_ND, out_BD):
        n_items, n, _ = behaviours_BND.shape
        behaviours = behaviours_BND.ctypes.data
        of_ad = of_ad_BN.ctypes.data
        out = out_BD.ctypes.data
        first = first_ND.ctypes.data
        weight = weight_ND.ctypes.data
        bias = bias_ND.ctypes.data
        for item in range(n_items):
            sum_units(
                behaviours + item * behaviours_BND.strides[0],
                first,
                of_ad + item * of_ad_BN.strides[0],
                weight,
                bias,
                n,
                out + item * out_BD.strides[0],
            )

    return njit(_SIGNATURE, nogil=True)(attend)
