"""A CUDA device that is not there: tensors say that they are on it, none mixes with the host's.

`pretend()` is for a process of its own, with TRITON_INTERPRET=1: what runs within it takes
PyTorch's and our paths for a GPU, with devices checked as CUDA checks them; kernels run in Triton's
interpreter. Times mean nothing.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from types import SimpleNamespace

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

from models.embedding.gpu import look_up

CUDA = torch.device("cuda", 0)
_MIXING = {Tensor.copy_, Tensor.__setitem__, Tensor.to}  # takes tensors of both sides
_GETS = {Tensor.device.__get__: CUDA, Tensor.is_cuda.__get__: True}
_HOST_ONLY = {Tensor.numpy, Tensor.__array__, Tensor.data_ptr}


class Far(Tensor):
    """A tensor on the device; the modes below see all that is done with it."""


def near(value):
    """The value with its tensors on the host."""
    return tree_map(lambda x: x.as_subclass(Tensor) if isinstance(x, Far) else x, value)


def far(value):
    """The value with its tensors on the device."""
    return tree_map(lambda x: x.as_subclass(Far) if isinstance(x, Tensor) else x, value)


def _is_device(value):
    return isinstance(value, torch.device) or (
        isinstance(value, str) and value.split(":")[0] in {"cuda", "cpu"}
    )


class PretendedDevice(TorchFunctionMode):
    """Runs every function on the host, for tensors of one side."""

    def __torch_function__(self, func, _types, args=(), kwargs=None):
        if func is torch.device:
            return func(*args, **(kwargs or {}))
        with torch._C.DisableTorchFunction():
            return self.run(func, args, kwargs or {})

    def run(self, func, args, kwargs):
        flat = tree_flatten((args, kwargs))[0]
        tensors = [x for x in flat if isinstance(x, Tensor)]
        side = "cuda" if any(isinstance(tensor, Far) for tensor in tensors) else "cpu"
        if side == "cuda":
            if func in _GETS:
                return _GETS[func]
            refuse_mixed(func, args, tensors)
        side = next((torch.device(x).type for x in flat if _is_device(x)), side)
        args, kwargs = tree_map(lambda x: "cpu" if _is_device(x) else x, (args, kwargs))
        result = func(*near(args), **near(kwargs))
        return far(result) if side == "cuda" and func is not Tensor.cpu else result


def refuse_mixed(func, args, tensors):
    """What CUDA refuses of a function some of whose tensors are on the device."""
    if func in _HOST_ONLY:
        raise TypeError(f"{func.__name__} of a tensor on the device")
    by_either = func is Tensor.__getitem__ and isinstance(args[0], Far)
    if by_either or func in _MIXING:
        return
    strangers = [tuple(x.shape) for x in tensors if not isinstance(x, Far) and x.dim()]
    if strangers:
        raise RuntimeError(f"{func.__name__}: tensors on the device and on the host: {strangers}")


class HostEvent:
    """An event by the host's clock."""

    def __init__(self, *, enable_timing):
        assert enable_timing

    def record(self):
        self.at_s = time.perf_counter()

    def elapsed_time(self, end):
        return (end.at_s - self.at_s) * 1e3


class InterpretedKernel:
    """A kernel in the interpreter, on the numbers; refuses what is not on the device."""

    def __init__(self, kernel):
        self.kernel = kernel

    def run(self, *args, grid, warmup, **options):
        assert all(isinstance(arg, Far) for arg in args if isinstance(arg, Tensor))
        with torch._C.DisableTorchFunction():
            self.kernel.run(*near(args), grid=grid, warmup=warmup, **options)


def pretend():
    """From here on there is a CUDA device, for what is done within the mode that this returns."""
    cuda = torch.cuda
    load = look_up.load_kernel
    cuda.synchronize = cuda._sleep = lambda *_: None
    cuda.is_available = lambda: True
    cuda.get_device_name = lambda *_: "pretended"
    cuda.get_device_properties = lambda *_: SimpleNamespace(multi_processor_count=132)
    cuda.Event = HostEvent
    cuda.CUDAGraph = lambda: SimpleNamespace(replay=lambda: None)
    cuda.device = cuda.graph = lambda *_, **__: nullcontext()
    Tensor.pin_memory = lambda self: self
    look_up.load_kernel = lambda *words: InterpretedKernel(load(*words))
    return PretendedDevice()
