#!/usr/bin/env python3
"""Trained rankers and ranking queries as files, for pipelines of them.

python experiments/recpipe/rankers.py --data movielens --out FOLDER [--queries N]

For each of the rankers small, medium and large <name>.json (a model's configuration, as --config_file takes it) and
<name>.npz (weights under the blob names of models/); queries.npz: ids int32 [queries, items, tables] (row within its
table), dense float32 [queries, items, features], labels uint8 [queries, items], n_items int32 [queries] (rows beyond
are padding); queries.json: where they come from. Rankers are trained once; the cache folder keeps them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from experiments.locality.hit_rates import movielens_folder
from experiments.recpipe import movielens
from experiments.recpipe.queries import RankedData
from infra.progress import Progress
from infra.provenance import provenance
from infra.report import console
from models.inputs.datasets import read_interactions

DATA = ("movielens",)
MOVIELENS_K = 10  # one item is sought


def load(args: argparse.Namespace) -> RankedData:
    """The data set that the command line names, its rankers trained; raises ValueError if it cannot be read."""
    return _movielens(args)


def _movielens(args: argparse.Namespace) -> RankedData:
    folder = args.movielens or movielens_folder()
    if folder is None:
        raise ValueError("no MovieLens here: --movielens FOLDER, or pip install --no-deps recbole")
    data = movielens.split(read_interactions(str(folder)))
    rankers = {}
    with Progress("auto") as progress:
        for config in movielens.RANKERS:
            own = movielens.quick(config) if args.quick else config
            with progress.step(f"training {own.name}") as on_fraction:
                rankers[own.name] = movielens.trained(own, data, args.cache, on_fraction)
    facts = {
        "what": "MovieLens, leave one out by time: a query is a user with all items not taken before the test, "
        "label 1 = the item taken last",
        "tables": ["user", "item", "user", "item"],
        "users": data.n_users, "items": data.n_items,
    }  # fmt: skip
    return RankedData("movielens", rankers, movielens.queries_of(data), MOVIELENS_K, facts)


def export(data: RankedData, folder: Path, n_queries: int) -> None:
    """Write the files; `n_queries` at most."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, ranker in data.rankers.items():
        ranker.save(folder, name)
    queries = data.queries.sample(n_queries)
    queries.save(folder / "queries.npz")
    facts = {
        "data": data.name, "rankers": [*data.rankers], "n_queries": len(queries), "k": data.k,
        "shape_QNT": list(queries.ids_QNT.shape), "n_dense": queries.dense_QNF.shape[2],
        "label_rate": float(sum(queries.labels(q).sum() for q in range(len(queries))) / queries.n_items_Q.sum()),
        **data.provenance, "provenance": provenance(1),
    }  # fmt: skip
    (folder / "queries.json").write_text(json.dumps(facts, indent=2) + "\n")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Which data set, from where, and where checkpoints are kept."""
    parser.add_argument("--data", choices=DATA, default="movielens")
    parser.add_argument("--movielens", type=Path, help="folder or file of MovieLens-style interactions")
    parser.add_argument("--cache", type=Path, default=Path("results/recpipe"), help="folder of checkpoints")
    parser.add_argument("--quick", action="store_true", help="little training")


def main(argv: Sequence[str]) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser)
    parser.add_argument("--queries", type=int, default=200, help="so many at most")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    if args.queries < 1:
        parser.error(f"--queries is {args.queries}; expected at least 1")
    try:
        data = load(args)
    except ValueError as error:
        parser.error(str(error))
    export(data, args.out, args.queries)
    n_bytes = sum(file.stat().st_size for file in args.out.iterdir())
    console().print(f"{', '.join(data.rankers)} and {min(args.queries, len(data.queries))} queries: {args.out}, "
                    f"{n_bytes / 1e6:.1f} MB")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
