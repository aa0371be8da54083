#!/usr/bin/env python3
"""Trained rankers and ranking queries as files, for pipelines of them.

python experiments/recpipe/datasets/rankers.py --data movielens|clicks|criteo --out FOLDER
    [--queries N] [--criteo FILE] [--movielens FOLDER] [--quick]

For each of the rankers small, medium and large <name>.json (a model's configuration, as
--config_file takes it) and <name>.npz (weights under the blob names of models/); queries.npz: ids
int32 [queries, items, tables] (row within its table), dense float32 [queries, items, features],
labels uint8 [queries, items], n_items int32 [queries] (rows beyond are padding); queries.json:
where they come from. Rankers are trained once; the cache folder keeps them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.common.study import Study, View, names, out_folder, progress
from experiments.recpipe.datasets import click_rankers, criteo, movielens
from experiments.recpipe.datasets.click_rankers import Examples
from experiments.recpipe.datasets.clicks import ClickConfig, Clicks
from experiments.recpipe.datasets.ranked import RankedData, TrainedRanker, sample, save_queries
from infra.progress import Progress
from infra.provenance import provenance
from infra.settings.fields import flag
from models.inputs.datasets import movielens_folder, read_criteo, read_interactions

DATA = ("movielens", "clicks", "criteo")
LIST_ITEMS = {"movielens": 10, "clicks": 64, "criteo": 64}  # one item is sought there, many here
CRITEO_POOL = 4096  # as the release
QUICK_CLICKS = ClickConfig(n_users=200, n_train=40_000, n_valid_queries=2, n_queries=12)
Rankers = dict[str, TrainedRanker]


@dataclass(frozen=True)
class CacheOptions:
    """The flag of what trains rankers."""

    cache: str = flag("results/recpipe", "folder of checkpoints")


@dataclass(frozen=True)
class SourceOptions(CacheOptions):
    """The flags of what works on any data set."""

    data: tuple[str, ...] = names(("clicks",), f"data sets: {', '.join(DATA)}", DATA)
    movielens: str = flag("", "folder or file of MovieLens-style interactions")
    criteo: str = flag("", "file of Criteo Kaggle's rows, label first, tabs between")
    criteo_rows: int = flag(2_000_000, "read so many at most", low=1)


@dataclass(frozen=True)
class ExportOptions(SourceOptions):
    """The flags of this command."""

    queries: int | None = flag(None, "so many at most (64; MovieLens 200)", low=1)


@dataclass(frozen=True)
class ExportCase:
    """So many queries of a data set, and its rankers."""

    data: str
    source: RankerSource
    n_queries: int


@dataclass(frozen=True)
class ExportRow:
    """A ranker that was written beside so many queries."""

    ranker: str
    item_flops: float
    queries: int


@dataclass(frozen=True)
class RankerSource:
    """All that a data set's queries and rankers follow from; quick: little data, little training.

    `changed_ns`: when the file or folder that is read was changed.
    """

    data: str
    quick: bool
    cache: str
    most_rows: int = 0
    file: str = ""
    changed_ns: int = 0


def sources(options: SourceOptions, *, quick: bool) -> list[RankerSource]:
    """The data sets that the flags name; raises ValueError if one is not there."""
    files = {
        "clicks": "",
        "movielens": options.movielens or str(movielens_folder() or ""),
        "criteo": options.criteo,
    }
    missing = {
        "movielens": "no MovieLens here: --movielens FOLDER, or pip install --no-deps recbole",
        "criteo": "--data criteo reads --criteo FILE, Criteo Kaggle's train.txt or its first rows",
    }
    for data in options.data:
        if data in missing and not files[data]:
            raise ValueError(missing[data])
    facts = (quick, options.cache, options.criteo_rows)
    return [
        RankerSource(data, *facts, files[data], _changed_ns(files[data])) for data in options.data
    ]


def _changed_ns(file: str) -> int:
    return Path(file).stat().st_mtime_ns if file else 0


def load(source: RankerSource, progress: Progress) -> RankedData:
    """The data set, its rankers trained; raises ValueError if it cannot be read."""
    if source.data == "clicks":
        return clicks(source, progress)[0]
    return (_movielens if source.data == "movielens" else _criteo)(source, progress)


def _movielens(source: RankerSource, progress: Progress) -> RankedData:
    data = movielens.split(read_interactions(source.file))
    configs = [replace(c, epochs=2) if source.quick else c for c in movielens.RANKERS]
    facts = {
        "what": "MovieLens, leave one out by time: a query is a user with all items not taken "
        "before the test, label 1 = the item taken last",
        "tables": ["user", "item", "user", "item"],
        "users": data.n_users,
        "items": data.n_items,
    }
    trained = _trained(configs, partial(movielens.trained, data=data), source, progress)
    return RankedData(
        "movielens", trained, movielens.queries_of(data), LIST_ITEMS["movielens"], facts
    )


def clicks(
    source: RankerSource, progress: Progress, sizes: Sequence[tuple[int, ...]] = ((),)
) -> list[RankedData]:
    """Queries of each size, with the same rankers; (candidates, queries), or () as configured."""
    world = Clicks(QUICK_CLICKS if source.quick else ClickConfig())
    trained = _dlrms(world.examples(), source, progress)
    facts = {
        "what": "synthetic clicks: a query is a later session of one user, its candidates drawn "
        "by popularity and none of them shown to that user in training, label 1 = clicked",
        "tables": world.config.table_names,
        "settings": asdict(world.config),
    }
    tests = [world.test(*size) for size in sizes]
    return [
        RankedData("clicks", trained, queries, LIST_ITEMS["clicks"], facts, odds)
        for queries, odds in tests
    ]


def _criteo(source: RankerSource, progress: Progress) -> RankedData:
    data = read_criteo(source.file, source.most_rows)
    examples, queries = criteo.split(data, len(data) // 50 if source.quick else CRITEO_POOL)
    facts = {
        "what": "Criteo's click logs: a pool is a run of unrelated impressions, not trained on, "
        "label 1 = clicked",
        "tables": [f"category {i}" for i in range(len(examples.table_rows))],
        "rows_read": len(data),
    }
    return RankedData(
        "criteo", _dlrms(examples, source, progress), queries, LIST_ITEMS["clicks"], facts
    )


def _dlrms(examples: Examples, source: RankerSource, progress: Progress) -> Rankers:
    train = partial(click_rankers.trained, data=examples)
    return _trained(click_rankers.RANKERS, train, source, progress)


def _trained(
    configs: Sequence[Any],
    train: Callable[..., TrainedRanker],
    source: RankerSource,
    progress: Progress,
) -> Rankers:
    rankers = {}
    for config in configs:
        with progress.step(f"training {config.name}") as on_fraction:
            folder = Path(source.cache)
            rankers[config.name] = train(config, folder=folder, on_fraction=on_fraction)
    return rankers


def export(data: RankedData, folder: Path, n_queries: int) -> None:
    """Write the files; `n_queries` at most."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, ranker in data.rankers.items():
        ranker.save(folder, name)
    queries = sample(data.queries, n_queries)
    save_queries(queries, folder / "queries.npz")
    n_labels = sum(queries.labels(q).sum() for q in range(len(queries)))
    facts = {
        "data": data.name,
        "rankers": [*data.rankers],
        "n_queries": len(queries),
        "k": data.k,
        "shape_QNT": list(queries.ids_QNT.shape),
        "n_dense": queries.dense_QNF.shape[2],
        "label_rate": float(n_labels / queries.n_items_Q.sum()),
        **data.provenance,
        "provenance": provenance(1),
    }
    (folder / "queries.json").write_text(json.dumps(facts, indent=2) + "\n")


def cases(quick: bool, options: ExportOptions) -> list[ExportCase]:
    """A case for the data set; raises ValueError where there are several."""
    if len(options.data) > 1:
        raise ValueError(f"--data is {','.join(options.data)}; the files are those of one data set")
    (source,) = sources(options, quick=quick)
    n_queries = options.queries or (200 if source.data == "movielens" else 64)
    return [ExportCase(source.data, source, n_queries)]


def run(case: ExportCase) -> dict[str, list[ExportRow]]:
    """What was written, by ranker."""
    data = load(case.source, progress())
    export(data, out_folder(), case.n_queries)
    n_queries = min(case.n_queries, len(data.queries))
    rankers = data.rankers.items()
    rows = [ExportRow(name, ranker.item_flops, n_queries) for name, ranker in rankers]
    return {"exported": rows}


STUDY = Study(
    "recpipe_rankers",
    "Which trained rankers and ranking queries are there, as files?",
    cases,
    run,
    efforts={"quick": True, "full": False},
    options=ExportOptions,
    report={"Files written": View(pd.DataFrame, "exported")},
)

if __name__ == "__main__":
    STUDY.main()
