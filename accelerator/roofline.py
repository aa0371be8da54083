"""Time of a model on a device that is not here: from what the device states and what the model
costs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from accelerator.latency import Profile
from infra.settings.config import ConfigError, ModelConfig
from models.costs import Costs, costs

BATCHES = tuple(2**i for i in range(13))  # 1 to 4096
_US_PER_MS = 1e3
_GIB = 2**30


@dataclass(frozen=True, slots=True)
class Roofline:
    """Peak rates of a device, as its device.yaml states them with their sources."""

    peak_fp32_gflops: float
    mem_gb_s: float
    launch_us: float
    link_us: float
    gemm_efficiency: float  # share of the peak that a matrix product reaches
    gather_efficiency: float  # share of the bandwidth that reading single rows reaches
    memory_gib: float
    link_gb_s: float | None  # None: the inputs are in the device's memory

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            least = "at least 0" if name in ("launch_us", "link_us") else "more than 0"
            if value is not None and (value < 0 or (value == 0 and least == "more than 0")):
                raise ValueError(f"{name} is {value:g}; expected {least}")
        for name in ("gemm_efficiency", "gather_efficiency"):
            if getattr(self, name) > 1:
                raise ValueError(f"{name} is {getattr(self, name):g}; expected at most 1")

    def ms(self, cost: Costs) -> float:
        """transfer + launches + row reads + the sum over matrix products of the slower of
        arithmetic and memory.

        transfer = link_us + (input + output bytes) / link; launches x launch_us are not overlapped
        with the work, so small batches are bound by them; rows are read at mem x gather_efficiency,
        weights and activations at mem. After Williams et al., Roofline (CACM 2009), applied to each
        operator.
        """
        transfer_us = self.link_us
        if self.link_gb_s is not None:
            transfer_us += (cost.input_bytes + cost.output_bytes) / (self.link_gb_s * 1e3)
        rows_us = (cost.gather_bytes / self.gather_efficiency + cost.pooled_bytes) / (
            self.mem_gb_s * 1e3
        )
        products_us = 0.0
        for gemm in cost.gemms:
            arithmetic_us = gemm.flops(cost.n_items) / (
                self.peak_fp32_gflops * self.gemm_efficiency * 1e3
            )
            memory_us = (gemm.weight_bytes + gemm.activation_bytes(cost.n_items)) / (
                self.mem_gb_s * 1e3
            )
            products_us += max(arithmetic_us, memory_us)
        return (transfer_us + cost.n_launches * self.launch_us + rows_us + products_us) / _US_PER_MS

    def fits(self, model: ModelConfig) -> bool:
        """Whether the tables fit the device's memory."""
        return model.table_bytes <= self.memory_gib * _GIB


def read_roofline(settings: Mapping[str, Any], file: str) -> Roofline:
    """From a device.yaml's settings; raises ConfigError naming the file, the key and what is
    expected.
    """
    values: dict[str, float | None] = {}
    for name in Roofline.__slots__:
        value = settings.get(name)
        number = (
            isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        )
        if not number and not (name == "link_gb_s" and value is None and name in settings):
            raise ConfigError("accel_device", f"{file}: {name} is {value!r}; expected a number")
        values[name] = value
    try:
        return Roofline(**values)  # type: ignore[arg-type]
    except ValueError as error:
        raise ConfigError("accel_device", f"{file}: {error}") from error


def roofline_profile(
    roofline: Roofline, device_name: str, model: ModelConfig, source: str
) -> Profile:
    """Times at batch 1 to 4096."""
    provenance = {"device": device_name, "model": model.name, "source": f"roofline: {source}"}
    if not roofline.fits(model):
        gib = model.table_bytes / _GIB
        provenance["warning"] = (
            f"the tables ({gib:.1f} GiB) do not fit the device's {roofline.memory_gib:g} GiB"
        )
    return Profile({n: roofline.ms(costs(model, n)) for n in BATCHES}, provenance)
