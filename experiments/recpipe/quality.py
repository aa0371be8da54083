#!/usr/bin/env python3
"""How much quality does a pipeline of rankers keep, for how much computing?

Trained rankers, MovieLens and clicks.

python experiments/recpipe/quality.py [--data clicks|movielens|criteo] [--cache FOLDER] [--quick] [--out FOLDER]

Every ranker is trained once with a fixed seed (checkpoints in the cache folder). ranked_<data>.csv:
quality of each ranker by the number of items ranked (RecPipe's figure 3, its points beside ours);
chain_quality_<data>.csv: quality and FLOPs of one, two and three stages, each paired with the large
ranker alone; quality_<data>.png. Some 2 to 3 minutes a data set the first time, then seconds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from experiments.recpipe.datasets import rankers
from experiments.recpipe.datasets.ranked import RankedData, chain, scores
from infra.ranking import (
    hit_rate_at_k,
    mean_with_interval,
    ndcg_at_k,
    ndcg_released,
    paired,
    reciprocal_rank,
)
from infra.results.figures import plain_log, style
from infra.results.report import console, frame
from infra.rng import stream

HERE = Path(__file__).resolve().parent
POOLS = (0.0625, 0.125, 0.25, 0.5, 1.0)  # of a query's candidates
KEPT = {
    "movielens": (20, 50, 100, 200, 400),
    "clicks": (128, 256, 512, 1024, 2048),
    "criteo": (128, 256, 512, 1024, 2048),
}
MEASURES = ("ndcg", "ndcg_released", "hit_rate", "mrr")
SHADES = {"small": "#2a9d8f", "medium": "#edae49", "large": "#d1495b"}
KNOWN = "knows the probabilities"
PUBLISHED = {"dim_4_0": "small", "dim_16": "medium", "dim_32_0": "large"}
FloatArray = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Chain:
    """Rankers one after the other, and how many items each hands on."""

    rankers: tuple[str, ...]
    keeps: tuple[int, ...]

    @property
    def label(self) -> str:
        """For instance small 100 > large."""
        middle = [
            f"{name} {keep}" for name, keep in zip(self.rankers[:-1], self.keeps, strict=False)
        ]
        return " > ".join([*middle, self.rankers[-1]])

    def flops(self, n_items: float, of_item: dict[str, float]) -> float:
        """Of a query of so many candidates."""
        ranked = (n_items, *self.keeps[:-1])
        return sum(
            of_item[name] * min(n, n_items) for name, n in zip(self.rankers, ranked, strict=True)
        )


@dataclass(frozen=True, eq=False)
class Scored:
    """A data set whose rankers have scored every candidate; `scores` (queries, items) by ranker."""

    data: RankedData
    scores: dict[str, npt.NDArray[np.float32]]

    @classmethod
    def of(cls, data: RankedData) -> Scored:
        """Scores every candidate with every ranker."""
        return cls(
            data,
            {name: scores(ranker.model(), data.queries) for name, ranker in data.rankers.items()},
        )

    @property
    def n_items(self) -> float:
        """Candidates of a query, on average."""
        return float(self.data.queries.n_items_Q.mean())

    @classmethod
    def known(cls, data: RankedData) -> Scored | None:
        """A ranker that knows the probabilities of the labels, where they were drawn."""
        return None if data.known_QN is None else cls(data, {KNOWN: data.known_QN})

    def parts(self, share: float) -> list[Int64Array]:
        """A random part of each query's candidates; a larger share holds the smaller ones."""
        rng = stream(11, "pools")
        orders = [rng.permutation(int(n)) for n in self.data.queries.n_items_Q]
        return [order[: max(round(share * len(order)), 1)] for order in orders]


def chains(kept: Sequence[int], k: int) -> Iterator[Chain]:
    """One, two and three stages, each stage with a larger ranker than the one before; lists of k."""
    for name in SHADES:
        yield Chain((name,), (k,))
    for pair in (("small", "medium"), ("small", "large"), ("medium", "large")):
        for keep in kept:
            yield Chain(pair, (keep, k))
    for first in kept[2:]:
        for second in kept[:3]:
            if second < first:
                yield Chain(("small", "medium", "large"), (first, second, k))


def quality(
    own: Chain, scored: Scored, pools: Sequence[Int64Array], n_parts: int = 1
) -> dict[str, FloatArray]:
    """Each measure for every query; the ideal list is the best of all its candidates, whether the
    pool had them or not. `ndcg_released` is a discounted precision (infra.ranking); `n_parts`: in
    which the filters work.
    """
    by_stage = [scored.scores[name] for name in own.rankers]
    k = own.keeps[-1]
    queries = scored.data.queries
    every = [queries.labels(query) for query in range(len(queries))]
    lists = [
        labels[chain(by_stage, query, pools[query], own.keeps, n_parts)]
        for query, labels in enumerate(every)
    ]
    return {
        "ndcg": np.array(
            [ndcg_at_k(hits, labels, k) for hits, labels in zip(lists, every, strict=True)]
        ),
        "ndcg_released": np.array([ndcg_released(hits, k) for hits in lists]),
        "hit_rate": np.array([hit_rate_at_k(hits, k) for hits in lists]),
        "mrr": np.array([reciprocal_rank(hits) for hits in lists]),
    }


@cache
def quality_of(own: Chain, scored: Scored, n_parts: int = 1) -> dict[str, FloatArray]:
    """Of a chain on all candidates, query by query; computed once."""
    return quality(own, scored, [np.arange(n) for n in scored.data.queries.n_items_Q], n_parts)


def means(by_query: dict[str, FloatArray]) -> dict[str, float]:
    """Mean and 95 % interval over queries of each measure."""
    line: dict[str, float] = {}
    for name in MEASURES:
        mean = mean_with_interval(by_query[name])
        line |= {name: mean.value, f"{name}_low": mean.low, f"{name}_high": mean.high}
    return line


def by_items_ranked(scored: Scored) -> pd.DataFrame:
    """Quality of each ranker alone on a random part of each query's candidates."""
    lines = []
    for share in POOLS:
        pools = scored.parts(share)
        n_items = float(np.mean([len(pool) for pool in pools]))
        lines += [
            {
                "data": scored.data.name,
                "ranker": name,
                "items_ranked": n_items,
                **means(quality(Chain((name,), (scored.data.k,)), scored, pools)),
            }
            for name in scored.scores
        ]
    return pd.DataFrame(lines)


def by_chain(scored: Scored) -> pd.DataFrame:
    """Quality, FLOPs and the paired difference to the large ranker alone for every chain on all
    candidates.
    """
    data = scored.data
    of_item = {name: ranker.item_flops for name, ranker in data.rankers.items()}
    reference = quality_of(Chain(("large",), (data.k,)), scored)
    lines = []
    for own in chains(KEPT[data.name], data.k):
        by_query = quality_of(own, scored)
        against = paired(by_query["ndcg"], reference["ndcg"])
        lines.append(
            {
                "data": data.name,
                "chain": own.label,
                "stages": len(own.rankers),
                "rankers": "+".join(own.rankers),
                "keeps": "+".join(map(str, own.keeps)),
                "n_items": scored.n_items,
                "n_queries": len(data.queries),
                "k": data.k,
                "mflops": own.flops(scored.n_items, of_item) / 1e6,
                **means(by_query),
                "less_than_large": against.difference.value,
                "less_low": against.difference.low,
                "less_high": against.difference.high,
                "p_value": against.p_value,
            }
        )
    return pd.DataFrame(lines)


def pareto(rows: pd.DataFrame) -> pd.DataFrame:
    """Chains that no other one beats in both quality and FLOPs."""
    ordered = rows.sort_values(["mflops", "ndcg"], ascending=[True, False])
    return ordered[ordered["ndcg"] > ordered["ndcg"].cummax().shift(fill_value=-1.0)]


def _published(axes: Axes) -> None:
    """Figure 3 of the release: other data, and its own measure (infra.ranking.ndcg_released)."""
    rows = pd.read_csv(HERE / "published_pipelines.csv", comment="#", dtype={"figure": str})
    for model, own in rows[(rows["figure"] == "3") & (rows["stages"] == 1)].groupby("models"):
        axes.plot(
            own["items"].astype(int),
            own["dcg64"],
            "s:",
            color=SHADES[PUBLISHED[str(model)]],
            markersize=4,
            linewidth=0.6,
        )


def draw(ranked: pd.DataFrame, rows: pd.DataFrame) -> Figure:
    """Left: quality by items ranked; right: quality by FLOPs, chains by their number of stages."""
    figure = Figure(figsize=(11.5, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    measure = f"NDCG@{rows['k'].iloc[0]}, mean over queries"
    for name, own in ranked.groupby("ranker", sort=False):
        shade = SHADES.get(str(name), "#888888")
        left.plot(
            own["items_ranked"], own["ndcg"], "o-", color=shade, markersize=4, label=str(name)
        )
        left.fill_between(
            own["items_ranked"], own["ndcg_low"], own["ndcg_high"], color=shade, alpha=0.12
        )
    title = "One ranker, a random part of the candidates"
    if (rows["k"] == 64).all():
        _published(left)
        title += "\nsquares: published on Criteo, its ideal 64 clicks"
    plain_log(left, "x")
    ticks = ranked["items_ranked"].drop_duplicates()
    left.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks], minor=False)
    left.set_xticks([], minor=True)
    style(left, "items ranked per query", measure, title)
    left.legend(frameon=False, fontsize=8)
    for n_stages, own in rows.groupby("stages"):
        right.errorbar(
            own["mflops"],
            own["ndcg"],
            [own["ndcg"] - own["ndcg_low"], own["ndcg_high"] - own["ndcg"]],
            fmt="o^s"[int(n_stages) - 1],
            markersize=5,
            elinewidth=0.5,
            label=f"{n_stages} stage{'s' * (n_stages > 1)}",
        )
    front = pareto(rows)
    right.plot(front["mflops"], front["ndcg"], "k--", linewidth=0.8, label="not beaten")
    for _, line in rows[rows["stages"] == 1].iterrows():
        right.annotate(
            line["chain"],
            (line["mflops"], line["ndcg"]),
            xytext=(4, 5),
            textcoords="offset points",
            fontsize=8,
        )
    plain_log(right, "x")
    right.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    style(right, "MFLOPs per query", measure, "All candidates ranked by the first stage")
    right.legend(frameon=False, fontsize=8)
    return figure


def main(argv: Sequence[str]) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    rankers.add_flags(parser)
    parser.add_argument("--out", type=Path, default=HERE)
    args = parser.parse_args(argv)
    try:
        scored = Scored.of(rankers.load(args))
    except ValueError as error:
        parser.error(str(error))
    args.out.mkdir(parents=True, exist_ok=True)
    ranked = by_items_ranked(scored)
    rows = by_chain(scored)
    if known := Scored.known(scored.data):
        ranked = pd.concat((ranked, by_items_ranked(known)))
    ranked.to_csv(args.out / f"ranked_{args.data}.csv", index=False, float_format="%.5g")
    rows.to_csv(args.out / f"chain_quality_{args.data}.csv", index=False, float_format="%.5g")
    draw(ranked, rows).savefig(args.out / f"quality_{args.data}.png", dpi=110)
    out = console()
    shown = ["ranker", "items_ranked", *MEASURES]
    out.print(frame(f"{len(scored.data.queries)} queries: quality by items ranked", ranked[shown]))
    shown = ["chain", "mflops", *MEASURES, "less_than_large", "less_low", "less_high", "p_value"]
    out.print(frame("Chains that no other one beats in quality and FLOPs", pareto(rows)[shown]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
