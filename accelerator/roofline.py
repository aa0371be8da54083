"""Time of a model on a device that is not here, from its stated rates and the model's costs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from accelerator.latency import PROFILED_BATCHES, Profile
from infra.settings.config import ConfigError, ModelConfig
from models.costs import Costs, costs

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
        """Transfer + launches + row reads + over products the slower of arithmetic and memory.

        transfer = link_us + (input + output bytes) / link; launches x launch_us are not overlapped
        with the work, so small batches are bound by them; rows are read at mem x gather_efficiency,
        weights and activations at mem. After Williams et al., Roofline (CACM 2009), applied to each
        operator.
        """
        mem_bytes_us = self.mem_gb_s * 1e3
        flops_us = self.peak_fp32_gflops * self.gemm_efficiency * 1e3
        transfer_us = self.link_us
        if self.link_gb_s is not None:
            transfer_us += (cost.input_bytes + cost.output_bytes) / (self.link_gb_s * 1e3)
        rows_us = (cost.gather_bytes / self.gather_efficiency + cost.pooled_bytes) / mem_bytes_us
        products_us = 0.0
        for gemm in cost.gemms:
            n_bytes = gemm.weight_bytes + gemm.activation_bytes(cost.n_items)
            products_us += max(gemm.flops(cost.n_items) / flops_us, n_bytes / mem_bytes_us)
        return (transfer_us + cost.n_launches * self.launch_us + rows_us + products_us) / _US_PER_MS

    def fits(self, model: ModelConfig) -> bool:
        """Whether the tables fit the device's memory."""
        return model.table_bytes <= self.memory_gib * _GIB


def read_roofline(settings: Mapping[str, Any], file: str) -> Roofline:
    """The rates in a device.yaml's settings; raises ConfigError with the file and the key."""
    values = {}
    for name in Roofline.__slots__:
        value: Any = settings.get(name)
        is_number = type(value) in (int, float) and math.isfinite(value)
        in_memory = name == "link_gb_s" and name in settings and value is None
        if not (is_number or in_memory):
            raise ConfigError("accel_device", f"{file}: {name} is {value!r}; expected a number")
        values[name] = value
    try:
        return Roofline(**values)
    except ValueError as error:
        raise ConfigError("accel_device", f"{file}: {error}") from error


def roofline_profile(
    roofline: Roofline, device_name: str, model: ModelConfig, source: str
) -> Profile:
    """Times at PROFILED_BATCHES."""
    provenance = {"device": device_name, "model": model.name, "source": f"roofline: {source}"}
    if not roofline.fits(model):
        gib = model.table_bytes / _GIB
        provenance["warning"] = (
            f"the tables ({gib:.1f} GiB) do not fit the device's {roofline.memory_gib:g} GiB"
        )
    return Profile({n: roofline.ms(costs(model, n)) for n in PROFILED_BATCHES}, provenance)
