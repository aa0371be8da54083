#!/usr/bin/env python3
"""Which operators take the time?

Shares of the eight models' run time by operator and batch, beside the published ones.

python experiments/operator_breakdown/sweep_p.py [--models rm1,wnd] [--quick] [--device cuda] [--out FOLDER]

Two executions of every model on the same tables, in turn: as released (operator by operator, one
look-up a table) and ours (packed). breakdown.csv gets a line an operator, model by model;
breakdown.png and agreement.csv are made of it (plot.py). Full tables, one thread; some 5 minutes,
--quick (three batches) some 2.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])
os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # PyTorch's profiler says when it begins and ends

import numpy as np
import pandas as pd
import torch

from accelerator.devices import model_configs
from experiments.operator_breakdown import plot
from experiments.operator_breakdown.plot import BETWEEN
from infra.progress import OnFraction, Progress
from infra.settings.cli import parse
from infra.settings.config import RunConfig
from models import build
from models.base import RecModel
from models.inputs.synthetic import InputPool
from models.operator_times import OTHER, RELEASED, library_times, operator_times, released_name
from models.standalone import choose_device

HERE = Path(__file__).resolve().parent
BATCHES = (1, 4, 16, 64, 256, 1024)
AS_RELEASED, OURS, LIBRARY = (
    "as released",
    "ours",
    "PyTorch's profiler",
)  # the last: of the execution as released
N_INPUTS = 4
LARGEST = BATCHES[-1]
SEED = 4
ROUNDS = 5


@dataclass(frozen=True)
class Effort:
    """How much is measured."""

    batches: Sequence[int] = BATCHES
    round_s: float = 0.25


QUICK = Effort((1, 64, 1024), 0.1)


class Execution:
    """One model in one execution, on fresh items call after call."""

    def __init__(self, model: RecModel, inputs: InputPool, device: torch.device) -> None:
        self.model = model
        self._inputs = inputs
        self._device = device
        self._turn = 0

    def __call__(self, n_items: int) -> None:
        """Score the next items."""
        first = self._turn // N_INPUTS * n_items % (LARGEST - n_items + 1)
        batch = self._inputs.batch(self._turn % N_INPUTS, first, n_items)
        self._turn += 1
        self.model(batch.to(self._device) if self._device.type == "cuda" else batch)

    def ms(self, n_items: int, n_calls: int) -> float:
        """Mean of some calls."""
        start = time.perf_counter()
        for _ in range(n_calls):
            self(n_items)
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - start) * 1e3 / n_calls

    def operator_ms(self, n_items: int, n_calls: int) -> dict[str, float]:
        """Mean ms a call of each operator, under the release's names or Other."""
        with operator_times(self.model) as own_ms:
            self.ms(n_items, n_calls)
        return by_released_name({name: ms / n_calls for name, ms in own_ms.items()})


def by_released_name(times: dict[str, float]) -> dict[str, float]:
    """The same times, added up under the release's names and Other."""
    named: dict[str, float] = defaultdict(float)
    for name, ms in times.items():
        named[released_name(name)] += ms
    return named


def shares(operator_ms: dict[str, float], whole_ms: float) -> dict[str, float]:
    """Share of the run time for each of OPERATORS; they add up to 1.

    `whole_ms` is timed without hooks, so that what hooks take is in nobody's share.
    """
    named = {name: operator_ms.get(name, 0.0) for name in (*RELEASED, OTHER)}
    whole = max(whole_ms, sum(named.values()))
    return {
        **{name: ms / whole for name, ms in named.items()},
        BETWEEN: 1 - sum(named.values()) / whole,
    }


def measure(execution: Execution, n_items: int, round_s: float) -> tuple[dict[str, float], float]:
    """Shares by operator and ms a call, one round."""
    once_ms = execution.ms(n_items, 2)
    n_calls = int(np.clip(round_s * 1e3 / 2 / once_ms, 2, 400))
    whole_ms = execution.ms(n_items, n_calls)
    return shares(execution.operator_ms(n_items, n_calls), whole_ms), whole_ms


def rows_of(
    config: RunConfig, device: torch.device, effort: Effort, on_fraction: OnFraction
) -> list[dict[str, object]]:
    """Every batch and execution of one model: the mean share of ROUNDS rounds in turn, the smallest
    and largest.
    """
    name = config.model.name
    inputs = InputPool(config.model, N_INPUTS, LARGEST, SEED)
    ours = build(config.model, SEED)
    released = build(replace(config.model, fused="off"), SEED, tables_of=ours)
    if device.type == "cpu":
        ours.pack()
    else:
        released.tables.weight_RD = ours.to(device).tables.weight_RD
        released.to(device)
    executions = {
        AS_RELEASED: Execution(released, inputs, device),
        OURS: Execution(ours, inputs, device),
    }
    rows: list[dict[str, object]] = []
    for i, n_items in enumerate(effort.batches):
        on_fraction(i / len(effort.batches), f"{name}, batch {n_items}")
        rounds: dict[str, list[tuple[dict[str, float], float]]] = defaultdict(list)
        for round_id in range(-1, ROUNDS):  # the first is not counted
            for label, execution in executions.items():
                found = measure(execution, n_items, effort.round_s)
                if round_id >= 0:
                    rounds[label].append(found)
        if device.type == "cpu":
            library = by_released_name(library_times(lambda n=n_items: executions[AS_RELEASED](n)))  # type: ignore[misc]
            rounds[LIBRARY] = [(shares(library, sum(library.values())), sum(library.values()))]
        for label, each in rounds.items():
            ms = float(np.median([whole_ms for _, whole_ms in each]))
            for operator in plot.OPERATORS:
                own = [share[operator] for share, _ in each]
                rows.append(
                    {
                        "device": device.type,
                        "model": name,
                        "batch": n_items,
                        "execution": label,
                        "operator": operator,
                        "share": float(np.mean(own)),
                        "least": min(own),
                        "most": max(own),
                        "ms": ms,
                    }
                )
    return rows


@torch.inference_mode()
def main(argv: Sequence[str]) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default=",".join(model_configs()))
    parser.add_argument("--quick", action="store_true", help="three batches, shorter rounds")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--table_scale", default="1", help="fraction of the tables' rows")
    args = parser.parse_args(argv)
    files = model_configs()
    if unknown := set(args.models.split(",")) - set(files):
        parser.error(
            f"--models: {', '.join(sorted(unknown))} unknown; expected of {', '.join(files)}"
        )
    try:
        device = choose_device(args.device == "cuda")
    except ValueError:
        parser.error("--device cuda: PyTorch sees no CUDA device here")
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, object]] = []
    names = args.models.split(",")
    with Progress("auto") as progress, progress.step("operators") as on_fraction:
        for i, name in enumerate(names):
            config = parse(
                [
                    "--config_file",
                    str(files[name]),
                    "--table_scale",
                    args.table_scale,
                    "--num_batches",
                    "1",
                ]
            )

            def tell(fraction: float, detail: str = "", /, i: int = i) -> None:
                on_fraction((i + fraction) / len(names), detail)

            rows += rows_of(config, device, QUICK if args.quick else Effort(), tell)
            pd.DataFrame(rows).to_csv(args.out / "breakdown.csv", index=False, float_format="%.4g")
            gc.collect()
    return plot.main(["--folder", str(args.out)])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
