"""Runs every model standalone on a device over batch 4^0..4^5 and fills the device's raw_data/ folder.

Called by `accelerator/<device>/generate_data.py`. A file has one row per batch: the six numbers that a standalone run
prints (total and per iteration of data loading, computation and execution, ms).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from accelerator.devices import BATCHES, Device, accelerator_root, load_device, profile_key, write_key
from accelerator.profiler import standalone_rows, torch_device
from infra.cli import parse, read_file
from infra.config import RunConfig
from infra.memory import check_memory
from infra.progress import OnFraction, Progress

CONFIGS = Path(__file__).resolve().parent.parent / "models" / "configs"


def model_configs() -> dict[str, Path]:
    """{model name: configuration file} of the release."""
    return {str(read_file(str(file))["model_name"]): file for file in sorted(CONFIGS.glob("*.json"))}


def fill(device: Device, config: RunConfig, on_fraction: OnFraction) -> None:
    """Time one model at every batch and write its rows."""
    check_memory(config, n_engines=0)
    rows = standalone_rows(device, config, on_fraction)
    path = device.folder / "raw_data" / f"results_{config.model.name}.txt"
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(" ".join(f"{number:.6g}" for number in row) + "\n" for row in rows))
    write_key(device, config.model.name, profile_key(config.model, BATCHES[-1]))


def main(folder: Path, argv: Sequence[str]) -> int:
    """Command line of a device's generate_data.py; returns the exit code."""
    prog = f"accelerator/{folder.name}/generate_data.py"
    words, names, root = list(argv), None, str(folder.parent)
    for option in ("--models", "--accel_root_dir"):
        if option in words[:-1]:
            at = words.index(option)
            value = words[at + 1]
            del words[at : at + 2]
            names, root = (value.split(","), root) if option == "--models" else (names, value)
    try:
        device = load_device(accelerator_root(root), folder.name)
        torch_device(device)
        known = model_configs()
        for name in names or known:
            if name not in known:
                raise ValueError(f"--models: {name!r} is not among {', '.join(known)}")
        with Progress("auto") as progress, progress.step("timing") as on_fraction:
            for name in names or known:
                config = parse(
                    ["--config_file", str(known[name]), *words], prog,
                    forced={"num_batches": 4, "nepochs": 10, "max_mini_batch_size": BATCHES[-1]},
                )  # fmt: skip
                fill(device, config, on_fraction)
                print(f"{device.folder / 'raw_data' / f'results_{name}.txt'}")
    except ValueError as error:
        sys.stderr.write(f"{prog}: {error}\n")
        return 2
    return 0
