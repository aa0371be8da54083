"""Memory for tables."""

from __future__ import annotations

import contextlib
import mmap

import torch
from torch import Tensor

_HUGE_PAGE_BYTES = 2 << 20


def allocate(n_rows: int, width: int) -> Tensor:
    """Zeroed float32 (n_rows, width) in anonymous memory advised for huge pages."""
    n_bytes = n_rows * width * 4
    memory = mmap.mmap(-1, n_bytes + _HUGE_PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    # A kernel without huge pages is slower, not wrong.
    with contextlib.suppress(AttributeError, OSError):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.float32, count=n_rows * width).view(n_rows, width)


def zeros(n: int, device: str) -> Tensor:
    """(n,) float32 zeros on a device; on the CPU in huge pages."""
    return allocate(n, 1).view(-1) if device == "cpu" else torch.zeros(n, device=device)
