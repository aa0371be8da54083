#!/usr/bin/env python3
"""What bounds each model? Arithmetic intensity against attained FLOP/s; the table of the models.

python experiments/roofline/run.py [--models rm1,wnd] [--quick] [--out FOLDER]

Measures this core: its ceilings (products, streams, rows at random), then every model at every
batch on full tables, one thread; other devices by their profiles and stated ceilings. roofline.csv:
a line a device, model and batch; models.csv: what the models are, from models/costs.py, checked
against PyTorch's FLOP counter on the spot; rates.csv: this core's ceilings beside each model, of
which ceilings.csv is the best. Some 3 minutes, --quick (three batches) 2.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch.utils.flop_counter import FlopCounterMode

from accelerator.devices import ROOT, latency_profile, load_device
from experiments.common.core_limits import (
    gather_bytes_per_s,
    gemm_flops_per_s,
    median_s,
    read_bytes_per_s,
)
from experiments.common.fresh_calls import SEED, FreshCalls, model_with_inputs
from experiments.common.panels import finish, legend_below, panels
from experiments.common.released import ModelCase, ModelOptions, model_cases, net_of
from experiments.common.study import Study, View
from infra.results.figures import color
from infra.settings.config import ModelConfig
from models import build
from models.costs import ATTENTION, MLP, RECURRENT, Costs, costs
from models.inputs.synthetic import InputPool

BATCHES = (1, 4, 16, 64, 256, 1024)
THIS_CORE = "this core"
STREAM_BYTES = 1 << 29
FEWEST_CALLS = 15
MOST_CALLS = 300
SECONDS = 0.5
CHECKED_ITEMS = 8
LARGE_GIB = 1  # tables from which on rows come from memory and not from a cache


@dataclass(frozen=True)
class Ceilings:
    """A device's best rates: FLOP/s of products, bytes/s of streams, bytes/s of rows at random."""

    flops: float
    stream: float
    rows: float


@dataclass(frozen=True)
class RooflineRow:
    """Intensity and attained rates of a model at one batch on a device."""

    device: str
    kind: str
    model: str
    batch: int
    ms: float
    flops_per_byte: float
    gflops: float
    gb_per_s: float


@dataclass(frozen=True)
class RatesRow:
    """This core's ceilings as measured beside a model, and the count of that model's FLOPs."""

    model: str
    table_scale: float
    table_gib: float
    gflops: float
    stream_gb_s: float
    rows_gb_s: float  # on the model's own tables
    counted: float  # costs over FLOPs counted


def moved_bytes(cost: Costs) -> float:
    """Bytes that memory has to carry: rows and weights alone.

    Activations of a CPU core stay in its caches.
    """
    return cost.gather_bytes + cost.pooled_bytes / 2 + cost.weight_bytes


def check_flops(name: str) -> float:
    """models/costs.py over PyTorch's FLOP counter, for a batch on small tables; 1 where they agree.

    DIN as released: its one hidden unit is computed element by element, which the counter does not
    see; added here.
    """
    config = net_of(name, 0.001)
    n = CHECKED_ITEMS
    with torch.inference_mode(False), torch.no_grad(), FlopCounterMode(display=False) as counter:
        build(config, SEED)(InputPool(config, 1, n, 1).batch(0, 0, n))
    unseen = 0
    if config.model_type == "din" and config.arch_variant == "caffe2" and config.bot_widths[0] == 1:
        unseen = 2 * n * (len(config.table_rows) - 3) * config.arch_sparse_feature_size
    return float(costs(config, n).flops / (counter.get_total_flops() + unseen))


def dominated_by(cost: Costs, ceilings: Ceilings) -> dict[str, float]:
    """Shares of the least possible time at these ceilings, by what the time is spent on."""
    parts = cost.flops_by_part
    times = {
        "embedding": cost.gather_bytes / ceilings.rows,
        "MLP": (parts[MLP] + parts["interaction"]) / ceilings.flops,
        "attention": parts[ATTENTION] / ceilings.flops,
        "recurrence": parts[RECURRENT] / ceilings.flops,
    }
    whole = sum(times.values())
    return {name: seconds / whole for name, seconds in times.items()}


def row(device: str, kind: str, config: ModelConfig, n_items: int, ms: float) -> RooflineRow:
    """Intensity and attained rates, from the time of a batch."""
    cost = costs(config, n_items)
    n_bytes = moved_bytes(cost)
    rates = cost.flops / n_bytes, cost.flops / ms / 1e6, n_bytes / ms / 1e6
    return RooflineRow(device, kind, config.name, n_items, ms, *rates)


@functools.cache
def stream_bytes_per_s() -> float:
    """The core's rate of reading what no cache holds, measured once."""
    return read_bytes_per_s(STREAM_BYTES)


def batch_ms(calls: FreshCalls, n_items: int) -> float:
    """Median time of a call; caches, clocks and the allocator settle first."""

    def score(_: int) -> object:
        return calls(n_items)

    n_calls = int(np.clip(SECONDS / median_s(score, 5), FEWEST_CALLS, MOST_CALLS))
    return median_s(score, n_calls) * 1e3


@torch.inference_mode()
def measure(case: ModelCase) -> dict[str, list[Any]]:
    """A row a batch for this core and each device with stated ceilings; the core's rates."""
    torch.set_num_threads(1)
    model, inputs = model_with_inputs(case.model, case.options.table_scale)
    config = model.config
    calls = FreshCalls(model, inputs)
    rows = [row(THIS_CORE, "measured", config, n, batch_ms(calls, n)) for n in case.effort]
    for file in sorted(ROOT.glob("*/device.yaml")):
        name = file.parent.name
        device = load_device(ROOT, name)
        if device.kind == "roofline":
            profile = latency_profile(device, config)
            rows += [row(name, "roofline", config, n, profile.ms(n)) for n in case.effort]
    rates = RatesRow(
        case.model,
        case.options.table_scale,
        config.table_bytes / 2**30,
        gemm_flops_per_s() / 1e9,
        stream_bytes_per_s() / 1e9,
        gather_bytes_per_s(model, inputs) / 1e9,
        check_flops(case.model),
    )
    return {"roofline": rows, "rates": [rates]}


def best(rates: pd.DataFrame) -> pd.DataFrame:
    """This core's ceilings in one line: the best of all rates; rows at random from large tables."""
    large = rates["table_gib"] >= LARGE_GIB
    rates = rates.assign(rows_gb_s=rates["rows_gb_s"].where(large | ~large.any()))
    return rates[["gflops", "stream_gb_s", "rows_gb_s"]].max().to_frame().T


def ceilings_of(device: str, this_core: pd.DataFrame) -> Ceilings:
    """The ceilings as measured, or as the device's folder states them."""
    if device == THIS_CORE:
        return Ceilings(*(this_core.iloc[0] * 1e9))
    stated = load_device(ROOT, device).roofline
    stream = stated.mem_gb_s * 1e9
    return Ceilings(stated.peak_fp32_gflops * 1e9, stream, stream * stated.gather_efficiency)


def table_of_models(rates: pd.DataFrame, this_core: pd.DataFrame) -> pd.DataFrame:
    """What the models are, a line each."""
    lines = []
    for model in rates.itertuples():
        config = net_of(model.model, model.table_scale)
        item = costs(config, 1)
        large = costs(config, 1024)
        share = dominated_by(large, ceilings_of(THIS_CORE, this_core))
        top = max(share, key=lambda name: share[name])
        line = {
            "model": config.name,
            "tables": item.n_tables,
            "GiB": item.table_bytes / 2**30,
            "look-ups/item": item.lookups_per_item,
            "row bytes": item.row_bytes,
            "kFLOP/item": large.flops / 1024 / 1e3,
            "weights MiB": item.weight_bytes / 2**20,
            "FLOP/byte, 1": item.flops / moved_bytes(item),
            "FLOP/byte, 1024": large.flops / moved_bytes(large),
            "dominated by": f"{top} ({share[top]:.0%})",
            "costs/counted FLOPs": model.counted,
        }
        lines.append(line)
    return pd.DataFrame(lines)


def complaints(rates: pd.DataFrame) -> list[str]:
    """What is wrong with models whose costs are not those that PyTorch counts."""
    wrong = rates.loc[rates["counted"] != 1, "model"]
    return [f"models/costs.py does not agree with PyTorch's FLOP counter: {name}" for name in wrong]


def draw(rows: pd.DataFrame, this_core: pd.DataFrame) -> Figure:
    """A panel a device: its roof, every model's walk from batch 1 (small marker) to the largest."""
    devices = rows.groupby("device", sort=False)  # this core is measured first
    figure, all_axes = panels(len(devices), 3.75, 3.7, n_columns=4)
    for axes, (device, part) in zip(all_axes, devices, strict=True):
        intensity = part["flops_per_byte"]
        roof = ceilings_of(str(device), this_core)
        draw_roof(axes, roof, np.geomspace(intensity.min() / 2, intensity.max() * 2, 100))
        for model, walk in part.groupby("model", sort=False):
            points = walk["flops_per_byte"], walk["gflops"]
            axes.plot(*points, "-", color=color(model), linewidth=1)
            area = 4 + 5 * np.log2(walk["batch"])
            axes.scatter(*points, s=area, color=color(model), label=model)
        kind = "measured" if device == THIS_CORE else "from its roofline"
        finish(axes, "FLOP per byte moved", "GFLOP/s", f"{device} ({kind})", log="xy")
    legend_below(figure, 8)
    title = (
        "Arithmetic intensity and attained rate, batch 1 (small) to 1024 (large); roof: streams, "
        "rows at random (dashed), products"
    )
    figure.suptitle(title, fontsize=11)
    return figure


def draw_roof(axes: Axes, ceilings: Ceilings, intensity: Any) -> None:
    """The most that each intensity allows, by streams and by rows at random."""
    for rate, line in ((ceilings.stream, "k-"), (ceilings.rows, "k--")):
        most = np.minimum(rate * intensity, ceilings.flops) / 1e9
        axes.plot(intensity, most, line, linewidth=0.9)


STUDY = Study(
    "roofline",
    "What bounds each model?",
    model_cases,
    measure,
    efforts={"quick": (1, 64, 1024), "full": BATCHES},
    options=ModelOptions,
    derived={
        "ceilings": View(best, "rates"),
        "models": View(table_of_models, "rates", "ceilings"),
    },
    figures={"roofline": View(draw, "roofline", "ceilings")},
    report={
        "This core's ceilings": View(pd.DataFrame, "ceilings"),
        "The models": View(pd.DataFrame, "models"),
    },
    check=View(complaints, "rates"),
    float_format="%.4g",
    formats={"rates": "%.17g"},
)

if __name__ == "__main__":
    STUDY.main()
