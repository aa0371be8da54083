"""Finds the fastest way to look up a model's tables on this machine and writes it as a plan.

python -m models.embedding.tuner --model rm1 --device cpu --out plan.json
--model: one of the eight models, or a folder of models.embedding.synthesis.
Other flags are DeepRecSys.py's.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from infra.progress import Progress
from infra.provenance import git_commit
from infra.results.report import show
from infra.settings.cli import parse, read_file
from infra.settings.config import ModelConfig
from models.embedding.backend import Backend, backend
from models.embedding.plan.plan import Plan, explain, from_json
from models.embedding.tuning.problem import Problem, of_model, of_recorded
from models.embedding.tuning.recorded import Recorded, read
from models.embedding.tuning.search import PlanSearch

VERSION = 8  # of the search: a new one forgets what is cached
CONFIGS = Path(__file__).resolve().parents[1] / "configs"
SIZES = "1,8,64,512"
_SHOWN = [  # columns of a SizeRow
    "batch",
    "ms",
    "single_over_tuned",
    "low",
    "high",
    "default_over_tuned",
    "schedules",
    "clusters",
]
Source = ModelConfig | Recorded


def configs() -> dict[str, Path]:
    """{model name: its file}."""
    return {
        str(read_file(str(file))["model_name"]): file for file in sorted(CONFIGS.glob("*.json"))
    }


def source_of(name: str, flags: Sequence[str]) -> Source:
    """A model's settings, or the tables and samples of a folder; raises ValueError."""
    files = configs()
    if name in files:
        words = ["--config_file", str(files[name]), "--num_batches", "1", *flags]
        return parse(words, "tuner").model
    if not Path(name).is_dir():
        raise ValueError(f"--model: {name!r} is neither a folder nor one of {', '.join(files)}")
    if flags:
        raise ValueError(f"unknown flags {' '.join(flags)}; a folder knows none of DeepRecSys.py's")
    return read(Path(name))


def problem_of(source: Source, sizes: Sequence[int], seed: int, device: str) -> Problem:
    """What is tuned, in memory."""
    if isinstance(source, Recorded):
        return of_recorded(source, sizes, device)
    return of_model(source, sizes, seed, device)


def cache_key(source: Source, facts: dict[str, Any], device: Backend) -> str:
    """What a plan depends on: device, versions, tables, ids, sizes, seed, budget of the error."""
    versions = device.versions()
    digest = hashlib.sha256(json.dumps([VERSION, versions, facts], sort_keys=True).encode())
    if isinstance(source, Recorded):
        digest.update(repr(source.specs).encode())
        for batch in source.batches:
            digest.update(batch.ids_L.tobytes() + batch.offsets.tobytes())
    else:
        digest.update(json.dumps(dataclasses.asdict(source), sort_keys=True).encode())
    return digest.hexdigest()[:16]


def tune(
    problem: Problem, device: Backend, budget_s: float, max_error: float, progress: Progress
) -> tuple[Plan, pd.DataFrame]:
    """The plan, and how far the candidates of each cluster lie apart."""
    joined = next(iter(problem.batches.values()))[0].item_major
    with progress.step("tuning") as on_fraction, torch.inference_mode():
        search = PlanSearch(problem, device, budget_s, max_error, joined, on_fraction)
        return search.run(), pd.DataFrame(search.spread)


def report(plan: Plan) -> None:
    """Print tables: gains by batch size, and the plan."""
    show(
        "Time beside a busy neighbour, and that of the best single schedule and of no plan over it",
        pd.DataFrame(plan.provenance["sizes"])[_SHOWN],
    )
    show("Plan", explain(plan).drop(columns="which"))
    for line in plan.provenance["refused"]:
        print(f"Refused: {line}")


def _arguments(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Ours, and the flags of DeepRecSys.py."""
    parser = argparse.ArgumentParser(
        prog="tuner", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--model", required=True)
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--batch", default=SIZES, help="batch sizes, comma-separated")
    add("--budget_s", type=float, default=240.0, help="seconds of searching")
    add(
        "--max_error",
        type=float,
        default=0.0,
        help="allowed error of narrow rows, over their table's largest weight",
    )
    add("--seed", type=int, default=1, help="of a model's ids")
    add("--out", type=Path, default=Path("plan.json"))
    add("--cache", type=Path, default=Path("results/embedding_plans"))
    add("--again", action="store_true", help="search even if the cache has a plan")
    return parser.parse_known_args(argv)


def _plan(args: argparse.Namespace, flags: Sequence[str]) -> Plan:
    """The plan that the cache has, or a new one; raises ValueError, OSError."""
    sizes = sorted({int(word) for word in args.batch.split(",")})
    if sizes[0] < 1 or args.budget_s <= 0 or args.max_error < 0:
        raise ValueError(
            "--batch needs sizes of at least 1, --budget_s more than 0, --max_error at least 0"
        )
    source = source_of(args.model, flags)
    if args.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device: PyTorch sees no CUDA device here")
    torch.set_num_threads(1)
    device = backend(args.device)
    facts = {
        "sizes": sizes,
        "seed": args.seed,
        "max_error": args.max_error,
        "device": args.device,
    }
    cached: Path = args.cache / f"{cache_key(source, facts, device)}.json"
    if cached.is_file() and not args.again:
        sys.stderr.write(f"from {cached}; --again searches anew\n")
        return from_json(cached.read_text())
    with Progress("auto") as progress:
        with progress.step(f"building {args.model}'s tables"):
            problem = problem_of(source, sizes, args.seed, args.device)
        plan, _ = tune(problem, device, args.budget_s, args.max_error, progress)
    origin = {
        "model": args.model,
        "date": time.strftime("%Y-%m-%d"),
        "commit": git_commit(),
        **device.versions(),
        **facts,
    }
    plan = dataclasses.replace(plan, provenance=origin | plan.provenance)
    plan.save(cached)
    return plan


def main(argv: Sequence[str]) -> int:
    """Command line; returns the exit code."""
    args, flags = _arguments(argv)
    try:
        plan = _plan(args, flags)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"tuner: {error}\n")
        return 2
    except KeyboardInterrupt:
        return 130
    plan.save(args.out)
    report(plan)
    sys.stderr.write(f"{args.out}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
