#!/usr/bin/env python3
"""How much does a neighbour cost?

Time of each model while another core runs the same or another model.

python experiments/colocation/pairs.py [--models rm1,wnd] [--quick] [--out FOLDER]

The model under test has its full tables; the neighbours' are a quarter (all eight stay in memory),
far larger than any cache. Alone and beside each neighbour in turn, one thread each. pairs.csv gets
a line a pair and batch, model by model; pairs.png is made of it. Needs two cores; some 7 minutes,
--quick (one batch) some 3.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from matplotlib.figure import Figure

from accelerator.devices import model_configs
from accelerator.profiler import neighbours
from infra.progress import OnFraction, Progress
from infra.provenance import usable_cores
from infra.results.report import console, frame
from infra.settings.cli import parse
from infra.settings.config import ModelConfig
from models import build
from models.base import RecModel
from models.inputs.synthetic import InputPool

HERE = Path(__file__).resolve().parent
MODELS = ("rm1", "rm2", "rm3", "ncf", "wnd", "mtwnd", "din", "dien")
N_INPUTS, LARGEST, SEED = 4, 1024, 4
NEIGHBOUR_SCALE = 0.25
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Effort:
    """How much is measured."""

    batches: Sequence[int] = (16, 256)
    rounds: int = 7
    round_s: float = 0.12


QUICK = Effort((64,), 5, 0.08)


def config_of(name: str, table_scale: float) -> ModelConfig:
    """The released configuration, a fraction of its rows kept."""
    words = [
        "--config_file",
        str(model_configs()[name]),
        "--table_scale",
        str(table_scale),
        "--num_batches",
        "1",
    ]
    return parse(words).model


class Subject:
    """The model under test, on fresh items call after call."""

    def __init__(self, config: ModelConfig) -> None:
        self.model = build(config, SEED, device=torch.device("cpu"))
        self.inputs = InputPool(config, N_INPUTS, LARGEST, SEED)
        self._turn = 0

    def times_ms(self, n_items: int, seconds: float) -> FloatArray:
        """Of the calls that fit the time, at least 3; the first is left out."""
        begun = time.perf_counter()
        times: list[float] = []
        while len(times) < 4 or time.perf_counter() - begun < seconds:
            start = time.perf_counter()
            first = self._turn // N_INPUTS * n_items % (LARGEST - n_items + 1)
            self.model(self.inputs.batch(self._turn % N_INPUTS, first, n_items))
            times.append((time.perf_counter() - start) * 1e3)
            self._turn += 1
        return np.array(times[1:])


def slowdowns(
    subject: Subject,
    keep_busy: dict[str, Callable[[int], None]],
    effort: Effort,
    on_fraction: OnFraction,
) -> list[dict[str, object]]:
    """A row a neighbour and batch: median ratio of paired rounds with the smallest and largest, and
    both spreads.
    """
    rows: list[dict[str, object]] = []
    n_cells = len(keep_busy) * len(effort.batches)
    for n_items in effort.batches:
        for name, busy in keep_busy.items():
            on_fraction(len(rows) / n_cells, f"beside {name}, batch {n_items}")
            alone = []
            beside = []
            for _ in range(effort.rounds):
                busy(0)
                alone.append(subject.times_ms(n_items, effort.round_s))
                busy(1)
                beside.append(subject.times_ms(n_items, effort.round_s))
            busy(0)
            ratios = [np.median(b) / np.median(a) for a, b in zip(alone, beside, strict=True)]
            one = np.concatenate(alone)
            two = np.concatenate(beside)
            rows.append(
                {
                    "neighbour": name,
                    "batch": n_items,
                    "alone_ms": np.median(one),
                    "beside_ms": np.median(two),
                    "slowdown": np.median(ratios),
                    "least": min(ratios),
                    "most": max(ratios),
                    "p95_over_p50_alone": np.quantile(one, 0.95) / np.median(one),
                    "p95_over_p50_beside": np.quantile(two, 0.95) / np.median(two),
                }
            )
    return rows


def draw(rows: pd.DataFrame) -> Figure:
    """A panel a batch: slow-down of the model in the row beside the one in the column."""
    batches = sorted(set(rows["batch"]))
    figure = Figure(figsize=(6.2 * len(batches), 5.4), layout="constrained")
    for i, batch in enumerate(batches):
        axes = figure.add_subplot(1, len(batches), i + 1)
        own = rows[rows["batch"] == batch]
        grid = own.pivot_table(index="model", columns="neighbour", values="slowdown")
        names = [name for name in MODELS if name in grid.index]
        beside = [name for name in MODELS if name in grid.columns]
        values = grid.loc[names, beside].to_numpy()
        image = axes.imshow(values, cmap="OrRd", vmin=1, vmax=max(1.5, float(np.nanmax(values))))
        for row, column in np.ndindex(values.shape):
            axes.annotate(
                f"{values[row, column]:.2f}", (column, row), ha="center", va="center", fontsize=8
            )
        axes.set_xticks(range(len(beside)), beside)
        axes.set_yticks(range(len(names)), names)
        axes.set_xlabel("neighbour on the other core")
        axes.set_ylabel("model under test")
        axes.set_title(f"batch {batch}", fontsize=10, loc="left")
    figure.colorbar(
        image, ax=figure.axes, label="time beside the neighbour over time alone", shrink=0.8
    )
    return figure


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """A line a model: its mean slow-down, the worst neighbour, and what it costs others."""
    lines = []
    for model, own in rows.groupby("model", sort=False):
        worst = own.loc[own["slowdown"].idxmax()]
        caused = rows[rows["neighbour"] == model]["slowdown"]
        lines.append(
            {
                "model": model,
                "mean slow-down": own["slowdown"].mean(),
                "worst": worst["slowdown"],
                "beside": worst["neighbour"],
                "at batch": int(worst["batch"]),
                "costs others": caused.mean(),
                "p95/p50 alone": own["p95_over_p50_alone"].median(),
                "beside others": own["p95_over_p50_beside"].median(),
            }
        )
    return pd.DataFrame(lines)


def run(names: Sequence[str], table_scale: float, effort: Effort, file: Path) -> pd.DataFrame:
    """All pairs; the file grows model by model."""
    rows: list[dict[str, object]] = []
    with (
        Progress("auto") as progress,
        contextlib.ExitStack() as stack,
        progress.step("pairs") as on_fraction,
    ):
        keep_busy = {}
        for i, name in enumerate(names):
            on_fraction(0.1 * i / len(names), f"building neighbour {name}")
            config = config_of(name, NEIGHBOUR_SCALE * table_scale)
            own: tuple[RecModel, InputPool] = (
                build(config, SEED, device=torch.device("cpu")),
                InputPool(config, N_INPUTS, LARGEST, SEED + 1),
            )
            keep_busy[name] = stack.enter_context(neighbours(*own, 1))
            keep_busy[name](0)
        for i, name in enumerate(names):

            def tell(fraction: float, detail: str = "", /, i: int = i, name: str = name) -> None:
                on_fraction(0.1 + 0.9 * (i + fraction) / len(names), f"{name} {detail}")

            found = slowdowns(Subject(config_of(name, table_scale)), keep_busy, effort, tell)
            rows += [{"model": name, **row} for row in found]
            pd.DataFrame(rows).to_csv(file, index=False, float_format="%.4g")
            gc.collect()
    return pd.DataFrame(rows)


@torch.inference_mode()
def main(argv: Sequence[str]) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--quick", action="store_true", help="one batch, shorter rounds")
    parser.add_argument(
        "--table_scale", type=float, default=1.0, help="fraction of the tables' rows"
    )
    parser.add_argument("--out", type=Path, default=HERE)
    args = parser.parse_args(argv)
    names = args.models.split(",")
    if unknown := set(names) - set(MODELS):
        parser.error(
            f"--models: {', '.join(sorted(unknown))} unknown; expected of {', '.join(MODELS)}"
        )
    if len(usable_cores()) < 2:
        parser.error("one core is usable here; a neighbour needs a second one")
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    rows = run(names, args.table_scale, QUICK if args.quick else Effort(), args.out / "pairs.csv")
    draw(rows).savefig(args.out / "pairs.png", dpi=110)
    console().print(frame("What neighbours cost", summary(rows)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
