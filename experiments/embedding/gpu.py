#!/usr/bin/env python3
"""What is a schedule for each table worth on a GPU, beside PyTorch, FBGEMM, TorchRec, the roofline?

python experiments/embedding/gpu.py [--models A,B] [--batches 1,8,64,512] [--quick] [--out FOLDER]

Needs a CUDA device, PyTorch, Triton, NumPy, pandas and matplotlib. Plans are tuned on some ids and
measured on others; every method must give the same sums before it is timed. gpu.csv: a line for
each model, batch, method and time; gpu_plans/: the plans, with the machine and what the search saw;
gpu_targets.csv: what was aimed at, and measured; gpu.png, gpu_speedups.png. --quick: all that is
worth a borrowed GPU's ten minutes: the tests marked for a GPU, A and C at batches 8 and 512, then
the ablations of C (gpu_ablations.py).
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from experiments.common.study import Study, View, flags_of, of_models, out_folder, progress
from experiments.embedding import gpu_ablations, gpu_setup
from experiments.embedding.contenders import best_single
from experiments.embedding.gpu_peers import (
    Fbgemm,
    Graphed,
    Input,
    Method,
    Ours,
    PerTable,
    TorchRec,
    built,
)
from experiments.embedding.gpu_plot import (
    BOUND,
    COLD,
    GRAPHED,
    ONCE,
    OURS,
    WALL,
    WARM,
    draw_figure,
    draw_speedups,
)
from experiments.embedding.gpu_setup import BATCHES, MODELS
from infra.settings.fields import flag
from models.embedding.backend import Backend
from models.embedding.gpu.backend import KNOBS
from models.embedding.plan.catalogue import Params
from models.embedding.plan.plan import Bucket, Plan, params
from models.embedding.plan.spec import Layout, TableSpec
from models.embedding.tuning.problem import Problem
from models.embedding.tuning.search import PlanSearch

PEAK_BYTES_PER_S = 4.8e12  # H200, stated by its maker
OFTEN = "every look-up at it"
TESTS = "tests/models/embedding/gpu/test_look_up.py"
TESTS_S = 240.0
WANTED_RATIO = 2.0  # over the CUDA-graphed per-table look-up
WANTED_FRAC = 0.6  # of the memory roofline
TUNING = "seconds of tuning, at most"
WANTED_S = 600.0  # of a model
ROOFLINE_MODELS = ("A", "C")
ROOFLINE_BATCH = 512
QUICK_KNOBS = (
    params(launch="fused", warps=4),
    params(launch="fused", warps=2),
    params(launch="grouped"),
)


@dataclass(frozen=True)
class GpuCase:
    """One model, tuned and measured. `tune_s`: for all its batches."""

    model: str
    batches: tuple[int, ...] = flag(BATCHES, "batch sizes")
    alpha: float | None = flag(
        None, "Zipf's law of the ids; without it nearly uniform, as released"
    )
    tables_frac: float = flag(1.0, "part of every kind's tables", low=0.0)
    n_rounds: int = 30
    tune_s: float = 480.0
    knobs: tuple[Params, ...] = KNOBS


@dataclass(frozen=True)
class GpuTests:
    """The tests marked for a GPU as a case."""

    file: str


@dataclass(frozen=True)
class MethodTime:
    """Time of a method in microseconds: median and quartiles; of a bound, the least possible."""

    model: str
    batch: int
    method: str
    time: str
    us: float
    low_us: float | None = None
    high_us: float | None = None


QUICK = [
    GpuCase(model, (8, 512), n_rounds=10, tune_s=45.0, knobs=QUICK_KNOBS) for model in ("A", "C")
]
FULL = [GpuCase(model) for model in MODELS]


def floors(layout: Layout, inputs: Sequence[Input]) -> tuple[float, float]:
    """Mean bytes of a batch that must cross the memory bus: rows, ids, offsets and the output.

    Every row once, and every row as often as it is asked for.
    """
    dims = [spec.dim for spec in layout.specs]
    once = []
    often = []
    for batch in inputs:
        ids = batch.host_ids_L.numpy()
        parts = [ids[part] for part in batch.by_table(len(dims))]
        other = ids.nbytes + batch.host_offsets.nbytes + batch.n_items * sum(dims) * 4
        row_bytes = [4 * dim for dim in dims]
        once.append(other + np.dot(row_bytes, [len(np.unique(part)) for part in parts]))
        often.append(other + np.dot(row_bytes, [len(part) for part in parts]))
    return float(np.mean(once)), float(np.mean(often))


def families(knobs: Sequence[Params]) -> dict[str, list[Params]]:
    """Our two methods by their settings: one launch, and several."""
    fused = [settings for settings in knobs if dict(settings)["launch"] == "fused"]
    several = [settings for settings in knobs if settings not in fused]
    return dict(zip(OURS, (fused, several), strict=True))


def methods_of(
    layout: Layout, weight_E: Tensor, inputs: Sequence[Input], buckets: Mapping[str, Bucket]
) -> tuple[dict[str, Method], list[str]]:
    """All that can be built here; and of each that cannot, a note that says why."""
    common = (layout, weight_E, inputs)
    makers: dict[str, Callable[[], Method]] = {
        name: partial(Ours, *common, bucket) for name, bucket in buckets.items()
    }
    peers = {"per table": PerTable, "FBGEMM": Fbgemm, "TorchRec": TorchRec}
    makers |= {name: partial(peer, *common) for name, peer in peers.items()}
    if weight_E.is_cuda:  # many launches take the host longer than the device
        for name in ("per table", *OURS):
            makers[f"{name}, graph"] = partial(Graphed, makers[name])
    made = {name: built(make) for name, make in makers.items()}
    notes = [f"no {name}: {why}" for name, why in made.items() if isinstance(why, str)]
    return {name: method for name, method in made.items() if isinstance(method, Method)}, notes


def measure(case: GpuCase, batch: int, methods: Mapping[str, Method]) -> list[MethodTime]:
    """A row for each method and time."""
    bench = gpu_setup.BENCH
    calls = {name: method.call for name, method in methods.items()}
    host_calls = {
        name: method.from_host
        for name, method in methods.items()
        if not isinstance(method, Graphed)
    }
    on_device = [*calls.values()]
    bench.device_seconds(on_device, gpu_setup.WARM_UPS, False)
    bench.wall_seconds([*host_calls.values()], gpu_setup.WARM_UPS)
    times = (
        (COLD, calls, bench.device_seconds(on_device, case.n_rounds, True)),
        (WARM, calls, bench.device_seconds(on_device, case.n_rounds, False)),
        (WALL, host_calls, bench.wall_seconds([*host_calls.values()], case.n_rounds)),
    )
    rows = []
    for time, timed, seconds in times:
        quartiles = np.percentile(seconds * 1e6, (50, 25, 75), axis=1).T.tolist()
        for name, (mid, low, high) in zip(timed, quartiles, strict=True):
            rows.append(MethodTime(case.model, batch, name, time, mid, low, high))
    return rows


def plan_of(
    specs: Sequence[TableSpec], buckets: Mapping[int, Bucket], provenance: dict[str, Any]
) -> Plan:
    """The buckets of the measured batches, the last one for all larger ones."""
    sizes = sorted(buckets)
    limits = [*sizes[:-1], None]
    limited = [
        replace(buckets[size], max_batch=limit) for limit, size in zip(limits, sizes, strict=True)
    ]
    return Plan("cuda", tuple(specs), tuple(limited), provenance)


def fastest(plans: Mapping[str, Plan], batch: int) -> Bucket:
    """The plans' fastest bucket for a batch that all were tuned on, by the search's own times."""

    def ms_of(plan: Plan) -> float:
        return float(next(row["ms"] for row in plan.provenance["sizes"] if row["batch"] == batch))

    return min(plans.values(), key=ms_of).bucket(batch)


def targets(rows: pd.DataFrame, tuning: pd.DataFrame) -> pd.DataFrame:
    """What was aimed at beside what was measured.

    Times are those of our faster one of fused and grouped, rows not in L2.
    """
    lines: list[tuple[object, ...]] = []
    for (model, batch), part in rows.groupby(["model", "batch"], sort=False):
        us = part[part["time"].isin((COLD, BOUND))].set_index("method")["us"]
        ours = min((us[name] for name in OURS if name in us), default=np.nan)
        if GRAPHED in us:
            ratio = us[GRAPHED] / ours
            lines.append((f"times as fast as {GRAPHED}", model, batch, WANTED_RATIO, ratio))
        if model in ROOFLINE_MODELS and batch == ROOFLINE_BATCH:
            lines.append(("of the memory roofline", model, batch, WANTED_FRAC, us[ONCE] / ours))
    lines += [(TUNING, row.model, "", WANTED_S, row.seconds) for row in tuning.itertuples()]
    table = pd.DataFrame(lines, columns=["target", "model", "batch", "wanted", "measured"])
    gain = table["measured"] - table["wanted"]
    is_met = np.where(table["target"] == TUNING, -gain, gain) >= 0
    return table.assign(met=np.where(is_met, "yes", "no"))


def medians(rows: pd.DataFrame) -> pd.DataFrame:
    """Microseconds of each method, a column for each time."""
    index = ["model", "batch", "method"]
    return rows.pivot_table(index=index, columns="time", values="us", sort=False)


def tuned_plan(case: GpuCase, problem: Problem, backend: Backend) -> Plan:
    """The plan of one of our methods, whose share of the time is that of its settings."""
    share_s = case.tune_s * len(backend.settings(problem.layout.specs)) / len(case.knobs)
    with progress().step(f"{case.model}: tuning") as on_fraction:
        return PlanSearch(problem, backend, share_s, on_fraction=on_fraction).run()


def compare(case: GpuCase) -> dict[str, list[Any]]:
    """Tune one model, then measure it at all batches."""
    problem, inputs = gpu_setup.work_of(case.model, case.batches, case.tables_frac, case.alpha)
    layout = problem.layout
    backends = {
        name: gpu_setup.BENCH.backend(knobs) for name, knobs in families(case.knobs).items()
    }
    plans = {name: tuned_plan(case, problem, backend) for name, backend in backends.items()}
    rows = []
    notes = []
    for batch in case.batches:
        sys.stderr.write(f"{case.model}, batch {batch}\n")
        buckets = {method: plan.bucket(batch) for method, plan in plans.items()}
        buckets["ours, one schedule"] = best_single(problem, backends[OURS[0]], batch)
        methods, missing = methods_of(layout, problem.weight_E, inputs[batch], buckets)
        notes += [f"batch {batch}: {note}" for note in missing]
        gpu_setup.check(methods, len(inputs[batch]))
        rows += measure(case, batch, methods)
        for name, n_bytes in zip((ONCE, OFTEN), floors(layout, inputs[batch]), strict=True):
            bound_us = n_bytes / PEAK_BYTES_PER_S * 1e6
            rows.append(MethodTime(case.model, batch, name, BOUND, bound_us))
    searches = {method: plan.provenance for method, plan in plans.items()}
    provenance = {
        **backends[OURS[0]].versions(),
        "seed": gpu_setup.SEED,
        "alpha": case.alpha,
        "tables_frac": case.tables_frac,
        "notes": notes,
        "search": searches,
    }
    chosen = {batch: fastest(plans, batch) for batch in case.batches}
    plan = plan_of(layout.specs, chosen, provenance)
    plan.save(out_folder() / "gpu_plans" / f"{case.model}.json")
    seconds = sum(search["seconds"] for search in searches.values())
    return {"gpu": rows, "gpu_tuning": [{"model": case.model, "seconds": seconds}]}


def tested(file: str) -> str:
    """How the tests marked for a GPU went, in one line."""
    if importlib.util.find_spec("pytest") is None:
        return "tests for a GPU: not run, pytest is missing"
    command = [sys.executable, "-m", "pytest", "-m", "gpu", file]
    root = Path(__file__).resolve().parents[2]
    try:
        done = subprocess.run(
            command, cwd=root, capture_output=True, text=True, timeout=TESTS_S, check=False
        )
    except subprocess.TimeoutExpired:
        return f"tests for a GPU: not done after {TESTS_S:.0f} s"
    sys.stderr.write(done.stdout if done.returncode else "")
    return f"tests for a GPU: {(done.stdout.strip().splitlines() or ['nothing'])[-1]}"


def cases(effort: Sequence[GpuCase], options: Any) -> list[Any]:
    """A case for each model; the quick effort begins with tests and ends with ablations."""
    chosen = of_models(effort, options)
    if effort is not QUICK:
        return chosen
    last: GpuCase = chosen[-1]
    ablated = gpu_ablations.quick_case(last.model, last.batches[-1:], last.tables_frac)
    return [GpuTests(TESTS), *chosen, ablated]


@torch.no_grad()
def run(case: GpuCase | GpuTests | gpu_ablations.GpuAblationCase) -> dict[str, list[Any]]:
    """The rows of a case of any kind."""
    if isinstance(case, GpuTests):
        return {"gpu_tests": [{"outcome": tested(case.file)}]}
    return compare(case) if isinstance(case, GpuCase) else gpu_ablations.ablate(case)


STUDY = Study(
    "embedding_gpu",
    "What is a schedule for each table worth on a GPU, beside its rivals and the roofline?",
    cases,
    run,
    efforts={"quick": QUICK, "full": FULL},
    options=flags_of(GpuCase, MODELS),
    derived={"gpu_targets": View(targets, "gpu", "gpu_tuning")},
    figures={
        "gpu": View(draw_figure, "gpu"),
        "gpu_speedups": View(draw_speedups, "gpu"),
        **gpu_ablations.FIGURES,
    },
    report={
        "Tests": View(pd.DataFrame, "gpu_tests"),
        "Microseconds, medians": View(medians, "gpu"),
        "Targets": View(pd.DataFrame, "gpu_targets"),
        **gpu_ablations.REPORT,
    },
    float_format="%.4g",
    other_files="gpu_plans/*.json",
    check_machine=gpu_setup.check_machine,
)

if __name__ == "__main__":
    STUDY.main()
