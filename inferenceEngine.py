"""The CPU engine: scores tasks with a model whose tables and inputs it shares with its siblings."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from infra.labelled_queries import read_queries
from infra.memory import keep_freed_memory
from infra.messages import WireTask
from infra.progress import Progress
from infra.settings.config import ConfigError, ModelConfig, RunConfig
from infra.settings.pipeline import Pipeline
from models import build
from models.base import RecModel
from models.batch import Batch
from models.inputs.query_pool import QueryPool
from models.inputs.synthetic import InputPool

_WARM_UP_ROUNDS = 3


@dataclass(frozen=True)
class Workload:
    """What engines share: built once in the driver, before they are forked."""

    model: RecModel
    inputs: InputPool | QueryPool
    ranks: bool = False  # its scores decide which items go on


def prepare(config: RunConfig, progress: Progress, device: torch.device | None = None) -> Workload:
    """Build tables and inputs (seconds), for the CPU unless told.

    Uses no torch threads: no fork survives them.
    """
    torch.set_num_threads(1)
    seed = config.inputs.numpy_rand_seed
    with progress.step(f"building {config.model.name}'s tables") as on_progress:
        model = build(config.model, seed, on_progress, device or torch.device("cpu"))
    with progress.step("drawing inputs") as on_progress:
        inputs = InputPool.of(config, on_progress)
    return Workload(model, inputs)


def prepare_stages(
    config: RunConfig,
    pipeline: Pipeline,
    stages: Sequence[int],
    progress: Progress,
    device: torch.device | None = None,
) -> dict[int, Workload]:
    """The workloads of some stages of a pipeline; stages with the same model share it.

    Raises ConfigError if a checkpoint or the queries belong to another model.
    """
    torch.set_num_threads(1)
    seed = config.inputs.numpy_rand_seed
    built = dict[tuple[ModelConfig, str], RecModel]()
    pools: dict[ModelConfig, InputPool | QueryPool] = {}
    workloads = {}
    for number in stages:
        stage = pipeline.stages[number]
        key = stage.model, stage.checkpoint
        with progress.step(f"stage {number}: building {stage.model.name}") as on_progress:
            if key not in built:
                weights = _checkpoint(stage.checkpoint) if stage.checkpoint else None
                try:
                    built[key] = build(
                        stage.model,
                        seed,
                        on_progress,
                        device or torch.device("cpu"),
                        weights=weights,
                    )
                except (KeyError, ValueError, RuntimeError) as error:
                    said = " ".join(str(error).split())
                    raise ConfigError(
                        "pipeline",
                        f"{stage.checkpoint}: not a checkpoint of {stage.model.name}: {said}",
                    ) from error
            if stage.model not in pools:
                own = replace(config, model=stage.model)
                pools[stage.model] = (
                    QueryPool(read_queries(pipeline.queries), stage.model)
                    if pipeline.queries
                    else (InputPool.of(own, on_progress))
                )
        workloads[number] = Workload(built[key], pools[stage.model], pipeline.ranks(stage))
    return workloads


def _checkpoint(path: str) -> dict[str, Any]:
    try:
        with np.load(path) as arrays:
            return dict(arrays)
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ConfigError("pipeline", f"{path}: not a checkpoint (.npz): {error}") from error


def task_batch(inputs: InputPool | QueryPool, task: WireTask) -> Batch:
    """The task's items: the chosen ones, or a slice."""
    if task.items:
        return inputs.gather(task.input_id, np.frombuffer(task.items, np.int32))
    return inputs.batch(task.input_id, task.first_item, task.n_items)


def packed_scores(out: Tensor) -> bytes:
    """One float32 per item of a net's output, (B, n_out) or (tasks, B, n_out): the mean over tasks
    and outputs.
    """
    score_B = (
        out.reshape(-1)
        if out.ndim == 2 and out.shape[1] == 1
        else out.mean(-1).reshape(-1, out.shape[-2]).mean(0)
    )
    return bytes(score_B.float().numpy().tobytes())


class CpuEngine:
    """Slices a task's items, looks them up, runs the net. One per process, `n_threads` threads."""

    def __init__(self, workload: Workload, n_threads: int, largest_task: int) -> None:
        torch.set_num_threads(n_threads)
        keep_freed_memory()
        self._model = workload.model
        self._inputs = workload.inputs
        self._ranks = workload.ranks
        self._largest_task = min(largest_task, workload.inputs.max_items)

    def warm_up(self) -> None:
        """Score tasks of the smallest and the largest size that will come."""
        for i in range(_WARM_UP_ROUNDS):
            for n_items in (1, self._largest_task):
                self.score(WireTask(0, 0, i % self._inputs.n_inputs, 0, n_items))

    @torch.inference_mode()
    def score(self, task: WireTask) -> bytes | None:
        """Score the task's items."""
        out = self._model(task_batch(self._inputs, task))
        return packed_scores(out) if self._ranks else None


class _StageEngine(Protocol):
    def warm_up(self) -> None: ...

    def score(self, task: WireTask) -> bytes | None: ...


@dataclass(frozen=True)
class PipelineEngine:
    """One engine that serves several stages, each with an engine of its own inside."""

    stages: Mapping[int, _StageEngine]

    def warm_up(self) -> None:
        """All of them."""
        for engine in self.stages.values():
            engine.warm_up()

    def score(self, task: WireTask) -> bytes | None:
        """By the task's stage."""
        return self.stages[task.stage].score(task)
