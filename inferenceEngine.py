"""The CPU engine: scores tasks with a model whose tables and inputs it shares with its siblings."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from infra.config import RunConfig
from infra.memory import keep_freed_memory
from infra.messages import WireTask
from infra.progress import Progress
from models import build
from models.base import RecModel
from models.inputs.synthetic import InputPool

_WARM_UP_ROUNDS = 3


@dataclass(frozen=True)
class Workload:
    """What engines share: built once in the driver, before they are forked."""

    model: RecModel
    inputs: InputPool


def prepare(config: RunConfig, progress: Progress, device: torch.device | None = None) -> Workload:
    """Build tables and inputs (seconds), for the CPU unless told. Uses no torch threads: no fork survives them."""
    torch.set_num_threads(1)
    seed = config.inputs.numpy_rand_seed
    with progress.step(f"building {config.model.name}'s tables") as on_progress:
        model = build(config.model, seed, on_progress, device or torch.device("cpu"))
    with progress.step("drawing inputs") as on_progress:
        inputs = InputPool.of(config, on_progress)
    return Workload(model, inputs)


class CpuEngine:
    """Slices a task's items, looks them up, runs the net. One per process, `n_threads` threads."""

    def __init__(self, workload: Workload, n_threads: int, largest_task: int) -> None:
        torch.set_num_threads(n_threads)
        keep_freed_memory()
        self._model, self._inputs = workload.model, workload.inputs
        self._largest_task = min(largest_task, workload.inputs.max_items)

    def warm_up(self) -> None:
        """Score tasks of the smallest and the largest size that will come."""
        for i in range(_WARM_UP_ROUNDS):
            for n_items in (1, self._largest_task):
                self.score(WireTask(0, 0, i % self._inputs.n_inputs, 0, n_items))

    @torch.inference_mode()
    def score(self, task: WireTask) -> None:
        """Score the task's items."""
        self._model(self._inputs.batch(task.input_id, task.first_item, task.n_items))
