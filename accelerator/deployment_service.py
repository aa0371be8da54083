"""Service times of a deployment in virtual time, as its settings name them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerator.devices import accelerator_root, derived_profile, latency_profile, load_device
from accelerator.latency import Profile, read_profile
from accelerator.replay import recorded_times, replayed_rows
from accelerator.service import ServiceTimes, table_of_law, table_of_profiles
from infra.deployment import Deployment
from infra.messages import ACCEL
from infra.settings.config import ConfigError, RunConfig
from infra.settings.pipeline import CUDA, PoolConfig, StageConfig

# From a stage's last end to the next stage's tasks, two engines at leisure on an AMD EPYC (Zen 4):
# the line through the medians at 256, 512 and 4,096 items of
# experiments/recpipe/data/real_stages_clicks.csv (0.13, 0.17 and 0.32 ms).
FILTER_NS, FILTER_NS_PER_ITEM = 120_000, 49


def service_of(deployment: Deployment) -> tuple[ServiceTimes, dict[str, Any]]:
    """The times of every stage, and where they come from; raises ConfigError."""
    config = deployment.config
    law = config.simulation.service_law
    cores = frozenset(pool.name for pool in deployment.pools if pool.on_cores)
    if law == "replay":
        source = f"the tasks of {Path(config.simulation.service_profile).name}"
        return _replayed(deployment, cores), {"law": law, "source": source}
    if law == "profile":
        return _profiled(deployment, cores)
    return _of_law(deployment, cores)


def _replayed(deployment: Deployment, cores: frozenset[str]) -> ServiceTimes:
    times = recorded_times(replayed_rows(deployment.config), cores)
    if len(times.tables) != len(deployment.stages):
        problem = f"has {len(times.tables)} stages, the deployment {len(deployment.stages)}"
        raise ConfigError("service_profile", problem)
    return times


def _of_law(deployment: Deployment, cores: frozenset[str]) -> tuple[ServiceTimes, dict[str, Any]]:
    config = deployment.config
    simulation = config.simulation
    law = simulation.service_law
    n_accel = deployment.accelerators.engines if deployment.accelerators else 0
    max_items = config.inputs.max_mini_batch_size
    seed = config.inputs.numpy_rand_seed
    table = table_of_law(
        law, simulation.service_mean_ms, simulation.service_cv, max_items, n_accel, seed
    )
    source = f"{law}, mean {simulation.service_mean_ms:g} ms"
    if law == "lognormal":
        source += f", coefficient of variation {simulation.service_cv:g}"
    if len(deployment.stages) > 1:
        source += ", every stage"
    return ServiceTimes((table,) * len(deployment.stages), cores), {"law": law, "source": source}


def _profiled(deployment: Deployment, cores: frozenset[str]) -> tuple[ServiceTimes, dict[str, Any]]:
    profiles = [_stage_profile(deployment, stage) for stage in deployment.stages]
    offload = deployment.accelerators
    accels = [
        _offload_profiles(deployment, offload, stage, profile)
        if offload and deployment.pool(stage).on_cores
        else []
        for stage, profile in zip(deployment.stages, profiles, strict=True)
    ]
    inputs = deployment.config.inputs
    tables = tuple(
        table_of_profiles(profile, cards, inputs.max_mini_batch_size, inputs.numpy_rand_seed)
        for profile, cards in zip(profiles, accels, strict=True)
    )
    facts = {
        "law": "profile",
        "source": _sources(deployment, profiles),
        "cpu": dict(profiles[0].provenance),
        "accelerators": [dict(card.provenance) for cards in accels for card in cards],
        "stages": [dict(profile.provenance) for profile in profiles],
    }
    return ServiceTimes(tables, cores, FILTER_NS, FILTER_NS_PER_ITEM), facts


def _sources(deployment: Deployment, profiles: list[Profile]) -> str:
    sources = [profile.provenance.get("source", "no source stated") for profile in profiles]
    if len(sources) == 1:
        return f"{deployment.config.simulation.service_profile}: {sources[0]}"
    return "; ".join(
        f"stage {number} {stage.model.name}: {source}"
        for number, (stage, source) in enumerate(zip(deployment.stages, sources, strict=True))
    )


def _stage_profile(deployment: Deployment, stage: StageConfig) -> Profile:
    """Times of the stage on its own pool."""
    pool = deployment.pool(stage)
    config = deployment.with_model(stage)
    if stage.profile:
        simulation = replace(config.simulation, service_profile=stage.profile)
        return service_profile(replace(config, simulation=simulation))
    if pool.on_cores:
        return service_profile(config)
    if pool.device == CUDA:
        problem = "is on cuda, which has no virtual time; name a device folder"
        raise ConfigError("pipeline", f"pool {pool.name!r} {problem}")
    return device_profile(config, pool, pool.device, lambda: service_profile(config))


def _offload_profiles(
    deployment: Deployment, offload: PoolConfig, stage: StageConfig, baseline: Profile
) -> list[Profile]:
    config = deployment.with_model(stage)
    return [device_profile(config, offload, name, lambda: baseline) for name in offload.devices]


def service_profile(config: RunConfig) -> Profile:
    """The CPU engine's times, of a device folder or a file; raises ConfigError."""
    name = config.simulation.service_profile
    try:
        if Path(name).is_file():
            return read_profile(Path(name))
        device = load_device(accelerator_root(config.engines.accel_root_dir), name)
        return latency_profile(device, config.model, config.inputs.max_mini_batch_size)
    except ConfigError as error:
        problem = str(error).removeprefix("accel_device ")
        problem = problem.replace("expected cuda or a", "expected a profile's file or a")
        raise ConfigError("service_profile", problem) from error
    except ValueError as error:
        raise ConfigError("service_profile", str(error)) from error


def device_profile(
    config: RunConfig, pool: PoolConfig, name: str, baseline: Callable[[], Profile]
) -> Profile:
    """Latency profile of the config's model on a device folder that serves the pool.

    `baseline` gives this machine's own times; a device known only by its published speed-up divides
    them. Raises ConfigError.
    """
    try:
        device = load_device(accelerator_root(config.engines.accel_root_dir), name)
        if device.kind == "speedup":
            return derived_profile(device, config.model.name, baseline())
        return latency_profile(device, config.model, config.inputs.max_mini_batch_size)
    except ConfigError as error:
        raise pool_error(pool, error) from error


def pool_error(pool: PoolConfig, error: ConfigError) -> ConfigError:
    """A device's error where the user named it: under its flag, or in the pipeline's file."""
    if pool.name == ACCEL:
        return error
    problem = str(error).removeprefix("accel_device ")
    return ConfigError("pipeline", f"pool {pool.name!r}: device {problem}")
