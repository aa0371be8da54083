#!/usr/bin/env python3
"""What bounds each model?

Arithmetic intensity against attained FLOP/s on every device, and the table of the models.

python experiments/roofline/run.py [--models rm1,wnd] [--quick] [--out FOLDER]

Measures this core: its ceilings (products, streams, rows at random), then every model at every
batch on full tables, one thread; other devices by their profiles and stated ceilings. roofline.csv:
a line a device, model and batch; models.csv: what the models are, from models/costs.py, checked
against PyTorch's FLOP counter on the spot. Some 3 minutes, --quick (three batches) 2.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch.utils.flop_counter import FlopCounterMode

from accelerator.devices import accelerator_root, latency_profile, load_device, model_configs
from experiments.common.core_limits import (
    gather_bytes_per_s,
    gemm_flops_per_s,
    median_s,
    read_bytes_per_s,
)
from infra.progress import Progress
from infra.results.figures import color, plain_log, style
from infra.results.report import console, frame
from infra.settings.cli import parse
from infra.settings.config import ModelConfig
from models import build
from models.batch import Batch
from models.costs import ATTENTION, MLP, RECURRENT, Costs, costs
from models.inputs.synthetic import InputPool

HERE = Path(__file__).resolve().parent
BATCHES = (1, 4, 16, 64, 256, 1024)
QUICK = (1, 64, 1024)
THIS_CORE = "this core"
MODELS = ("rm1", "rm2", "rm3", "ncf", "wnd", "mtwnd", "din", "dien")
N_INPUTS, LARGEST, SEED = 4, 1024, 4
STREAM_BYTES = 1 << 29
FEWEST_CALLS, MOST_CALLS, SECONDS = 15, 300, 0.5
CHECKED_ITEMS = 8
LARGE_BYTES = 1 << 30  # tables from which on rows come from memory and not from a cache


@dataclass(frozen=True)
class Ceilings:
    """What a device can do at best: FLOP/s of products, bytes/s of streams, bytes/s of rows at
    random.
    """

    flops: float
    stream: float
    rows: float


def measured_ceilings() -> Ceilings:
    """Of this core; the rate of rows is measured with the models' tables."""
    return Ceilings(gemm_flops_per_s(), read_bytes_per_s(STREAM_BYTES), 0.0)


def moved_bytes(cost: Costs) -> float:
    """Bytes that memory has to carry; activations of a CPU core stay in its caches, so rows and
    weights alone.
    """
    return cost.gather_bytes + cost.pooled_bytes / 2 + cost.weight_bytes


def check_flops(config: ModelConfig) -> float:
    """models/costs.py over PyTorch's FLOP counter for one batch on small tables; 1 where they
    agree.

    DIN as released: its one hidden unit is computed element by element, which the counter does not
    see; added here.
    """
    small = parse_like(config)
    model = build(small, SEED)
    batch = InputPool(small, 1, CHECKED_ITEMS, 1).batch(0, 0, CHECKED_ITEMS)
    with torch.inference_mode(False), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(normal_batch(batch))
    unseen = 0
    if config.model_type == "din" and config.arch_variant == "caffe2" and config.bot_widths[0] == 1:
        unseen = 2 * CHECKED_ITEMS * (len(config.table_rows) - 3) * config.arch_sparse_feature_size
    return float(costs(small, CHECKED_ITEMS).flops / (counter.get_total_flops() + unseen))


def parse_like(config: ModelConfig) -> ModelConfig:
    """The same net on a thousandth of the rows."""
    words = [
        "--config_file",
        str(model_configs()[config.name]),
        "--table_scale",
        "0.001",
        "--num_batches",
        "1",
    ]
    return parse(words).model


def normal_batch(batch: Batch) -> Batch:
    """The batch with tensors that inference mode has not made."""
    dense_BF = None if batch.dense_BF is None else batch.dense_BF.clone()
    return Batch(batch.n_items, dense_BF, batch.ids_L.clone(), batch.offsets.clone())


def dominated_by(cost: Costs, ceilings: Ceilings) -> dict[str, float]:
    """Share of the least possible time for looking up, MLPs, attention and recurrence, at the
    device's ceilings.
    """
    parts = cost.flops_by_part
    times = {
        "embedding": cost.gather_bytes / ceilings.rows,
        "MLP": (parts[MLP] + parts["interaction"]) / ceilings.flops,
        "attention": parts[ATTENTION] / ceilings.flops,
        "recurrence": parts[RECURRENT] / ceilings.flops,
    }
    whole = sum(times.values())
    return {name: seconds / whole for name, seconds in times.items()}


def measure(config: ModelConfig, batches: Sequence[int]) -> tuple[list[dict[str, object]], float]:
    """A row a batch for this core, and the rate of rows at random on the model's own tables."""
    model = build(config, SEED, device=torch.device("cpu"))
    inputs = InputPool(config, N_INPUTS, LARGEST, SEED)
    rows: list[dict[str, object]] = []
    for n in batches:
        slices = [(i % N_INPUTS, i // N_INPUTS * n % (LARGEST - n + 1)) for i in range(MOST_CALLS)]

        def score(i: int, n: int = n, at: Sequence[tuple[int, int]] = slices) -> object:
            return model(inputs.batch(*at[i % MOST_CALLS], n))

        once_s = median_s(score, 5)  # and caches, clocks and the allocator settle
        ms = median_s(score, int(np.clip(SECONDS / once_s, FEWEST_CALLS, MOST_CALLS))) * 1e3
        rows.append(row(THIS_CORE, "measured", config, n, ms))
    return rows, gather_bytes_per_s(model, inputs)


def row(device: str, kind: str, config: ModelConfig, n_items: int, ms: float) -> dict[str, object]:
    """Intensity and attained rate."""
    cost = costs(config, n_items)
    return {
        "device": device,
        "kind": kind,
        "model": config.name,
        "batch": n_items,
        "ms": ms,
        "flops_per_byte": cost.flops / moved_bytes(cost),
        "gflops": cost.flops / ms / 1e6,
        "gb_per_s": moved_bytes(cost) / ms / 1e6,
    }


def of_devices(config: ModelConfig, batches: Sequence[int]) -> list[dict[str, object]]:
    """A row a batch for every device with stated ceilings."""
    root = accelerator_root("accelerator/")
    rows = []
    for folder in sorted(root.glob("*/device.yaml")):
        device = load_device(root, folder.parent.name)
        if device.kind == "roofline":
            profile = latency_profile(device, config)
            rows += [row(folder.parent.name, "roofline", config, n, profile.ms(n)) for n in batches]
    return rows


def ceilings_of(device: str, this_core: Ceilings) -> Ceilings:
    """Measured, or as the device's folder states them."""
    if device == THIS_CORE:
        return this_core
    stated = load_device(accelerator_root("accelerator/"), device).roofline
    stream = stated.mem_gb_s * 1e9
    return Ceilings(stated.peak_fp32_gflops * 1e9, stream, stream * stated.gather_efficiency)


def model_line(config: ModelConfig, ceilings: Ceilings, counted: float) -> dict[str, object]:
    """One line of the table of models."""
    one = costs(config, 1)
    large = costs(config, 1024)
    share = dominated_by(large, ceilings)
    top = max(share, key=lambda name: share[name])
    return {
        "model": config.name,
        "tables": one.n_tables,
        "GiB": one.table_bytes / 2**30,
        "look-ups/item": one.lookups_per_item,
        "row bytes": one.row_bytes,
        "kFLOP/item": large.flops / 1024 / 1e3,
        "weights MiB": one.weight_bytes / 2**20,
        "FLOP/byte, 1": one.flops / moved_bytes(one),
        "FLOP/byte, 1024": large.flops / moved_bytes(large),
        "dominated by": f"{top} ({share[top]:.0%})",
        "costs/counted FLOPs": counted,
    }


def draw(rows: pd.DataFrame, this_core: Ceilings) -> Figure:
    """A panel a device: its roof, every model's walk from batch 1 (small marker) to the largest."""
    devices = [THIS_CORE, *(name for name in dict.fromkeys(rows["device"]) if name != THIS_CORE)]
    n_columns = 4
    n_rows = -(-len(devices) // n_columns)
    figure = Figure(figsize=(15, 3.7 * n_rows), layout="constrained")
    for i, device in enumerate(devices):
        axes = figure.add_subplot(n_rows, n_columns, i + 1)
        own = rows[rows["device"] == device]
        ceilings = ceilings_of(device, this_core)
        _roof(axes, ceilings, own["flops_per_byte"].min() / 2, own["flops_per_byte"].max() * 2)
        for model, part in own.groupby("model", sort=False):
            axes.plot(
                part["flops_per_byte"], part["gflops"], "-", color=color(str(model)), linewidth=1
            )
            axes.scatter(
                part["flops_per_byte"],
                part["gflops"],
                s=4 + 5 * np.log2(part["batch"]),
                color=color(str(model)),
                label=str(model) if i == 0 else None,
            )
        plain_log(axes, "x")
        plain_log(axes, "y")
        kind = "measured" if device == THIS_CORE else "from its roofline"
        style(
            axes,
            "FLOP per byte moved",
            "GFLOP/s" if i % n_columns == 0 else "",
            f"{device} ({kind})",
        )
    figure.legend(loc="outside lower center", ncols=8, frameon=False, fontsize=9)
    figure.suptitle(
        "Arithmetic intensity and attained rate, batch 1 (small) to 1024 (large); roof: streams, "
        "rows at random (dashed), products",
        fontsize=11,
    )
    return figure


def _roof(axes: Axes, ceilings: Ceilings, low: float, high: float) -> None:
    intensity = np.geomspace(low, high, 100)
    for rate, line in ((ceilings.stream, "k-"), (ceilings.rows, "k--")):
        axes.plot(
            intensity, np.minimum(rate * intensity, ceilings.flops) / 1e9, line, linewidth=0.9
        )


@torch.inference_mode()
def main(argv: Sequence[str]) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--quick", action="store_true", help="three batches")
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--table_scale", default="1", help="fraction of the tables' rows")
    args = parser.parse_args(argv)
    names = args.models.split(",")
    if unknown := set(names) - set(MODELS):
        parser.error(
            f"--models: {', '.join(sorted(unknown))} unknown; expected of {', '.join(MODELS)}"
        )
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    batches = QUICK if args.quick else BATCHES
    rows: list[dict[str, object]] = []
    rates: dict[str, float] = {}
    configs = {}
    with Progress("auto") as progress, progress.step("roofline") as on_fraction:
        ceilings = measured_ceilings()
        for i, name in enumerate(names):
            on_fraction(i / len(names), name)
            words = [
                "--config_file",
                str(model_configs()[name]),
                "--table_scale",
                args.table_scale,
                "--num_batches",
                "1",
            ]
            configs[name] = parse(words).model
            own, rate = measure(configs[name], batches)
            rows += [*own, *of_devices(configs[name], batches)]
            rates[name] = rate
            gc.collect()
    large = [rate for name, rate in rates.items() if configs[name].table_bytes >= LARGE_BYTES] or [
        *rates.values()
    ]
    ceilings = Ceilings(max(ceilings.flops, gemm_flops_per_s()), ceilings.stream, max(large))
    table = pd.DataFrame(rows)
    table.to_csv(args.out / "roofline.csv", index=False, float_format="%.4g")
    models = pd.DataFrame(
        [model_line(config, ceilings, check_flops(config)) for config in configs.values()]
    )
    roof = {
        "gflops": ceilings.flops / 1e9,
        "stream_gb_s": ceilings.stream / 1e9,
        "rows_gb_s": ceilings.rows / 1e9,
    }
    pd.DataFrame([roof]).to_csv(args.out / "ceilings.csv", index=False, float_format="%.4g")
    models.to_csv(args.out / "models.csv", index=False, float_format="%.4g")
    draw(table, ceilings).savefig(args.out / "roofline.png", dpi=110)
    out = console()
    out.print(
        frame(
            f"This core: {ceilings.flops / 1e9:.0f} GFLOP/s, streams {ceilings.stream / 1e9:.1f} "
            f"GB/s, rows at random {ceilings.rows / 1e9:.1f} GB/s",
            models,
        )
    )
    if (models["costs/counted FLOPs"] != 1).any():
        sys.stderr.write(
            "roofline: models/costs.py does not agree with PyTorch's FLOP counter (last column)\n"
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
