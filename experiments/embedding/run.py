#!/usr/bin/env python3
"""How much faster is one schedule a table than one for all, one call a table, FBGEMM, and how far
from the limit?

python experiments/embedding/run.py [--models A,B,rm1] [--tables_frac 0.5] [--budget_s 60] [--quick] [--out FOLDER]

For every model: a plan is tuned on some ids (plans/MODEL.json), then measured on others, in turn
with its rivals on one core. speed.csv gets a row a model, batch, contender and round; speed.png is
made of it. One to three minutes a model.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np
import pandas as pd
import torch

from experiments.embedding import contenders, plot
from infra.memory import keep_freed_memory
from infra.progress import OnFraction, Progress
from infra.provenance import cpu_name
from infra.results.report import console, frame
from infra.settings.cli import parse
from models.embedding.backend import Backend, backend
from models.embedding.plan.plan import Plan
from models.embedding.synthesis import BENCHMARKS, draw
from models.embedding.tuner import configs
from models.embedding.tuning.problem import Problem, of_model, of_recorded
from models.embedding.tuning.search import Groups, Search, typical

HERE = Path(__file__).resolve().parent
MODELS = ("A", "B", "C", "D", "E", *configs())
TUNED = (1, 8, 64, 512)
ALSO = (1024,)
COMPILED_TABLES = 64  # torch.compile takes minutes for hundreds
ROUNDS, ROUND_S, MOST_CALLS = 15, 0.05, 512
SEED_TUNE, SEED_MEASURE = 1, 2


def problem_of(name: str, sizes: Sequence[int], seed: int, tables_frac: float) -> Problem:
    """A benchmark's tables, or a model's at full size; the seed changes the ids, not the tables."""
    if name not in BENCHMARKS:
        return of_model(
            parse(["--config_file", str(configs()[name]), "--num_batches", "1"]).model, sizes, seed
        )
    n_samples = max(4 * max(sizes), 1024)
    recorded = draw(name, [n_samples], SEED_TUNE, tables_frac=tables_frac)
    half = recorded.batches[0]
    if seed != SEED_TUNE:
        fresh = draw(name, [n_samples], SEED_TUNE + seed, tables_frac=tables_frac).batches[0]
        half = fresh  # the same lines of the same tables; widths stay those of the tuned ones
    return of_recorded(replace(recorded, batches=(half,)), sizes)


def best_single(problem: Problem, own: Backend, n_items: int) -> Groups:
    """The fastest schedule that serves all tables alike, measured now."""
    joined = problem.batches[n_items][0].item_major
    every = list(own.uniform(problem.layout.specs, (), joined=joined))
    calls = [contenders.planned(problem, own, groups, n_items) for groups in every]
    return every[int(np.argmin(typical(own.seconds(calls, 7))))]


def calls_of(
    problem: Problem, own: Backend, plan: Plan, n_items: int, *, compiled: bool
) -> dict[str, contenders.Call]:
    """Every contender, its sums checked; the gathers of the limit write something else."""
    rule = own.default_plan(problem.layout.specs, joined=problem.batches[n_items][0].item_major)
    turned = contenders.feature_major(problem, n_items)
    calls = {
        "tuned": contenders.bucket_of(problem, own, plan, n_items),
        "untuned": contenders.bucket_of(problem, own, rule, n_items),
        "best single": contenders.planned(
            problem, own, best_single(problem, own, n_items), n_items
        ),
        "per table": contenders.per_table(problem, turned),
    }
    try:
        calls["FBGEMM"] = contenders.fbgemm(problem, turned)
    except (ImportError, OSError) as error:
        sys.stderr.write(f"FBGEMM left out: {error}\n")
    if compiled:
        calls["torch.compile"] = contenders.per_table(problem, turned, compiled=True)
    expected = calls["per table"](0)
    for name, call in calls.items():
        if not torch.equal(call(0), expected):  # type: ignore[arg-type]
            raise AssertionError(f"batch {n_items}: {name} gives other sums")
    return calls | contenders.gathers(problem, own, turned)


def measure(calls: dict[str, contenders.Call], rounds: int) -> dict[str, list[float]]:
    """Milliseconds a call of each contender in each round.

    In turn, in another order in every round (whoever runs behind a large one finds the machine
    otherwise), each on the batches behind those of the one before it, so that nobody finds rows in
    the cache which another has just read.
    """
    names = [*calls]
    times = {name: list[float]() for name in calls}
    once_ms = {name: _timed(call, 2 * k, 2) for k, (name, call) in enumerate(calls.items())}
    turn = 2 * len(names)
    rng = np.random.default_rng(len(names))
    for _ in range(rounds):
        for k in rng.permutation(len(names)):
            name = names[k]
            n_calls = int(min(max(ROUND_S * 1e3 / once_ms[name], 2), MOST_CALLS))
            times[name].append(_timed(calls[name], turn, n_calls))
            turn += n_calls
    return times


def _timed(call: contenders.Call, first: int, n_calls: int) -> float:
    start = time.perf_counter()
    for i in range(first, first + n_calls):
        call(i)
    return (time.perf_counter() - start) / n_calls * 1e3


def rows_of(
    name: str, args: argparse.Namespace, on_fraction: OnFraction
) -> list[dict[str, object]]:
    """Tune one model, then measure it."""
    own = backend("cpu")
    sizes = (*TUNED, *ALSO)
    tuned_on = problem_of(name, TUNED, SEED_TUNE, args.tables_frac)
    joined = tuned_on.batches[TUNED[0]][0].item_major

    def tell(fraction: float, detail: str = "", /) -> None:
        on_fraction(0.6 * fraction, f"{name}: {detail}")

    plan = Search(tuned_on, own, args.budget_s, joined=joined, on_fraction=tell).run()
    plan.save(args.out / "plans" / f"{name}.json")
    del tuned_on
    gc.collect()
    problem = problem_of(name, sizes, SEED_MEASURE, args.tables_frac)
    rows: list[dict[str, object]] = []
    for place, n_items in enumerate(sizes):
        on_fraction(0.6 + 0.4 * place / len(sizes), f"{name}: batch {n_items}")
        compiled = args.compile or len(problem.layout.specs) <= COMPILED_TABLES
        calls = calls_of(problem, own, plan, n_items, compiled=compiled)
        for contender, times in measure(calls, args.rounds).items():
            rows += [
                {"model": name, "batch": n_items, "contender": contender, "round": k, "ms": ms}
                for k, ms in enumerate(times)
            ]
    return rows


def main(argv: Sequence[str]) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--tables_frac", type=float, default=0.5, help="of the tables of A to E")
    parser.add_argument("--budget_s", type=float, default=60.0, help="of tuning a model")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument(
        "--compile", action="store_true", help="torch.compile for hundreds of tables too: minutes"
    )
    parser.add_argument(
        "--quick", action="store_true", help="B with a twentieth of its tables and ncf, short"
    )
    parser.add_argument("--out", type=Path, default=HERE)
    args = parser.parse_args(argv)
    if args.quick:
        args.models = "B,ncf"
        args.tables_frac = 0.05
        args.budget_s = 6.0
        args.rounds = 3
    if unknown := {*args.models.split(",")} - {*MODELS}:
        parser.error(
            f"--models: {', '.join(sorted(unknown))} unknown; expected of {', '.join(MODELS)}"
        )
    torch.set_num_threads(1)
    keep_freed_memory()
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "speed.csv"
    names = args.models.split(",")
    kept = pd.read_csv(file, comment="#") if file.is_file() else pd.DataFrame(columns=["model"])
    with (
        Progress("auto") as progress,
        progress.step("embedding") as on_fraction,
        torch.inference_mode(),
    ):
        for k, name in enumerate(names):

            def tell(fraction: float, detail: str = "", /, at: int = k) -> None:
                on_fraction((at + fraction) / len(names), detail)

            fresh = pd.DataFrame(rows_of(name, args, tell))
            kept = pd.concat([kept[kept["model"] != name], fresh], ignore_index=True)
            with file.open("w") as out:
                out.write(
                    f"# {cpu_name()}, one thread; A to E with {args.tables_frac:g} of their "
                    "tables\n"
                )
                kept.to_csv(out, index=False, float_format="%.5g")
            gc.collect()
    table = plot.summary(kept)
    console().print(frame("Time over that of the tuned plan (median of paired rounds)", table))
    plot.draw(kept).savefig(args.out / "speed.png", dpi=110)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
