"""Ranked lists: the exact best items, and measures of a list's quality with intervals.

All are pure functions on arrays.
"""

# Q queries (or users), N items of a list, best first

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from infra.arrays import Int64Array
from infra.results.quantiles import Estimate


def top_items(ids: ArrayLike, scores: ArrayLike, k: int) -> Int64Array:
    """The ids of the k best scores, best first, equal scores by ascending id; all if there are few.

    Raises ValueError for k below 1, lengths that differ or a score that is no number.
    """
    ids_N = np.asarray(ids, dtype=np.int64)
    scores_N = np.asarray(scores)
    if not np.issubdtype(scores_N.dtype, np.floating):
        scores_N = scores_N.astype(np.float64)
    if k < 1 or ids_N.shape != scores_N.shape:
        raise ValueError(
            f"the best {k} of {len(ids_N)} ids and {len(scores_N)} scores make no sense"
        )
    if np.isnan(scores_N).any():
        raise ValueError("a score is NaN; a list cannot be ranked by it")
    if k < len(ids_N) // 4:  # a quick cut; all ties with the last place stay
        floor = np.partition(scores_N, len(scores_N) - k)[len(scores_N) - k]
        kept = np.flatnonzero(scores_N >= floor)
        ids_N = ids_N[kept]
        scores_N = scores_N[kept]
    best: Int64Array = ids_N[np.lexsort((ids_N, -scores_N))[:k]]
    return best


def best_packed(items: bytes, scores: bytes, n_items: int, k: int) -> bytes:
    """`top_items` of packed int32 ids and packed float32 scores, packed again.

    Empty `items` stand for 0 .. n_items - 1. Raises ValueError if the scores are not one per item.
    """
    if len(scores) != 4 * n_items:
        raise ValueError(f"{len(scores) // 4} scores for {n_items} items")
    ids = np.frombuffer(items, np.int32) if items else np.arange(n_items, dtype=np.int32)
    return top_items(ids, np.frombuffer(scores, np.float32), k).astype(np.int32).tobytes()


def dcg_at_k(gains: ArrayLike, k: int) -> float:
    """Sum of gain / log2(place + 1) over the first k places, counted from 1.

    Source: Jarvelin and Kekalainen, TOIS 2002.
    """
    gains_K = np.asarray(gains, dtype=np.float64)[:k]
    return float((gains_K / np.log2(np.arange(2, len(gains_K) + 2))).sum())


def ndcg_at_k(gains: ArrayLike, pool: ArrayLike, k: int) -> float:
    """DCG over that of the best order of all candidates' gains (`pool`), in [0, 1].

    It is 0 if no candidate has a gain.
    """
    ideal = dcg_at_k(np.sort(np.asarray(pool, dtype=np.float64))[::-1], k)
    return dcg_at_k(gains, k) / ideal if ideal > 0 else 0.0


def ndcg_released(clicks: ArrayLike, k: int) -> float:
    """The RecPipe release's "NDCG": DCG over that of as long a list of clicks.

    The pool may not have so many. It is a discounted precision and rises with the number of
    positives in the pool; for comparison only.
    """
    clicks_K = np.asarray(clicks)[:k]
    return dcg_at_k(clicks_K, k) / dcg_at_k(np.ones(len(clicks_K)), k) if len(clicks_K) else 0.0


def hit_rate_at_k(hits: ArrayLike, k: int) -> float:
    """1 if an item of the first k is relevant, else 0."""
    return float(np.asarray(hits, dtype=bool)[:k].any())


def reciprocal_rank(hits: ArrayLike) -> float:
    """1 over the place of the first relevant item; 0 if there is none in the list."""
    places = np.flatnonzero(np.asarray(hits, dtype=bool))
    return 1.0 / (places[0] + 1) if len(places) else 0.0


def mean_with_interval(values_Q: ArrayLike, confidence: float = 0.95) -> Estimate:
    """Mean over independent queries with Student's interval; unbounded for fewer than 2."""
    values = np.asarray(values_Q, dtype=np.float64)
    n = len(values)
    if n < 2:
        return Estimate(float(values.mean()) if n else math.nan, -math.inf, math.inf)
    t = special.stdtrit(n - 1, (1 + confidence) / 2)
    half = float(t * values.std(ddof=1) / math.sqrt(n))
    mean = float(values.mean())
    return Estimate(mean, mean - half, mean + half)


@dataclass(frozen=True, slots=True)
class Paired:
    """Two pipelines on the same queries: mean difference, and how probable so much is by chance."""

    difference: Estimate
    p_value: float

    @property
    def differs(self) -> bool:
        """Whether zero lies outside the interval."""
        return not self.difference.low <= 0 <= self.difference.high


def paired(a_Q: ArrayLike, b_Q: ArrayLike, confidence: float = 0.95) -> Paired:
    """a - b, query by query (Student's paired t-test).

    Raises ValueError if they are not the same queries.
    """
    a = np.asarray(a_Q, dtype=np.float64)
    b = np.asarray(b_Q, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(f"{len(a)} and {len(b)} queries cannot be paired")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("a query's value is no finite number")
    difference = mean_with_interval(a - b, confidence)
    if not (a != b).any():
        return Paired(difference, 1.0)
    mean = (a - b).mean()
    n = len(a)
    # A single query has no spread; the same difference in all queries, none either.
    with np.errstate(divide="ignore", invalid="ignore"):
        t = mean / np.sqrt(((a - b - mean) ** 2).sum() / (n - 1) / n)
    return Paired(difference, float(2 * special.stdtr(n - 1, -abs(t))))
