"""Time by operator: hooks on the modules that carry an `operator` name.

Nothing is paid where it is not used.

`library_times` is a second opinion: PyTorch's own profiler, which knows its operators and nothing
of modules.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

OTHER = "Other"
RELEASED = (
    "FC",
    "SparseLengthsSum",
    "Concat",
    "Relu",
    "Sum",
    "RecurrentNetwork",
    "Softmax",
)  # Caffe2's names
_OF_LIBRARY = {
    "aten::addmm": "FC", "aten::mm": "FC", "aten::baddbmm": "FC", "aten::linear": "FC",
    "mkldnn::_linear_pointwise": "FC", "aten::_embedding_bag": "SparseLengthsSum",
    "aten::_embedding_bag_forward_only": "SparseLengthsSum", "aten::embedding_bag": "SparseLengthsSum",
    "aten::cat": "Concat", "aten::relu": "Relu", "aten::relu_": "Relu",
    "aten::clamp_min_": "Relu", "aten::sum": "Sum", "aten::add": "Sum",
    "aten::add_": "Sum", "aten::softmax": "Softmax", "aten::_softmax": "Softmax",
}  # fmt: skip


def released_name(operator: str) -> str:
    """Caffe2's name of one of our operators or of PyTorch's; "Other" for those that the release
    does not list.
    """
    name = _OF_LIBRARY.get(operator, operator)
    return name if name in RELEASED else OTHER


def library_times(call: Callable[[], object]) -> dict[str, float]:
    """ms of each of PyTorch's operators in one call, own time only (its profiler slows small ones
    down).

    What compiled kernels do outside of PyTorch is not seen.
    """
    with torch.autograd.profiler.profile(use_kineto=False) as seen:
        call()
    return {event.key: event.self_cpu_time_total / 1e3 for event in seen.key_averages()}


@contextmanager
def operator_times(model: nn.Module) -> Iterator[dict[str, float]]:
    """Within: the ms spent in each operator so far, own time only (an FC inside a recurrence counts
    as FC).

    On CUDA each operator is followed by a synchronise, which slows the whole down: read shares, not
    totals.
    """
    own_ms: dict[str, float] = defaultdict(float)
    open_calls: list[
        list[float]
    ] = []  # [entered the hook, start, time inside of others and their hooks], innermost last
    on_cuda = any(tensor.is_cuda for tensor in model.buffers())

    def now_ms() -> float:
        if on_cuda:
            torch.cuda.synchronize()
        return time.perf_counter_ns() / 1e6

    def before(*_: Any) -> None:
        entered_ms = now_ms()
        open_calls.append([entered_ms, now_ms(), 0.0])

    def after(module: nn.Module, *_: Any) -> None:
        end_ms = now_ms()
        entered_ms, start_ms, inside_ms = open_calls.pop()
        own_ms[str(module.operator)] += end_ms - start_ms - inside_ms
        if open_calls:
            open_calls[-1][2] += now_ms() - entered_ms

    handles = []
    for module in model.modules():
        if hasattr(module, "operator"):
            handles += [
                module.register_forward_pre_hook(before),
                module.register_forward_hook(after),
            ]
    try:
        yield own_ms
    finally:
        for handle in handles:
            handle.remove()
