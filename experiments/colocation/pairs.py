#!/usr/bin/env python3
"""How much does a neighbour cost? Time of a model while another core runs the same or another one.

python experiments/colocation/pairs.py [--models rm1,wnd] [--quick] [--out FOLDER]

The model under test has its full tables; the neighbours' are a quarter (all eight stay in memory),
far larger than any cache. Alone and beside each neighbour in turn, one thread each. pairs.csv gets
a line a pair and batch, model by model; pairs.png is made of it. Needs two cores; some 7 minutes,
--quick (one batch) some 3.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from accelerator.profiler import neighbours
from experiments.common.fresh_calls import FreshCalls, model_with_inputs
from experiments.common.panels import panels
from experiments.common.released import MODELS, ModelCase, ModelOptions, model_cases
from experiments.common.study import Study, View, progress
from experiments.common.tails import FloatArray
from infra.provenance import usable_cores

NEIGHBOUR_SCALE = 0.25


@dataclass(frozen=True)
class PairEffort:
    """How much is measured."""

    batches: tuple[int, ...] = (16, 256)
    rounds: int = 7
    round_s: float = 0.12


@dataclass(frozen=True)
class PairRow:
    """Median, least and largest ratio of paired rounds, and the spread of the times."""

    model: str
    neighbour: str
    batch: int
    alone_ms: float
    beside_ms: float
    slowdown: float
    least: float
    most: float
    p95_over_p50_alone: float
    p95_over_p50_beside: float


def cases(effort: PairEffort, options: ModelOptions) -> list[ModelCase]:
    """A case a model under test; raises ValueError where no second core is usable."""
    if len(usable_cores()) < 2:
        raise ValueError("one core is usable here; a neighbour needs a second one")
    return [replace(case, options=options) for case in model_cases(effort, options)]


@contextlib.contextmanager
def neighbours_of(options: ModelOptions) -> Iterator[dict[str, Callable[[int], None]]]:
    """A stopped neighbour a model, and the function that lets it run (1) or stops it (0)."""
    with contextlib.ExitStack() as processes:
        keep_busy = {}
        for name in options.models:
            model = model_with_inputs(name, NEIGHBOUR_SCALE * options.table_scale, seed=5)
            keep_busy[name] = processes.enter_context(neighbours(*model, 1))
            keep_busy[name](0)
        yield keep_busy


def times_ms(calls: FreshCalls, n_items: int, seconds: float) -> FloatArray:
    """Times of the calls that fit the seconds, at least 3; the first is left out."""
    begun = time.perf_counter()
    times: list[float] = []
    while len(times) < 4 or time.perf_counter() - begun < seconds:
        start = time.perf_counter()
        calls(n_items)
        times.append((time.perf_counter() - start) * 1e3)
    return np.array(times[1:])


@torch.inference_mode()
def measure(case: ModelCase) -> dict[str, list[PairRow]]:
    """A row a neighbour and batch."""
    torch.set_num_threads(1)
    calls = FreshCalls(*model_with_inputs(case.model, case.options.table_scale))
    pairs = [(n, name) for n in case.effort.batches for name in case.options.models]
    rows: list[PairRow] = []
    with progress().step(case.model) as on_fraction, neighbours_of(case.options) as beside:
        for n_items, name in pairs:
            on_fraction(len(rows) / len(pairs), f"beside {name}, batch {n_items}")
            rounds: tuple[list[FloatArray], list[FloatArray]] = ([], [])
            for _ in range(case.effort.rounds):
                for n_busy, times in enumerate(rounds):
                    beside[name](n_busy)
                    times.append(times_ms(calls, n_items, case.effort.round_s))
            beside[name](0)
            rows.append(PairRow(case.model, name, n_items, *statistics(*rounds)))
    return {"pairs": rows}


def statistics(alone: Sequence[FloatArray], beside: Sequence[FloatArray]) -> list[float]:
    """The numbers of a row, in its order, from the times of paired rounds."""
    ratios = [np.median(slow) / np.median(fast) for fast, slow in zip(alone, beside, strict=True)]
    both = np.concatenate(alone), np.concatenate(beside)
    spreads = [np.quantile(times, 0.95) / np.median(times) for times in both]
    numbers = [*map(np.median, both), np.median(ratios), min(ratios), max(ratios), *spreads]
    return [float(number) for number in numbers]


def draw(rows: pd.DataFrame) -> Figure:
    """A panel a batch: slow-down of the model in the row beside the one in the column."""
    batches = rows.groupby("batch")
    figure, all_axes = panels(len(batches), 6.2, 5.4)
    names = [name for name in MODELS if name in set(rows["model"])]
    for axes, (batch, part) in zip(all_axes, batches, strict=True):
        grid = part.pivot_table("slowdown", index="model", columns="neighbour")
        values = grid.loc[names, names].to_numpy()
        image = axes.imshow(values, cmap="OrRd", vmin=1, vmax=max(1.5, np.nanmax(values)))
        for (y, x), value in np.ndenumerate(values):
            axes.annotate(f"{value:.2f}", (x, y), ha="center", va="center", fontsize=8)
        axes.set_xticks(range(len(names)), names)
        axes.set_yticks(range(len(names)), names)
        axes.set(xlabel="neighbour on the other core", ylabel="model under test")
        axes.set_title(f"batch {batch}", fontsize=10, loc="left")
    label = "time beside the neighbour over time alone"
    figure.colorbar(image, ax=all_axes, label=label, shrink=0.8)
    return figure


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """A line a model: its mean slow-down, the worst neighbour, and what it costs others."""
    models = rows.groupby("model", sort=False)
    worst = rows.loc[models["slowdown"].idxmax()].set_index("model")
    columns = {
        "mean slow-down": models["slowdown"].mean(),
        "worst": worst["slowdown"],
        "beside": worst["neighbour"],
        "at batch": worst["batch"],
        "costs others": rows.groupby("neighbour")["slowdown"].mean(),
        "p95/p50 alone": models["p95_over_p50_alone"].median(),
        "beside others": models["p95_over_p50_beside"].median(),
    }
    return pd.DataFrame(columns, worst.index).reset_index()


STUDY = Study(
    "colocation_pairs",
    "How much does a neighbour cost?",
    cases,
    measure,
    efforts={"quick": PairEffort((64,), 5, 0.08), "full": PairEffort()},
    options=ModelOptions,
    figures={"pairs": View(draw, "pairs")},
    report={"What neighbours cost": View(summary, "pairs")},
    float_format="%.4g",
)

if __name__ == "__main__":
    STUDY.main()
