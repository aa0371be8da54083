"""Chains of rankers: how many items each hands on, the quality of their lists, their cost."""

# Q queries, N candidates

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
import pandas as pd

from experiments.recpipe.datasets.ranked import RankedData, answer, scores
from infra.ranking import (
    hit_rate_at_k,
    mean_with_interval,
    ndcg_at_k,
    ndcg_released,
    reciprocal_rank,
)
from infra.rng import stream

SIZES = ("small", "medium", "large")
KEPT = {
    "movielens": (20, 50, 100, 200, 400),
    "clicks": (128, 256, 512, 1024, 2048),
    "criteo": (128, 256, 512, 1024, 2048),
}
MEASURES = ("ndcg", "ndcg_released", "hit_rate", "mrr")
ORACLE = "knows the probabilities"
FloatArray = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Chain:
    """Rankers one after the other, and how many items each hands on."""

    rankers: tuple[str, ...]
    keeps: tuple[int, ...]

    @classmethod
    def of(cls, label: str, k: int) -> Chain:
        """The chain of this label that answers lists of k."""
        words = [part.split() for part in label.split(" > ")]
        filters = (int(keep) for _, keep in words[:-1])
        return cls(tuple(name for name, *_ in words), (*filters, k))

    @property
    def label(self) -> str:
        """A name, for instance small 100 > large."""
        filters = zip(self.rankers[:-1], self.keeps, strict=False)
        return " > ".join([*(f"{name} {keep}" for name, keep in filters), self.rankers[-1]])

    def flops(self, n_items: float, of_item: dict[str, float]) -> float:
        """FLOPs of a query of so many candidates."""
        ranked = (n_items, *self.keeps[:-1])
        return sum(
            of_item[name] * min(n, n_items) for name, n in zip(self.rankers, ranked, strict=True)
        )


@dataclass(frozen=True, eq=False)
class Scored:
    """A data set whose rankers have scored every candidate; `scores` (Q, N) by ranker."""

    data: RankedData
    scores: dict[str, npt.NDArray[np.float32]]

    @classmethod
    def of(cls, data: RankedData) -> Scored:
        """The data with the scores of its rankers."""
        rankers = data.rankers.items()
        return cls(data, {name: scores(ranker.model(), data.queries) for name, ranker in rankers})

    @property
    def n_items(self) -> float:
        """Candidates of a query, on average."""
        return float(self.data.queries.n_items_Q.mean())

    @property
    def large(self) -> Chain:
        """The large ranker alone, which all chains are compared with."""
        return Chain(("large",), (self.data.k,))

    def parts(self, share: float) -> list[Int64Array]:
        """A random part of each query's candidates; a larger share holds the smaller ones."""
        rng = stream(11, "pools")
        orders = [rng.permutation(int(n)) for n in self.data.queries.n_items_Q]
        return [order[: max(round(share * len(order)), 1)] for order in orders]


@dataclass(frozen=True)
class Ndcg:
    """Columns of a row: mean over the queries with its 95 % interval."""

    ndcg: float
    ndcg_low: float
    ndcg_high: float

    @classmethod
    def of(cls, by_query: Mapping[str, FloatArray]) -> Ndcg:
        """The mean of what a chain shows query by query."""
        return cls(*astuple(mean_with_interval(by_query["ndcg"])))


def chains(kept: Sequence[int], k: int) -> Iterator[Chain]:
    """The chains of the studies: one to three stages, each larger than the last one; lists of k."""
    for name in SIZES:
        yield Chain((name,), (k,))
    for pair in itertools.combinations(SIZES, 2):
        for keep in kept:
            yield Chain(pair, (keep, k))
    for first, second in itertools.product(kept[2:], kept[:3]):
        if second < first:
            yield Chain(SIZES, (first, second, k))


def all_chains(kept: Sequence[int], k: int) -> Iterator[Chain]:
    """All chains of one to three stages, each with a larger ranker than the one before."""
    for n_stages in range(1, len(SIZES) + 1):
        for names in itertools.combinations(SIZES, n_stages):
            for keeps in itertools.combinations(sorted(kept, reverse=True), n_stages - 1):
                yield Chain(names, (*keeps, k))


def quality(
    chain: Chain, scored: Scored, pools: Sequence[Int64Array], n_parts: int = 1
) -> dict[str, FloatArray]:
    """Each measure for every query, of the lists that the chain answers from the pools.

    The ideal list is the best of all the query's candidates, whether the pool had them or not.
    `ndcg_released` is a discounted precision (infra.ranking); filters work in `n_parts`.
    """
    by_stage = [scored.scores[name] for name in chain.rankers]
    k = chain.keeps[-1]
    values = []
    for query, pool in enumerate(pools):
        labels = scored.data.queries.labels(query)
        hits = labels[answer(by_stage, query, pool, chain.keeps, n_parts)]
        ndcg = ndcg_at_k(hits, labels, k)
        values.append((ndcg, ndcg_released(hits, k), hit_rate_at_k(hits, k), reciprocal_rank(hits)))
    return dict(zip(MEASURES, np.array(values).T.copy(), strict=True))


@cache
def quality_of(
    chain: Chain, scored: Scored, n_parts: int = 1, share: float = 1.0
) -> dict[str, FloatArray]:
    """Quality of a chain on all candidates or a random share of them, computed once."""
    n_items = scored.data.queries.n_items_Q
    pools = [np.arange(n) for n in n_items] if share == 1 else scored.parts(share)
    return quality(chain, scored, pools, n_parts)


def pareto(rows: pd.DataFrame, more: Sequence[str], less: Sequence[str] = ()) -> pd.DataFrame:
    """Rows that no other row beats in one column and equals or beats in all; of equals the first.

    More is better in the columns `more`, worse in `less`. Nothing is rounded.
    """
    values = np.concatenate((rows[[*more]].to_numpy(float), -rows[[*less]].to_numpy(float)), axis=1)
    kept = []
    for i, row in enumerate(values):
        is_better = (values >= row).all(axis=1) & (values > row).any(axis=1)
        is_repeated = (values[:i] == row).all(axis=1).any()
        if not is_better.any() and not is_repeated:
            kept.append(i)
    return rows.iloc[kept]
