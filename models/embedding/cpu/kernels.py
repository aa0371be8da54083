"""The compiled look-up of many tables: one kernel a width, bags read with strides, rows to come
prefetched.

A job is some tables of one width; a part is a range of its tables and of the items. One call runs
all parts of a thread, each with the kernel compiled for it, so a thousand tables cost one call from
Python.
"""

# B items, T tables, D width of a row, L ids

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from numba import cfunc, njit, types

from models.embedding.cpu.instructions import (
    add_rows_of,
    call_kernel,
    copy_rows_of,
    long_at,
    number_of,
    prefetch_line,
)
from models.kernels.vectors import LINE_BYTES

_CHUNK_IDS = 16  # so many rows are asked for, then so many summed
# What the kernels find in memory, as int64: a call, a table of a job (addresses, bytes, range of
# the ids), a part.
IDS, OFFSETS, TABLE_STEP, ITEM_STEP, OUT, OUT_STEP, CHECKED = range(7)
TABLE, FIRST_ROW, COLUMN, LOW, HIGH = range(5)
(
    KERNEL,
    TABLES,
    DISTANCE,
    FROM_TABLE,
    END_TABLE,
    FROM_ITEM,
    END_ITEM,
    RUN_BAGS,
    N_RUNS,
    ROW_BYTES,
) = range(10)
N_CALL, N_TABLE, N_PART = 7, 5, 10
_TABLE_BYTES = N_TABLE * 8
_PART_BYTES = N_PART * 8


@cache
def _walk(bits: int, *, by_item: bool) -> Any:
    """bag_of(call, part, table, item), and run_of(call, part, n) -> (first id, end, address of the
    rows).

    A run is ids that lie one behind the other in memory and read one table; n counts runs in the
    kernel's order.
    """
    number = number_of(bits)

    @njit
    def bag_of(call: Any, part: Any, p: Any, item: Any) -> Any:
        own = long_at(part, TABLES) + p * _TABLE_BYTES
        return long_at(own, TABLE) * long_at(call, TABLE_STEP) + item * long_at(call, ITEM_STEP)

    @njit
    def run_of(call: Any, part: Any, n: Any) -> Any:
        p = long_at(part, FROM_TABLE)
        item = long_at(part, FROM_ITEM)
        n_bags = long_at(part, RUN_BAGS)
        if n_bags > 1:
            p += n
        elif by_item:
            n_tables = long_at(part, END_TABLE) - p
            p = p + n % n_tables
            item = item + n // n_tables
        else:
            n_items = long_at(part, END_ITEM) - item
            p = p + n // n_items
            item = item + n % n_items
        bag = bag_of(call, part, p, item)
        offsets = long_at(call, OFFSETS)
        rows = long_at(long_at(part, TABLES) + p * _TABLE_BYTES, FIRST_ROW)
        return number(offsets, bag), number(offsets, bag + n_bags), rows

    return bag_of, run_of


@cache
def _ask(bits: int, *, by_item: bool) -> Any:
    """ask(call, part, n, k, end, rows, missing): prefetch `missing` more rows, run after run; the
    new state.
    """
    number, (_, run_of) = number_of(bits), _walk(bits, by_item=by_item)

    @njit
    def ask(call: Any, part: Any, n: Any, k: Any, end: Any, rows: Any, missing: Any) -> Any:
        ids = long_at(call, IDS)
        row_bytes = long_at(part, ROW_BYTES)
        while missing > 0:
            if k < end:
                last = min(end, k + missing)
                missing -= last - k
                for own in range(k, last):
                    line = rows + number(ids, own) * row_bytes
                    row_end = line + row_bytes
                    while line < row_end:
                        prefetch_line(line)
                        line += LINE_BYTES
                k = last
            elif n < long_at(part, N_RUNS):
                k, end, rows = run_of(call, part, n)
                n += 1
            else:
                break
        return n, k, end, rows, missing

    return ask


@cache
def _right(bits: int) -> Any:
    """right(call, own, bag, n_bags): whether the ids of these bags are rows of this table."""
    number = number_of(bits)

    @njit
    def right(call: Any, own: Any, bag: Any, n_bags: Any) -> Any:
        ids = long_at(call, IDS)
        offsets = long_at(call, OFFSETS)
        low = long_at(own, LOW)
        high = long_at(own, HIGH)
        wrong = False
        for k in range(number(offsets, bag), number(offsets, bag + n_bags)):
            wrong |= (number(ids, k) < low) | (number(ids, k) >= high)
        return not wrong

    return right


@njit
def _stream(at: Any, end: Any, n_lines: Any) -> Any:
    """Ask for the next lines of a table; where the rest begins."""
    last = min(end, at + n_lines * LINE_BYTES)
    while at < last:
        prefetch_line(at)
        at += LINE_BYTES
    return at


@njit
def _stream_of(part: Any, p: Any) -> Any:
    """A table's first byte and its end; nothing behind the last table."""
    if p >= long_at(part, END_TABLE):
        return 0, 0
    own = long_at(part, TABLES) + p * _TABLE_BYTES
    row_bytes = long_at(part, ROW_BYTES)
    rows = long_at(own, FIRST_ROW)
    return rows + long_at(own, LOW) * row_bytes, rows + long_at(own, HIGH) * row_bytes


@cache
def summing(width: int, storage: str, bits: int, ahead: str, unroll: int, *, by_item: bool) -> Any:
    """kernel(call, part) for bags of any length, compiled in some tenths of a second; its
    `.address` goes into a part.

    `ahead`: rows prefetched by the "ids" to come, the next "table" as a whole while this one is
    read, or nothing. The kernel returns -1, or the place of a table with a wrong id; then what was
    written is not whole.
    """
    by_ids = ahead == "ids"
    streaming = ahead == "table"
    number = number_of(bits)
    add_rows = add_rows_of(width, storage, unroll, bits)
    right = _right(bits)
    ask = _ask(bits, by_item=by_item)

    def run(call: Any, part: Any) -> Any:
        ids = long_at(call, IDS)
        offsets = long_at(call, OFFSETS)
        checked = long_at(call, CHECKED)
        table_step = long_at(call, TABLE_STEP)
        item_step = long_at(call, ITEM_STEP)
        tables = long_at(part, TABLES)
        out = long_at(call, OUT)
        out_step = long_at(call, OUT_STEP)
        first_table = long_at(part, FROM_TABLE)
        end_table = long_at(part, END_TABLE)
        first_item = long_at(part, FROM_ITEM)
        end_item = long_at(part, END_ITEM)
        first_o = first_table
        end_o = end_table
        first_i = first_item
        end_i = end_item
        if by_item:
            first_o = first_item
            end_o = end_item
            first_i = first_table
            end_i = end_table
        n = 0
        k = 0
        last = 0
        rows_to_come = 0
        missing = long_at(part, DISTANCE)
        check_bags = 1 if by_item else long_at(part, RUN_BAGS)
        at, at_end = _stream_of(part, first_table) if streaming else (0, 0)
        for outer in range(first_o, end_o):
            if streaming:
                _stream(at, at_end, 1 << 40)
                at, at_end = _stream_of(part, outer + 1)
                n_lines = (at_end - at) // (LINE_BYTES * (end_item - first_item)) + 1
            for inner in range(first_i, end_i):
                p, item = (inner, outer) if by_item else (outer, inner)
                own = tables + p * _TABLE_BYTES
                bag = long_at(own, TABLE) * table_step + item * item_step
                if (
                    checked
                    and (check_bags == 1 or item == first_item)
                    and not right(call, own, bag, check_bags)
                ):
                    return p
                rows = long_at(own, FIRST_ROW)
                target = out + long_at(own, COLUMN) + item * out_step
                first = number(offsets, bag)
                end = number(offsets, bag + 1)
                if by_ids:
                    fresh = 1
                    while fresh or first < end:
                        stop = min(end, first + _CHUNK_IDS)
                        missing += stop - first
                        n, k, last, rows_to_come, missing = ask(
                            call, part, n, k, last, rows_to_come, missing
                        )
                        add_rows(rows, ids, first, stop, target, fresh)
                        first = stop
                        fresh = 0
                else:
                    add_rows(rows, ids, first, end, target, 1)
                if streaming:
                    at = _stream(at, at_end, n_lines)
        return -1

    return cfunc(types.int64(types.int64, types.int64))(run)


@cache
def copying(width: int, storage: str, bits: int, ahead: str) -> Any:
    """The same for bags of exactly one id, table after table; "table" asks for the whole next table
    at once.
    """
    number = number_of(bits)
    copy_rows = copy_rows_of(width, storage, bits, ahead == "ids")
    right = _right(bits)
    (bag_of, _), streaming = _walk(bits, by_item=False), ahead == "table"

    def run(call: Any, part: Any) -> Any:
        first_table = long_at(part, FROM_TABLE)
        end_table = long_at(part, END_TABLE)
        first_item = long_at(part, FROM_ITEM)
        n_items = long_at(part, END_ITEM) - long_at(part, FROM_ITEM)
        run_bags = long_at(part, RUN_BAGS)
        out_step = long_at(call, OUT_STEP)
        if streaming:
            at, at_end = _stream_of(part, first_table)
            _stream(at, at_end, 1 << 40)
        for p in range(first_table, end_table):
            if streaming:
                at, at_end = _stream_of(part, p + 1)
                _stream(at, at_end, 1 << 40)
            own = long_at(part, TABLES) + p * _TABLE_BYTES
            item = first_item
            rows = long_at(own, FIRST_ROW)
            target = long_at(call, OUT) + long_at(own, COLUMN) + item * out_step
            while item < first_item + n_items:
                bag = bag_of(call, part, p, item)
                if long_at(call, CHECKED) and not right(call, own, bag, run_bags):
                    return p
                k = number(long_at(call, OFFSETS), bag)
                copy_rows(
                    rows,
                    long_at(call, IDS),
                    k,
                    k + run_bags,
                    target,
                    out_step,
                    long_at(part, DISTANCE),
                )
                item = item + run_bags
                target = target + run_bags * out_step
        return -1

    return cfunc(types.int64(types.int64, types.int64))(run)


@cache
def driver() -> Callable[[int, int, int], int]:
    """driver(call, parts, n): addresses; runs n parts; -1, or the number of the part whose kernel
    found a wrong id.
    """

    def run(call: Any, parts: Any, n: Any) -> Any:
        for i in range(n):
            part = parts + i * _PART_BYTES
            if call_kernel(long_at(part, KERNEL), call, part) >= 0:
                return i
        return -1

    compiled: Callable[[int, int, int], int] = njit("int64(int64, int64, int64)", nogil=True)(run)
    return compiled


@cache
def first_wrong_bag(bits: int) -> Callable[[int, int, int, int, int], int]:
    """wrong(call, bag_ids, n_tables, n_items, n_ids) -> the first bag that its offsets or its
    length rule out, or -1.

    `bag_ids`: address of an int64 a table, how many ids each of its bags has, -1 for any number.
    """
    number = number_of(bits)

    def run(call: Any, bag_ids: Any, n_tables: Any, n_items: Any, n_ids: Any) -> Any:
        offsets = long_at(call, OFFSETS)
        table_step = long_at(call, TABLE_STEP)
        item_step = long_at(call, ITEM_STEP)
        n_bags = n_tables * n_items
        if number(offsets, 0) < 0:
            return 0
        if number(offsets, n_bags) > n_ids:
            return n_bags - 1
        for table in range(n_tables):
            expected = long_at(bag_ids, table)
            wrong = False
            for item in range(n_items):
                bag = table * table_step + item * item_step
                length = number(offsets, bag + 1) - number(offsets, bag)
                wrong |= (length < 0) | ((expected >= 0) & (length != expected))
            if wrong:
                for item in range(n_items):
                    bag = table * table_step + item * item_step
                    length = number(offsets, bag + 1) - number(offsets, bag)
                    if length < 0 or (expected >= 0 and length != expected):
                        return bag
        return -1

    compiled: Callable[[int, int, int, int, int], int] = njit(
        "int64(int64, int64, int64, int64, int64)", nogil=True
    )(run)
    return compiled
