#!/usr/bin/env python3
"""Trained rankers and ranking queries as files, for pipelines of them.

python experiments/recpipe/datasets/rankers.py --data movielens|clicks|criteo --out FOLDER [--queries N] [--criteo FILE]

For each of the rankers small, medium and large <name>.json (a model's configuration, as
--config_file takes it) and <name>.npz (weights under the blob names of models/); queries.npz: ids
int32 [queries, items, tables] (row within its table), dense float32 [queries, items, features],
labels uint8 [queries, items], n_items int32 [queries] (rows beyond are padding); queries.json:
where they come from. Rankers are trained once; the cache folder keeps them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])


from experiments.recpipe.datasets import click_rankers, criteo, movielens
from experiments.recpipe.datasets.click_rankers import Examples
from experiments.recpipe.datasets.clicks import ClickConfig, Clicks
from experiments.recpipe.datasets.ranked import RankedData, Ranker
from infra.progress import Progress
from infra.provenance import provenance
from infra.results.report import console
from models.inputs.datasets import movielens_folder, read_criteo, read_interactions

DATA = ("movielens", "clicks", "criteo")
MOVIELENS_K, CLICKS_K = 10, 64  # one item is sought; many are, and 64 is RecPipe's list
CRITEO_POOL = 4096  # as the release
QUICK_CLICKS = ClickConfig(n_users=200, n_train=40_000, n_valid_queries=2, n_queries=12)
Size = tuple[int, int] | None


def load(args: argparse.Namespace) -> RankedData:
    """The data set that the command line names, its rankers trained; raises ValueError if it cannot
    be read.
    """
    with Progress("auto") as progress:
        if args.data == "movielens":
            return _movielens(args, progress)
        return clicks(args, progress)[0] if args.data == "clicks" else _criteo(args, progress)


def _movielens(args: argparse.Namespace, progress: Progress) -> RankedData:
    folder = args.movielens or movielens_folder()
    if folder is None:
        raise ValueError("no MovieLens here: --movielens FOLDER, or pip install --no-deps recbole")
    data = movielens.split(read_interactions(str(folder)))
    rankers = {}
    for config in movielens.RANKERS:
        own = movielens.quick(config) if args.quick else config
        with progress.step(f"training {own.name}") as on_fraction:
            rankers[own.name] = movielens.trained(own, data, args.cache, on_fraction)
    facts = {
        "what": "MovieLens, leave one out by time: a query is a user with all items not taken "
        "before the test, label 1 = the item taken last",
        "tables": ["user", "item", "user", "item"],
        "users": data.n_users,
        "items": data.n_items,
    }
    return RankedData("movielens", rankers, movielens.queries_of(data), MOVIELENS_K, facts)


def clicks(
    args: argparse.Namespace, progress: Progress, sizes: Sequence[Size] = (None,)
) -> list[RankedData]:
    """Queries of each size, with the same rankers: (candidates, queries), None as configured."""
    world = Clicks(QUICK_CLICKS if args.quick else ClickConfig())
    rankers = _dlrms(world.examples(), args, progress)
    facts = {
        "what": "synthetic clicks: a query is a later session of one user, its candidates drawn "
        "by popularity and none of them shown to that user in training, label 1 = clicked",
        "tables": world.config.table_names,
        "settings": asdict(world.config),
    }
    return [
        RankedData("clicks", rankers, queries, CLICKS_K, facts, known)
        for queries, known in (world.test(*size) if size else world.test() for size in sizes)
    ]


def _criteo(args: argparse.Namespace, progress: Progress) -> RankedData:
    if args.criteo is None:
        raise ValueError(
            "--data criteo reads --criteo FILE, Criteo Kaggle's train.txt or its first rows"
        )
    data = read_criteo(str(args.criteo), args.criteo_rows)
    examples, queries = criteo.split(data, len(data) // 50 if args.quick else CRITEO_POOL)
    facts = {
        "what": "Criteo's click logs: a pool is a run of unrelated impressions, not trained on, "
        "label 1 = clicked",
        "tables": [f"category {i}" for i in range(len(examples.table_rows))],
        "rows_read": len(data),
    }
    return RankedData("criteo", _dlrms(examples, args, progress), queries, CLICKS_K, facts)


def _dlrms(examples: Examples, args: argparse.Namespace, progress: Progress) -> dict[str, Ranker]:
    found = {}
    for config in click_rankers.RANKERS:
        with progress.step(f"training {config.name}") as on_fraction:
            found[config.name] = click_rankers.trained(config, examples, args.cache, on_fraction)
    return found


def export(data: RankedData, folder: Path, n_queries: int) -> None:
    """Write the files; `n_queries` at most."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, ranker in data.rankers.items():
        ranker.save(folder, name)
    queries = data.queries.sample(n_queries)
    queries.save(folder / "queries.npz")
    facts = {
        "data": data.name,
        "rankers": [*data.rankers],
        "n_queries": len(queries),
        "k": data.k,
        "shape_QNT": list(queries.ids_QNT.shape),
        "n_dense": queries.dense_QNF.shape[2],
        "label_rate": float(
            sum(queries.labels(q).sum() for q in range(len(queries))) / queries.n_items_Q.sum()
        ),
        **data.provenance,
        "provenance": provenance(1),
    }
    (folder / "queries.json").write_text(json.dumps(facts, indent=2) + "\n")


def add_cache_flags(parser: argparse.ArgumentParser) -> None:
    """Where checkpoints are kept, and whether it must be quick."""
    parser.add_argument(
        "--cache", type=Path, default=Path("results/recpipe"), help="folder of checkpoints"
    )
    parser.add_argument("--quick", action="store_true", help="little data, little training")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Which data set and from where."""
    parser.add_argument("--data", choices=DATA, default="clicks")
    parser.add_argument(
        "--movielens", type=Path, help="folder or file of MovieLens-style interactions"
    )
    parser.add_argument(
        "--criteo", type=Path, help="file of Criteo Kaggle's rows, label first, tabs between"
    )
    parser.add_argument("--criteo_rows", type=int, default=2_000_000, help="read so many at most")
    add_cache_flags(parser)


def check_positive(parser: argparse.ArgumentParser, args: argparse.Namespace, *names: str) -> None:
    """End with one line and exit code 2 if a flag is not above 0."""
    for name in names:
        if getattr(args, name) <= 0:
            parser.error(f"--{name} is {getattr(args, name):g}; expected more than 0")


def main(argv: Sequence[str]) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_flags(parser)
    parser.add_argument("--queries", type=int, help="so many at most (64; MovieLens 200)")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    if args.queries is None:
        args.queries = 200 if args.data == "movielens" else 64
    if args.queries < 1:
        parser.error(f"--queries is {args.queries}; expected at least 1")
    try:
        data = load(args)
    except ValueError as error:
        parser.error(str(error))
    export(data, args.out, args.queries)
    n_bytes = sum(file.stat().st_size for file in args.out.iterdir())
    console().print(
        f"{', '.join(data.rankers)} and {min(args.queries, len(data.queries))} queries: "
        f"{args.out}, {n_bytes / 1e6:.1f} MB"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
