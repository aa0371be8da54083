#!/usr/bin/env python3
"""What a kernel with a branch for each schedule needs of an sm_90 GPU, by Triton's compiler alone:
no GPU is used.

python experiments/embedding/gpu_static.py [--models A,B] [--batches 1,512] [--warps 4] [--out FOLDER]

Every kind of table gets the first guess of the candidates (nothing is measured). gpu_static.csv: a
line a model, batch and number of warps; some 4 minutes. Needs Triton.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import pandas as pd
import torch

from experiments.embedding.gpu import MODELS, work_of
from experiments.embedding.triton_resources import Resources, resources
from models.embedding.gpu.backend import CudaBackend
from models.embedding.gpu.schedules import Branch, branches
from models.embedding.plan.plan import params
from models.embedding.tuning.clusters import clusters
from models.embedding.tuning.problem import Problem
from models.embedding.tuning.search import merged

HERE = Path(__file__).resolve().parent


def row_of(problem: Problem, batch: int, warps: int) -> dict[str, object]:
    """Of the kernel of all tables, and of the branch that needs the most registers alone."""
    own = CudaBackend()
    specs = problem.layout.specs
    knobs = params(launch="fused", warps=warps)
    kinds = clusters(problem.layout, problem.batches[batch])
    groups = merged([(own.candidates(kind, knobs, 0.0)[0], kind.tables) for kind in kinds])
    of_table = branches(specs, groups, warps)
    distinct = sorted({*of_table.values()})
    whole = needs(distinct)
    alone = [needs([branch]) for branch in distinct]
    return {
        "tables": len(specs),
        "kinds": len(kinds),
        "groups": len(groups),
        "branches": len(distinct),
        "programs": sum(branch.tiles(batch) for branch in of_table.values()),
        "registers": whole.registers,
        "registers_least": min(one.registers for one in alone),
        "registers_most": max(one.registers for one in alone),
        "stack_bytes": whole.stack_bytes,
        "threads_per_sm": whole.threads_per_sm(warps),
        "threads_per_sm_least": min(one.threads_per_sm(warps) for one in alone),
        "threads_per_sm_most": max(one.threads_per_sm(warps) for one in alone),
    }


def needs(own: Sequence[Branch]) -> Resources:
    """Of one kernel, of int32 ids and float32 rows."""
    return resources(own, warps=own[0].warps, indices="i32")


def main(argv: Sequence[str]) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--batches", default="1,512")
    parser.add_argument("--warps", type=int, choices=(1, 2, 4, 8), default=4)
    parser.add_argument(
        "--tables_frac", type=float, default=1.0, help="part of every kind's tables"
    )
    parser.add_argument("--out", type=Path, default=HERE)
    args = parser.parse_args(argv)
    if importlib.util.find_spec("triton") is None:
        print(
            "gpu_static.py: needs Triton (pip install -r build/bench_requirements.txt)",
            file=sys.stderr,
        )
        return 2
    rows = []
    for name in args.models.split(","):
        batches = [int(word) for word in args.batches.split(",")]
        problem, _ = work_of(name, batches, None, args.tables_frac, torch.device("cpu"))
        for batch in batches:
            sys.stderr.write(f"{name}, batch {batch}\n")
            rows.append(
                {
                    "model": name,
                    "batch": batch,
                    "warps": args.warps,
                    **row_of(problem, batch, args.warps),
                }
            )
            pd.DataFrame(rows).to_csv(args.out / "gpu_static.csv", index=False, float_format="%.3g")
    print(pd.DataFrame(rows).to_string(index=False))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
