"""Ranked lists: the exact best items, and measures of a list's quality with intervals.

Pure functions on arrays.
"""

# Q queries (or users), N items of a list, best first

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special

from infra.results.stats import Estimate

Int64Array = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


def top_items(ids: npt.ArrayLike, scores: npt.ArrayLike, k: int) -> Int64Array:
    """The ids of the k best scores, best first; equal scores by ascending id.

    All of them where there are fewer.

    Raises ValueError for k below 1, lengths that differ or a score that is no number.
    """
    own_ids = np.asarray(ids, dtype=np.int64)
    own_scores = np.asarray(scores)
    if not np.issubdtype(own_scores.dtype, np.floating):
        own_scores = own_scores.astype(np.float64)
    if k < 1 or own_ids.shape != own_scores.shape:
        raise ValueError(
            f"the best {k} of {len(own_ids)} ids and {len(own_scores)} scores make no sense"
        )
    if np.isnan(own_scores).any():
        raise ValueError("a score is NaN; a list cannot be ranked by it")
    if (
        k < len(own_ids) // 4
    ):  # leave out what cannot be among the best; all ties with the last place stay
        floor = np.partition(own_scores, len(own_scores) - k)[len(own_scores) - k]
        among = np.flatnonzero(own_scores >= floor)
        own_ids = own_ids[among]
        own_scores = own_scores[among]
    order = np.lexsort((own_ids, -own_scores))[:k]
    best: Int64Array = own_ids[order]
    return best


def best_packed(items: bytes, scores: bytes, n_items: int, k: int) -> bytes:
    """`top_items` of packed int32 ids (empty: 0 .. n_items - 1) and packed float32 scores, packed
    again.

    Raises ValueError if the scores are not one per item.
    """
    if len(scores) != 4 * n_items:
        raise ValueError(f"{len(scores) // 4} scores for {n_items} items")
    ids = np.frombuffer(items, np.int32) if items else np.arange(n_items, dtype=np.int32)
    return top_items(ids, np.frombuffer(scores, np.float32), k).astype(np.int32).tobytes()


def dcg_at_k(gains: npt.ArrayLike, k: int) -> float:
    """Sum of gain / log2(place + 1) over the first k places, counted from 1 (Jarvelin and
    Kekalainen, TOIS 2002).
    """
    own = np.asarray(gains, dtype=np.float64)[:k]
    return float((own / np.log2(np.arange(2, len(own) + 2))).sum())


def ndcg_at_k(gains: npt.ArrayLike, pool: npt.ArrayLike, k: int) -> float:
    """DCG over that of the best order of all candidates' gains (`pool`), in [0, 1]; 0 if no
    candidate has a gain.
    """
    ideal = dcg_at_k(np.sort(np.asarray(pool, dtype=np.float64))[::-1], k)
    return dcg_at_k(gains, k) / ideal if ideal > 0 else 0.0


def ndcg_released(clicks: npt.ArrayLike, k: int) -> float:
    """The RecPipe release's "NDCG": DCG over that of as long a list of clicks, whether the pool has
    so many or not.

    It is a discounted precision and rises with the number of positives in the pool; for comparison
    only.
    """
    own = np.asarray(clicks)[:k]
    return dcg_at_k(own, k) / dcg_at_k(np.ones(len(own)), k) if len(own) else 0.0


def hit_rate_at_k(hits: npt.ArrayLike, k: int) -> float:
    """1 if one of the first k items is relevant, else 0."""
    return float(np.asarray(hits, dtype=bool)[:k].any())


def reciprocal_rank(hits: npt.ArrayLike) -> float:
    """1 over the place of the first relevant item; 0 if there is none in the list."""
    found = np.flatnonzero(np.asarray(hits, dtype=bool))
    return 1.0 / (found[0] + 1) if len(found) else 0.0


def mean_with_interval(values_Q: npt.ArrayLike, confidence: float = 0.95) -> Estimate:
    """Mean over independent queries with Student's interval; unbounded for fewer than 2."""
    values = np.asarray(values_Q, dtype=np.float64)
    if len(values) < 2:
        return Estimate(float(values.mean()) if len(values) else math.nan, -math.inf, math.inf)
    half = float(
        special.stdtrit(len(values) - 1, (1 + confidence) / 2)
        * values.std(ddof=1)
        / math.sqrt(len(values))
    )
    mean = float(values.mean())
    return Estimate(mean, mean - half, mean + half)


@dataclass(frozen=True, slots=True)
class Paired:
    """Two pipelines on the same queries: mean difference with its interval, and how probable so
    much is by chance.
    """

    difference: Estimate
    p_value: float

    @property
    def differs(self) -> bool:
        """Whether zero lies outside the interval."""
        return not self.difference.low <= 0 <= self.difference.high


def paired(a_Q: npt.ArrayLike, b_Q: npt.ArrayLike, confidence: float = 0.95) -> Paired:
    """a - b, query by query (Student's paired t-test); raises ValueError if they are not the same
    queries.
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
    with np.errstate(
        divide="ignore", invalid="ignore"
    ):  # one query has no spread; the same difference in all, none
        t = mean / np.sqrt(((a - b - mean) ** 2).sum() / (n - 1) / n)
    return Paired(difference, float(2 * special.stdtr(n - 1, -abs(t))))
