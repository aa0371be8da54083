"""Time by operator: hooks on the modules that carry an `operator` name. Nothing is paid where it is not used."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def operator_times(model: nn.Module) -> Iterator[dict[str, float]]:
    """Within: the ms spent in each operator so far, own time only (an FC inside a recurrence counts as FC).

    On CUDA each operator is followed by a synchronise, which slows the whole down: read shares, not totals.
    """
    own_ms: dict[str, float] = defaultdict(float)
    open_calls: list[list[float]] = []  # [start, time of the operators inside], innermost last
    on_cuda = any(tensor.is_cuda for tensor in model.buffers())

    def now_ms() -> float:
        if on_cuda:
            torch.cuda.synchronize()
        return time.perf_counter_ns() / 1e6

    def before(*_: Any) -> None:
        open_calls.append([now_ms(), 0.0])

    def after(module: nn.Module, *_: Any) -> None:
        start_ms, inside_ms = open_calls.pop()
        spent_ms = now_ms() - start_ms
        own_ms[str(module.operator)] += spent_ms - inside_ms
        if open_calls:
            open_calls[-1][1] += spent_ms

    handles = []
    for module in model.modules():
        if hasattr(module, "operator"):
            handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    try:
        yield own_ms
    finally:
        for handle in handles:
            handle.remove()
