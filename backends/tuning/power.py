"""What a server draws under a policy, for QPS per watt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from backends.session import Session
from backends.tuning.probe import capacity_qps
from backends.tuning.watts import Power, nvml_watts, rapl_watts
from infra.settings.config import ConfigError, RunConfig
from scheduler import Policy, static_policy


@dataclass(frozen=True)
class ServerPower:
    """Power of the CPU engines, and of the accelerators where a policy uses them."""

    cpu: Power
    accel: Power | None

    def of(self, policy: Policy) -> float:
        """Watts under a policy; an accelerator that it does not use is not counted."""
        used = (
            self.accel.watts if self.accel is not None and policy.offload_items is not None else 0.0
        )
        return self.cpu.watts + used

    def __str__(self) -> str:
        accel = (
            ""
            if self.accel is None
            else f"; accelerator {self.accel.watts:.4g} W ({self.accel.source})"
        )
        return f"CPU {self.cpu.watts:.4g} W ({self.cpu.source}){accel}"

    def as_json(self) -> dict[str, Any]:
        """What run.json holds under `power`."""
        return {"cpu": asdict(self.cpu), "accel": self.accel and asdict(self.accel)}


def check_power(config: RunConfig) -> None:
    """Raise ConfigError if QPS per watt is asked for and the CPUs' power cannot be known."""
    if config.tune.objective != "qps_per_watt" or config.tune.cpu_watts is not None:
        return
    if config.engines.backend == "simulated":
        raise ConfigError(
            "cpu_watts", "is not set, and virtual time draws no power; give the CPUs' TDP"
        )
    if rapl_watts(lambda: None) is None:
        raise ConfigError(
            "cpu_watts",
            "is not set, and no energy counter (RAPL) can be read here; give the CPUs' TDP",
        )


def server_power(
    config: RunConfig, session: Session, n_engines: int, device: Mapping[str, Any] | None
) -> ServerPower | None:
    """Measured under full load where counters can be read, else as stated; None if QPS is the
    objective.

    `device`: the accelerators' provenance with `tdp_w`. Raises ConfigError if nothing is known.
    """
    if config.tune.objective != "qps_per_watt":
        return None
    drawn: list[float | None] = [None]

    def full_load() -> None:
        policy = static_policy(config.inputs.max_mini_batch_size, n_engines)
        if device is not None:
            policy = Policy(
                policy.batch_items, 1
            )  # everything to the accelerator, read at the end of its load
            capacity_qps(session, config, policy)
            drawn[0] = nvml_watts() if device["device"] == "cuda" else None
        capacity_qps(session, config, Policy(policy.batch_items))

    stated = config.tune.cpu_watts
    virtual = config.engines.backend == "simulated"
    measured = None if virtual else rapl_watts(full_load)
    cpu = (
        Power(stated, "--cpu_watts")
        if stated is not None
        else Power(measured or 0.0, "RAPL under full load")
    )
    if device is None:
        return ServerPower(cpu, None)
    if drawn[0] is not None:
        return ServerPower(cpu, Power(drawn[0], "NVML"))
    if device.get("tdp_w") is None:
        raise ConfigError("objective", f"is qps_per_watt, but {device['device']} states no tdp_w")
    return ServerPower(cpu, Power(float(device["tdp_w"]), "TDP as device.yaml states it"))
