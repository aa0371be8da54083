"""Measures a model on a device of this machine over batch sizes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import torch

from accelerator.devices import BATCHES, Device
from accelerator.latency import Profile
from infra.config import RunConfig
from infra.progress import OnFraction
from infra.provenance import cpu_name, package_versions
from models import build
from models.base import RecModel
from models.inputs.synthetic import InputPool
from models.standalone import time_model

_REPEATS, _BUDGET_S = 30, 1.0


def measure_cpu_core(model: RecModel, inputs: InputPool, batches: Sequence[int] = BATCHES) -> Profile:
    """Median ms of slicing and forward on one core, one thread; fresh items for every call, some seconds in all.

    Batches beyond the pool's inputs are left out; the largest input is measured in their place.
    """
    torch.set_num_threads(1)
    sizes = sorted({min(n, inputs.max_items) for n in batches})
    batch_ms = {n: _median_ms(model, inputs, n) for n in sizes}
    provenance = {
        "source": "measured on this machine, one thread, median",
        "cpu": cpu_name(),
        "torch": package_versions()["torch"],
        "date": time.strftime("%Y-%m-%d"),
    }
    return Profile(batch_ms, provenance)


def torch_device(device: Device) -> torch.device:
    """Where this device's models run; raises ValueError if the device is not in this machine."""
    if device.settings.get("torch") == "cpu":
        return torch.device("cpu")
    wanted = str(device.settings.get("cuda_name", device.name))
    found = torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA device"
    if wanted not in found:
        derived = ("; its times are derived from this machine's CPU core and published_speedup.csv without it"
                   if device.kind == "speedup" else "")  # fmt: skip
        raise ValueError(f"needs a {wanted}, but here is {found}{derived}")
    return torch.device("cuda")


def standalone_rows(device: Device, config: RunConfig, on_fraction: OnFraction) -> list[list[float]]:
    """For every batch the six numbers of a standalone run on the device; see models.standalone."""
    where = torch_device(device)
    torch.set_num_threads(1)
    seed, rows = config.inputs.numpy_rand_seed, []
    model = build(config.model, seed).to(where)
    inputs = InputPool(config.model, config.inputs.num_batches, BATCHES[-1], seed)
    for i, batch in enumerate(BATCHES):
        on_fraction(i / len(BATCHES), f"{config.model.name}, batch {batch}")
        rows.append(time_model(model, inputs, batch, config.inputs.nepochs, where).numbers())
    return rows


@torch.inference_mode()
def _median_ms(model: RecModel, inputs: InputPool, n_items: int) -> float:
    times, begun = [], time.perf_counter()
    for i in range(_REPEATS + 2):
        first = (i * n_items) % (inputs.max_items - n_items + 1)
        start = time.perf_counter()
        model(inputs.batch(i % inputs.n_inputs, first, n_items))
        times.append(time.perf_counter() - start)
        if time.perf_counter() - begun > _BUDGET_S and i >= 4:
            break
    return statistics.median(times[2:]) * 1e3
