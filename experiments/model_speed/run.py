#!/usr/bin/env python3
"""Time per model and batch at full table sizes, one thread, beside the released harness's times (another run).

python experiments/model_speed/run.py [FOLDER]     writes model_speed.csv; some minutes
released_times.csv: the released Caffe2 harness (torch 1.x, MKL, one thread, best net type) on a machine of the same
kind; its DIN has ONE behaviour table where ours has the 250 of its configuration.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import time

import pandas as pd

from accelerator.devices import model_configs
from accelerator.profiler import measure_cpu_core
from infra.cli import parse
from models import build
from models.inputs.synthetic import InputPool

BATCHES = (1, 16, 64, 256)


def measure(name: str, file: Path) -> list[dict[str, float | str]]:
    """One model: median ms of slicing and forward, fresh items for every call."""
    config = parse(["--config_file", str(file), "--num_batches", "8"])
    begun = time.perf_counter()
    model = build(config.model, seed=1)
    build_s = time.perf_counter() - begun
    inputs = InputPool(config.model, 8, 1024, seed=1)
    profile = measure_cpu_core(model, inputs, BATCHES)
    return [{"model": name, "batch_size": n, "ms": ms, "build_s": build_s} for n, ms in profile.batch_ms.items()]


def main(argv: Sequence[str]) -> int:
    """Command line; returns the exit code."""
    folder = Path(argv[0]) if argv else Path.cwd()
    rows = [row for name, file in model_configs().items() for row in measure(name, file)]
    released = pd.read_csv(Path(__file__).parent / "released_times.csv", comment="#")
    table = pd.DataFrame(rows).merge(released, on=["model", "batch_size"], how="left")
    table["released_over_ours"] = table["total_ms"] / table["ms"]
    table = table[["model", "batch_size", "ms", "run_ms", "total_ms", "released_over_ours", "build_s", "init_s"]]
    table.columns = pd.Index(
        ["model", "batch", "ours ms", "released run ms", "released total ms", "ratio", "build s", "released init s"]
    )
    table.to_csv(folder / "model_speed.csv", index=False, float_format="%.4g")
    print(table.round(3).to_string(index=False))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
