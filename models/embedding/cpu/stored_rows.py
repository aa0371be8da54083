"""Rows of tables stored in few bytes, as LLVM vectors of float32."""

# D width of a row

from __future__ import annotations

from typing import Any

from llvmlite import ir

from models.kernels.vectors import FLOAT, LINE_BYTES, LONG, WORD, Rows

HALF = ir.HalfType()
SHORT = ir.IntType(16)
BYTE = ir.IntType(8)
SCALE_BYTES = 8  # int8: scale and bias of a row, float32, before its elements
_ELEMENT_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}


def row_bytes(width: int, storage: str) -> int:
    """Bytes from one stored row to the next."""
    return width * _ELEMENT_BYTES[storage] + (SCALE_BYTES if storage == "int8" else 0)


class StoredRows(Rows):
    """Rows whose stored form may be narrower: float16, bfloat16, or int8 with a scale and a bias a
    row.
    """

    def __init__(self, builder: Any, width: int, storage: str) -> None:
        super().__init__(builder, width)
        self.width = width
        self.storage = storage
        self.stored_bytes = row_bytes(width, storage)

    def nth_stored(self, i: Any) -> Any:
        """Offset of stored row i."""
        return self.builder.mul(i, ir.Constant(LONG, self.stored_bytes))

    def prefetch(self, address: Any, offset: Any) -> None:
        """Ask for all lines of a stored row; the last byte may lie on one more than the first
        suggests.
        """
        whole = self.n_bytes
        self.n_bytes = self.stored_bytes
        super().prefetch(address, offset)
        self.n_bytes = whole
        if self.stored_bytes % LINE_BYTES > 1 and self.stored_bytes > LINE_BYTES:
            self.prefetch_line(
                address, self.builder.add(offset, ir.Constant(LONG, self.stored_bytes - 1))
            )

    def load_stored(self, address: Any, i: Any) -> Any:
        """Row i as float32."""
        offset = self.nth_stored(i)
        if self.storage == "float32":
            return self.load(address, offset)
        if self.storage == "int8":
            return self._load_bytes(address, offset)
        element = HALF if self.storage == "float16" else SHORT
        stored = self._vector(address, offset, element, 2)
        if self.storage == "float16":
            return self.builder.fpext(stored, self.vector)
        words = ir.VectorType(WORD, self.width)
        shift = ir.Constant(words, [16] * self.width)
        return self.builder.bitcast(
            self.builder.shl(self.builder.zext(stored, words), shift), self.vector
        )

    def _load_bytes(self, address: Any, offset: Any) -> Any:
        scale, bias = (
            self.spread(self._float(address, self.builder.add(offset, ir.Constant(LONG, at))))
            for at in (0, 4)
        )
        start = self.builder.add(offset, ir.Constant(LONG, SCALE_BYTES))
        stored = self.builder.zext(
            self._vector(address, start, BYTE, 1), ir.VectorType(WORD, self.width)
        )
        return self.multiply_add(self.builder.sitofp(stored, self.vector), scale, bias)

    def _float(self, address: Any, offset: Any) -> Any:
        value = self.builder.load(
            self.builder.bitcast(self.place(address, offset), FLOAT.as_pointer())
        )
        value.align = 1
        return value

    def _vector(self, address: Any, offset: Any, element: Any, align: int) -> Any:
        of = ir.VectorType(element, self.width)
        value = self.builder.load(
            self.builder.bitcast(self.place(address, offset), of.as_pointer())
        )
        value.align = align
        return value
