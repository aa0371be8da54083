#!/usr/bin/env python3
"""Which parts of the method matter on a GPU?

As RecFlex's own ablations, and the task map from actual lengths.

python experiments/embedding/gpu_ablations.py [--models A,C] [--batches 64,512] [--quick] [--out FOLDER]

naive: candidates are timed on an idle device, every kind of table gets its winner, nothing is tried
in the whole. map from lengths: the same plan, its programs ordered for every batch by the ids they
read in it (in each call, and beforehand), against one map a batch size. gpu_mutated.csv: the final
plan with the schedule of one kind of table changed. gpu_spread.csv: how far the candidates of each
kind lie apart. gpu_ablations.csv, gpu_ablations.png. Device times by events, rows not in L2; needs
what gpu.py needs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.embedding import gpu
from experiments.embedding.gpu_peers import Input, Ours, PerTable
from infra.results.report import show
from models.embedding.backend import Backend, Choice
from models.embedding.gpu.backend import CudaBackend
from models.embedding.plan.catalogue import Params
from models.embedding.plan.plan import Bucket, params
from models.embedding.tuning.clusters import clusters
from models.embedding.tuning.problem import Problem
from models.embedding.tuning.search import Search, paired, replaced

MUTATED, ROUNDS = 8, 30
KNOBS = (params(launch="fused", warps=4),)  # both methods get the same
Rows = list[dict[str, Any]]


class IdleBackend(CudaBackend):
    """The device with nobody beside."""

    @contextmanager
    def contended(self, settings: Params) -> Iterator[None]:
        """Nothing."""
        del settings
        yield


def changed(problem: Problem, own: Backend, bucket: Bucket, n_items: int) -> dict[str, Bucket]:
    """The bucket with one kind of table given another candidate, for the kinds that read most."""
    kinds = sorted(
        clusters(problem.layout, problem.batches[n_items]),
        key=lambda c: -c.mean_ids * len(c.tables),
    )
    found = {}
    for kind in kinds[:MUTATED]:
        current = next(group for group in bucket.groups if kind.tables[0] in group.tables)
        others = [
            choice
            for choice in own.candidates(kind, bucket.settings, 0.0)
            if choice != Choice(current.schedule, current.params)
        ]
        if others:
            words = " ".join(f"{name}={value}" for name, value in others[0].params)
            groups = replaced(bucket.groups, others[0], kind.tables)
            found[f"{kind.spec}: {others[0].schedule} {words}"] = replace(bucket, groups=groups)
    return found


def beforehand(ours: Ours) -> Callable[[int], object]:
    """The look-up with its maps from lengths made for each input before the clock runs."""
    made = []
    for own in ours.inputs:
        ours.bags(own.ids_L, own.offsets)
        made.append(ours.bags.maps_of(own.offsets))

    def call(i: int) -> object:
        own = ours.input(i)
        return ours.bags.forward(own.ids_L, own.offsets, maps=made[i % len(made)])

    return call


def compare(
    problem: Problem,
    inputs: Sequence[Input],
    own: Backend,
    clocks: gpu.Clocks,
    rounds: int,
    plans: Mapping[str, Bucket],
    mutated: Mapping[str, Bucket],
) -> tuple[Rows, Rows]:
    """Rows of the methods and of the mutations, timed in turn and compared to the first plan."""
    layout = problem.layout
    weight_E = problem.weight_E
    every = {**plans, **mutated}
    own.prepare(
        layout, weight_E, [*every.values()], problem.batches[inputs[0].n_items][0], float("inf")
    )
    methods = {label: Ours(layout, weight_E, inputs, bucket) for label, bucket in every.items()}
    first = next(iter(plans.values()))
    by_length = Ours(layout, weight_E, inputs, first, by_length=True)
    per_table = PerTable(layout, weight_E, inputs)
    gpu.check({"per table": per_table, **methods, "map from lengths": by_length}, len(inputs))
    calls: dict[str, Callable[[int], object]] = {
        label: method.call for label, method in methods.items()
    }
    calls["map from lengths"], calls["map from lengths, made before"] = (
        by_length.call,
        beforehand(by_length),
    )
    clocks.device([*calls.values()], gpu.WARM_UPS, True)
    times = clocks.device([*calls.values()], rounds, True)
    found: tuple[Rows, Rows] = ([], [])
    for k, label in enumerate(calls):
        ratio, low, high = paired(times, k, 0)
        row = {
            "batch": inputs[0].n_items,
            "plan": label,
            "over_two_stage": ratio,
            "low": low,
            "high": high,
        }
        found[label in mutated].append(row)
    return found


def run(
    args: argparse.Namespace,
    make: Callable[[Sequence[Params]], Backend],
    idle: Backend,
    clocks: gpu.Clocks,
    device: torch.device,
) -> list[pd.DataFrame]:
    """Tables of methods, spread and mutations; written when a model is done."""
    found: tuple[Rows, Rows, Rows] = ([], [], [])
    batches = [int(word) for word in args.batches.split(",")]
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.models.split(","):
        sys.stderr.write(f"{name}: ablations\n")
        problem, inputs = gpu.work_of(name, batches, None, args.tables_frac, device)
        own = make(KNOBS)
        share_s = args.tune_s / 2
        search = Search(problem, own, share_s)
        plan = search.run()
        for n_items in batches:
            two_stage = plan.bucket(n_items)
            naive = Search(problem, idle, share_s / len(batches)).winners(
                n_items, two_stage.settings
            )
            plans = {"two-stage": two_stage, "naive": replace(two_stage, groups=naive)}
            mutated = changed(problem, own, two_stage, n_items)
            methods, mutations = compare(
                problem, inputs[n_items], own, clocks, args.rounds, plans, mutated
            )
            found[0].extend({"model": name, **row} for row in methods)
            found[2].extend({"model": name, **row} for row in mutations)
        found[1].extend({"model": name, **row} for row in search.spread)
        tables = [pd.DataFrame(rows) for rows in found]
        for file, table in zip(("gpu_ablations", "gpu_spread", "gpu_mutated"), tables, strict=True):
            table.to_csv(args.out / f"{file}.csv", index=False, float_format="%.4g")
    return tables


def draw(methods: pd.DataFrame, spread: pd.DataFrame, mutated: pd.DataFrame) -> Figure:
    """Other methods over two-stage; worst over best candidate of a kind of table; one schedule
    changed.
    """
    figure = Figure(figsize=(12, 4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for label, own in methods[methods["plan"] != "two-stage"].groupby("plan", sort=False):
        errors = [own["over_two_stage"] - own["low"], own["high"] - own["over_two_stage"]]
        left.errorbar(
            range(len(own)), own["over_two_stage"], errors, fmt="o", label=str(label), capsize=3
        )
        left.set_xticks(range(len(own)), [f"{row.model}, {row.batch}" for row in own.itertuples()])
    for (model, batch), own in spread.groupby(["model", "batch"], sort=False):
        values = own["worst_over_best"].sort_values(ascending=False)
        middle.plot(
            [100 * (k + 1) / len(values) for k in range(len(values))],
            values,
            label=f"{model}, batch {batch}",
        )
    middle.set_yscale("log")
    for (model, batch), own in mutated.groupby(["model", "batch"], sort=False):
        right.plot(
            sorted(own["over_two_stage"]), "o", markersize=4, label=f"{model}, batch {batch}"
        )
    _dress(
        left,
        "model, batch (items)",
        "time over that of the two-stage plan",
        "Naive tuning; maps from actual lengths",
    )
    _dress(
        middle,
        "kinds of table (%), by spread",
        "worst over best candidate",
        "Spread of the candidates",
    )
    _dress(
        right,
        "changed plan, by its time",
        "time over that of the final plan",
        "One kind of table changed",
    )
    return figure


def _dress(axes: Axes, across: str, up: str, title: str) -> None:
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.set_title(title, fontsize=9, loc="left")
    axes.axhline(1, color="grey", lw=0.8)
    axes.legend(frameon=False, fontsize=7)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default="A,C")
    parser.add_argument("--batches")
    parser.add_argument("--quick", action="store_true", help="batch 512 alone, a minute of tuning")
    parser.add_argument("--tables_frac", type=float, default=1.0)
    parser.add_argument("--out", type=Path, default=gpu.HERE)
    args = parser.parse_args(argv)
    args.batches = args.batches or ("512" if args.quick else "64,512")
    args.tune_s, args.rounds = (60.0, 10) if args.quick else (240.0, ROUNDS)
    return args


@torch.no_grad()
def main(argv: Sequence[str]) -> int:
    """Command line; returns the exit code."""
    args = arguments(argv)
    why = gpu.refusal()
    if why is not None:
        print(f"gpu_ablations.py: {why}", file=sys.stderr)
        return 2
    tables = run(args, CudaBackend, IdleBackend(KNOBS), gpu.cuda_clocks(), torch.device("cuda"))
    draw(*tables).savefig(args.out / "gpu_ablations.png", dpi=110)
    show("Over the two-stage plan", tables[0])
    show("One kind of table changed", tables[2])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
