"""The look-up of tables of one width: a bag's rows summed in registers, rows to come prefetched."""

# B items, T tables, D embedding width, L ids, R rows of all tables

# mypy: allow-untyped-defs, allow-incomplete-defs
# ruff: noqa: ANN001, ANN202 (numba types what it compiles)

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from numba import njit
from numba.core import cgutils

from models.kernels.vectors import LONG, WORD, RowBuilder, instruction, long

# So many ids before it is read, a row is asked for; of 4, 8, 16, 24, 32 the best or within 3 %.
PREFETCH_IDS = 32
LONG_BAG_IDS = 16
_SIGNATURE = "void(float32[:,::1], int32[::1], int32[::1], float32[:,:,:])"


def _sum_bag(width: int) -> Any:
    """sum_bag(table, ids, first, end, jump, last, target): rows of ids first..end - 1, in order.

    `table`, `ids` and `target` are addresses. Of the ids to prefetch, those beyond the bag lie
    `jump` further; none lies beyond `last`.
    """

    @instruction()
    def sum_bag(builder, table, ids, first, end, jump, last, target):
        rows = RowBuilder(builder, width)
        total = cgutils.alloca_once_value(builder, rows.zero)
        ids = builder.inttoptr(ids, WORD.as_pointer())

        def place_of(k):
            return rows.nth(builder.sext(builder.load(builder.gep(ids, [k])), LONG))

        with cgutils.for_range_slice(builder, first, end, long(1)) as (k, _):
            ahead = builder.add(k, long(PREFETCH_IDS))
            beyond = builder.icmp_signed(">=", ahead, end)
            ahead = builder.select(beyond, builder.add(ahead, jump), ahead)
            ahead = builder.select(builder.icmp_signed("<", ahead, last), ahead, last)
            rows.prefetch(table, place_of(ahead))
            rows.add_to(total, rows.load(table, place_of(k)))
        rows.store(builder.load(total), target, long(0))

    return sum_bag


@cache
def pooling(width: int) -> Callable[..., None]:
    """pool(weight_RD, ids_L, offsets, out_BTD) for rows of this width; compiled in about a second.

    Sums the rows of every bag in the order of its ids; a bag without ids gives zeros. `out_BTD` may
    be a part of a wider buffer; its last axis is dense. Long bags go table after table, so that
    rows near in time are near in memory (up to 1.2 times as fast); short ones item after item, as
    ids and results lie.
    """
    sum_bag = _sum_bag(width)

    def pool(weight_RD, ids_L, offsets, out_BTD):
        n_items, n_tables, _ = out_BTD.shape
        rows = weight_RD.ctypes.data
        ids = ids_L.ctypes.data
        out = out_BTD.ctypes.data
        item_bytes, table_bytes, _ = out_BTD.strides
        n_bags = n_items * n_tables
        last = len(ids_L) - 1
        if offsets[n_bags] - offsets[0] < LONG_BAG_IDS * n_bags:
            for item in range(n_items):
                for table in range(n_tables):
                    bag = item * n_tables + table
                    target = out + item * item_bytes + table * table_bytes
                    sum_bag(rows, ids, offsets[bag], offsets[bag + 1], 0, last, target)
        else:
            for table in range(n_tables):
                for item in range(n_items):
                    bag = item * n_tables + table
                    end = offsets[bag + 1]
                    following = min(bag + n_tables, n_bags)
                    target = out + item * item_bytes + table * table_bytes
                    sum_bag(rows, ids, offsets[bag], end, offsets[following] - end, last, target)

    return njit(_SIGNATURE, nogil=True)(pool)
