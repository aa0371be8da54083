#!/usr/bin/env python3
"""Co-design of pipelines: rankers x items kept x mapping x engines x sub-arrays, in virtual time,
under an SLA and a quality floor.

python experiments/recpipe/search.py [--data clicks|movielens] [--sla_ms 25] [--rate_qps 200] [--floor 0.99] [--quick]

Every design's quality (NDCG, the lists of its own filters), p95 at the rate, highest rate under the
SLA and power. search_<data>.parquet: all designs; pareto_<data>.csv: those that no other beats in
all four; search_<data>.png. What is done is kept in search_<data>.jsonl: started again with the
same settings, the search goes on. At the end the best pipeline on CPU cores is foretold for the
engines of this machine and run on them; confirmed_<data>.csv.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import itertools
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure

from accelerator.rpaccel import sub_array_splits
from experiments.recpipe.chip import Misses
from experiments.recpipe.datasets import rankers
from experiments.recpipe.quality import Chain, Scored
from experiments.recpipe.real import confirm
from experiments.recpipe.world import ARRAYS, GPU, KIND_SHADES, Design, World, cpu_profiles, pareto
from infra.messages import CPU
from infra.progress import Progress
from infra.results.figures import plain_log, style
from infra.results.report import console, frame

HERE = Path(__file__).resolve().parent
ORDER = ("small", "medium", "large")
KEPT = {
    "movielens": (20, 50, 100, 200, 400, 800),
    "clicks": (128, 192, 256, 384, 512, 768, 1024, 2048),
}
KEPT["criteo"] = KEPT["clicks"]
QUICK = {name: kept[1::3] for name, kept in KEPT.items()}
BATCHES = (64, 256, 1024)
OBJECTIVES = ("ndcg", "p95_ms", "max_qps", "watts")


def chains(kept: Sequence[int], k: int) -> Iterator[Chain]:
    """One to three stages, each with a larger ranker than the one before."""
    for n_stages in range(1, len(ORDER) + 1):
        for names in itertools.combinations(ORDER, n_stages):
            for keeps in itertools.combinations(sorted(kept, reverse=True), n_stages - 1):
                yield Chain(names, (*keeps, k))


def designs(kept: Sequence[int], k: int, n_cores: int) -> Iterator[Design]:
    """Every chain on every mapping: shared cores, cores of a stage's own, a GPU in front, behind or
    alone, RPAccel.
    """
    for chain in chains(kept, k):
        n = len(chain.rankers)
        for batch in BATCHES:
            yield Design(chain, (CPU,) * n, batch)
            for cores in _core_splits(n, n_cores):
                yield Design(chain, (CPU,) * n, batch, cores)
            for split in range(1, n):
                yield Design(chain, (GPU,) * split + (CPU,) * (n - split), batch)
                yield Design(chain, (CPU,) * split + (GPU,) * (n - split), batch)
        yield Design(chain, (GPU,) * n)
        for arrays in sub_array_splits(n):
            yield Design(chain, (ARRAYS,) * n, sub_arrays=arrays)


def _core_splits(n_stages: int, n_cores: int) -> list[tuple[int, ...]]:
    """Quarters of the cores to each stage."""
    if n_stages == 1:
        return []
    quarters = [
        split for split in itertools.product(range(1, 4), repeat=n_stages) if sum(split) == 4
    ]
    return [tuple(q * n_cores // 4 for q in split) for split in quarters]


def evaluate(world: World, design: Design, sla_ms: float, rate_qps: float) -> dict[str, Any]:
    """A row of the result."""
    quality = world.quality(design.chain)
    shown = world.run(design, rate_qps)
    max_qps = world.max_qps(design, sla_ms)
    watts = world.watts(design)
    return {
        "key": design.key(),
        "chain": design.chain.label,
        "stages": len(design.devices),
        "mapping": design.mapping,
        "kind": design.kind,
        "batch_items": design.batch_items if CPU in design.devices else 0,
        "ndcg": quality.value,
        "ndcg_low": quality.low,
        "ndcg_high": quality.high,
        "p95_ms": shown.p95_ms,
        "carried": shown.carried,
        "max_qps": max_qps,
        "watts": watts,
        "qps_per_watt": max_qps / watts,
    }


def search(
    world: World, todo: Sequence[Design], args: argparse.Namespace, file: Path, progress: Progress
) -> pd.DataFrame:
    """Rows of all designs; what the file has of the same settings is not computed again."""
    data = world.scored.data
    settings = {
        "data": args.data,
        "rankers": {name: _digest(own.weights.values()) for name, own in data.rankers.items()},
        "queries": _digest([data.queries.ids_QNT, data.queries.dense_QNF, data.queries.labels_QN]),
        "sla_ms": args.sla_ms,
        "rate_qps": args.rate_qps,
        "cores": world.n_cores,
        "profiles": {name: dict(p.provenance) for name, p in world.cpu.items()},
    }
    known = _done_before(file, settings)
    whole = file.with_suffix(".new")  # a kill while it is written loses nothing
    whole.write_text("".join(json.dumps(line) + "\n" for line in (settings, *known.values())))
    whole.rename(file)
    with progress.step(f"{len(todo)} designs") as on_fraction:
        for i, design in enumerate(todo):
            if design.key() not in known:
                known[design.key()] = evaluate(world, design, args.sla_ms, args.rate_qps)
                with file.open("a") as out:
                    out.write(json.dumps(known[design.key()]) + "\n")
            on_fraction((i + 1) / len(todo), design.chain.label)
    return pd.DataFrame([known[design.key()] for design in todo])


def _digest(arrays: Iterable[npt.NDArray[Any]]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def _done_before(file: Path, settings: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """{design: row} that a search under the same settings left; the line at which it was killed
    does not count.
    """
    lines: list[dict[str, Any]] = []
    for text in file.read_text().splitlines() if file.is_file() else []:
        with contextlib.suppress(json.JSONDecodeError):
            lines.append(json.loads(text))
    return {line["key"]: line for line in lines[1:]} if lines and lines[0] == settings else {}


def front(rows: pd.DataFrame) -> pd.DataFrame:
    """Designs that carry the rate and that no other beats in quality, p95, highest rate and power."""
    own = rows[rows["carried"] & (rows["max_qps"] > 0)]
    kept = pareto(
        list(zip(own["ndcg"], -own["p95_ms"], own["max_qps"], -own["watts"], strict=True))
    )
    return own.iloc[kept].sort_values(["kind", "ndcg"])


def best_by_kind(rows: pd.DataFrame, floor: float) -> pd.DataFrame:
    """Of each kind and number of stages the design of the highest rate among those of enough
    quality.
    """
    enough = rows[rows["ndcg"] >= floor]
    best = (
        enough.sort_values("max_qps", ascending=False)
        .groupby(["kind", "stages"], as_index=False)
        .first()
    )
    columns = [
        "kind",
        "stages",
        "chain",
        "mapping",
        "batch_items",
        "ndcg",
        "p95_ms",
        "max_qps",
        "watts",
        "qps_per_watt",
    ]
    return best[columns]


def draw(rows: pd.DataFrame, floor: float, sla_ms: float, rate_qps: float) -> Figure:
    """Left: quality against p95 at the rate; right: quality against the highest rate.

    Fronts by kind, the floor.
    """
    figure = Figure(figsize=(12, 4.8), layout="constrained")
    tails, rates = figure.subplots(1, 2, sharey=True)
    for kind, own in rows.groupby("kind", sort=False):
        shade = KIND_SHADES[str(kind)]
        for axes, column, sign in ((tails, "p95_ms", -1.0), (rates, "max_qps", 1.0)):
            shown = own[own["carried"]] if column == "p95_ms" else own[own["max_qps"] > 0]
            axes.plot(shown[column], shown["ndcg"], ".", color=shade, alpha=0.25, markersize=3)
            if not len(shown):
                continue
            kept = shown.iloc[
                pareto(list(zip(shown["ndcg"], sign * shown[column], strict=True)))
            ].sort_values(column)
            axes.plot(
                kept[column],
                kept["ndcg"],
                "o-",
                color=shade,
                markersize=4,
                linewidth=1,
                label=str(kind),
            )
    for axes in (tails, rates):
        axes.axhline(floor, color="#c1121f", linestyle="--", linewidth=1)
        plain_log(axes, "x")
    style(
        tails,
        f"p95 at {rate_qps:g} QPS (ms)",
        "NDCG",
        "Quality against tail latency; lines: not beaten",
    )
    style(
        rates,
        f"highest rate with p95 <= {sla_ms:g} ms (QPS)",
        "",
        "Quality against rate; dashed: the floor",
    )
    rates.legend(frameon=False, fontsize=8)
    return figure


def main(argv: Sequence[str]) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    rankers.add_flags(parser)
    parser.add_argument("--sla_ms", type=float, default=25.0)
    parser.add_argument("--rate_qps", type=float, default=200.0, help="at which p95 is compared")
    parser.add_argument(
        "--floor", type=float, default=0.99, help="share of the large ranker's NDCG that is enough"
    )
    parser.add_argument(
        "--cores", type=int, default=32, help="of the server in virtual time; RecPipe's has 32"
    )
    parser.add_argument(
        "--confirm", type=int, default=2, help="engines on this machine to confirm with; 0: none"
    )
    parser.add_argument("--out", type=Path, default=HERE)
    args = parser.parse_args(argv)
    rankers.check_positive(parser, args, "sla_ms", "rate_qps", "floor")
    if args.cores < 4:
        parser.error(f"--cores is {args.cores}; expected at least 4, a quarter for each stage")
    args.out.mkdir(parents=True, exist_ok=True)
    out = console()
    try:
        scored = Scored.of(rankers.load(args))
        with Progress("auto") as progress:
            misses = None if args.data == "movielens" else Misses((scored,))  # queries of one size
            profiles = cpu_profiles(scored, args.out / "profiles", progress)
            world = World(scored, profiles, args.cores, misses=misses)
            kept = [n for n in (QUICK if args.quick else KEPT)[args.data] if n < world.sizes.max()]
            todo = list(designs(kept, scored.data.k, args.cores))
            rows = search(world, todo, args, args.out / f"search_{args.data}.jsonl", progress)
            floor = args.floor * world.quality(Chain(("large",), (scored.data.k,))).value
            best = best_by_kind(rows, floor)
            rows.drop(columns="key").to_parquet(
                args.out / f"search_{args.data}.parquet", index=False
            )
            front(rows).drop(columns="key").to_csv(
                args.out / f"pareto_{args.data}.csv", index=False, float_format="%.5g"
            )
            draw(rows, floor, args.sla_ms, args.rate_qps).savefig(
                args.out / f"search_{args.data}.png", dpi=110
            )
            out.print(
                frame(
                    f"Highest rate under p95 <= {args.sla_ms:g} ms with NDCG >= {floor:.4f}", best
                )
            )
            if args.confirm:
                chosen = rows[
                    (rows["kind"] == "CPU")
                    & (rows["ndcg"] >= floor)
                    & ~rows["mapping"].str.contains(r"\d")
                ]
                if not chosen["max_qps"].gt(0).any():
                    raise ValueError(
                        f"no pipeline on cores has p95 <= {args.sla_ms:g} ms and NDCG >= "
                        f"{floor:.4f}"
                    )
                winner = chosen.loc[chosen["max_qps"].idxmax()]
                design = next(own for own in todo if own.key() == winner["key"])
                table = confirm(world, design, args.confirm, args.sla_ms, progress)
                table.to_csv(
                    args.out / f"confirmed_{args.data}.csv", index=False, float_format="%.5g"
                )
                out.print(
                    frame(
                        f"The best on shared cores, foretold and run on {args.confirm} engines "
                        "here",
                        table,
                    )
                )
    except ValueError as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
