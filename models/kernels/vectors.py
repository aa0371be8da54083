"""Rows of floats as LLVM vectors: the few instructions that the compiled kernels are written in.

numba turns the loops around them into machine code. A row of any width is one vector value here;
LLVM cuts it into the registers that the CPU has.
"""

# D row width

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

FLOAT_BYTES, LINE_BYTES = 4, 64
LONG = ir.IntType(64)
WORD = ir.IntType(32)
FLOAT = ir.FloatType()
BYTE = ir.IntType(8)


def addresses(*arguments: Any) -> Any:
    """Signature of an intrinsic that takes addresses and counts and returns nothing."""
    return types.void(*(types.intp for _ in arguments))


class Rows:
    """Builds instructions on rows of `width` floats; places are an address and an offset in bytes."""

    def __init__(self, builder: Any, width: int) -> None:
        self.builder = builder
        self.vector = ir.VectorType(FLOAT, width)
        self.zero = ir.Constant(self.vector, [0.0] * width)
        self.n_bytes = width * FLOAT_BYTES
        self._undefined = ir.Constant(self.vector, ir.Undefined)
        self._same_lane = ir.Constant(ir.VectorType(WORD, width), [0] * width)

    def place(self, address: Any, offset: Any) -> Any:
        """A pointer to bytes."""
        start = self.builder.inttoptr(address, BYTE.as_pointer())
        return self.builder.gep(start, [offset])

    def nth(self, i: Any) -> Any:
        """Offset of row i of dense rows."""
        return self.builder.mul(i, ir.Constant(LONG, self.n_bytes))

    def load(self, address: Any, offset: Any) -> Any:
        """A row from memory."""
        value = self.builder.load(
            self.builder.bitcast(self.place(address, offset), self.vector.as_pointer())
        )
        value.align = FLOAT_BYTES
        return value

    def store(self, value: Any, address: Any, offset: Any) -> None:
        """A row to memory."""
        place = self.builder.bitcast(self.place(address, offset), self.vector.as_pointer())
        self.builder.store(value, place).align = FLOAT_BYTES

    def scalar(self, address: Any, i: Any) -> Any:
        """Float i of an array."""
        floats = self.builder.inttoptr(address, FLOAT.as_pointer())
        return self.builder.load(self.builder.gep(floats, [i]))

    def spread(self, scalar: Any) -> Any:
        """A row with this float everywhere."""
        first = self.builder.insert_element(self._undefined, scalar, ir.Constant(WORD, 0))
        return self.builder.shuffle_vector(first, self._undefined, self._same_lane)

    def multiply_add(self, a: Any, b: Any, c: Any) -> Any:
        """a b + c, fused where the CPU can."""
        return self.builder.fadd(
            self.builder.fmul(a, b, flags=("contract",)), c, flags=("contract",)
        )

    def relu(self, x: Any) -> Any:
        """max(x, 0) of a row or of a float."""
        zero = self.zero if x.type == self.vector else ir.Constant(FLOAT, 0.0)
        return self.builder.select(self.builder.fcmp_ordered(">", x, zero), x, zero)

    def sum_lanes(self, start: Any, row: Any) -> Any:
        """start + the sum of a row, in any order."""
        function = cgutils.get_or_insert_function(
            self.builder.module,
            ir.FunctionType(FLOAT, [FLOAT, self.vector]),
            f"llvm.vector.reduce.fadd.v{self.vector.count}f32",
        )
        return self.builder.call(function, [start, row], fastmath=("reassoc",))

    def prefetch(self, address: Any, offset: Any) -> None:
        """Ask for a row that will be read soon."""
        for line in range(0, self.n_bytes, LINE_BYTES):
            self.prefetch_line(address, self.builder.add(offset, ir.Constant(LONG, line)))

    def prefetch_line(self, address: Any, offset: Any) -> None:
        """Ask for one line of memory."""
        function = cgutils.get_or_insert_function(
            self.builder.module,
            ir.FunctionType(ir.VoidType(), [BYTE.as_pointer(), WORD, WORD, WORD]),
            "llvm.prefetch.p0",
        )
        to_read_keep_data = [ir.Constant(WORD, n) for n in (0, 3, 1)]
        self.builder.call(function, [self.place(address, offset), *to_read_keep_data])
