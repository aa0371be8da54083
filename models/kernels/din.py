"""DIN's released attention, one hidden number a unit, for one CPU core: one pass over an item's
behaviours.
"""

# B items, N behaviours, D embedding width

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from llvmlite import ir
from numba import njit
from numba.core import cgutils
from numba.extending import intrinsic

from models.kernels.vectors import LONG, Rows, addresses

_SIGNATURE = (
    "void(float32[:,:,:], float32[:,::1], float32[:,::1], float32[:,::1], "
    "float32[:,::1], float32[:,:])"
)


def _sum_units(width: int) -> Any:
    """sum_units(behaviours, own, of_ad, weight, bias, n, target): addresses, and the number of
    behaviours.

    target = sum over k of relu(weight_k h_k + bias_k), h_k = relu(<behaviour_k, own_k> + of_ad_k).
    """

    @intrinsic
    def sum_units(
        _: Any, behaviours: Any, own: Any, of_ad: Any, weight: Any, bias: Any, n: Any, target: Any
    ) -> Any:
        def generate(_: Any, builder: Any, __: Any, values: Any) -> None:
            behaviours, own, of_ad, weight, bias, n, target = values
            rows = Rows(builder, width)
            start = ir.Constant(LONG, 0)
            total = cgutils.alloca_once_value(builder, rows.zero)
            with cgutils.for_range_slice(builder, start, n, ir.Constant(LONG, 1)) as (k, _):
                product = builder.fmul(
                    rows.load(behaviours, rows.nth(k)), rows.load(own, rows.nth(k))
                )
                hidden = rows.relu(rows.sum_lanes(rows.scalar(of_ad, k), product))
                weighted = rows.multiply_add(
                    rows.spread(hidden),
                    rows.load(weight, rows.nth(k)),
                    rows.load(bias, rows.nth(k)),
                )
                builder.store(builder.fadd(builder.load(total), rows.relu(weighted)), total)
            rows.store(builder.load(total), target, start)

        return addresses(behaviours, own, of_ad, weight, bias, n, target), generate

    return sum_units


@cache
def attention(width: int) -> Callable[..., None]:
    """attend(behaviours_BND, of_ad_BN, own_ND, weight_ND, bias_ND, out_BD): the sum over the units
    of each item.

    `behaviours_BND` may be a part of a wider buffer; an item's rows are dense.
    """
    sum_units = _sum_units(width)

    def attend(
        behaviours_BND: Any, of_ad_BN: Any, own_ND: Any, weight_ND: Any, bias_ND: Any, out_BD: Any
    ) -> None:
        n_items, n, _ = behaviours_BND.shape
        behaviours = behaviours_BND.ctypes.data
        of_ad = of_ad_BN.ctypes.data
        out = out_BD.ctypes.data
        own = own_ND.ctypes.data
        weight = weight_ND.ctypes.data
        bias = bias_ND.ctypes.data
        for item in range(n_items):
            sum_units(
                behaviours + item * behaviours_BND.strides[0],
                own,
                of_ad + item * of_ad_BN.strides[0],
                weight,
                bias,
                n,
                out + item * out_BD.strides[0],
            )

    return njit(_SIGNATURE, nogil=True)(attend)
