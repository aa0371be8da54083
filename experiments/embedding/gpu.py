#!/usr/bin/env python3
"""What is a schedule for each table worth on a GPU? Our kernels against PyTorch's and FBGEMM's, and the roofline.

python experiments/embedding/gpu.py [--models A,B] [--batches 1,8,64,512] [--quick] [--out FOLDER]

Needs a CUDA device, PyTorch, Triton, NumPy, pandas and matplotlib. Every method must give the same sums before it is
timed. gpu.csv: a line a model, batch, method and time (those of other models stay); gpu_plans/: the plans, with the
machine and what the tuner saw; gpu.png.
"""

from __future__ import annotations

import argparse
import importlib.util
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

from experiments.embedding.gpu_peers import Fbgemm, Graphed, Input, Method, Ours, PerTable, built
from experiments.embedding.gpu_plot import COLD, WALL, WARM, draw_figure
from experiments.embedding.gpu_tune import Tuner
from models.embedding import synthesis
from models.embedding.backend import Backend, backend
from models.embedding.gpu_timing import FloatArray, device_seconds, wall_seconds
from models.embedding.plan import Bucket, Plan
from models.embedding.spec import Layout, TableSpec

HERE = Path(__file__).resolve().parent
BATCHES, N_INPUTS, WARM_UPS, SEED = (1, 8, 64, 512), 4, 3, 7
MODELS = ("A", "B", "C", "D", "E")
PEAK_BYTES_PER_S = 4.8e12  # H200, stated by its maker
LARGEST_WEIGHT = 8  # weights are whole numbers up to it, so that sums are exact in any order


@dataclass(frozen=True)
class Effort:
    """How much is measured."""

    n_rounds: int = 30
    tune_s: float = 120.0  # local stage, a model and batch
    candidates: int = 6


QUICK = Effort(10, 20.0, 3)


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


def inputs_of(
    name: str, batches: Sequence[int], alpha: float | None, tables_frac: float, device: torch.device
) -> tuple[tuple[TableSpec, ...], dict[int, list[Input]]]:
    """Tables of a model, and N_INPUTS inputs for each batch size."""
    sizes = [size for size in batches for _ in range(N_INPUTS)]
    drawn = synthesis.draw(name, sizes, SEED, alpha, tables_frac)
    found: dict[int, list[Input]] = {}
    for batch in drawn.batches:
        own = Input.of(batch.ids_L, batch.offsets.astype(np.int32), len(drawn.specs), device)
        found.setdefault(batch.n_items, []).append(own)
    return drawn.specs, found


def whole_weights(layout: Layout, device: torch.device) -> Tensor:
    """Float32 whole numbers (E,); sums of bags of up to a million ids are exact."""
    own = torch.Generator().manual_seed(SEED)
    high = LARGEST_WEIGHT + 1
    return torch.randint(-LARGEST_WEIGHT, high, (layout.n_elements,), generator=own).to(torch.float32).to(device)


def floors(layout: Layout, inputs: Sequence[Input]) -> tuple[float, float]:
    """Mean bytes of a batch that must cross the memory bus: every row once, and every row as often as it is asked for.

    Rows, ids, offsets and the output.
    """
    dims = [spec.dim for spec in layout.specs]
    once, often = [], []
    for own in inputs:
        ids, other = own.host_ids_L.numpy(), own.host_ids_L.nbytes + own.host_offsets.nbytes
        parts = own.by_table(len(dims))
        other += own.n_items * sum(dims) * 4
        once.append(other + 4 * sum(len(np.unique(ids[part])) * dim for part, dim in zip(parts, dims, strict=True)))
        often.append(other + 4 * sum((part.stop - part.start) * dim for part, dim in zip(parts, dims, strict=True)))
    return float(np.mean(once)), float(np.mean(often))


def methods_of(
    layout: Layout, weight_E: Tensor, inputs: Sequence[Input], buckets: Mapping[str, Bucket], notes: list[str]
) -> dict[str, Method]:
    """All that can be built here; of the others a note says why not."""
    makers: dict[str, Callable[[], Method]] = {
        name: lambda bucket=bucket: Ours(layout, weight_E, inputs, bucket)  # type: ignore[misc]
        for name, bucket in buckets.items()
    }
    makers["per table"] = lambda: PerTable(layout, weight_E, inputs)
    makers["FBGEMM"] = lambda: Fbgemm(layout, weight_E, inputs)
    if weight_E.is_cuda:
        makers["per table, graph"] = lambda: Graphed(PerTable(layout, weight_E, inputs))
        makers["ours, fused, graph"] = lambda: Graphed(Ours(layout, weight_E, inputs, buckets["ours, fused"]))
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
    from_host = {name: method for name, method in methods.items() if not isinstance(method, Graphed)}
    calls, host_calls = [own.call for own in methods.values()], [own.from_host for own in from_host.values()]
    clocks.device(calls, WARM_UPS, False)
    clocks.wall(host_calls, WARM_UPS)
    times = (
        (COLD, methods, clocks.device(calls, n_rounds, True)), (WARM, methods, clocks.device(calls, n_rounds, False)),
        (WALL, from_host, clocks.wall(host_calls, n_rounds)),
    )  # fmt: skip
    for what, own, found in times:
        for name, seconds in zip(own, found * 1e6, strict=True):
            low, mid, high = np.percentile(seconds, (25, 50, 75))
            rows.append({"method": name, "time": what, "us": mid, "low_us": low, "high_us": high})
    return rows


def study(
    specs: Sequence[TableSpec], inputs: Sequence[Input], own: Backend, clocks: Clocks, effort: Effort,
    device: torch.device, notes: list[str],
) -> tuple[list[dict[str, Any]], Bucket]:  # fmt: skip
    """Rows of one model and batch, and the faster of the tuned buckets."""
    layout = Layout.apart(specs)
    weight_E = whole_weights(layout, device)
    tuner = Tuner(own, layout, weight_E, inputs, effort.tune_s, effort.candidates)
    tuned, single = tuner.tuned(), tuner.single()
    buckets = {f"ours, {launch}": bucket for launch, (bucket, _) in tuned.items()} | {"ours, one schedule": single[0]}
    notes += tuner.notes
    methods = methods_of(layout, weight_E, inputs, buckets, notes)
    check(methods, len(inputs))
    rows = measure(methods, clocks, effort.n_rounds)
    once, often = floors(layout, inputs)
    for name, n_bytes in (("every row once at the stated bandwidth", once), ("every look-up at it", often)):
        rows.append({"method": name, "time": "bound", "us": n_bytes / PEAK_BYTES_PER_S * 1e6})
    fastest = min(tuned.values(), key=lambda pair: pair[1])[0]
    return rows, fastest


def plan_of(specs: Sequence[TableSpec], buckets: Mapping[int, Bucket], provenance: dict[str, Any]) -> Plan:
    """The buckets of the measured batches, the last one for all larger ones."""
    sizes = sorted(buckets)
    limits = [*sizes[:-1], None]
    own = tuple(Bucket(limit, buckets[size].groups, buckets[size].settings)
                for limit, size in zip(limits, sizes, strict=True))  # fmt: skip
    return Plan("cuda", tuple(specs), own, provenance)


def refusal() -> str | None:
    """Why this cannot run here, in one line."""
    if not torch.cuda.is_available():
        return "needs a CUDA device; PyTorch sees none here"
    if importlib.util.find_spec("triton") is None:
        return "needs Triton (pip install -r build/bench_requirements.txt)"
    return None


def run(args: argparse.Namespace, own: Backend, clocks: Clocks, device: torch.device) -> pd.DataFrame:
    """All models and batches; files are written as soon as a batch is done."""
    effort = QUICK if args.quick else Effort()
    batches, names = [int(word) for word in args.batches.split(",")], args.models.split(",")
    (args.out / "gpu_plans").mkdir(parents=True, exist_ok=True)
    table = args.out / "gpu.csv"
    before = pd.read_csv(table) if table.is_file() else pd.DataFrame(columns=["model"])
    rows = before[~before["model"].isin(names)].to_dict("records")
    for name in names:
        specs, inputs = inputs_of(name, batches, args.alpha, args.tables_frac, device)
        buckets, notes = {}, []
        for batch in batches:
            sys.stderr.write(f"{name}, batch {batch}\n")
            own_notes: list[str] = []
            found, buckets[batch] = study(specs, inputs[batch], own, clocks, effort, device, own_notes)
            notes += [f"batch {batch}: {note}" for note in own_notes]
            rows += [{"model": name, "batch": batch, **row} for row in found]
            pd.DataFrame(rows).to_csv(table, index=False, float_format="%.4g")
        whole = {**own.versions(), "seed": SEED, "alpha": args.alpha, "tables_frac": args.tables_frac, "notes": notes}
        plan_of(specs, buckets, whole).save(args.out / "gpu_plans" / f"{name}.json")
    return pd.DataFrame(rows)


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--batches", default=",".join(map(str, BATCHES)))
    parser.add_argument("--quick", action="store_true", help="fewer candidates and rounds")
    parser.add_argument("--alpha", type=float, help="Zipf's law of the ids; without it nearly uniform, as released")
    parser.add_argument("--tables_frac", type=float, default=1.0, help="part of every kind's tables")
    parser.add_argument("--out", type=Path, default=HERE)
    args = parser.parse_args(argv)
    if unknown := set(args.models.split(",")) - {*MODELS}:
        parser.error(f"--models: {', '.join(sorted(unknown))} unknown; expected of {', '.join(MODELS)}")
    if not all(word.isdecimal() and int(word) > 0 for word in args.batches.split(",")):
        parser.error(f"--batches is {args.batches!r}; expected whole numbers like 1,8,64")
    return args


@torch.inference_mode()
def main(argv: Sequence[str]) -> int:
    """Command line; returns the exit code."""
    args = arguments(argv)
    why = refusal()
    if why is not None:
        print(f"gpu.py: {why}", file=sys.stderr)
        return 2
    rows = run(args, backend("cuda"), cuda_clocks(), torch.device("cuda"))
    draw_figure(rows).savefig(args.out / "gpu.png", dpi=110)
    table = rows.pivot_table(index=["model", "batch", "method"], columns="time", values="us", sort=False)
    print(f"Microseconds, medians\n{table.to_string(float_format='%.1f', na_rep='-')}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
