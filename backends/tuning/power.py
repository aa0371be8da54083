"""What a server draws in watts under a policy, for QPS per watt.

Read from counters where they can be read, else as stated; each figure names its source.
"""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from accelerator.devices import accelerator_root, load_device
from backends.session import Session
from backends.tuning.probe import capacity_qps
from infra.deployment import Deployment
from infra.messages import ACCEL
from infra.settings.config import ConfigError
from infra.settings.pipeline import CUDA
from scheduler import Policy, static_policy

RAPL_ROOT = Path("/sys/class/powercap")
_MICROJOULE = 1e-6


@dataclass(frozen=True, slots=True)
class Power:
    """Watts, and where they come from."""

    watts: float
    source: str


def rapl_watts(work: Callable[[], object], root: Path = RAPL_ROOT) -> float | None:
    """Mean power of all CPU packages while `work` runs, from RAPL's energy counters; None where
    none can be read.

    Source: Linux, Documentation/power/powercap; one folder intel-rapl:<package> each (AMD's carry
    the same name).
    """
    packages = sorted(root.glob("intel-rapl:[0-9]*"))
    packages = [folder for folder in packages if folder.name.count(":") == 1]
    before = [_energy_uj(folder) for folder in packages]
    if not packages or any(energy is None for energy in before):
        return None
    begun = time.monotonic()
    work()
    seconds = time.monotonic() - begun
    joules = 0.0
    for folder, first in zip(packages, before, strict=True):
        last = _energy_uj(folder)
        if first is None or last is None:
            return None
        wrap = int((folder / "max_energy_range_uj").read_text()) if last < first else 0
        joules += (last - first + wrap) * _MICROJOULE
    return joules / seconds if seconds > 0 else None


def nvml_watts() -> float | None:
    """What the first NVIDIA device draws now (NVML through nvidia-smi); None where it cannot be
    read.
    """
    with contextlib.suppress(OSError, ValueError, subprocess.SubprocessError):
        command = [
            "nvidia-smi",
            "--query-gpu=power.draw",
            "--format=csv,noheader,nounits",
            "--id=0",
        ]
        return float(
            subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout
        )
    return None


def _energy_uj(folder: Path) -> int | None:
    try:
        return int((folder / "energy_uj").read_text())
    except (OSError, ValueError):
        return None


@dataclass(frozen=True)
class ServerPower:
    """Power of the CPU engines, of devices that serve stages, and of accelerators if used."""

    cpu: Power
    accel: Power | None
    devices: tuple[Power, ...] = ()

    def of(self, policy: Policy) -> float:
        """Watts under a policy; an accelerator that it does not use is not counted."""
        used = self.accel.watts if self.accel is not None and policy.offload_items else 0.0
        return self.cpu.watts + used + sum(device.watts for device in self.devices)

    def __str__(self) -> str:
        parts = [("CPU", self.cpu), *(("device", device) for device in self.devices)]
        if self.accel is not None:
            parts.append(("accelerator", self.accel))
        return "; ".join(f"{name} {power.watts:.4g} W ({power.source})" for name, power in parts)

    def as_json(self) -> dict[str, Any]:
        """What run.json holds under `power`."""
        saved = {"cpu": asdict(self.cpu), "accel": self.accel and asdict(self.accel)}
        return saved | ({"devices": [*map(asdict, self.devices)]} if self.devices else {})


def check_power(deployment: Deployment) -> None:
    """Raise ConfigError if QPS per watt is asked for and some power cannot be known."""
    config = deployment.config
    if config.tune.objective != "qps_per_watt":
        return
    for pool in deployment.device_pools:
        if CUDA not in pool.devices:
            root = accelerator_root(config.engines.accel_root_dir)
            _stated_tdp([load_device(root, name).tdp_w for name in pool.devices], pool.device)
    if config.tune.cpu_watts is not None:
        return
    if config.engines.backend == "simulated":
        problem = "is not set, and virtual time draws no power; give the CPUs' TDP"
        raise ConfigError("cpu_watts", problem)
    if rapl_watts(lambda: None) is None:
        problem = "is not set, and no energy counter (RAPL) can be read here; give the CPUs' TDP"
        raise ConfigError("cpu_watts", problem)


def server_power(
    deployment: Deployment, session: Session, devices: Mapping[str, Mapping[str, Any]]
) -> ServerPower | None:
    """Measured under full load where counters can be read, else as stated.

    None if QPS is the objective. `devices`: provenance of the pools' devices with `tdp_w`. Raises
    ConfigError if nothing is known.
    """
    tune = deployment.config.tune
    if tune.objective != "qps_per_watt":
        return None
    load = _FullLoad(deployment, session, any(x["device"] == CUDA for x in devices.values()))
    is_virtual = deployment.config.engines.backend == "simulated"
    measured = None if is_virtual else rapl_watts(load)
    if tune.cpu_watts is not None:
        cpu = Power(tune.cpu_watts, "--cpu_watts")
    else:
        cpu = Power(measured or 0.0, "RAPL under full load")
    powers = {pool: _device_power(facts, load.gpu_watts) for pool, facts in devices.items()}
    accel = powers.pop(ACCEL, None)
    return ServerPower(cpu, accel, tuple(powers.values()))


@dataclass
class _FullLoad:
    """Work for every engine; a GPU's power is read at the end of its own."""

    deployment: Deployment
    session: Session
    reads_gpu: bool
    gpu_watts: float | None = None

    def __call__(self) -> None:
        config = self.deployment.config
        policy = static_policy(config.inputs.max_mini_batch_size, self.deployment.n_engines)
        if self.deployment.accelerators is not None:  # everything that can be offloaded is
            capacity_qps(self.session, config, Policy(policy.batch_items, 1))
        if self.reads_gpu:
            self.gpu_watts = nvml_watts()
        capacity_qps(self.session, config, policy)


def _device_power(facts: Mapping[str, Any], gpu_watts: float | None) -> Power:
    if facts["device"] == CUDA and gpu_watts is not None:
        return Power(gpu_watts, "NVML")
    return _stated_tdp([facts.get("tdp_w")], facts["device"])


def _stated_tdp(watts: Sequence[float | None], device: str) -> Power:
    stated = [float(tdp_w) for tdp_w in watts if tdp_w is not None]
    if len(stated) < len(watts):
        raise ConfigError("objective", f"is qps_per_watt, but {device} states no tdp_w")
    return Power(sum(stated), "TDP as device.yaml states it")
