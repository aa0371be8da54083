"""What a run deploys: stages of models, and the pools of engines that serve them.

Settings are resolved once. Flags that name one model make a deployment of one stage; a pipeline's
file states several. From here on nothing asks which of the two it was.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import numpy.typing as npt

from infra.labelled_queries import read_queries
from infra.messages import ACCEL, CPU, MESSAGE_BYTES, message_bytes
from infra.provenance import usable_cores
from infra.settings.config import ConfigError, RunConfig
from infra.settings.model_config import ModelConfig
from infra.settings.pipeline import PipelineConfig, PoolConfig, StageConfig, read_pipeline


@dataclass(frozen=True)
class Deployment:
    """Stages in the order in which a query passes them, and the pools that serve them.

    `config` holds the settings with what the pipeline's file states (candidates and number of its
    queries). `queries` is the file of the candidates; empty: inputs are generated. The pool `accel`
    serves what a policy offloads from the stages on cores. `stated` is the pipeline's file.
    """

    config: RunConfig
    stages: tuple[StageConfig, ...]
    pools: tuple[PoolConfig, ...]
    queries: str = ""
    stated: PipelineConfig | None = None

    @property
    def fingerprint(self) -> str | None:
        """Changes with the pipeline's file and all that it names; None: the settings say it all."""
        return None if self.stated is None else self.stated.fingerprint()

    @property
    def n_engines(self) -> int:
        """Engines on cores."""
        return max(1, sum(pool.engines for pool in self.pools if pool.on_cores))

    @property
    def accelerators(self) -> PoolConfig | None:
        """Where large queries are offloaded, if the settings ask for it."""
        return next((pool for pool in self.pools if pool.name == ACCEL), None)

    @property
    def device_pools(self) -> list[PoolConfig]:
        """Pools on devices that serve whole stages."""
        return [pool for pool in self.pools if not pool.on_cores and pool.name != ACCEL]

    @property
    def models(self) -> list[ModelConfig]:
        """The different models of the stages."""
        return list(dict.fromkeys(stage.model for stage in self.stages))

    @property
    def is_staged(self) -> bool:
        """Whether a query's time has parts beside waiting and computing, and answers are lists."""
        return len(self.stages) > 1 or self.stages[0].keep_items is not None

    @property
    def is_ranked(self) -> bool:
        """Whether the answered items are known: every stage chooses, and does so by scores."""
        offload = self.accelerators
        return (offload is None or offload.gives_scores) and all(map(self.ranks, self.stages))

    @property
    def labels(self) -> list[str]:
        """Model and pool of every stage."""
        return [f"{stage.model.name} on {stage.pool}" for stage in self.stages]

    @property
    def candidates(self) -> npt.NDArray[np.int32] | None:
        """int32[input]: items of each query of the file, as far as a query of the load has them."""
        if not self.queries:
            return None
        n_items: npt.NDArray[np.int32] = read_queries(self.queries).n_items_Q
        return np.minimum(n_items, np.int32(self.config.inputs.max_mini_batch_size))

    def pool(self, stage: StageConfig) -> PoolConfig:
        """The pool that serves the stage."""
        return next(pool for pool in self.pools if pool.name == stage.pool)

    def ranks(self, stage: StageConfig) -> bool:
        """Whether the stage chooses by the scores of its engines."""
        return stage.keep_items is not None and self.pool(stage).gives_scores

    def served_by(self, pool: PoolConfig) -> list[int]:
        """Numbers of the stages whose tasks come to the pool, offloaded ones included."""
        return [
            number
            for number, stage in enumerate(self.stages)
            if (self.pool(stage).on_cores if pool.name == ACCEL else stage.pool == pool.name)
        ]

    def with_model(self, stage: StageConfig) -> RunConfig:
        """The settings as they are for a run of the stage's model alone."""
        return replace(self.config, model=stage.model)

    def coming_items(self, number: int) -> int:
        """Items of the largest query that comes into a stage."""
        kept = [stage.keep_items for stage in self.stages[:number] if stage.keep_items is not None]
        return min([self.config.inputs.max_mini_batch_size, *kept])

    def largest_task(self, number: int) -> int:
        """Items of a stage's largest task on its own pool under any policy of the run."""
        stage = self.stages[number]
        coming = self.coming_items(number)
        if stage.batch_items is not None:
            return min(stage.batch_items, coming)
        if not self.pool(stage).on_cores:
            return coming
        tune = self.config.tune
        batches = [self.config.engines.sub_task_batch_size]
        if tune.tune_batch_qps or tune.tune_accel_qps:
            batches += [coming, *map(int, tune.batch_configs.split("-"))]
        return min(max(batches), coming)

    def message_bytes(self, pool: PoolConfig) -> int:
        """Size of the pool's largest message; items travel where stages choose them."""
        if not self.is_staged:
            return MESSAGE_BYTES
        largest = self.coming_items if pool.name == ACCEL else self.largest_task
        return message_bytes(max(map(largest, self.served_by(pool))))

    def wrong_setting(self, flag: str, problem: str) -> ConfigError:
        """The error about a model's setting: under its flag, or in the pipeline's file."""
        if self.stated is None:
            return ConfigError(flag, problem)
        problem = f"{self.stated.name}: {flag} {problem} (under a stage's settings)"
        return ConfigError("pipeline", problem)


def resolve(config: RunConfig) -> Deployment:
    """What the settings deploy; raises ConfigError for what does not fit together."""
    n_engines = config.engines.inference_engines or len(usable_cores())
    if not config.engines.pipeline:
        return one_model(config, n_engines)
    stated = read_pipeline(config.engines.pipeline, n_engines)
    pools = (*stated.pools, *_offload_pools(config))
    return Deployment(_with_queries(config, stated), stated.stages, pools, stated.queries, stated)


def one_model(config: RunConfig, n_engines: int) -> Deployment:
    """The model that the flags name, on so many engines."""
    pools = (PoolConfig(CPU, n_engines), *_offload_pools(config))
    return Deployment(config, (StageConfig(config.model, CPU),), pools)


def _offload_pools(config: RunConfig) -> list[PoolConfig]:
    engines = config.engines
    if not engines.model_accel:
        return []
    return [PoolConfig(ACCEL, len(engines.accel_devices), engines.accel_device)]


def _with_queries(config: RunConfig, stated: PipelineConfig) -> RunConfig:
    """The settings with the number of queries and of their candidates, as the file states them.

    Raises ConfigError if the settings ask for other ones, or for a model.
    """
    for setting in fields(ModelConfig):
        if getattr(config.model, setting.name) != setting.default:
            problem = "is of no stage of the pipeline; give it under a stage's settings"
            raise ConfigError(setting.name, problem)
    inputs = config.inputs
    n_items, n_queries = _stated_sizes(stated)
    if n_queries is not None and inputs.num_batches > n_queries:
        problem = f"is {inputs.num_batches}, but {stated.queries} has {n_queries} queries"
        raise ConfigError("num_batches", problem)
    inputs = replace(inputs, num_batches=inputs.num_batches or n_queries or 0)
    if inputs.num_batches < 1:
        raise ConfigError("num_batches", "is 0; expected the number of distinct inputs, at least 1")
    config = replace(config, inputs=inputs)
    return config if n_items is None else _with_items(config, stated, n_items)


def _with_items(config: RunConfig, stated: PipelineConfig, n_items: int) -> RunConfig:
    inputs = config.inputs
    if config.load.batch_size_distribution != "fixed":
        problem = "is set, but the pipeline states how many items a query has"
        raise ConfigError("batch_size_distribution", problem)
    if inputs.max_mini_batch_size not in (1, n_items):
        problem = f"is {inputs.max_mini_batch_size}; the pipeline's queries: {n_items}"
        raise ConfigError("max_mini_batch_size", problem)
    keep = stated.stages[0].keep_items
    if keep is not None and keep > n_items:
        problem = f"{stated.name}: stage 0: keep_items is {keep}, but only {n_items} come in"
        raise ConfigError("pipeline", problem)
    smallest = min(inputs.mini_batch_size, n_items)
    return replace(
        config,
        inputs=replace(inputs, max_mini_batch_size=n_items, mini_batch_size=smallest),
        load=replace(config.load, avg_mini_batch_size=float(n_items)),
    )


def _stated_sizes(stated: PipelineConfig) -> tuple[int | None, int | None]:
    """Items of the largest query, and number of queries, as far as the files state them."""
    if not stated.queries:
        return stated.n_items, None
    queries = read_queries(stated.queries)
    largest = int(queries.n_items_Q.max())
    if stated.n_items is not None and stated.n_items > largest:
        problem = f"{stated.name}: items is {stated.n_items}; a query has {largest} at most"
        raise ConfigError("pipeline", problem)
    return stated.n_items or largest, len(queries)
