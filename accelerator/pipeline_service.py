"""Service times of a pipeline in virtual time: a table for every stage, and what choosing the best
items takes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from accelerator.devices import accelerator_root, derived_profile, latency_profile, load_device
from accelerator.latency import Profile
from accelerator.service import ServiceTable, service_profile, table_of_law, table_of_profiles
from infra.messages import CPU
from infra.settings.config import ConfigError, RunConfig
from infra.settings.pipeline import Pipeline, PoolConfig, StageConfig

# From a stage's last end to the next stage's tasks, two engines at leisure on an AMD EPYC (Zen 4):
# the line through the medians at 256, 512 and 4,096 items of
# experiments/recpipe/real_stages_clicks.csv (0.13, 0.17 and 0.32 ms).
FILTER_NS, FILTER_NS_PER_ITEM = 120_000, 49


@dataclass(frozen=True)
class PipelineService:
    """`tables`: a stage's times, under `cpu_ns` whatever its device.

    `on_cores`: pools whose engines are neighbours.

    A query passes from a stage to the next `filter_ns + filter_item_ns x items` after its last part
    has ended.
    """

    tables: tuple[ServiceTable, ...]
    on_cores: frozenset[str] = frozenset({CPU})
    filter_ns: int = 0
    filter_item_ns: float = 0.0


def pipeline_service(
    config: RunConfig, pipeline: Pipeline
) -> tuple[PipelineService, dict[str, Any]]:
    """What the settings name for every stage, and where the times come from; raises ConfigError."""
    simulation = config.simulation
    law = simulation.service_law
    seed = config.inputs.numpy_rand_seed
    max_items = config.inputs.max_mini_batch_size
    cores = frozenset(pool.name for pool in pipeline.pools if pool.device == CPU)
    if law == "replay":
        raise ConfigError(
            "service_law", "is replay, which repeats the tasks of one stage; a pipeline has several"
        )
    if law != "profile":
        table = table_of_law(
            law, simulation.service_mean_ms, simulation.service_cv, max_items, 0, seed
        )
        facts: dict[str, Any] = {
            "law": law,
            "source": f"{law}, mean {simulation.service_mean_ms:g} ms, every stage",
        }
        return PipelineService((table,) * len(pipeline.stages), cores), facts
    profiles = [_profile(config, pipeline.pool(stage), stage) for stage in pipeline.stages]
    facts = {
        "law": law,
        "source": "; ".join(
            f"stage {i} {stage.model.name}: {profile.provenance.get('source', 'no source stated')}"
            for i, (stage, profile) in enumerate(zip(pipeline.stages, profiles, strict=True))
        ),
        "stages": [dict(profile.provenance) for profile in profiles],
    }
    tables = tuple(table_of_profiles(profile, [], max_items, seed) for profile in profiles)
    return PipelineService(tables, cores, FILTER_NS, FILTER_NS_PER_ITEM), facts


def _profile(config: RunConfig, pool: PoolConfig, stage: StageConfig) -> Profile:
    own = replace(config, model=stage.model)
    if stage.profile:
        own = replace(own, simulation=replace(own.simulation, service_profile=stage.profile))
    if stage.profile or pool.device == CPU:
        return service_profile(own)
    if pool.device == "cuda":
        raise ConfigError(
            "pipeline",
            f"pool {pool.name!r} is on cuda, which has no virtual time; name a device folder",
        )
    return device_profile(own, pool, lambda: service_profile(own))


def device_profile(config: RunConfig, pool: PoolConfig, baseline: Callable[[], Profile]) -> Profile:
    """Of the config's model on a pool's device folder; `baseline`: this machine's times, which
    published speed-ups divide. Raises ConfigError.
    """
    try:
        device = load_device(accelerator_root(config.engines.accel_root_dir), pool.device)
        if device.kind == "speedup":
            return derived_profile(device, config.model.name, baseline())
        return latency_profile(device, config.model, config.inputs.max_mini_batch_size)
    except ConfigError as error:
        said = str(error).removeprefix("accel_device ")
        raise ConfigError(
            "pipeline", f"pool {pool.name!r}, device {pool.device}: {said}"
        ) from error
