#!/usr/bin/env python3
"""raw_data/ -> characterization_data/ (batch, ms), and a model's predicted time at a batch size.

python accelerator/predict_execution.py --device cpu_core    characterize every model
python accelerator/predict_execution.py --device cpu_core --model wnd --batch 300    and predict
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import argparse

from accelerator.devices import (
    BATCHES,
    Device,
    accelerator_root,
    derived_profile,
    latency_profile,
    load_device,
    model_config,
    model_configs,
    read_key,
)
from accelerator.latency import Profile, read_profile, write_profile
from infra.provenance import cpu_name, package_versions
from infra.settings.cli import parse

EXECUTION_MS = 5  # which of a row's six numbers is the execution time per iteration


def characterize(device: Device, model: str) -> Profile:
    """The device's profile of a model, from its raw data if there is any.

    Raises ValueError if nothing is known of it.
    """
    if device.kind == "roofline":
        config = parse(["--config_file", model_config("--model", model), "--num_batches", "1"])
        return latency_profile(device, config.model)
    if device.kind == "speedup":
        return derived_profile(device, model, characterize(device.baseline, model))
    raw = device.folder / "raw_data" / f"results_{model}.txt"
    path = device.folder / "characterization_data" / f"{model}.csv"
    if raw.is_file():
        rows = [[float(word) for word in line.split()] for line in raw.read_text().splitlines()]
        if len(rows) != len(BATCHES) or any(len(row) != 6 for row in rows):
            raise ValueError(f"{raw}: expected {len(BATCHES)} rows of six numbers")
        provenance = {
            "device": device.name,
            "model": model,
            "source": f"raw_data/{raw.name}, execution time per iteration",
            "cpu": cpu_name(),
            "torch": package_versions()["torch"],
            "key": read_key(device, model),
        }
        times = [row[EXECUTION_MS] for row in rows]
        write_profile(path, Profile(dict(zip(BATCHES, times, strict=True)), provenance))
    if not path.is_file():
        raise ValueError(f"{path}: not there; run {device.folder / 'generate_data.py'} first")
    return read_profile(path)


def models_with_times(device: Device) -> list[str]:
    """The models that the device has raw data of, else those that it has profiles of."""
    if device.kind == "roofline":
        return sorted(model_configs())
    raw = sorted(device.folder.glob("raw_data/results_*.txt"))
    profiles = {file.stem for file in device.folder.glob("characterization_data/*.csv")}
    models = [file.stem.removeprefix("results_") for file in raw]
    models = models or [name for name in model_configs() if name in profiles]
    if not models:
        folder = device.folder / "raw_data"
        raise ValueError(f"{folder}: empty; run {device.folder / 'generate_data.py'} first")
    return models


def main(argv: Sequence[str]) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--device", required=True, help="folder under accel_root_dir")
    parser.add_argument("--accel_root_dir", default=str(Path(__file__).resolve().parent))
    parser.add_argument(
        "--model", help="rm1 rm2 rm3 ncf wnd mtwnd din dien; without it: all that have raw data"
    )
    parser.add_argument("--batch", type=int, help="items; without it: the profile's sizes")
    args = parser.parse_args(argv)
    try:
        device = load_device(accelerator_root(args.accel_root_dir), args.device)
        measured = device.baseline if device.kind == "speedup" else device
        for model in [args.model] if args.model else models_with_times(measured):
            model_config("--model", model)
            profile = characterize(device, model)
            for batch in [args.batch] if args.batch is not None else sorted(profile.batch_ms):
                print(f"{device.name}: {model} at batch {batch}: {profile.ms(batch):.4g} ms")
    except ValueError as error:
        sys.stderr.write(f"accelerator/predict_execution.py: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
