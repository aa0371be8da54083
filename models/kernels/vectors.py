"""Rows of floats as LLVM vectors: the few instructions that the compiled kernels are written in.

numba turns the loops around them into machine code. A row of any width is one vector value here;
LLVM cuts it into the registers that the CPU has.
"""

# D row width

# mypy: allow-untyped-defs, allow-incomplete-defs
# ruff: noqa: ANN001, ANN002, ANN201, ANN202 (values of compiled code have numba's and LLVM's types)

from __future__ import annotations

import functools
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

FLOAT_BYTES = 4
LINE_BYTES = 64
LONG = ir.IntType(64)
WORD = ir.IntType(32)
FLOAT = ir.FloatType()
BYTE = ir.IntType(8)


def instruction(result: Any = types.void) -> Any:
    """Decorator: `build(builder, ...)` becomes a function for compiled code.

    Its arguments are addresses and counts, int64; it gives what `build` returns, of type `result`.
    """

    def decorate(build):
        @functools.wraps(build)  # numba counts the arguments by the signature
        def typed(_context, *arguments):
            def generate(_context, builder, _signature, values):
                return build(builder, *values)

            return result(*(types.intp for _ in arguments)), generate

        return intrinsic(typed)

    return decorate


def long(number: int) -> Any:
    """A constant int64."""
    return ir.Constant(LONG, number)


class RowBuilder:
    """Builds instructions on rows of `width` floats; a place is an address and an offset."""

    def __init__(self, builder: Any, width: int) -> None:
        self.builder = builder
        self.vector = ir.VectorType(FLOAT, width)
        self.zero = ir.Constant(self.vector, [0.0] * width)
        self.n_bytes = width * FLOAT_BYTES
        self._undefined = ir.Constant(self.vector, ir.Undefined)
        self._same_lane = ir.Constant(ir.VectorType(WORD, width), [0] * width)

    def place(self, address, offset):
        """A pointer to bytes."""
        start = self.builder.inttoptr(address, BYTE.as_pointer())
        return self.builder.gep(start, [offset])

    def read(self, address, offset, kind, align: int):
        """A value of a type, a vector for one, from memory."""
        pointer = self.builder.bitcast(self.place(address, offset), kind.as_pointer())
        value = self.builder.load(pointer)
        value.align = align
        return value

    def nth(self, i):
        """Offset of row i of dense rows."""
        return self.builder.mul(i, long(self.n_bytes))

    def load(self, address, offset):
        """A row from memory."""
        return self.read(address, offset, self.vector, FLOAT_BYTES)

    def store(self, value, address, offset) -> None:
        """A row to memory."""
        place = self.builder.bitcast(self.place(address, offset), self.vector.as_pointer())
        self.builder.store(value, place).align = FLOAT_BYTES

    def scalar(self, address, i):
        """Float i of an array."""
        floats = self.builder.inttoptr(address, FLOAT.as_pointer())
        return self.builder.load(self.builder.gep(floats, [i]))

    def spread(self, scalar):
        """A row with this float everywhere."""
        first = self.builder.insert_element(self._undefined, scalar, ir.Constant(WORD, 0))
        return self.builder.shuffle_vector(first, self._undefined, self._same_lane)

    def multiply_add(self, a, b, c):
        """a b + c, fused where the CPU can."""
        product = self.builder.fmul(a, b, flags=("contract",))
        return self.builder.fadd(product, c, flags=("contract",))

    def add_to(self, total, row) -> None:
        """total += row; `total` is a local variable of compiled code."""
        self.builder.store(self.builder.fadd(self.builder.load(total), row), total)

    def relu(self, x):
        """max(x, 0) of a row or of a float."""
        zero = self.zero if x.type == self.vector else ir.Constant(FLOAT, 0.0)
        return self.builder.select(self.builder.fcmp_ordered(">", x, zero), x, zero)

    def sum_lanes(self, start, row):
        """start + the sum of a row, in any order."""
        function = cgutils.get_or_insert_function(
            self.builder.module,
            ir.FunctionType(FLOAT, [FLOAT, self.vector]),
            f"llvm.vector.reduce.fadd.v{self.vector.count}f32",
        )
        return self.builder.call(function, [start, row], fastmath=("reassoc",))

    def prefetch(self, address, offset) -> None:
        """Ask for a row that will be read soon."""
        for line in range(0, self.n_bytes, LINE_BYTES):
            self.prefetch_line(address, self.builder.add(offset, long(line)))

    def prefetch_line(self, address, offset) -> None:
        """Ask for one line of memory."""
        function = cgutils.get_or_insert_function(
            self.builder.module,
            ir.FunctionType(ir.VoidType(), [BYTE.as_pointer(), WORD, WORD, WORD]),
            "llvm.prefetch.p0",
        )
        to_read_keep_data = [ir.Constant(WORD, n) for n in (0, 3, 1)]
        self.builder.call(function, [self.place(address, offset), *to_read_keep_data])
