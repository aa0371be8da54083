"""A pipeline's engines, and a session that turns a policy into its stages: to measuring and tuning
it is one model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from accelerator.devices import accelerator_root, load_device
from accelerator.latency import Profile, ProfiledDevice
from accelerator.pipeline_service import device_profile, pipeline_service
from accelInferenceEngine import CudaStagesFactory, ModelledFactory, check_cuda
from backends.processes.engine import PoolSpec
from backends.processes.process import ProcessSession
from backends.session import Watch
from backends.virtual.simulated import SimulatedSession
from infra.labelled_queries import read_queries
from infra.memory import check_memory
from infra.messages import CPU, message_bytes
from infra.progress import Progress
from infra.provenance import usable_cores
from infra.results.rows import Rows
from infra.settings.config import ConfigError, ModelConfig, RunConfig
from infra.settings.pipeline import MOST_ITEMS, Pipeline, PoolConfig, read_pipeline
from loadGenerator import Schedule
from models.embedding.plan.plan import plan_of
from models.inputs.sources import source_of
from scheduler import Policy, Stage


def with_pipeline(config: RunConfig, pipeline: Pipeline) -> RunConfig:
    """The settings with what the pipeline states: the candidates of a query, and how many queries
    there are.

    Raises ConfigError if the settings ask for other ones, or for a model.
    """
    for setting in fields(ModelConfig):
        if getattr(config.model, setting.name) != setting.default:
            raise ConfigError(
                setting.name, "is of no stage of the pipeline; give it under a stage's settings"
            )
    inputs = config.inputs
    load = config.load
    n_items, n_queries = _stated(pipeline)
    if n_queries is not None and inputs.num_batches > n_queries:
        raise ConfigError(
            "num_batches",
            f"is {inputs.num_batches}, but {pipeline.queries} has {n_queries} queries",
        )
    inputs = replace(inputs, num_batches=inputs.num_batches or n_queries or 0)
    if inputs.num_batches < 1:
        raise ConfigError("num_batches", "is 0; expected the number of distinct inputs, at least 1")
    if n_items is None:
        return config
    if load.batch_size_distribution != "fixed":
        raise ConfigError(
            "batch_size_distribution", "is set, but the pipeline states how many items a query has"
        )
    if inputs.max_mini_batch_size not in (1, n_items):
        raise ConfigError(
            "max_mini_batch_size",
            f"is {inputs.max_mini_batch_size}; the pipeline's queries: {n_items}",
        )
    keep = pipeline.stages[0].keep_items
    if keep is not None and keep > n_items:
        raise ConfigError(
            "pipeline",
            f"{pipeline.name}: stage 0: keep_items is {keep}, but only {n_items} come in",
        )
    inputs = replace(
        inputs, max_mini_batch_size=n_items, mini_batch_size=min(inputs.mini_batch_size, n_items)
    )
    return replace(config, inputs=inputs, load=replace(load, avg_mini_batch_size=float(n_items)))


def _stated(pipeline: Pipeline) -> tuple[int | None, int | None]:
    """Items of the largest query, and queries, as far as the pipeline's files state them."""
    if not pipeline.queries:
        return pipeline.n_items, None
    queries = read_queries(pipeline.queries)
    largest = int(queries.n_items_Q.max())
    if pipeline.n_items is not None and pipeline.n_items > largest:
        raise ConfigError(
            "pipeline",
            f"{pipeline.name}: items is {pipeline.n_items}; a query has {largest} at most",
        )
    return pipeline.n_items or largest, len(queries)


def pipeline_of(config: RunConfig, n_engines: int) -> Pipeline:
    """The pipeline that the settings name; raises ConfigError."""
    return read_pipeline(config.engines.pipeline, n_engines)


def check_pipeline(config: RunConfig, pipeline: Pipeline) -> None:
    """Raise ConfigError for what can be known before anything is built; `config` as `with_pipeline`
    gives it.
    """
    devices = [pool for pool in pipeline.pools if pool.device != CPU]
    if config.tune.objective == "qps_per_watt" and devices:
        raise ConfigError(
            "objective",
            f"is qps_per_watt, but the power of pool {devices[0].name!r} is not counted",
        )
    tuning = config.tune.tune_batch_qps
    if tuning and all(stage.batch_items for stage in pipeline.stages):
        raise ConfigError(
            "tune_batch_qps",
            "has nothing to tune: every stage of the pipeline states its batch_items",
        )
    if pipeline.queries:
        for stage in pipeline.stages:
            read_queries(pipeline.queries).check(stage.model)
    if config.engines.backend == "simulated":
        pipeline_service(config, pipeline)
        return
    largest = max(largest_task(config, pipeline, number) for number in range(len(pipeline.stages)))
    if largest > MOST_ITEMS and any(stage.keep_items for stage in pipeline.stages):
        raise ConfigError(
            "pipeline", f"a task of {largest} items is too large to travel; at most {MOST_ITEMS}"
        )
    _check_devices(config, pipeline)
    _check_memory(config, pipeline)


def _check_devices(config: RunConfig, pipeline: Pipeline) -> None:
    for pool in pipeline.pools:
        if pool.device == "cuda":
            check_cuda("pipeline", f"pool {pool.name!r} is on cuda")
        elif pool.device != CPU:
            try:
                load_device(accelerator_root(config.engines.accel_root_dir), pool.device)
            except ConfigError as error:
                said = str(error).removeprefix("accel_device ")
                raise ConfigError("pipeline", f"pool {pool.name!r}: device {said}") from error


def _check_memory(config: RunConfig, pipeline: Pipeline) -> None:
    """Inputs by model, tables by model and checkpoint."""
    seen = list[ModelConfig]()
    for stage in pipeline.stages:
        plan_of(stage.model, ["cuda" if pipeline.pool(stage).device == "cuda" else "cpu"])
        if stage.model not in seen:
            if not pipeline.queries:
                source_of(stage.model, config.inputs)
            seen.append(stage.model)
    tables = sum(
        model.table_bytes
        for model, _ in {(stage.model, stage.checkpoint) for stage in pipeline.stages}
    )
    inputs = sum(replace(config, model=model).input_bytes for model in seen)
    largest = max(seen, key=lambda model: model.table_bytes)
    own = replace(config, model=largest)
    others = tables + inputs - largest.table_bytes - own.input_bytes
    try:
        check_memory(own, sum(pool.engines for pool in pipeline.pools), others)
    except ConfigError as error:
        raise ConfigError(
            "pipeline", f"{pipeline.name}: {error} (under a stage's settings)"
        ) from error


def largest_task(config: RunConfig, pipeline: Pipeline, number: int) -> int:
    """Items of a stage's largest task under any policy of the run."""
    stage = pipeline.stages[number]
    kept = [own.keep_items for own in pipeline.stages[:number] if own.keep_items is not None]
    coming = min([config.inputs.max_mini_batch_size, *kept])
    if stage.batch_items is not None:
        return min(stage.batch_items, coming)
    if pipeline.pool(stage).device != CPU:
        return coming
    batches = [config.engines.sub_task_batch_size]
    if config.tune.tune_batch_qps:
        batches += [coming, *map(int, config.tune.batch_configs.split("-"))]
    return min(max(batches), coming)


@dataclass
class PipelineSession:
    """A session to which a policy stands for the pipeline's stages: its batch for all on cores that
    state none.

    With queries of its own, a query is as large as its input has candidates.
    """

    inner: ProcessSession | SimulatedSession
    pipeline: Pipeline
    largest_items: int

    @property
    def interrupted(self) -> bool:
        """After Ctrl-C."""
        return self.inner.interrupted

    @interrupted.setter
    def interrupted(self, value: bool) -> None:
        self.inner.interrupted = value

    @property
    def deaths(self) -> Sequence[dict[str, Any]]:
        """Engines that died."""
        return self.inner.deaths

    def memory(self) -> dict[str, Any]:
        """Of the engines."""
        return self.inner.memory()

    def run(
        self,
        schedule: Schedule,
        stages: Sequence[Stage],
        on_progress: Callable[[int], None] | None = None,
        watch: Watch | None = None,
    ) -> Rows:
        """Walk the schedule through the pipeline; `stages` is one, whose policy is taken."""
        (only,) = stages
        if self.pipeline.queries:
            sizes = np.minimum(
                read_queries(self.pipeline.queries).n_items_Q[schedule.input_id], self.largest_items
            )
            schedule = replace(schedule, n_items=sizes.astype(np.int32))
        return self.inner.run(schedule, stages_of(self.pipeline, only.policy), on_progress, watch)


def stages_of(pipeline: Pipeline, policy: Policy) -> list[Stage]:
    """The pipeline's stages under a policy."""
    whole = np.iinfo(np.int32).max
    stages = []
    for own in pipeline.stages:
        on_cores = pipeline.pool(own).device == CPU
        batch = own.batch_items or (policy.batch_items if on_cores else int(whole))
        stages.append(Stage(Policy(batch), own.keep_items, own.pool))
    return stages


def virtual_pipeline(
    config: RunConfig, pipeline: Pipeline
) -> tuple[PipelineSession, dict[str, Any]]:
    """In virtual time, and where its times come from."""
    service, facts = pipeline_service(config, pipeline)
    inner = SimulatedSession({pool.name: pool.engines for pool in pipeline.pools}, service)
    return PipelineSession(inner, pipeline, config.inputs.max_mini_batch_size), facts


@contextmanager
def process_pipeline(
    config: RunConfig, pipeline: Pipeline, progress: Progress
) -> Iterator[PipelineSession]:
    """On this machine."""
    with ProcessSession(
        _specs(config, pipeline, progress), ready_timeout_s=config.engines.engine_timeout
    ) as inner:
        yield PipelineSession(inner, pipeline, config.inputs.max_mini_batch_size)


def _specs(config: RunConfig, pipeline: Pipeline, progress: Progress) -> list[PoolSpec]:
    from inferenceEngine import CpuEngine, PipelineEngine, prepare_stages  # noqa: PLC0415 (PyTorch takes seconds to load)

    served = {
        pool.name: [i for i, stage in enumerate(pipeline.stages) if stage.pool == pool.name]
        for pool in pipeline.pools
    }
    on_cores = [i for i, stage in enumerate(pipeline.stages) if pipeline.pool(stage).device == CPU]
    workloads = prepare_stages(config, pipeline, on_cores, progress)
    largest = {i: largest_task(config, pipeline, i) for i in range(len(pipeline.stages))}
    cores = usable_cores() if config.engines.pin_cores else ()

    def spec(pool: PoolConfig) -> PoolSpec:
        own = served[pool.name]
        size = message_bytes(max(largest[i] for i in own))
        if pool.device == "cuda":
            return PoolSpec(
                pool.name,
                1,
                CudaStagesFactory(config, pipeline, tuple(own)),
                "spawn",
                message_bytes=size,
            )
        if pool.device != CPU:
            latencies = {i: _modelled(config, pipeline, pool, i, progress) for i in own}
            return PoolSpec(pool.name, pool.engines, _Modelled(latencies), message_bytes=size)

        def engine(_: int) -> PipelineEngine:
            n = config.engines.n_threads
            return PipelineEngine({i: CpuEngine(workloads[i], n, largest[i]) for i in own})

        return PoolSpec(
            pool.name, pool.engines, engine, cores=cores, message_bytes=size, yields=True
        )

    return [spec(pool) for pool in pipeline.pools]


@dataclass(frozen=True)
class _Modelled:
    """An engine of a modelled device that serves several stages."""

    stages: dict[int, ModelledFactory]

    def __call__(self, index: int) -> Any:
        from inferenceEngine import PipelineEngine  # noqa: PLC0415 (PyTorch takes seconds to load)

        del index
        return PipelineEngine({i: factory(0) for i, factory in self.stages.items()})


def _modelled(
    config: RunConfig, pipeline: Pipeline, pool: PoolConfig, number: int, progress: Progress
) -> ModelledFactory:
    stage = pipeline.stages[number]

    def measure() -> Profile:
        from accelerator.profiler import measure_cpu_core  # noqa: PLC0415 (needs PyTorch)
        from inferenceEngine import prepare_stages  # noqa: PLC0415

        workload = prepare_stages(config, pipeline, [number], progress)[number]
        with progress.step("measuring this machine's CPU time by batch size"):
            return measure_cpu_core(workload.model, workload.inputs)

    profile = device_profile(replace(config, model=stage.model), pool, measure)
    return ModelledFactory(
        (ProfiledDevice(pool.device, {stage.model.name: profile}),), stage.model.name
    )
