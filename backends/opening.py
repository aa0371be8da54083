"""Which engines a deployment gets: processes on this machine, or service times in virtual time."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from accelerator.deployment_service import service_of
from accelerator.devices import (
    Device,
    accelerator_root,
    latency_profile,
    load_device,
    undisturbed,
)
from accelerator.latency import Profile, ProfiledDevice
from accelInferenceEngine import EngineFactory
from backends.processes.engine import PoolSpec
from backends.processes.process import ProcessSession
from backends.processes.quiet_check import quiet_check
from backends.virtual.simulated import SimulatedSession
from infra.deployment import Deployment
from infra.progress import Progress
from infra.provenance import usable_cores
from infra.settings.pipeline import CUDA, PoolConfig, StageConfig
from scheduler import stages_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class OpenSession:
    """A deployment's engines, ready to serve.

    `devices`: provenance of the devices of each pool that has some, by pool. `service`: where
    virtual time's service times come from.
    """

    session: ProcessSession | SimulatedSession
    deployment: Deployment
    devices: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    service: Mapping[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """What a report calls the engines."""
        shared = all(stage.pool == "cpu" for stage in self.deployment.stages)
        kind = "CPU" if shared else "pipeline"
        return f"simulated {kind}" if self.service else kind


@contextmanager
def open_session(deployment: Deployment, progress: Progress) -> Iterator[OpenSession]:
    """The engines of the backend that the settings name."""
    if deployment.config.engines.backend == "simulated":
        with _signals_noted(opened := _virtual(deployment)):
            yield opened
        return
    specs, devices = pool_specs(deployment, progress)
    with ProcessSession(
        specs,
        stages_of(deployment),
        candidates=deployment.candidates,
        ready_timeout_s=deployment.config.engines.engine_timeout,
    ) as session:
        noise = quiet_check(deployment.config.engines.quiet_check, session.pids)
        if noise:
            log.warning("%s", noise)
        yield OpenSession(session, deployment, devices)


def _virtual(deployment: Deployment) -> OpenSession:
    """Nothing is built and nothing started."""
    times, service = service_of(deployment)
    engines = {pool.name: pool.engines for pool in deployment.pools}
    session = SimulatedSession(
        engines, times, stages_of(deployment), candidates=deployment.candidates
    )
    devices = {
        pool.name: _facts(_loaded_devices(deployment, pool))
        for pool in deployment.pools
        if not pool.on_cores
    }
    return OpenSession(session, deployment, devices, service)


@contextmanager
def _signals_noted(opened: OpenSession) -> Iterator[None]:
    """Ctrl-C and SIGTERM end the run that goes on, wherever they meet it; its rows are kept."""

    def note(*_: object) -> None:
        opened.session.interrupted = True

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def pool_specs(
    deployment: Deployment, progress: Progress
) -> tuple[list[PoolSpec], dict[str, dict[str, Any]]]:
    """The engines of every pool, and the provenance of devices. Builds the tables of all cores."""
    from inferenceEngine import prepare  # noqa: PLC0415 (PyTorch takes seconds to load)

    builder = _Builder(deployment, progress)
    on_cores = [i for i, stage in enumerate(deployment.stages) if deployment.pool(stage).on_cores]
    builder.workloads.update(prepare(deployment, progress, on_cores))
    return [builder.spec(pool) for pool in deployment.pools], builder.devices


@dataclass
class _Builder:
    """What the pools share while their engines are specified."""

    deployment: Deployment
    progress: Progress
    workloads: dict[int, Any] = field(default_factory=dict)
    devices: dict[str, dict[str, Any]] = field(default_factory=dict)
    n_pinned: int = 0

    def spec(self, pool: PoolConfig) -> PoolSpec:
        """The pool's engines; the driver's tables are theirs, copied on write."""
        size = self.deployment.message_bytes(pool)
        if pool.device == CUDA:
            self.devices[pool.name] = {"device": CUDA}
            factory = EngineFactory(self.deployment, pool)
            return PoolSpec(pool.name, 1, factory, "spawn", message_bytes=size)
        if pool.on_cores:
            factory = EngineFactory(self.deployment, pool, self.workloads)
            return PoolSpec(
                pool.name,
                pool.engines,
                factory,
                cores=self._cores(pool),
                message_bytes=size,
                yields=True,
            )
        factory = EngineFactory(self.deployment, pool, latencies=self._latencies(pool))
        return PoolSpec(pool.name, pool.engines, factory, message_bytes=size)

    def _cores(self, pool: PoolConfig) -> tuple[int, ...]:
        """The cores that the pool's engines are pinned to; pools take them in turn."""
        if not self.deployment.config.engines.pin_cores:
            return ()
        cores = usable_cores()
        first = self.n_pinned % len(cores)
        self.n_pinned += pool.engines
        return (*cores[first:], *cores[:first])

    def _latencies(self, pool: PoolConfig) -> dict[int, tuple[ProfiledDevice, ...]]:
        """The latency model of each engine, by stage."""
        devices = _loaded_devices(self.deployment, pool)
        profiles: list[Profile] = []
        latencies = {}
        for number in self.deployment.served_by(pool):
            stage = self.deployment.stages[number]
            models = []
            for device in devices:
                profile = self._profile(device, number, stage)
                profiles.append(profile)
                models.append(ProfiledDevice(device.name, {stage.model.name: profile}))
            latencies[number] = tuple(models)
        self.devices[pool.name] = {
            **_facts(devices),
            "source": "; ".join(str(device.settings.get("source")) for device in devices),
            "profile": [dict(profile.provenance) for profile in profiles],
            "batch_ms": [{str(n): ms for n, ms in x.batch_ms.items()} for x in profiles],
        }
        return latencies

    def _profile(self, device: Device, number: int, stage: StageConfig) -> Profile:
        """The device's times for a stage; this machine is measured where they rest on it."""
        from accelerator.profiler import measure_cpu_core  # noqa: PLC0415 (needs PyTorch)
        from inferenceEngine import prepare  # noqa: PLC0415 (PyTorch takes seconds to load)

        def measure() -> Profile:
            built = self.workloads.get(number)
            workload = built or prepare(self.deployment, self.progress, [number])[number]
            with self.progress.step("measuring this machine's CPU time by batch size"):
                return undisturbed(lambda: measure_cpu_core(workload.model, workload.inputs))

        config = self.deployment.config
        largest = config.inputs.max_mini_batch_size
        renew = config.engines.renew_profile
        profile = latency_profile(device, stage.model, largest, measure, renew=renew)
        if "warning" in profile.provenance:
            log.warning("%s: %s", profile.provenance["device"], profile.provenance["warning"])
        return profile


def _loaded_devices(deployment: Deployment, pool: PoolConfig) -> list[Device]:
    root = accelerator_root(deployment.config.engines.accel_root_dir)
    return [load_device(root, name) for name in pool.devices]


def _facts(devices: list[Device]) -> dict[str, Any]:
    """Names and power of a pool's devices; `tdp_w` None if one states none."""
    watts = [device.tdp_w for device in devices]
    total = None if None in watts else sum(w for w in watts if w is not None)
    return {"device": ", ".join(device.name for device in devices), "tdp_w": total}
