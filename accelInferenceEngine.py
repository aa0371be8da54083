"""The accelerator's engine: the model itself on a CUDA device, or a device modelled by its latency,
paced precisely.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from accelerator.latency import LatencyModel
from infra.clock import monotonic_ns, wait_until_ns
from infra.messages import WireTask
from infra.progress import Progress
from infra.settings.config import ConfigError, RunConfig
from infra.settings.pipeline import Pipeline

_SPIN_NS = 200_000
log = logging.getLogger(__name__)


def check_cuda(flag: str, what: str) -> None:
    """Raise ConfigError if PyTorch sees no CUDA device."""
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = (
        "1"  # looks without starting CUDA, which no fork survives
    )
    import torch  # noqa: PLC0415 (only this check needs it here)

    if not torch.cuda.is_available():
        raise ConfigError(flag, f"{what}, but PyTorch sees no CUDA device here")


@dataclass
class ModelledEngine:
    """Takes as long for a task as the device would."""

    latency: LatencyModel
    model_name: str

    def warm_up(self) -> None:
        """Nothing to prepare."""

    def score(self, task: WireTask) -> None:
        """Return when the device would have answered: sleep, then spin for the last 0.2 ms."""
        wait_until_ns(
            monotonic_ns() + self.latency.latency_ns(self.model_name, task.n_items, 0), _SPIN_NS
        )


@dataclass(frozen=True)
class ModelledFactory:
    """Builds the engine of the index-th device in its process (and, unlike a closure, can be sent
    to a spawned one).
    """

    devices: tuple[LatencyModel, ...]
    model_name: str

    def __call__(self, index: int) -> ModelledEngine:
        return ModelledEngine(self.devices[index], self.model_name)


class CudaEngine:
    """The model on the GPU; whole queries through pinned staging buffers and a stream of its own.

    With a merge budget, tasks that wait are scored as one batch while their inputs fit it. `device`
    "cpu" runs the same steps without pinning, for tests.
    """

    def __init__(self, config: RunConfig, device: str = "cuda", workload: Any = None) -> None:
        import torch  # noqa: PLC0415 (a modelled device does not need it)

        from inferenceEngine import packed_scores, prepare, task_batch  # noqa: PLC0415
        from models.batch import Staging  # noqa: PLC0415

        self._torch = torch
        self._device = torch.device(device)
        self._on_gpu = self._device.type == "cuda"
        workload = workload or prepare(config, Progress("none"), self._device)
        self._model = workload.model
        self._inputs = workload.inputs
        self._ranks = workload.ranks
        self._task_batch = task_batch
        self._packed_scores = packed_scores
        largest = self._inputs.batch(0, 0, self._inputs.max_items)
        self._merge_bytes = config.engines.accel_merge_mib * 2**20
        self._largest_bytes = largest.nbytes
        self._staging = Staging(
            largest, max(largest.nbytes, self._merge_bytes), pinned=self._on_gpu
        )
        self._stream: Any = torch.cuda.Stream() if self._on_gpu else None  # type: ignore[no-untyped-call]

    def warm_up(self) -> None:
        """Score the smallest and the largest query."""
        for n_items in (1, self._inputs.max_items):
            self.score(WireTask(0, 0, 0, 0, n_items))

    def takes_more(self, tasks: Sequence[WireTask]) -> bool:
        """Whether the largest query would still fit the budget beside these."""
        held = sum(int(self._slice(task).nbytes) for task in tasks)
        return bool(held + self._largest_bytes <= self._merge_bytes)

    def score(self, task: WireTask) -> bytes | None:
        """Copy, score, copy back, wait for the device."""
        out = self.scores([task])
        return self._packed_scores(out) if self._ranks else None

    def score_merged(self, tasks: Sequence[WireTask]) -> None:
        """Several tasks as one batch."""
        self.scores(tasks)

    def scores(self, tasks: Sequence[WireTask]) -> Any:
        """The scores on the host, in the order of the tasks; items are the last axis but one."""
        batch = self._staging.fill([self._slice(task) for task in tasks])
        context = self._torch.cuda.stream(self._stream) if self._on_gpu else nullcontext()
        with self._torch.inference_mode(), context:
            on_host = self._model(batch.to(self._device)).to("cpu", non_blocking=True)
            if self._on_gpu:
                self._stream.synchronize()
        return on_host

    def _slice(self, task: WireTask) -> Any:
        return self._task_batch(self._inputs, task)


@dataclass(frozen=True)
class CudaFactory:
    """Builds a CudaEngine in its (spawned) process."""

    config: RunConfig

    def __call__(self, index: int) -> CudaEngine:
        del index
        return CudaEngine(self.config)


@dataclass(frozen=True)
class CudaStagesFactory:
    """Builds, in its (spawned) process, one engine for some stages of a pipeline."""

    config: RunConfig
    pipeline: Pipeline
    stages: tuple[int, ...]
    device: str = "cuda"

    def __call__(self, index: int) -> Any:
        import torch  # noqa: PLC0415 (a modelled device does not need it)

        from inferenceEngine import PipelineEngine, prepare_stages  # noqa: PLC0415

        del index
        device = torch.device(self.device)
        workloads = prepare_stages(
            self.config, self.pipeline, self.stages, Progress("none"), device
        )
        return PipelineEngine(
            {i: CudaEngine(self.config, self.device, own) for i, own in workloads.items()}
        )
