"""What the studies on a GPU share: device, clocks, tables with their ids, and checks."""

# L ids of a batch, T tables

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from experiments.embedding.gpu_peers import Input, Method
from models.embedding import synthesis
from models.embedding.backend import Backend, FloatArray
from models.embedding.gpu.backend import CudaBackend
from models.embedding.gpu.timing import device_seconds, wall_seconds
from models.embedding.plan.catalogue import Params
from models.embedding.tuning.problem import Problem, of_recorded
from models.embedding.tuning.recorded import Recorded

MODELS = ("A", "B", "C", "D", "E")
BATCHES = (1, 8, 64, 512)
N_INPUTS = 4
WARM_UPS = 3
SEED = 7
Calls = Sequence[Callable[[int], object]]


@dataclass(frozen=True)
class GpuBench:
    """What runs and times the studies' look-ups; times are (calls, rounds) seconds."""

    device: torch.device
    backend: Callable[[Sequence[Params]], Backend]  # with these knobs
    device_seconds: Callable[[Calls, int, bool], FloatArray]  # bool: rows are not in L2
    wall_seconds: Callable[[Calls, int], FloatArray]


BENCH = GpuBench(
    torch.device("cuda"),
    CudaBackend,
    lambda calls, n_rounds, cold: device_seconds(calls, n_rounds, cold=cold),
    lambda calls, n_rounds: wall_seconds(calls, n_rounds, wait=torch.cuda.synchronize),
)


def work_of(
    name: str,
    batches: Sequence[int],
    tables_frac: float,
    alpha: float | None = None,
    device: torch.device | None = None,
) -> tuple[Problem, dict[int, list[Input]]]:
    """A model's tables with ids to tune on; N_INPUTS others of each batch size to measure on.

    They lie on the bench's device unless another one is named.
    """
    device = device or BENCH.device
    sizes = [size for size in batches for _ in range(N_INPUTS)]
    drawn = synthesis.draw(name, [2 * max(batches), *sizes], SEED, alpha, tables_frac)
    problem = of_recorded(Recorded(drawn.specs, drawn.batches[:1]), sorted(batches), str(device))
    inputs: dict[int, list[Input]] = {}
    for batch in drawn.batches[1:]:
        offsets = batch.offsets.astype(np.int32)
        to_measure = Input.of(batch.ids_L, offsets, len(drawn.specs), device)
        inputs.setdefault(batch.n_items, []).append(to_measure)
    return problem, inputs


def check(methods: Mapping[str, Method], n_inputs: int) -> None:
    """Raise ValueError if a method's sums are not those of the per-table look-up."""
    for i in range(n_inputs):
        expected = methods["per table"].call(i).clone()
        for name, method in methods.items():
            if not torch.equal(method.call(i), expected):
                raise ValueError(f"{name}: other sums than the per-table look-up, input {i}")


def check_machine() -> None:
    """Raise ValueError where there is no device or no Triton."""
    if BENCH.device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("needs a CUDA device; PyTorch sees none here")
    check_triton()


def check_triton() -> None:
    """Raise ValueError where Triton is not installed."""
    if importlib.util.find_spec("triton") is None:
        raise ValueError("needs Triton (pip install -r build/bench_requirements.txt)")
