"""What the compiled look-up is made of: numbers in memory, rows summed, copied or asked for."""

# D width of a row, L ids

# mypy: allow-untyped-defs, allow-incomplete-defs
# ruff: noqa: ANN001, ANN201, ANN202 (values of compiled code have LLVM's types)

from __future__ import annotations

from functools import cache
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from models.embedding.cpu.stored_rows import StoredRowBuilder
from models.kernels.vectors import LONG, WORD, RowBuilder, instruction, long


@instruction(types.int64)
def long_at(builder, address, i):
    """Element i of an array of int64."""
    return _element(builder, 64, address, i)


@cache
def number_of(bits: int) -> Any:
    """number(address, i) -> int64: element i of an array of ids or offsets of so many bits."""

    @instruction(types.int64)
    def number(builder, address, i):
        return _element(builder, bits, address, i)

    return number


def _element(builder, bits, address, i):
    kind = WORD if bits == 32 else LONG
    value = builder.load(builder.gep(builder.inttoptr(address, kind.as_pointer()), [i]))
    return value if bits == 64 else builder.sext(value, LONG)


@instruction()
def prefetch_line(builder, address):
    """Ask for one line."""
    RowBuilder(builder, 1).prefetch_line(address, long(0))


@cache
def add_rows_of(width: int, storage: str, unroll: int, bits: int) -> Any:
    """add_rows(table, ids, first, end, target, fresh): target += the rows' sum, or = if fresh.

    `unroll` sums run side by side; with 1 the rows are added in the order of the ids.
    """

    @instruction()
    def add_rows(builder, table, ids, first, end, target, fresh):
        rows = StoredRowBuilder(builder, width, storage)
        totals = [cgutils.alloca_once_value(builder, rows.zero) for _ in range(unroll)]
        with builder.if_then(builder.icmp_signed("==", fresh, long(0))):
            builder.store(rows.load(target, long(0)), totals[0])

        def add(k, total):
            rows.add_to(total, rows.load_stored(table, _element(builder, bits, ids, k)))

        rest = first
        if unroll > 1:
            step = long(unroll)
            rest = builder.sub(end, builder.srem(builder.sub(end, first), step))
            with cgutils.for_range_slice(builder, first, rest, step) as (k, _):
                for i, total in enumerate(totals):
                    add(builder.add(k, long(i)), total)
        with cgutils.for_range_slice(builder, rest, end, long(1)) as (k, _):
            add(k, totals[0])
        whole = builder.load(totals[0])
        for total in totals[1:]:
            whole = builder.fadd(whole, builder.load(total))
        rows.store(whole, target, long(0))

    return add_rows


@cache
def copy_rows_of(width: int, storage: str, bits: int, prefetching: bool) -> Any:
    """copy_rows(table, ids, first, end, target, step, distance): a row an id, `step` bytes on."""

    @instruction()
    def copy_rows(builder, table, ids, first, end, target, step, distance):
        rows = StoredRowBuilder(builder, width, storage)
        last = builder.sub(end, long(1))
        with cgutils.for_range_slice(builder, first, end, long(1)) as (k, _):
            if prefetching:
                ahead = builder.add(k, distance)
                ahead = builder.select(builder.icmp_signed("<", ahead, last), ahead, last)
                rows.prefetch(table, rows.nth_stored(_element(builder, bits, ids, ahead)))
            row = rows.load_stored(table, _element(builder, bits, ids, k))
            rows.store(row, target, builder.mul(builder.sub(k, first), step))

    return copy_rows


@instruction(types.int64)
def call_kernel(builder, kernel, call, part):
    """What the kernel at an address gives: (call, part) -> int64."""
    signature = ir.FunctionType(LONG, [LONG, LONG])
    return builder.call(builder.inttoptr(kernel, signature.as_pointer()), [call, part])
