"""Which engines a run gets, by its settings: processes on this machine, or service times in virtual
time.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from accelerator.devices import accelerator_root, latency_profile, load_device
from accelerator.latency import Profile, ProfiledDevice
from accelerator.service import service_of
from accelInferenceEngine import CudaFactory, ModelledFactory
from backends.pipeline import PipelineSession, pipeline_of, process_pipeline, virtual_pipeline
from backends.processes.engine import PoolSpec
from backends.processes.process import ProcessSession
from backends.virtual.simulated import SimulatedSession
from infra.messages import ACCEL, CPU
from infra.progress import Progress
from infra.provenance import usable_cores
from infra.settings.config import RunConfig
from infra.settings.pipeline import Pipeline

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class OpenSession:
    """Engines that are ready, and what the report says of them."""

    session: ProcessSession | SimulatedSession | PipelineSession
    n_engines: int
    device: dict[str, Any] | None  # the accelerator's provenance
    service: dict[str, Any] = field(
        default_factory=dict
    )  # where virtual time's service times come from
    pipeline: Pipeline | None = None


def n_engines(config: RunConfig) -> int:
    """CPU engines; 0 means one per core that this process may use."""
    return config.engines.inference_engines or len(usable_cores())


@contextmanager
def open_session(config: RunConfig, progress: Progress) -> Iterator[OpenSession]:
    """The engines of the backend that the settings name."""
    if config.engines.pipeline:
        with _opened_pipeline(config, progress) as opened:
            yield opened
        return
    if config.engines.backend == "simulated":
        with _signals_noted(opened := _virtual(config)):
            yield opened
        return
    from inferenceEngine import CpuEngine, Workload, prepare  # noqa: PLC0415 (PyTorch takes seconds to load)

    workload: Workload = prepare(config, progress)
    largest = max(
        [config.engines.sub_task_batch_size, *map(int, config.tune.batch_configs.split("-"))]
    )
    n_threads = config.engines.n_threads

    def cpu_engine(_: int) -> CpuEngine:
        return CpuEngine(workload, n_threads, largest)

    cores = usable_cores() if config.engines.pin_cores else ()
    specs = [PoolSpec(CPU, n_engines(config), cpu_engine, cores=cores, yields=True)]
    device: dict[str, Any] | None = None
    if config.engines.model_accel:
        spec, device = _accelerator(config, workload, progress)
        specs.append(spec)
    with ProcessSession(specs, ready_timeout_s=config.engines.engine_timeout) as session:
        yield OpenSession(session, n_engines(config), device)


@contextmanager
def _opened_pipeline(config: RunConfig, progress: Progress) -> Iterator[OpenSession]:
    pipeline = pipeline_of(config, n_engines(config))
    n = max(1, sum(pool.engines for pool in pipeline.pools if pool.device == CPU))
    if config.engines.backend == "simulated":
        session, service = virtual_pipeline(config, pipeline)
        with _signals_noted(opened := OpenSession(session, n, None, service, pipeline)):
            yield opened
        return
    with process_pipeline(config, pipeline, progress) as running:
        yield OpenSession(running, n, None, pipeline=pipeline)


def _virtual(config: RunConfig) -> OpenSession:
    """Nothing to build, nothing to start."""
    table, service = service_of(config)
    engines = {CPU: n_engines(config)}
    device = None
    if config.engines.model_accel:
        names = config.engines.accel_devices
        engines[ACCEL] = len(names)
        root = accelerator_root(config.engines.accel_root_dir)
        watts = [load_device(root, name).tdp_w for name in names]
        device = {
            "device": ", ".join(names),
            "tdp_w": None if None in watts else sum(w for w in watts if w),
        }
    return OpenSession(SimulatedSession(engines, table), engines[CPU], device, service)


@contextmanager
def _signals_noted(opened: OpenSession) -> Iterator[None]:
    """Ctrl-C and SIGTERM end the run that goes on, wherever they meet it; what there is so far is
    kept.
    """

    def note(*_: object) -> None:
        opened.session.interrupted = True

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _accelerator(
    config: RunConfig, workload: Any, progress: Progress
) -> tuple[PoolSpec, dict[str, Any]]:
    """One engine for each device named, and the devices' provenance."""
    if config.engines.accel_devices == ("cuda",):
        return PoolSpec(ACCEL, 1, CudaFactory(config), start_method="spawn"), {"device": "cuda"}
    from accelerator.profiler import measure_cpu_core  # noqa: PLC0415 (needs PyTorch)

    def measure() -> Profile:
        with progress.step("measuring this machine's CPU time by batch size"):
            return measure_cpu_core(workload.model, workload.inputs)

    root = accelerator_root(config.engines.accel_root_dir)
    max_items = config.inputs.max_mini_batch_size
    devices = [load_device(root, name) for name in config.engines.accel_devices]
    profiles = [latency_profile(device, config.model, max_items, measure) for device in devices]
    for profile in profiles:
        if "warning" in profile.provenance:
            log.warning("%s: %s", profile.provenance["device"], profile.provenance["warning"])
    modelled = tuple(
        ProfiledDevice(device.name, {config.model.name: profile})
        for device, profile in zip(devices, profiles, strict=True)
    )
    watts: list[float | None] = [device.tdp_w for device in devices]
    facts = {
        "device": ", ".join(device.name for device in devices),
        "source": "; ".join(str(device.settings.get("source")) for device in devices),
        "tdp_w": None if None in watts else sum(w for w in watts if w is not None),
        "profile": [dict(profile.provenance) for profile in profiles],
        "batch_ms": [{str(n): ms for n, ms in profile.batch_ms.items()} for profile in profiles],
    }
    return PoolSpec(ACCEL, len(devices), ModelledFactory(modelled, config.model.name)), facts
