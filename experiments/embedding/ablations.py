#!/usr/bin/env python3
"""Which parts of the method matter?

As RecFlex's own ablations: where candidates are timed, and one schedule changed.

python experiments/embedding/ablations.py [--models A,B] [--tables_frac 0.25] [--budget_s 40] [--quick] [--out FOLDER]

naive: candidates are timed on an idle machine, every kind of table gets its winner, nothing is
tried in the whole. two-stage: candidates beside a busy neighbour, then the whole. Both are then
timed in turn beside a busy neighbour. spread.csv: how far the candidates of each kind of table lie
apart. mutated.csv: the final plan with the schedule of one kind of table changed for another one.
ablations.png shows all three. Some 4 minutes, --quick half a minute.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import pandas as pd
import torch
from matplotlib.figure import Figure

from experiments.embedding.contenders import planned
from experiments.embedding.run import SEED_MEASURE, SEED_TUNE, problem_of
from infra.memory import keep_freed_memory
from infra.progress import OnFraction, Progress
from infra.results.figures import plain_log, style
from infra.results.report import console, frame
from models.embedding.backend import Choice
from models.embedding.cpu.backend import CpuBackend
from models.embedding.plan.catalogue import Params
from models.embedding.plan.plan import params
from models.embedding.tuning.clusters import clusters
from models.embedding.tuning.search import Search, paired, replaced

HERE = Path(__file__).resolve().parent
SIZES = (8, 64, 512)
ROUNDS = 9
MUTATED = 8
ALONE = params(threads=1)


class IdleBackend(CpuBackend):
    """The CPU with nobody beside."""

    def contended(self, settings: Params) -> AbstractContextManager[None]:
        """Nothing."""
        del settings
        return contextlib.nullcontext()


def study(
    name: str, args: argparse.Namespace, on_fraction: OnFraction
) -> tuple[list[dict[str, object]], ...]:
    """Rows of the methods, of the spread of candidates, of the mutations."""
    tuned_on = problem_of(name, args.sizes, SEED_TUNE, args.tables_frac)
    on_fraction(0.1, f"{name}: two stages")
    search = Search(tuned_on, CpuBackend(), args.budget_s)
    plan = search.run()
    on_fraction(0.5, f"{name}: each kind of table alone")
    share_s = args.budget_s / len(args.sizes)
    naive = {n: Search(tuned_on, IdleBackend(), share_s).winners(n, ALONE) for n in args.sizes}
    del tuned_on
    problem = problem_of(name, args.sizes, SEED_MEASURE, args.tables_frac)
    own = CpuBackend()
    methods: list[dict[str, object]] = []
    mutated: list[dict[str, object]] = []
    for n_items in args.sizes:
        on_fraction(0.8, f"{name}: batch {n_items}, measuring")
        groups = plan.bucket(n_items).groups
        plain = own.uniform(problem.layout.specs, (), joined=False)[0]
        others = {"naive": naive[n_items], "all tables compiled, nothing asked for ahead": plain}
        kinds = sorted(
            clusters(problem.layout, problem.batches[n_items]),
            key=lambda c: -c.mean_ids * len(c.tables),
        )
        changed = {}
        for kind in kinds[:MUTATED]:
            current = next(g for g in groups if kind.tables[0] in g.tables)
            for choice in own.candidates(kind, ALONE, 0.0)[:4]:
                if choice != Choice(current.schedule, current.params):
                    changed[f"{kind.spec}: {choice.schedule} {dict(choice.params)}"] = replaced(
                        groups, choice, kind.tables
                    )
                    break
        every = {"two-stage": groups, **others, **changed}
        with own.contended(ALONE):
            times = own.seconds(
                [planned(problem, own, g, n_items, ALONE) for g in every.values()], args.rounds
            )
        for k, label in enumerate(every):
            ratio, low, high = paired(times, k, 0)
            row = {
                "model": name,
                "batch": n_items,
                "plan": label,
                "over_two_stage": ratio,
                "low": low,
                "high": high,
            }
            (mutated if label in changed else methods).append(row)
    return methods, [{"model": name, **row} for row in search.spread], mutated


def draw(methods: pd.DataFrame, spread: pd.DataFrame, mutated: pd.DataFrame) -> Figure:
    """Naive over two-stage; worst over best candidate of a kind of table; one schedule changed."""
    figure = Figure(figsize=(12, 3.8), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for model, own in methods[methods["plan"] == "naive"].groupby("model", sort=False):
        errors = [own["over_two_stage"] - own["low"], own["high"] - own["over_two_stage"]]
        left.errorbar(
            range(len(own)), own["over_two_stage"], errors, fmt="o-", label=str(model), capsize=3
        )
        left.set_xticks(range(len(own)), [str(n) for n in own["batch"]])
    left.axhline(1, color="grey", linewidth=0.8)
    style(
        left,
        "batch (items)",
        "time over that of the two-stage plan",
        "Tuned alone, not tried in the whole",
    )
    left.legend(frameon=False, fontsize=8)
    for (model, batch), own in spread.groupby(["model", "batch"], sort=False):
        values = own["worst_over_best"].sort_values(ascending=False)
        middle.plot(
            [100 * (k + 1) / len(values) for k in range(len(values))],
            values,
            label=f"{model}, batch {batch}",
        )
    plain_log(middle, "y")
    style(
        middle,
        "kinds of table (%), by spread",
        "worst over best candidate",
        "Spread of the candidates",
    )
    middle.legend(frameon=False, fontsize=7)
    for (model, batch), own in mutated.groupby(["model", "batch"], sort=False):
        right.plot(
            sorted(own["over_two_stage"]), "o", markersize=4, label=f"{model}, batch {batch}"
        )
    right.axhline(1, color="grey", linewidth=0.8)
    style(
        right,
        "changed plan, by its time",
        "time over that of the final plan",
        "One kind of table changed",
    )
    right.legend(frameon=False, fontsize=7)
    return figure


def main(argv: Sequence[str]) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default="A,B")
    parser.add_argument("--tables_frac", type=float, default=0.25)
    parser.add_argument("--budget_s", type=float, default=40.0)
    parser.add_argument("--quick", action="store_true", help="B with a twentieth of its tables")
    parser.add_argument("--out", type=Path, default=HERE)
    args = parser.parse_args(argv)
    args.sizes = SIZES
    args.rounds = ROUNDS
    if args.quick:
        args.models = "B"
        args.tables_frac = 0.05
        args.budget_s = 6.0
        args.rounds = 3
        args.sizes = (8, 64)
    torch.set_num_threads(1)
    keep_freed_memory()
    args.out.mkdir(parents=True, exist_ok=True)
    found: tuple[list[dict[str, object]], ...] = ([], [], [])
    with (
        Progress("auto") as progress,
        progress.step("ablations") as on_fraction,
        torch.inference_mode(),
    ):
        for name in args.models.split(","):
            for rows, fresh in zip(found, study(name, args, on_fraction), strict=True):
                rows.extend(fresh)
    tables = [pd.DataFrame(rows) for rows in found]
    for file, table in zip(("ablations.csv", "spread.csv", "mutated.csv"), tables, strict=True):
        table.to_csv(args.out / file, index=False, float_format="%.4g")
    draw(*tables).savefig(args.out / "ablations.png", dpi=110)
    console().print(frame("Beside a busy neighbour", tables[0]))
    console().print(frame("One kind of table changed", tables[2]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
