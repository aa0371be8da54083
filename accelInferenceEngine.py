"""The accelerator's engine: the model itself on a CUDA device, or a device modelled by its latency, paced precisely."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from accelerator.latency import LatencyModel
from infra.clock import monotonic_ns, wait_until_ns
from infra.config import RunConfig
from infra.messages import WireTask
from infra.progress import Progress

_SPIN_NS = 200_000
log = logging.getLogger(__name__)


@dataclass
class ModelledEngine:
    """Takes as long for a task as the device would."""

    latency: LatencyModel
    model_name: str

    def warm_up(self) -> None:
        """Nothing to prepare."""

    def score(self, task: WireTask) -> None:
        """Return when the device would have answered: sleep, then spin for the last 0.2 ms."""
        wait_until_ns(monotonic_ns() + self.latency.latency_ns(self.model_name, task.n_items, 0), _SPIN_NS)


@dataclass(frozen=True)
class ModelledFactory:
    """Builds the engine of the index-th device in its process (and, unlike a closure, can be sent to a spawned one)."""

    devices: tuple[LatencyModel, ...]
    model_name: str

    def __call__(self, index: int) -> ModelledEngine:
        return ModelledEngine(self.devices[index], self.model_name)


class CudaEngine:
    """The model on the GPU; whole queries, copied in from the host for every task."""

    def __init__(self, config: RunConfig) -> None:
        import torch  # noqa: PLC0415 (a modelled device does not need it)

        from inferenceEngine import prepare  # noqa: PLC0415

        self._torch = torch
        self._device = torch.device("cuda")
        workload = prepare(config, Progress("none"))
        self._model, self._inputs = workload.model.to(self._device), workload.inputs

    def warm_up(self) -> None:
        """Score the smallest and the largest query."""
        for n_items in (1, self._inputs.max_items):
            self.score(WireTask(0, 0, 0, 0, n_items))

    def score(self, task: WireTask) -> None:
        """Copy, score, wait for the device."""
        with self._torch.inference_mode():
            self._model(self._inputs.batch(task.input_id, task.first_item, task.n_items).to(self._device))
        self._torch.cuda.synchronize()


@dataclass(frozen=True)
class CudaFactory:
    """Builds a CudaEngine in its (spawned) process."""

    config: RunConfig

    def __call__(self, index: int) -> CudaEngine:
        del index
        return CudaEngine(self.config)
