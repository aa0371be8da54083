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
# Caffe2's names, each with PyTorch's operators for it
_OPERATORS = {
    "FC": "aten::addmm aten::mm aten::baddbmm aten::linear mkldnn::_linear_pointwise",
    "SparseLengthsSum": (
        "aten::_embedding_bag aten::_embedding_bag_forward_only aten::embedding_bag"
    ),
    "Concat": "aten::cat",
    "Relu": "aten::relu aten::relu_ aten::clamp_min_",
    "Sum": "aten::sum aten::add aten::add_",
    "RecurrentNetwork": "",
    "Softmax": "aten::softmax aten::_softmax",
}
RELEASED = tuple(_OPERATORS)
_OF_LIBRARY = {word: name for name, words in _OPERATORS.items() for word in words.split()}


def released_name(operator: str) -> str:
    """Caffe2's name of one of our operators or of PyTorch's.

    "Other" for those that the release does not list.
    """
    name = _OF_LIBRARY.get(operator, operator)
    return name if name in RELEASED else OTHER


def library_times(call: Callable[[], object]) -> dict[str, float]:
    """ms of each of PyTorch's operators in one call, without those that it calls.

    What compiled kernels do outside of PyTorch is not seen; its profiler slows small operators
    down.
    """
    with torch.autograd.profiler.profile(use_kineto=False) as seen:
        call()
    return {event.key: event.self_cpu_time_total / 1e3 for event in seen.key_averages()}


class _Hooks:
    """Adds up each operator's ms, without those of operators inside of it."""

    def __init__(self, *, on_cuda: bool) -> None:
        self.self_ms: dict[str, float] = defaultdict(float)
        self._on_cuda = on_cuda
        # innermost last: when its hook was entered, its start, the time inside of others and hooks
        self._open: list[list[float]] = []

    def _now_ms(self) -> float:
        if self._on_cuda:
            torch.cuda.synchronize()
        return time.perf_counter_ns() / 1e6

    def before(self, *_: Any) -> None:
        """Run in front of a module's forward."""
        entered_ms = self._now_ms()
        self._open.append([entered_ms, self._now_ms(), 0.0])

    def after(self, module: nn.Module, *_: Any) -> None:
        """Run behind it."""
        end_ms = self._now_ms()
        entered_ms, start_ms, inside_ms = self._open.pop()
        self.self_ms[str(module.operator)] += end_ms - start_ms - inside_ms
        if self._open:
            self._open[-1][2] += self._now_ms() - entered_ms


@contextmanager
def operator_times(model: nn.Module) -> Iterator[dict[str, float]]:
    """Within: the ms spent in each operator so far; an FC inside a recurrence counts as FC.

    On CUDA each operator is followed by a synchronise, which slows the whole down: read shares, not
    totals.
    """
    hooks = _Hooks(on_cuda=any(tensor.is_cuda for tensor in model.buffers()))
    handles = []
    for module in model.modules():
        if hasattr(module, "operator"):
            handles.append(module.register_forward_pre_hook(hooks.before))
            handles.append(module.register_forward_hook(hooks.after))
    try:
        yield hooks.self_ms
    finally:
        for handle in handles:
            handle.remove()
