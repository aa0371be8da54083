"""The accelerator's engine: the model on a CUDA device, or a device paced by its latency model."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from accelerator.latency import LatencyModel
from infra.clock import monotonic_ns, wait_until_ns
from infra.deployment import Deployment
from infra.messages import WireTask
from infra.progress import Progress
from infra.settings.config import ConfigError
from infra.settings.pipeline import CUDA, PoolConfig

if TYPE_CHECKING:
    from inferenceEngine import StageEngine, Workload  # a modelled device needs no PyTorch

_SPIN_NS = 200_000
log = logging.getLogger(__name__)


def check_cuda(flag: str, what: str) -> None:
    """Raise ConfigError if PyTorch sees no CUDA device."""
    # looks without starting CUDA, which no fork survives
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
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


class CudaEngine:
    """The model on the GPU; whole queries through pinned staging buffers and a stream of its own.

    With a merge budget, tasks that wait are scored as one batch while their inputs fit it. `device`
    "cpu" runs the same steps without pinning, for tests.
    """

    def __init__(self, workload: Workload, merge_mib: float = 0.0, device: str = CUDA) -> None:
        import torch  # noqa: PLC0415 (a modelled device does not need it)

        from inferenceEngine import packed_scores, task_batch  # noqa: PLC0415 (as above)
        from models.batch import Staging  # noqa: PLC0415 (as above)

        self._torch: Any = torch  # its streams have no types
        self._device = torch.device(device)
        self._on_gpu = self._device.type == "cuda"
        self._model = workload.model
        self._inputs = workload.inputs
        self._ranks = workload.ranks
        self._task_batch = task_batch
        self._packed_scores = packed_scores
        largest = self._inputs.batch(0, 0, self._inputs.max_items)
        self._merge_bytes = merge_mib * 2**20
        self._largest_bytes = largest.nbytes
        self._staging = Staging(
            largest, max(largest.nbytes, self._merge_bytes), pinned=self._on_gpu
        )
        self._stream: Any = self._torch.cuda.Stream() if self._on_gpu else None

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
class EngineFactory:
    """Builds the index-th engine of a pool in its own process, for the stages that the pool serves.

    `workloads` were built before the fork; an engine on CUDA, which is spawned, builds its own.
    `latencies`: of each engine of a modelled pool, by stage.
    """

    deployment: Deployment
    pool: PoolConfig
    workloads: Mapping[int, Workload] = field(default_factory=dict)
    latencies: Mapping[int, Sequence[LatencyModel]] = field(default_factory=dict)

    def __call__(self, index: int) -> StageEngine:
        from inferenceEngine import StageEngines  # noqa: PLC0415 (PyTorch takes seconds to load)

        engines = self._engines(index)
        return StageEngines(engines) if len(engines) > 1 else next(iter(engines.values()))

    def _engines(self, index: int) -> dict[int, StageEngine]:
        served = self.deployment.served_by(self.pool)
        if self.pool.device == CUDA:
            return cuda_engines(self.deployment, served)
        if not self.pool.on_cores:
            models = self.deployment.stages
            return {
                i: ModelledEngine(self.latencies[i][index], models[i].model.name) for i in served
            }
        from inferenceEngine import CpuEngine  # noqa: PLC0415 (PyTorch takes seconds to load)

        n_threads = self.deployment.config.engines.n_threads
        largest = self.deployment.largest_task
        return {i: CpuEngine(self.workloads[i], n_threads, largest(i)) for i in served}


def cuda_engines(
    deployment: Deployment, stages: Sequence[int], device: str = CUDA
) -> dict[int, StageEngine]:
    """An engine on the device for each of these stages, with tables and inputs of its own."""
    import torch  # noqa: PLC0415 (a modelled device does not need it)

    from inferenceEngine import prepare  # noqa: PLC0415 (PyTorch takes seconds to load)

    workloads = prepare(deployment, Progress("none"), stages, torch.device(device))
    merge_mib = deployment.config.engines.accel_merge_mib
    return {
        i: CudaEngine(workload, 0.0 if workload.ranks else merge_mib, device)
        for i, workload in workloads.items()
    }
