"""The CPU engine: scores tasks with a model whose tables and inputs it shares with its siblings."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from infra.deployment import Deployment
from infra.labelled_queries import read_queries
from infra.memory import keep_freed_memory
from infra.messages import WireTask
from infra.progress import OnFraction, Progress
from infra.settings.config import ConfigError
from infra.settings.model_config import ModelConfig
from infra.settings.pipeline import StageConfig
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


def prepare(
    deployment: Deployment,
    progress: Progress,
    stages: Sequence[int] | None = None,
    device: torch.device | None = None,
) -> dict[int, Workload]:
    """The workload of each of these stages (None: of all), on the CPU unless told; takes seconds.

    Stages with the same model and weights share it. Uses no torch threads: no fork survives them.
    Raises ConfigError if a checkpoint or the queries belong to another model.
    """
    torch.set_num_threads(1)
    models: dict[tuple[ModelConfig, str], RecModel] = {}
    inputs: dict[ModelConfig, InputPool | QueryPool] = {}
    workloads = {}
    for number in range(len(deployment.stages)) if stages is None else stages:
        stage = deployment.stages[number]
        key = stage.model, stage.checkpoint
        if key not in models:
            with progress.step(f"building {stage.model.name}'s tables") as on_progress:
                models[key] = _built(deployment, stage, device or torch.device("cpu"), on_progress)
        if stage.model not in inputs:
            with progress.step("drawing inputs") as on_progress:
                inputs[stage.model] = _inputs(deployment, stage, on_progress)
        workloads[number] = Workload(models[key], inputs[stage.model], deployment.ranks(stage))
    return workloads


def _built(
    deployment: Deployment, stage: StageConfig, device: torch.device, on_progress: OnFraction
) -> RecModel:
    """The stage's model with its tables, drawn from the seed or read from its checkpoint."""
    seed = deployment.config.inputs.numpy_rand_seed
    if not stage.checkpoint:
        return build(stage.model, seed, on_progress, device)
    weights = _checkpoint(stage.checkpoint)
    try:
        return build(stage.model, seed, on_progress, device, weights=weights)
    except (KeyError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        problem = f"{stage.checkpoint}: not a checkpoint of {stage.model.name}: {reason}"
        raise ConfigError("pipeline", problem) from error


def _inputs(
    deployment: Deployment, stage: StageConfig, on_progress: OnFraction
) -> InputPool | QueryPool:
    """The candidates of the deployment's queries, else generated inputs."""
    if deployment.queries:
        return QueryPool(read_queries(deployment.queries), stage.model)
    return InputPool.of(deployment.with_model(stage), on_progress)


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


class StageEngine(Protocol):
    """What scores the tasks of one stage."""

    def warm_up(self) -> None: ...

    def score(self, task: WireTask) -> bytes | None: ...


@dataclass(frozen=True)
class StageEngines:
    """The engine of a pool that serves several stages: one inside it for each."""

    by_stage: Mapping[int, StageEngine]

    def warm_up(self) -> None:
        """Warm all of them up."""
        for engine in self.by_stage.values():
            engine.warm_up()

    def score(self, task: WireTask) -> bytes | None:
        """Let the engine of the task's stage score it."""
        return self.by_stage[task.stage].score(task)
