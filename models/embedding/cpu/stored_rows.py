"""Rows of tables stored in few bytes, as LLVM vectors of float32."""

# D width of a row

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
# ruff: noqa: ANN001, ANN201, ANN202 (values of compiled code have LLVM's types)

from __future__ import annotations

from typing import Any

from llvmlite import ir

from models.kernels.vectors import BYTE, FLOAT, LINE_BYTES, WORD, RowBuilder, long

SCALE_BYTES = 8  # int8: scale and bias of a row, float32, before its elements
_ELEMENT_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}


def row_bytes(width: int, storage: str) -> int:
    """Bytes from one stored row to the next."""
    return width * _ELEMENT_BYTES[storage] + (SCALE_BYTES if storage == "int8" else 0)


class StoredRowBuilder(RowBuilder):
    """Rows stored as float32, float16, bfloat16, or int8 with a scale and a bias a row."""

    def __init__(self, builder: Any, width: int, storage: str) -> None:
        super().__init__(builder, width)
        self.storage = storage
        self.stored_bytes = row_bytes(width, storage)
        self._words = ir.VectorType(WORD, width)

    def nth_stored(self, i):
        """Offset of stored row i."""
        return self.builder.mul(i, long(self.stored_bytes))

    def prefetch(self, address, offset) -> None:
        """Ask for all lines of a stored row, also for one that only its last byte lies on."""
        for line in range(0, self.stored_bytes, LINE_BYTES):
            self.prefetch_line(address, self.builder.add(offset, long(line)))
        if self.stored_bytes % LINE_BYTES > 1 and self.stored_bytes > LINE_BYTES:
            self.prefetch_line(address, self.builder.add(offset, long(self.stored_bytes - 1)))

    def load_stored(self, address, i):
        """Row i as float32."""
        offset = self.nth_stored(i)
        if self.storage == "float32":
            return self.load(address, offset)
        if self.storage == "int8":
            return self._load_bytes(address, offset)
        if self.storage == "float16":
            stored = self._elements(address, offset, ir.HalfType(), 2)
            return self.builder.fpext(stored, self.vector)
        stored = self.builder.zext(self._elements(address, offset, ir.IntType(16), 2), self._words)
        shift = ir.Constant(self._words, [16] * self.vector.count)
        return self.builder.bitcast(self.builder.shl(stored, shift), self.vector)

    def _load_bytes(self, address, offset):
        scale, bias = (
            self.spread(self.read(address, self.builder.add(offset, long(at)), FLOAT, 1))
            for at in (0, 4)
        )
        start = self.builder.add(offset, long(SCALE_BYTES))
        stored = self.builder.zext(self._elements(address, start, BYTE, 1), self._words)
        return self.multiply_add(self.builder.sitofp(stored, self.vector), scale, bias)

    def _elements(self, address, offset, element, align):
        return self.read(address, offset, ir.VectorType(element, self.vector.count), align)
