"""Runs every model standalone on a device over batch 4^0..4^5 and fills its raw_data/ folder.

Called by `accelerator/<device>/generate_data.py`. A file has a row a batch: the six numbers that a
standalone run prints (total and per iteration of data loading, computation and execution, ms).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from accelerator.devices import (
    BATCHES,
    Device,
    accelerator_root,
    configurations,
    load_device,
    model_configs,
    profile_key,
    write_key,
)
from accelerator.profiler import standalone_rows, torch_device
from infra.deployment import one_model
from infra.memory import check_memory
from infra.progress import OnFraction, Progress
from infra.settings.config import RunConfig


def fill(device: Device, config: RunConfig, on_fraction: OnFraction) -> None:
    """Time a model at every batch and write its rows."""
    check_memory(one_model(config, n_engines=0))
    rows = standalone_rows(device, config, on_fraction)
    path = device.folder / "raw_data" / f"results_{config.model.name}.txt"
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(" ".join(f"{number:.6g}" for number in row) + "\n" for row in rows))
    write_key(device, config.model.name, profile_key(config.model, BATCHES[-1]))


def main(script: str, argv: Sequence[str]) -> int:
    """Command line of a device's generate_data.py; returns the exit code."""
    folder = Path(script).resolve().parent
    prog = f"accelerator/{folder.name}/generate_data.py"
    parser = argparse.ArgumentParser(
        prog=prog, allow_abbrev=False, description="Fills raw_data/; see the file's head."
    )
    parser.add_argument(
        "--models", default=",".join(model_configs()), help="names, comma-separated (default: all)"
    )
    parser.add_argument(
        "--accel_root_dir", default=str(folder.parent), help="where the device's folder is"
    )
    args, flags = parser.parse_known_args(argv)
    defaults = {"num_batches": 4, "nepochs": 10, "max_mini_batch_size": BATCHES[-1]}
    try:
        device = load_device(accelerator_root(args.accel_root_dir), folder.name)
        torch_device(device)
        configs = configurations(args.models, flags, prog, defaults)
        with Progress("auto") as progress, progress.step("timing") as on_fraction:
            for config in configs:
                fill(device, config, on_fraction)
    except ValueError as error:
        sys.stderr.write(f"{prog}: {error}\n")
        return 2
    print(f"{device.folder / 'raw_data'}: {', '.join(args.models.split(','))}")
    return 0
