"""Synthetic clicks of Criteo's shape, as likely as users' and items' latent factors make them.

13 dense features and 26 categories (a user's, an item's, the session's). A click's log odds are the
sum of: the user's taste times the item's nature (as many factors as `n_factors`, most of them told
by the categories), what the session's categories add to that taste, the item's appeal, the user's
habit, a curved function of the dense features, and noise that no feature tells. One constant brings
the mean probability of the training impressions to `click_rate`. Everything is drawn from named
streams of one seed.
"""

# N impressions, Q queries, C candidates of a query, T categories, F dense features, R latent
# factors

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

from experiments.recpipe.datasets.click_rankers import Examples
from infra.labelled_queries import Queries
from infra.rng import stream
from models.inputs.zipf import draw_ranks

Int32Array = npt.NDArray[np.int32]
FloatArray = npt.NDArray[np.float32]
DENSE = {"user": 3, "item": 4, "impression": 6}
ATTRIBUTE_ALPHA = 0.6  # Zipf's exponent of the values of an attribute
TOLD = {"user": 0.8, "item": 0.9}  # share of a latent factor's variance that the attributes tell
BISECTIONS = 40
N_WAVES = 32
AT_ONCE = 1 << 17


@dataclass(frozen=True)
class ClickConfig:
    """What is drawn; from `taste` to `noise`: standard deviations of the parts of the log odds."""

    n_users: int = 1500
    n_items: int = 20_000
    n_train: int = 2_000_000
    n_valid_queries: int = 24
    n_queries: int = 240
    n_candidates: int = 4096
    click_rate: float = 0.256  # Criteo's
    item_alpha: float = 0.9
    user_alpha: float = 0.4
    n_factors: int = 8
    user_rows: tuple[int, ...] = (8, 16, 24, 32, 50, 64, 128, 200)
    item_rows: tuple[int, ...] = (10, 20, 25, 40, 50, 80, 160, 320, 640, 1000)
    session_rows: tuple[int, ...] = (24, 7, 6, 12, 100, 500)
    taste: float = 1.0
    session: float = 0.4
    appeal: float = 0.9
    habit: float = 0.5
    curve: float = 1.0
    noise: float = 0.3
    bend: float = 0.9  # of the curve: radians from one side of the features to the other
    seed: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.click_rate < 1:
            raise ValueError(
                f"click_rate is {self.click_rate:g}; expected more than 0 and less than 1"
            )
        if self.n_valid_queries + self.n_queries > self.n_users:
            raise ValueError(
                f"{self.n_valid_queries} + {self.n_queries} queries need as many of "
                f"{self.n_users} users"
            )

    @property
    def table_rows(self) -> tuple[int, ...]:
        """User and attributes, item and attributes, session."""
        return (self.n_users, *self.user_rows, self.n_items, *self.item_rows, *self.session_rows)

    @property
    def table_names(self) -> list[str]:
        """Names of the tables, in the order of their rows."""

        def numbered(kind: str, rows: tuple[int, ...]) -> list[str]:
            return [f"{kind} {i}" for i in range(len(rows))]

        users = ["user", *numbered("user attribute", self.user_rows)]
        items = ["item", *numbered("item attribute", self.item_rows)]
        return [*users, *items, *numbered("session", self.session_rows)]


class Popularity:
    """Values of which rank k is as likely as k^-alpha; which value has which rank is drawn once."""

    def __init__(self, n: int, alpha: float, rng: np.random.Generator) -> None:
        self.alpha = alpha
        self._value_of_rank = rng.permutation(n).astype(np.int32)

    def draw(self, n: int, rng: np.random.Generator) -> Int32Array:
        """n independent values."""
        ranks = draw_ranks(len(self._value_of_rank), self.alpha, n, rng)
        values: Int32Array = self._value_of_rank[ranks - 1]
        return values

    def log_weights(self) -> npt.NDArray[np.float64]:
        """Logarithm of the probability of every value, up to a constant."""
        weights = np.empty(len(self._value_of_rank))
        weights[self._value_of_rank] = -self.alpha * np.log(np.arange(1, len(weights) + 1))
        return weights


@dataclass(frozen=True)
class Side:
    """Users or items: `ids_XT` (their numbers, then attributes), dense features `dense_XF`.

    Of the latent factors `factors_XR` the last one raises or lowers all log odds.
    """

    ids_XT: Int32Array
    factors_XR: FloatArray
    dense_XF: FloatArray


class Clicks:
    """The world of a configuration: what it shows in training, its ranking queries."""

    def __init__(self, config: ClickConfig) -> None:
        self.config = config
        self._users = self._side("user", config.n_users, config.user_rows)
        self._items = self._side("item", config.n_items, config.item_rows)
        rng = stream(config.seed, "session")
        self._session_factors = [
            _normal(rng, (rows, config.n_factors)) for rows in config.session_rows
        ]
        self._session_values = [
            Popularity(rows, ATTRIBUTE_ALPHA, rng) for rows in config.session_rows
        ]
        rng = stream(config.seed, "curve")
        n_dense = sum(DENSE.values())
        self._turns_FW = _normal(rng, (n_dense, N_WAVES)) * np.float32(config.bend / n_dense**0.5)
        self._phases_W = (rng.random(N_WAVES, np.float32) * 2 * np.pi).astype(np.float32)
        heights_W = _normal(rng, (N_WAVES,))
        self._heights_W = heights_W * np.float32(2**0.5 / np.linalg.norm(heights_W))
        rng = stream(config.seed, "popularity")
        self.items_shown = Popularity(config.n_items, config.item_alpha, rng)
        active = Popularity(config.n_users, config.user_alpha, rng)
        self.user_N = active.draw(config.n_train, rng)
        self.item_N = self.items_shown.draw(config.n_train, rng)
        self._shown = np.unique(self.user_N.astype(np.int64) * config.n_items + self.item_N)

    def _side(self, name: Literal["user", "item"], n: int, attribute_rows: tuple[int, ...]) -> Side:
        """Latent factors have unit variance; a part is the sum of what attributes stand for."""
        rng = stream(self.config.seed, name)
        told = TOLD[name]
        n_factors = self.config.n_factors + 1
        ids = [np.arange(n, dtype=np.int32)]
        factors = _normal(rng, (n, n_factors)) * np.float32((1 - told) ** 0.5)
        told_by_each = np.float32((told / len(attribute_rows)) ** 0.5)
        for rows in attribute_rows:
            ids.append(Popularity(rows, ATTRIBUTE_ALPHA, rng).draw(n, rng))
            factors += _normal(rng, (rows, n_factors))[ids[-1]] * told_by_each
        return Side(np.stack(ids, axis=1), factors, _normal(rng, (n, DENSE[name])))

    def _sessions(self, n: int, rng: np.random.Generator) -> Int32Array:
        """Categories of n sessions, int32[n, categories]."""
        return np.stack([values.draw(n, rng) for values in self._session_values], axis=1)

    def _impressions(
        self, user_N: Int32Array, item_N: Int32Array, session: Int32Array, rng: np.random.Generator
    ) -> tuple[Int32Array, FloatArray, FloatArray]:
        """Rows of the tables (N, T), dense features (N, F), log odds without constant and noise."""
        config = self.config
        users = self._users
        items = self._items
        ids_NT = np.concatenate((users.ids_XT[user_N], items.ids_XT[item_N], session), axis=1)
        drawn_NF = _normal(rng, (len(user_N), DENSE["impression"]))
        dense_NF = np.concatenate(
            (users.dense_XF[user_N], items.dense_XF[item_N], drawn_NF), axis=1
        )
        taste_NR = users.factors_XR[user_N]
        nature_NR = items.factors_XR[item_N]
        odds_N = config.curve * (
            np.cos(dense_NF @ self._turns_FW + self._phases_W) @ self._heights_W
        )
        odds_N += config.habit * taste_NR[:, -1] + config.appeal * nature_NR[:, -1]
        wish_NR = config.taste * taste_NR[:, :-1]
        for column, factors in zip(session.T, self._session_factors, strict=True):
            wish_NR += config.session / len(self._session_factors) ** 0.5 * factors[column]
        odds_N += (wish_NR * nature_NR[:, :-1]) @ strengths(config.n_factors)
        return ids_NT, dense_NF, odds_N

    def clicks(self, log_odds: FloatArray, rng: np.random.Generator) -> FloatArray:
        """1 with the probability of the log odds with the constant and noise, else 0; any shape."""
        noise = self.config.noise * _normal(rng, log_odds.shape)
        probability = _sigmoid(log_odds + self.constant + noise)
        return (rng.random(log_odds.shape) < probability).astype(np.float32)

    @cached_property
    def _training(self) -> tuple[Int32Array, FloatArray, FloatArray]:
        """Training impressions, each a session; piece by piece, as they are many."""
        rng = stream(self.config.seed, "training")
        pieces = []
        for first in range(0, self.config.n_train, AT_ONCE):
            user_N = self.user_N[first : first + AT_ONCE]
            item_N = self.item_N[first : first + AT_ONCE]
            session = self._sessions(len(user_N), rng)
            pieces.append(self._impressions(user_N, item_N, session, rng))
        ids, dense, log_odds = (np.concatenate(arrays) for arrays in zip(*pieces, strict=True))
        return ids, dense, log_odds

    @cached_property
    def constant(self) -> float:
        """What brings the mean probability of the training impressions to the click rate."""
        log_odds = self._training[2]
        rng = stream(self.config.seed, "calibration")
        noise = self.config.noise * _normal(rng, log_odds.shape)
        return constant_for(log_odds + noise, self.config.click_rate)

    def examples(self) -> Examples:
        """Training impressions and the queries that tell when training ends."""
        ids, dense, log_odds = self._training
        label_N = self.clicks(log_odds, stream(self.config.seed, "training clicks"))
        valid, _ = self.queries("validation", self._query_users[: self.config.n_valid_queries])
        return Examples(ids, dense, label_N, self.config.table_rows, valid)

    @cached_property
    def _query_users(self) -> Int32Array:
        """Those of validation, then those of the test; each has one query."""
        order = stream(self.config.seed, "query users").permutation(self.config.n_users)
        return order.astype(np.int32)

    def test(
        self, n_candidates: int | None = None, n_queries: int | None = None
    ) -> tuple[Queries, FloatArray]:
        """Queries of other users than the validation's, by default as many and as large as set.

        Also (Q, C) the log odds but for the noise, which no ranker can beat.
        """
        first = self.config.n_valid_queries
        users = self._query_users[first : first + (n_queries or self.config.n_queries)]
        return self.queries("test", users, n_candidates)

    def queries(
        self, purpose: str, users_Q: Int32Array, n_candidates: int | None = None
    ) -> tuple[Queries, FloatArray]:
        """A session of each user, and the candidates' log odds but for the noise.

        Candidates are drawn by popularity without repetition, in a random order; none of them was
        shown to the user in training. Raises ValueError if there are not so many.
        """
        config = self.config
        n_each = n_candidates or config.n_candidates
        shape = (len(users_Q), n_each)
        ids = np.empty((*shape, len(config.table_rows)), np.int32)
        dense = np.empty((*shape, sum(DENSE.values())), np.float32)
        labels = np.empty(shape, np.uint8)
        log_odds = np.empty(shape, np.float32)
        for query, user in enumerate(users_Q):
            rng = stream(config.seed, purpose, query)
            keys = self.items_shown.log_weights() + rng.gumbel(size=config.n_items)
            keys[self.shown_to(int(user))] = -np.inf
            n_left = np.isfinite(keys).sum()
            if n_each > n_left:
                raise ValueError(
                    f"{n_each} candidates, but {n_left} items were not shown to user {user}"
                )
            item_N = rng.permutation(np.argpartition(-keys, n_each - 1)[:n_each]).astype(np.int32)
            session = np.repeat(self._sessions(1, rng), n_each, axis=0)
            ids[query], dense[query], log_odds[query] = self._impressions(
                np.full(n_each, user, np.int32), item_N, session, rng
            )
            labels[query] = self.clicks(log_odds[query], rng)
        n_items = np.full(len(users_Q), n_each, np.int32)
        return Queries(ids, dense, labels, n_items), log_odds + np.float32(self.constant)

    def shown_to(self, user: int) -> npt.NDArray[np.int64]:
        """The items that the user was shown in training."""
        n = self.config.n_items
        first, end = np.searchsorted(self._shown, (user * n, (user + 1) * n))
        return self._shown[first:end] - user * n


def strengths(n_factors: int) -> FloatArray:
    """Weights of the latent factors, (R,): they fall with the root; their squares sum to 1."""
    falling = np.arange(1, n_factors + 1) ** -0.5
    return (falling / np.linalg.norm(falling)).astype(np.float32)


def constant_for(log_odds: npt.ArrayLike, rate: float) -> float:
    """What must be added to the log odds for the mean probability to be `rate`; bisection."""
    odds = np.asarray(log_odds, dtype=np.float64)
    low = -30.0 - odds.max()
    high = 30.0 - odds.min()
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if _sigmoid(odds + middle).mean() > rate else (middle, high)
    return float((low + high) / 2)


def _sigmoid(x: npt.ArrayLike) -> npt.NDArray[np.float64]:
    probability: npt.NDArray[np.float64] = 1 / (1 + np.exp(-np.asarray(x, dtype=np.float64)))
    return probability


def _normal(rng: np.random.Generator, shape: tuple[int, ...]) -> FloatArray:
    return rng.standard_normal(shape, dtype=np.float32)
