"""What the compiled look-up is made of: numbers in memory, rows summed, copied or asked for,
kernels called.
"""

# D width of a row, L ids

from __future__ import annotations

from functools import cache
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from models.embedding.cpu.stored_rows import StoredRows
from models.kernels.vectors import LONG, WORD, Rows, addresses


def _intrinsic(generator: Any) -> Any:
    """numba's, untyped: its arguments are values of compiled code."""
    return intrinsic(generator)


def _long_of(*arguments: Any) -> Any:
    """Signature of an intrinsic that takes addresses and counts and returns an int64."""
    return types.int64(*(types.intp for _ in arguments))


@_intrinsic
def long_at(_: Any, address: Any, i: Any) -> Any:
    """Element i of an array of int64."""

    def generate(_: Any, builder: Any, __: Any, values: Any) -> Any:
        address, i = values
        return builder.load(builder.gep(builder.inttoptr(address, LONG.as_pointer()), [i]))

    return _long_of(address, i), generate


@cache
def number_of(bits: int) -> Any:
    """number(address, i) -> int64: element i of an array of ids or offsets of so many bits."""

    @_intrinsic
    def number(_: Any, address: Any, i: Any) -> Any:
        def generate(_: Any, builder: Any, __: Any, values: Any) -> Any:
            return _element(builder, bits, *values)

        return _long_of(address, i), generate

    return number


def _element(builder: Any, bits: int, address: Any, i: Any) -> Any:
    own = WORD if bits == 32 else LONG
    value = builder.load(builder.gep(builder.inttoptr(address, own.as_pointer()), [i]))
    return value if bits == 64 else builder.sext(value, LONG)


@_intrinsic
def prefetch_line(_: Any, address: Any) -> Any:
    """Ask for one line."""

    def generate(_: Any, builder: Any, __: Any, values: Any) -> None:
        Rows(builder, 1).prefetch_line(values[0], ir.Constant(LONG, 0))

    return addresses(address), generate


@cache
def add_rows_of(width: int, storage: str, unroll: int, bits: int) -> Any:
    """add_rows(rows, ids, first, end, target, fresh): target = the rows' sum, on top of what is
    there unless fresh.

    `unroll` sums run side by side; with 1 the rows are added in the order of the ids.
    """

    @_intrinsic
    def add_rows(_: Any, rows: Any, ids: Any, first: Any, end: Any, target: Any, fresh: Any) -> Any:
        def generate(_: Any, builder: Any, __: Any, values: Any) -> None:
            table, ids, first, end, target, fresh = values
            rows = StoredRows(builder, width, storage)
            zero = ir.Constant(LONG, 0)
            one = ir.Constant(LONG, 1)
            totals = [cgutils.alloca_once_value(builder, rows.zero) for _ in range(unroll)]
            with builder.if_then(builder.icmp_signed("==", fresh, zero)):
                builder.store(rows.load(target, zero), totals[0])

            def add(k: Any, total: Any) -> None:
                row = rows.load_stored(table, _element(builder, bits, ids, k))
                builder.store(builder.fadd(builder.load(total), row), total)

            rest = first
            if unroll > 1:
                n = builder.sub(end, first)
                rest = builder.sub(end, builder.srem(n, ir.Constant(LONG, unroll)))
                with cgutils.for_range_slice(builder, first, rest, ir.Constant(LONG, unroll)) as (
                    k,
                    _,
                ):
                    for i, total in enumerate(totals):
                        add(builder.add(k, ir.Constant(LONG, i)), total)
            with cgutils.for_range_slice(builder, rest, end, one) as (k, _):
                add(k, totals[0])
            whole = builder.load(totals[0])
            for other in totals[1:]:
                whole = builder.fadd(whole, builder.load(other))
            rows.store(whole, target, zero)

        return addresses(rows, ids, first, end, target, fresh), generate

    return add_rows


@cache
def copy_rows_of(width: int, storage: str, bits: int, prefetching: bool) -> Any:
    """copy_rows(rows, ids, first, end, target, step, distance): the row of every id, `step` bytes
    apart.
    """

    @_intrinsic
    def copy_rows(
        _: Any, rows: Any, ids: Any, first: Any, end: Any, target: Any, step: Any, distance: Any
    ) -> Any:
        def generate(_: Any, builder: Any, __: Any, values: Any) -> None:
            table, ids, first, end, target, step, distance = values
            rows = StoredRows(builder, width, storage)
            one = ir.Constant(LONG, 1)
            last = builder.sub(end, one)
            with cgutils.for_range_slice(builder, first, end, one) as (k, _):
                if prefetching:
                    ahead = builder.add(k, distance)
                    ahead = builder.select(builder.icmp_signed("<", ahead, last), ahead, last)
                    rows.prefetch(table, rows.nth_stored(_element(builder, bits, ids, ahead)))
                row = rows.load_stored(table, _element(builder, bits, ids, k))
                rows.store(row, target, builder.mul(builder.sub(k, first), step))

        return addresses(rows, ids, first, end, target, step, distance), generate

    return copy_rows


@_intrinsic
def call_kernel(_: Any, kernel: Any, call: Any, part: Any) -> Any:
    """The kernel at an address: (call, part) -> int64."""

    def generate(_: Any, builder: Any, __: Any, values: Any) -> Any:
        kernel, call, part = values
        of = ir.FunctionType(LONG, [LONG, LONG])
        return builder.call(builder.inttoptr(kernel, of.as_pointer()), [call, part])

    return _long_of(kernel, call, part), generate
