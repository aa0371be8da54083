"""What can be known to be wrong before anything is built or started."""

from __future__ import annotations

from accelerator.deployment_service import pool_error, service_of
from accelerator.devices import accelerator_root, load_device, published_speedups
from accelInferenceEngine import check_cuda
from backends.tuning.power import check_power
from infra.deployment import Deployment
from infra.labelled_queries import read_queries
from infra.memory import check_memory
from infra.messages import ACCEL
from infra.settings.config import ConfigError
from infra.settings.pipeline import CUDA, PoolConfig
from loadGenerator import check_files
from models.embedding.plan.plan import plan_of
from models.inputs.sources import source_of

MOST_ITEMS = 40_000  # of a task that travels with its ids: a message is as large as a socket takes


def check(deployment: Deployment) -> None:
    """Raise ConfigError for all that is wrong with the input and is no setting's own."""
    check_files(deployment.config)
    check_power(deployment)
    _check_tuning(deployment)
    if deployment.queries:
        for model in deployment.models:
            read_queries(deployment.queries).check(model)
    if deployment.config.engines.backend == "simulated":
        service_of(deployment)
        return
    _check_messages(deployment)
    for pool in deployment.pools:
        _check_pool(deployment, pool)
    _check_models(deployment)
    check_memory(deployment)


def _check_tuning(deployment: Deployment) -> None:
    tune = deployment.config.tune
    if tune.tune_batch_qps and all(stage.batch_items for stage in deployment.stages):
        problem = "has nothing to tune: every stage of the pipeline states its batch_items"
        raise ConfigError("tune_batch_qps", problem)


def _check_messages(deployment: Deployment) -> None:
    largest = max(map(deployment.largest_task, range(len(deployment.stages))))
    if largest > MOST_ITEMS and any(stage.keep_items for stage in deployment.stages):
        problem = f"a task of {largest} items is too large to travel; at most {MOST_ITEMS}"
        raise ConfigError("pipeline", problem)


def _check_pool(deployment: Deployment, pool: PoolConfig) -> None:
    """Its devices are there and know the models that they are to serve."""
    if pool.on_cores:
        return
    offloaded = pool.name == ACCEL
    if pool.device == CUDA:
        flag, what = (
            ("accel_device", "is cuda")
            if offloaded
            else ("pipeline", f"pool {pool.name!r} is on cuda")
        )
        check_cuda(flag, what)
        return
    if CUDA in pool.devices:
        names = ",".join(pool.devices)
        problem = f"is {names}; cuda runs alone, not beside modelled devices"
        raise pool_error(pool, ConfigError("accel_device", problem))
    try:
        for name in pool.devices:
            device = load_device(accelerator_root(deployment.config.engines.accel_root_dir), name)
            if device.kind == "speedup":
                for number in deployment.served_by(pool):
                    published_speedups(device, deployment.stages[number].model.name)
    except ConfigError as error:
        raise pool_error(pool, error) from error


def _check_models(deployment: Deployment) -> None:
    """The files that the models name: plans, and what ids are drawn from."""
    offload = deployment.accelerators
    for stage in deployment.stages:
        pool = deployment.pool(stage)
        devices = ["cuda" if pool.device == CUDA else "cpu"]
        if pool.on_cores and offload is not None and offload.device == CUDA:
            devices.append("cuda")
        plan_of(stage.model, devices)
    if not deployment.queries:
        for model in deployment.models:
            source_of(model, deployment.config.inputs)
