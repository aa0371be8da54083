#!/usr/bin/env python3
"""raw_data/ -> characterization_data/ (batch, ms), and a model's predicted time at a batch size.

python accelerator/predict_execution.py --device cpu_core                           characterize every model
python accelerator/predict_execution.py --device cpu_core --model wnd --batch 300   and predict
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
    model_configs,
    read_key,
)
from accelerator.latency import Profile, read_profile, write_profile
from infra.provenance import cpu_name, package_versions
from infra.settings.cli import parse

EXECUTION_MS = 5  # which of a row's six numbers is the execution time per iteration


def characterize(device: Device, model: str) -> Profile:
    """The device's profile of a model, from its raw data if there is any; raises ValueError if
    nothing is known.
    """
    if device.kind == "roofline":
        return latency_profile(
            device,
            parse(["--config_file", str(model_configs()[model]), "--num_batches", "1"]).model,
        )
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


def main(argv: Sequence[str]) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--device", required=True, help="folder under accel_root_dir")
    parser.add_argument("--accel_root_dir", default=str(Path(__file__).resolve().parent))
    parser.add_argument(
        "--model", help="rm1 rm2 rm3 ncf wnd mtwnd din dien; without it: all that have raw data"
    )
    parser.add_argument("--batch", type=int, help="items; without it: the profile's sizes")
    given = parser.parse_args(argv)
    try:
        device = load_device(accelerator_root(given.accel_root_dir), given.device)
        base = device.baseline if device.kind == "speedup" else device
        found = sorted(
            f.stem.removeprefix("results_") for f in base.folder.glob("raw_data/results_*.txt")
        )
        measured = [
            name
            for name in model_configs()
            if (base.folder / "characterization_data" / f"{name}.csv").is_file()
        ]
        everything = sorted(model_configs()) if base.kind == "roofline" else found or measured
        models = [given.model] if given.model else everything
        if unknown := set(models) - set(model_configs()):
            raise ValueError(
                f"--model: {', '.join(unknown)} is not among {', '.join(model_configs())}"
            )
        if not models:
            raise ValueError(
                f"{base.folder / 'raw_data'}: empty; run {base.folder / 'generate_data.py'} first"
            )
        for model in models:
            profile = characterize(device, model)
            for batch in [given.batch] if given.batch is not None else sorted(profile.batch_ms):
                print(f"{device.name}: {model} at batch {batch}: {profile.ms(batch):.4g} ms")
    except ValueError as error:
        sys.stderr.write(f"accelerator/predict_execution.py: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
