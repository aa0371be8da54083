"""The compiled look-up of many tables: a kernel a width, bags read with strides, rows prefetched.

A job is some tables of one width; a part is a range of its tables and of the items. One call runs
all parts of a thread, each with the kernel compiled for it, so a thousand tables cost one call from
Python.
"""

# B items, T tables, D width of a row, L ids

# mypy: allow-untyped-defs, allow-incomplete-defs
# ruff: noqa: ANN001, ANN202 (numba types what it compiles)

from __future__ import annotations

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
# What the kernels find in memory, as int64: a call, an entry (a table of a job: addresses, bytes,
# range of the ids), a part.
IDS, OFFSETS, TABLE_STEP, ITEM_STEP, OUT, OUT_STEP, CHECKED = range(7)
TABLE, FIRST_ROW, COLUMN, LOW, HIGH = range(5)
KERNEL, ENTRIES, DISTANCE, FROM_TABLE, END_TABLE, FROM_ITEM, END_ITEM = range(7)
RUN_BAGS, N_RUNS, ROW_BYTES = range(7, 10)
N_CALL = 7
N_PART = 10
_ENTRY_BYTES = 5 * 8
_PART_BYTES = N_PART * 8
_ALL_LINES = 1 << 40


@njit
def _entry(part, p):
    """Where table p of the part's job is described."""
    return long_at(part, ENTRIES) + p * _ENTRY_BYTES


@njit
def _bag(call, entry, item):
    """Number of an item's bag."""
    return long_at(entry, TABLE) * long_at(call, TABLE_STEP) + item * long_at(call, ITEM_STEP)


@cache
def _run_of(bits: int, *, by_item: bool) -> Any:
    """run_of(call, part, n) -> (first id, end, address of the rows).

    A run is ids that lie one behind the other in memory and read one table; n counts runs in the
    kernel's order.
    """
    number = number_of(bits)

    @njit
    def run_of(call, part, n):
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
        entry = _entry(part, p)
        bag = _bag(call, entry, item)
        offsets = long_at(call, OFFSETS)
        return number(offsets, bag), number(offsets, bag + n_bags), long_at(entry, FIRST_ROW)

    return run_of


@cache
def _ask(bits: int, *, by_item: bool) -> Any:
    """ask(call, part, n, k, end, rows, missing): prefetch `missing` rows, run after run.

    Gives the new n, k, end, rows, missing.
    """
    number = number_of(bits)
    run_of = _run_of(bits, by_item=by_item)

    @njit
    def ask(call, part, n, k, end, rows, missing):
        ids = long_at(call, IDS)
        row_bytes = long_at(part, ROW_BYTES)
        while missing > 0:
            if k < end:
                last = min(end, k + missing)
                missing -= last - k
                for place in range(k, last):
                    line = rows + number(ids, place) * row_bytes
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
    """right(call, entry, bag, n_bags): whether the ids of these bags are rows of this table."""
    number = number_of(bits)

    @njit
    def right(call, entry, bag, n_bags):
        ids = long_at(call, IDS)
        offsets = long_at(call, OFFSETS)
        low = long_at(entry, LOW)
        high = long_at(entry, HIGH)
        wrong = False
        for k in range(number(offsets, bag), number(offsets, bag + n_bags)):
            wrong |= (number(ids, k) < low) | (number(ids, k) >= high)
        return not wrong

    return right


@njit
def _stream(at, end, n_lines):
    """Ask for the next lines of a table; where the rest begins."""
    last = min(end, at + n_lines * LINE_BYTES)
    while at < last:
        prefetch_line(at)
        at += LINE_BYTES
    return at


@njit
def _stream_of(part, p):
    """A table's first byte and its end; nothing behind the last table."""
    if p >= long_at(part, END_TABLE):
        return 0, 0
    entry = _entry(part, p)
    row_bytes = long_at(part, ROW_BYTES)
    rows = long_at(entry, FIRST_ROW)
    return rows + long_at(entry, LOW) * row_bytes, rows + long_at(entry, HIGH) * row_bytes


@njit
def _stream_on(part, p, at, at_end):
    """Ask for the rest of the table before p; p's lines, and how many of them an item asks for."""
    _stream(at, at_end, _ALL_LINES)
    at, at_end = _stream_of(part, p)
    n_items = long_at(part, END_ITEM) - long_at(part, FROM_ITEM)
    return at, at_end, (at_end - at) // (LINE_BYTES * n_items) + 1


@cache
def _add_bag(
    width: int, storage: str, bits: int, unroll: int, *, by_ids: bool, by_item: bool
) -> Any:
    """add_bag(call, part, rows, ids, offsets, bag, target, ...): a bag summed, others asked for.

    The rest of the arguments, and what it gives: the state of `_ask`. Without `by_ids` no others
    are asked for.
    """
    number = number_of(bits)
    add_rows = add_rows_of(width, storage, unroll, bits)
    ask = _ask(bits, by_item=by_item)

    @njit(inline="always")
    def add_bag(call, part, rows, ids, offsets, bag, target, n, k, last, coming, missing):
        first = number(offsets, bag)
        end = number(offsets, bag + 1)
        fresh = 1
        while fresh or first < end:
            stop = min(end, first + _CHUNK_IDS)
            missing += stop - first
            n, k, last, coming, missing = ask(call, part, n, k, last, coming, missing)
            add_rows(rows, ids, first, stop, target, fresh)
            first = stop
            fresh = 0
        return n, k, last, coming, missing

    @njit(inline="always")
    def add_only(_call, _part, rows, ids, offsets, bag, target, n, k, last, coming, missing):
        add_rows(rows, ids, number(offsets, bag), number(offsets, bag + 1), target, 1)
        return n, k, last, coming, missing

    return add_bag if by_ids else add_only


@cache
def summing(width: int, storage: str, bits: int, ahead: str, unroll: int, *, by_item: bool) -> Any:
    """kernel(call, part) for bags of any length; its `.address` goes into a part.

    `ahead`: rows prefetched by the "ids" to come, the next "table" as a whole while this one is
    read, or nothing. The kernel returns -1, or the place of a table with a wrong id; then what was
    written is not whole. It is compiled in some tenths of a second.
    """
    streaming = ahead == "table"
    tables = (FROM_TABLE, END_TABLE)
    items = (FROM_ITEM, END_ITEM)
    (from_outer, end_outer), (from_inner, end_inner) = (
        (items, tables) if by_item else (tables, items)
    )
    add_bag = _add_bag(width, storage, bits, unroll, by_ids=ahead == "ids", by_item=by_item)
    right = _right(bits)

    def run(call, part):
        ids = long_at(call, IDS)
        offsets = long_at(call, OFFSETS)
        checked = long_at(call, CHECKED)
        out = long_at(call, OUT)
        out_step = long_at(call, OUT_STEP)
        first_item = long_at(part, FROM_ITEM)
        entries = long_at(part, ENTRIES)
        table_step = long_at(call, TABLE_STEP)
        item_step = long_at(call, ITEM_STEP)
        n = k = last = coming = 0
        missing = long_at(part, DISTANCE)
        check_bags = 1 if by_item else long_at(part, RUN_BAGS)
        at, at_end = _stream_of(part, long_at(part, FROM_TABLE)) if streaming else (0, 0)
        for outer in range(long_at(part, from_outer), long_at(part, end_outer)):
            if streaming:
                at, at_end, n_lines = _stream_on(part, outer + 1, at, at_end)
            for inner in range(long_at(part, from_inner), long_at(part, end_inner)):
                p, item = (inner, outer) if by_item else (outer, inner)
                entry = entries + p * _ENTRY_BYTES
                bag = long_at(entry, TABLE) * table_step + item * item_step
                is_due = checked and (check_bags == 1 or item == first_item)
                if is_due and not right(call, entry, bag, check_bags):
                    return p
                rows = long_at(entry, FIRST_ROW)
                target = out + long_at(entry, COLUMN) + item * out_step
                n, k, last, coming, missing = add_bag(
                    call, part, rows, ids, offsets, bag, target, n, k, last, coming, missing
                )
                if streaming:
                    at = _stream(at, at_end, n_lines)
        return -1

    return cfunc(types.int64(types.int64, types.int64))(run)


@cache
def copying(width: int, storage: str, bits: int, ahead: str) -> Any:
    """As `summing`, for bags of exactly one id; "table" asks for the whole next table at once."""
    streaming = ahead == "table"
    number = number_of(bits)
    copy_rows = copy_rows_of(width, storage, bits, ahead == "ids")
    right = _right(bits)

    def run(call, part):
        ids = long_at(call, IDS)
        out_step = long_at(call, OUT_STEP)
        first_table = long_at(part, FROM_TABLE)
        end_table = long_at(part, END_TABLE)
        end_item = long_at(part, END_ITEM)
        run_bags = long_at(part, RUN_BAGS)
        distance = long_at(part, DISTANCE)
        if streaming:
            at, at_end = _stream_of(part, first_table)
            _stream(at, at_end, _ALL_LINES)
        for p in range(first_table, end_table):
            if streaming:
                at, at_end = _stream_of(part, p + 1)
                _stream(at, at_end, _ALL_LINES)
            entry = _entry(part, p)
            item = long_at(part, FROM_ITEM)
            rows = long_at(entry, FIRST_ROW)
            target = long_at(call, OUT) + long_at(entry, COLUMN) + item * out_step
            while item < end_item:
                bag = _bag(call, entry, item)
                if long_at(call, CHECKED) and not right(call, entry, bag, run_bags):
                    return p
                k = number(long_at(call, OFFSETS), bag)
                copy_rows(rows, ids, k, k + run_bags, target, out_step, distance)
                item = item + run_bags
                target = target + run_bags * out_step
        return -1

    return cfunc(types.int64(types.int64, types.int64))(run)


@cache
def driver() -> Any:
    """driver(call, parts, n): runs n parts; -1, or the part whose kernel saw a wrong id."""

    def run(call, parts, n):
        for i in range(n):
            part = parts + i * _PART_BYTES
            if call_kernel(long_at(part, KERNEL), call, part) >= 0:
                return i
        return -1

    return njit("int64(int64, int64, int64)", nogil=True)(run)


def _first_wrong_item(bits: int) -> Any:
    """first_wrong(offsets, bag, step, n_items, expected): -1 if all bags have as many ids."""
    number = number_of(bits)

    @njit
    def is_wrong(offsets, bag, expected):
        length = number(offsets, bag + 1) - number(offsets, bag)
        return (length < 0) | ((expected >= 0) & (length != expected))

    @njit
    def first_wrong(offsets, bag, step, n_items, expected):
        wrong = False
        for item in range(n_items):
            wrong |= is_wrong(offsets, bag + item * step, expected)
        if wrong:
            for item in range(n_items):
                if is_wrong(offsets, bag + item * step, expected):
                    return item
        return -1

    return first_wrong


@cache
def first_wrong_bag(bits: int) -> Any:
    """wrong(call, bag_ids, n_tables, n_items, n_ids) -> a bag whose offsets cannot be, or -1.

    `bag_ids`: address of an int64 a table, how many ids each of its bags has, -1 for any number.
    """
    number = number_of(bits)
    first_wrong = _first_wrong_item(bits)

    def run(call, bag_ids, n_tables, n_items, n_ids):
        offsets = long_at(call, OFFSETS)
        step = long_at(call, ITEM_STEP)
        n_bags = n_tables * n_items
        if number(offsets, 0) < 0:
            return 0
        if number(offsets, n_bags) > n_ids:
            return n_bags - 1
        for table in range(n_tables):
            bag = table * long_at(call, TABLE_STEP)
            item = first_wrong(offsets, bag, step, n_items, long_at(bag_ids, table))
            if item >= 0:
                return bag + item * step
        return -1

    return njit("int64(int64, int64, int64, int64, int64)", nogil=True)(run)
