#!/usr/bin/env python3
"""What is a schedule for each table worth on a GPU?

Against PyTorch, FBGEMM, TorchRec and the roofline.

python experiments/embedding/gpu.py [--models A,B] [--batches 1,8,64,512] [--quick] [--out FOLDER]

Needs a CUDA device, PyTorch, Triton, NumPy, pandas and matplotlib. Plans are tuned on some ids
(models/embedding/ search.py) and measured on others; every method must give the same sums before it
is timed. gpu.csv: a line a model, batch, method and time (those of other models stay); gpu_plans/:
the plans, with the machine and what the search saw; gpu_targets.csv: what was aimed at, and
measured; gpu.png, gpu_speedups.png. --quick: all that is worth a borrowed GPU's ten minutes: the
tests marked for a GPU, A and C at batches 8 and 512, then the ablations of C (gpu_ablations.py).
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np
import pandas as pd
import torch
from torch import Tensor

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
from infra.results.report import show
from models.embedding import synthesis
from models.embedding.backend import Backend
from models.embedding.gpu.backend import KNOBS, CudaBackend
from models.embedding.gpu.timing import FloatArray, device_seconds, wall_seconds
from models.embedding.plan.catalogue import Params
from models.embedding.plan.plan import Bucket, Plan, params
from models.embedding.plan.spec import Layout, TableSpec
from models.embedding.tuning.problem import Problem, of_recorded
from models.embedding.tuning.recorded import Recorded
from models.embedding.tuning.search import Search, typical

HERE = Path(__file__).resolve().parent
BATCHES = (1, 8, 64, 512)
N_INPUTS = 4
WARM_UPS = 3
SEED = 7
MODELS = ("A", "B", "C", "D", "E")
PEAK_BYTES_PER_S = 4.8e12  # H200, stated by its maker
TESTS = "tests/models/test_triton_bags.py"
TESTS_S = 240.0
WANTED_RATIO, WANTED_FRAC, WANTED_S = (
    2.0,
    0.6,
    600.0,
)  # over CUDA-graphed per-table; of the roofline; of tuning a model
ROOFLINE_MODELS = ("A", "C")
ROOFLINE_BATCH = 512


@dataclass(frozen=True)
class Effort:
    """How much is measured. `tune_s`: a model, all its batches."""

    n_rounds: int = 30
    tune_s: float = 480.0
    knobs: Sequence[Params] = KNOBS


QUICK = Effort(
    10,
    45.0,
    (params(launch="fused", warps=4), params(launch="fused", warps=2), params(launch="grouped")),
)


@dataclass(frozen=True)
class Clocks:
    """How calls are timed; on a device by events."""

    device: Callable[[Sequence[Callable[[int], object]], int, bool], FloatArray]
    wall: Callable[[Sequence[Callable[[int], object]], int], FloatArray]


def cuda_clocks() -> Clocks:
    """Events, and the host's clock with the device waited for."""
    return Clocks(
        lambda calls, n_rounds, cold: device_seconds(calls, n_rounds, cold=cold),
        lambda calls, n_rounds: wall_seconds(calls, n_rounds, wait=torch.cuda.synchronize),
    )


def work_of(
    name: str, batches: Sequence[int], alpha: float | None, tables_frac: float, device: torch.device
) -> tuple[Problem, dict[int, list[Input]]]:
    """A model's tables with ids to tune on; and N_INPUTS other inputs for each batch size, to
    measure on.
    """
    sizes = [size for size in batches for _ in range(N_INPUTS)]
    drawn = synthesis.draw(name, [2 * max(batches), *sizes], SEED, alpha, tables_frac)
    problem = of_recorded(Recorded(drawn.specs, drawn.batches[:1]), sorted(batches), str(device))
    found: dict[int, list[Input]] = {}
    for batch in drawn.batches[1:]:
        own = Input.of(batch.ids_L, batch.offsets.astype(np.int32), len(drawn.specs), device)
        found.setdefault(batch.n_items, []).append(own)
    return problem, found


def floors(layout: Layout, inputs: Sequence[Input]) -> tuple[float, float]:
    """Mean bytes of a batch that must cross the memory bus: every row once, and every row as often
    as it is asked for.

    Rows, ids, offsets and the output.
    """
    dims = [spec.dim for spec in layout.specs]
    once = []
    often = []
    for own in inputs:
        ids = own.host_ids_L.numpy()
        other = own.host_ids_L.nbytes + own.host_offsets.nbytes
        parts = own.by_table(len(dims))
        other += own.n_items * sum(dims) * 4
        once.append(
            other
            + 4
            * sum(len(np.unique(ids[part])) * dim for part, dim in zip(parts, dims, strict=True))
        )
        often.append(
            other
            + 4 * sum((part.stop - part.start) * dim for part, dim in zip(parts, dims, strict=True))
        )
    return float(np.mean(once)), float(np.mean(often))


def families(knobs: Sequence[Params]) -> dict[str, list[Params]]:
    """Our two methods by their settings: one launch, and several."""
    fused = [own for own in knobs if dict(own)["launch"] == "fused"]
    return dict(zip(OURS, (fused, [own for own in knobs if own not in fused]), strict=True))


def best_single(problem: Problem, own: Backend, n_items: int) -> Bucket:
    """The fastest schedule with the same parameters for all tables."""
    batches = problem.batches[n_items]
    width = int(problem.layout.columns[-1])
    out_BC = problem.weight_E.new_empty(n_items, width)
    buckets = [
        Bucket(None, groups) for groups in own.uniform(problem.layout.specs, (), joined=False)
    ]
    own.prepare(problem.layout, problem.weight_E, buckets, batches[0], np.inf)
    runs = [
        own.build(problem.layout, problem.weight_E, bucket, checked=False) for bucket in buckets
    ]
    calls = [lambda i, run=run: run(batches[i % len(batches)], out_BC) for run in runs]
    return buckets[int(np.argmin(typical(own.seconds(calls, 7))))]


def methods_of(
    layout: Layout,
    weight_E: Tensor,
    inputs: Sequence[Input],
    buckets: Mapping[str, Bucket],
    notes: list[str],
) -> dict[str, Method]:
    """All that can be built here; of the others a note says why not."""
    makers: dict[str, Callable[[], Method]] = {
        name: lambda bucket=bucket: Ours(layout, weight_E, inputs, bucket)  # type: ignore[misc]
        for name, bucket in buckets.items()
    }
    makers["per table"] = lambda: PerTable(layout, weight_E, inputs)
    makers["FBGEMM"] = lambda: Fbgemm(layout, weight_E, inputs)
    makers["TorchRec"] = lambda: TorchRec(layout, weight_E, inputs)
    if weight_E.is_cuda:
        makers[GRAPHED] = lambda: Graphed(PerTable(layout, weight_E, inputs))
        for name in OURS:  # many launches take the host longer than the device
            makers[f"{name}, graph"] = lambda name=name: Graphed(
                Ours(layout, weight_E, inputs, buckets[name])
            )  # type: ignore[misc]
    found = {}
    for name, make in makers.items():
        method = built(make)
        if isinstance(method, str):
            notes.append(f"no {name}: {method}")
        else:
            found[name] = method
    return found


def check(methods: Mapping[str, Method], n_inputs: int) -> None:
    """Raise ValueError if a method's sums are not those of the per-table look-up."""
    for i in range(n_inputs):
        expected = methods["per table"].call(i).clone()
        for name, method in methods.items():
            if not torch.equal(method.call(i), expected):
                raise ValueError(f"{name}: other sums than the per-table look-up, input {i}")


def measure(methods: Mapping[str, Method], clocks: Clocks, n_rounds: int) -> list[dict[str, Any]]:
    """A row for each method and time: median and quartiles in microseconds."""
    rows = []
    from_host = {
        name: method for name, method in methods.items() if not isinstance(method, Graphed)
    }
    calls = [own.call for own in methods.values()]
    host_calls = [own.from_host for own in from_host.values()]
    clocks.device(calls, WARM_UPS, False)
    clocks.wall(host_calls, WARM_UPS)
    times = (
        (COLD, methods, clocks.device(calls, n_rounds, True)),
        (WARM, methods, clocks.device(calls, n_rounds, False)),
        (WALL, from_host, clocks.wall(host_calls, n_rounds)),
    )
    for what, own, found in times:
        for name, seconds in zip(own, found * 1e6, strict=True):
            low, mid, high = np.percentile(seconds, (25, 50, 75))
            rows.append({"method": name, "time": what, "us": mid, "low_us": low, "high_us": high})
    return rows


def study(
    problem: Problem,
    inputs: Sequence[Input],
    buckets: Mapping[str, Bucket],
    clocks: Clocks,
    n_rounds: int,
    notes: list[str],
) -> list[dict[str, Any]]:
    """Rows of one model and batch."""
    methods = methods_of(problem.layout, problem.weight_E, inputs, buckets, notes)
    check(methods, len(inputs))
    rows = measure(methods, clocks, n_rounds)
    for name, n_bytes in zip(
        (ONCE, "every look-up at it"), floors(problem.layout, inputs), strict=True
    ):
        rows.append({"method": name, "time": BOUND, "us": n_bytes / PEAK_BYTES_PER_S * 1e6})
    return rows


def plan_of(
    specs: Sequence[TableSpec], buckets: Mapping[int, Bucket], provenance: dict[str, Any]
) -> Plan:
    """The buckets of the measured batches, the last one for all larger ones."""
    sizes = sorted(buckets)
    limits = [*sizes[:-1], None]
    own = tuple(
        Bucket(limit, buckets[size].groups, buckets[size].settings)
        for limit, size in zip(limits, sizes, strict=True)
    )
    return Plan("cuda", tuple(specs), own, provenance)


def fastest(plans: Mapping[str, Plan], batch: int) -> Bucket:
    """Of the plans' buckets for a batch that both were tuned on, by the search's own times."""

    def ms_of(plan: Plan) -> float:
        return float(next(row["ms"] for row in plan.provenance["sizes"] if row["batch"] == batch))

    return min(plans.values(), key=ms_of).bucket(batch)


def targets(rows: pd.DataFrame, tuning_s: Mapping[str, float]) -> pd.DataFrame:
    """What was aimed at beside what was measured; our faster one of fused and grouped, rows not in
    L2.
    """
    found: list[tuple[str, str, object, float, float, bool]] = []
    for (model, batch), own in rows.groupby(["model", "batch"], sort=False):
        us = own[own["time"].isin((COLD, BOUND))].set_index("method")["us"]
        ours = min((us[name] for name in OURS if name in us), default=np.nan)
        if GRAPHED in us:
            ratio = us[GRAPHED] / ours
            found.append(
                (
                    f"times as fast as {GRAPHED}",
                    model,
                    batch,
                    WANTED_RATIO,
                    ratio,
                    ratio >= WANTED_RATIO,
                )
            )
        if model in ROOFLINE_MODELS and batch == ROOFLINE_BATCH:
            frac = us[ONCE] / ours
            found.append(
                ("of the memory roofline", model, batch, WANTED_FRAC, frac, frac >= WANTED_FRAC)
            )
    found += [
        ("seconds of tuning, at most", model, "", WANTED_S, s, s <= WANTED_S)
        for model, s in tuning_s.items()
    ]
    table = pd.DataFrame(found, columns=["target", "model", "batch", "wanted", "measured", "met"])
    return table.assign(met=["yes" if met else "no" for met in table["met"]])


def refusal() -> str | None:
    """Why this cannot run here, in one line."""
    if not torch.cuda.is_available():
        return "needs a CUDA device; PyTorch sees none here"
    if importlib.util.find_spec("triton") is None:
        return "needs Triton (pip install -r build/bench_requirements.txt)"
    return None


def run(
    args: argparse.Namespace,
    make: Callable[[Sequence[Params]], Backend],
    clocks: Clocks,
    device: torch.device,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """All models and batches, and the targets; files are written as soon as a batch is done."""
    effort = QUICK if args.quick else Effort()
    batches = [int(word) for word in args.batches.split(",")]
    names = args.models.split(",")
    (args.out / "gpu_plans").mkdir(parents=True, exist_ok=True)
    table = args.out / "gpu.csv"
    before = pd.read_csv(table) if table.is_file() else pd.DataFrame(columns=["model"])
    rows = before[~before["model"].isin(names)].to_dict("records")
    tuning_s = {}
    for name in names:
        sys.stderr.write(f"{name}: tuning\n")
        problem, inputs = work_of(name, batches, args.alpha, args.tables_frac, device)
        own = {method: make(knobs) for method, knobs in families(effort.knobs).items()}
        plans = {}
        for method, one in own.items():
            share_s = effort.tune_s * len(one.settings(problem.layout.specs)) / len(effort.knobs)
            plans[method] = Search(problem, one, share_s).run()
        tuning_s[name] = sum(plan.provenance["seconds"] for plan in plans.values())
        notes: list[str] = []
        for batch in batches:
            sys.stderr.write(f"{name}, batch {batch}\n")
            buckets = {method: plan.bucket(batch) for method, plan in plans.items()}
            buckets["ours, one schedule"] = best_single(problem, own[OURS[0]], batch)
            own_notes: list[str] = []
            found = study(problem, inputs[batch], buckets, clocks, effort.n_rounds, own_notes)
            notes += [f"batch {batch}: {note}" for note in own_notes]
            rows += [{"model": name, "batch": batch, **row} for row in found]
            pd.DataFrame(rows).to_csv(table, index=False, float_format="%.4g")
        whole = {
            **own[OURS[0]].versions(),
            "seed": SEED,
            "alpha": args.alpha,
            "tables_frac": args.tables_frac,
            "notes": notes,
            "search": {method: plan.provenance for method, plan in plans.items()},
        }
        chosen = {batch: fastest(plans, batch) for batch in batches}
        plan_of(problem.layout.specs, chosen, whole).save(args.out / "gpu_plans" / f"{name}.json")
    found_targets = targets(pd.DataFrame(rows), tuning_s)
    found_targets.to_csv(args.out / "gpu_targets.csv", index=False, float_format="%.4g")
    return pd.DataFrame(rows), found_targets


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models")
    parser.add_argument("--batches")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="what is worth a borrowed GPU's ten minutes, tests included",
    )
    parser.add_argument(
        "--alpha", type=float, help="Zipf's law of the ids; without it nearly uniform, as released"
    )
    parser.add_argument(
        "--tables_frac", type=float, default=1.0, help="part of every kind's tables"
    )
    parser.add_argument("--out", type=Path, default=HERE)
    args = parser.parse_args(argv)
    args.models = args.models or ("A,C" if args.quick else ",".join(MODELS))
    args.batches = args.batches or ("8,512" if args.quick else ",".join(map(str, BATCHES)))
    if unknown := set(args.models.split(",")) - {*MODELS}:
        parser.error(
            f"--models: {', '.join(sorted(unknown))} unknown; expected of {', '.join(MODELS)}"
        )
    if not all(word.isdecimal() and int(word) > 0 for word in args.batches.split(",")):
        parser.error(f"--batches is {args.batches!r}; expected whole numbers like 1,8,64")
    return args


def tested() -> str:
    """How the tests marked for a GPU went, in one line."""
    if importlib.util.find_spec("pytest") is None:
        return "tests for a GPU: not run, pytest is missing"
    words = [sys.executable, "-m", "pytest", "-m", "gpu", TESTS]
    try:
        done = subprocess.run(
            words, cwd=HERE.parents[1], capture_output=True, text=True, timeout=TESTS_S, check=False
        )
    except subprocess.TimeoutExpired:
        return f"tests for a GPU: not done after {TESTS_S:.0f} s"
    sys.stderr.write(done.stdout if done.returncode else "")
    return f"tests for a GPU: {(done.stdout.strip().splitlines() or ['nothing'])[-1]}"


@torch.no_grad()
def main(argv: Sequence[str]) -> int:
    """Command line; returns the exit code."""
    args = arguments(argv)
    why = refusal()
    if why is not None:
        print(f"gpu.py: {why}", file=sys.stderr)
        return 2
    if args.quick:
        print(tested(), flush=True)
    rows, found = run(args, CudaBackend, cuda_clocks(), torch.device("cuda"))
    draw_figure(rows).savefig(args.out / "gpu.png", dpi=110)
    draw_speedups(rows).savefig(args.out / "gpu_speedups.png", dpi=110)
    table = rows.pivot_table(
        index=["model", "batch", "method"], columns="time", values="us", sort=False
    )
    show("Microseconds, medians", table.reset_index())
    show("Targets", found)
    if args.quick:
        from experiments.embedding import gpu_ablations  # noqa: PLC0415 (it imports this file)

        last = ["--models", args.models.split(",")[-1], "--batches", args.batches.split(",")[-1]]
        same = ["--tables_frac", str(args.tables_frac), "--out", str(args.out)]
        return gpu_ablations.main([*last, *same, "--quick"])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
