"""The two stages: each cluster of like tables by itself under contention, then the whole.

What is faster by less than TRUSTED, or not for sure, counts as equal: then stays what runs without
a plan, or after it the best single schedule.
"""

# B items, T tables, C columns = sum of D

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from infra.progress import OnFraction
from models.embedding.backend import Backend, Call, Choice, Cluster, FloatArray, Refused
from models.embedding.plan.catalogue import WHOLE, Params
from models.embedding.plan.plan import Bucket, Group, Groups, Plan
from models.embedding.tuning.clusters import clusters
from models.embedding.tuning.problem import Problem

TRUSTED = 0.05
_QUICK_ROUNDS = 3
_ROUNDS = 7
_FINAL_ROUNDS = 28
_RANKS = 0.98  # 1.96 standard deviations of how many of n rounds lie below the median: sqrt(n) / 2
_KEPT = 1.5  # candidates within this factor of the best are timed again
_LOCAL_SHARE = 0.6  # of the budget
_CLIMBED = 6  # costliest clusters
_TRIED = 2  # next best candidates of each


@dataclass(frozen=True)
class Point:
    """A batch size, under settings of the device."""

    n_items: int
    settings: Params

    def bucket(self, groups: Groups, max_batch: int | None = None) -> Bucket:
        """These groups under the settings."""
        return Bucket(max_batch, groups, self.settings)


@dataclass(frozen=True)
class Ranked:
    """A cluster's candidates, fastest first, with seconds under contention."""

    cluster: Cluster
    choices: tuple[Choice, ...]
    seconds: tuple[float, ...]

    def seconds_of(self, choice: Choice) -> float:
        """Infinite if it was not timed."""
        return self.seconds[self.choices.index(choice)] if choice in self.choices else math.inf

    def winner_if_clear(self, fallback: Choice) -> Choice:
        """The fastest choice where it beats the fallback by more than is not trusted."""
        is_clear = self.seconds[0] < (1 - TRUSTED) * self.seconds_of(fallback)
        return self.choices[0] if is_clear else fallback


@dataclass(frozen=True)
class SpreadRow:
    """How far the candidates of a cluster lie apart."""

    batch: int
    tables: int
    spec: str
    mean_ids: float
    best: str
    ms: float
    worst_over_best: float
    candidates: int


@dataclass(frozen=True)
class SizeRow:
    """What tuning gained at a batch size."""

    batch: int
    ms: float
    single: str
    single_over_tuned: float
    low: float
    high: float
    default_over_tuned: float
    local_winners_over_tuned: float
    schedules: int
    clusters: int


@dataclass(frozen=True)
class TunedPlan:
    """The best groups for one batch size and setting."""

    point: Point
    groups: Groups
    seconds: float
    row: SizeRow


def typical(times: FloatArray) -> FloatArray:
    """Seconds of each call: the lower quartile of its rounds.

    What else runs on the machine only ever adds.
    """
    return np.asarray(np.quantile(times, 0.25, axis=1))


def paired(times: FloatArray, a: int, b: int) -> tuple[float, float, float]:
    """Time of call a over call b: median of the rounds, and its 95 % interval."""
    ratios = np.sort(times[a] / times[b])
    n = len(ratios)
    half = _RANKS * math.sqrt(n)
    low = max(math.ceil(n / 2 - half) - 1, 0)
    high = min(math.floor(n / 2 + half), n - 1)
    return float(np.median(ratios)), float(ratios[low]), float(ratios[high])


def clearly_faster(times: FloatArray, slow: int, fast: int) -> bool:
    """Whether `fast` gains at least TRUSTED in the median, and is faster with 95 % confidence."""
    ratio, low, _ = paired(times, slow, fast)
    return ratio >= 1 + TRUSTED and low > 1


def merged(parts: Sequence[tuple[Choice, Sequence[int]]]) -> Groups:
    """Tables with the same choice as one group."""
    tables_of: dict[Choice, list[int]] = {}
    for choice, tables in parts:
        tables_of.setdefault(choice, []).extend(tables)
    return tuple(choice.group(sorted(tables)) for choice, tables in tables_of.items())


def replaced(groups: Groups, choice: Choice, tables: Sequence[int]) -> Groups:
    """The groups with another choice for these tables."""
    moved = {*tables}
    parts = [(_choice(group), [t for t in group.tables if t not in moved]) for group in groups]
    return merged([(way, rest) for way, rest in (*parts, (choice, [*tables])) if rest])


def _choice(group: Group) -> Choice:
    return Choice(group.schedule, group.params)


@dataclass
class PlanSearch:
    """Finds a plan for a problem. `joined`: its tables are one matrix and its bags item-major."""

    problem: Problem
    backend: Backend
    budget_s: float
    max_error: float = 0.0
    joined: bool = False
    on_fraction: OnFraction = lambda _fraction, _detail="": None
    clock: Callable[[], float] = time.monotonic
    refused: list[str] = field(default_factory=list)
    spread: list[dict[str, Any]] = field(default_factory=list)  # a SpreadRow a cluster
    _right: dict[tuple[Any, ...], bool] = field(default_factory=dict)
    _begun_s: float = 0.0

    def run(self) -> Plan:
        """The plan; its provenance holds a row a batch size."""
        self._begun_s = self.clock()
        sizes = sorted(self.problem.batches)
        specs = self.problem.layout.specs
        points = [
            Point(n_items, settings)
            for settings in self.backend.settings(specs)
            for n_items in sizes
        ]
        best: dict[int, TunedPlan] = {}
        for place, point in enumerate(points):
            share = (place + 2) / (len(points) + 1)  # twice for the first: it compiles for all
            with self.backend.contended(point.settings):
                tuned = self._of_point(point, self._begun_s + self.budget_s * share)
            rival = best.get(point.n_items)
            if rival is None or tuned.seconds < rival.seconds * (1 - TRUSTED):
                best[point.n_items] = tuned
        by_size = [best[n_items] for n_items in sizes]
        buckets = self._buckets(by_size)
        provenance = {
            "sizes": [asdict(tuned.row) for tuned in by_size],
            "refused": self.refused,
            "seconds": round(self.clock() - self._begun_s, 1),
        }
        return Plan(self.backend.name, specs, buckets, provenance)

    def winners(self, n_items: int, settings: Params) -> Groups:
        """Every kind of table's fastest candidate and nothing tried in the whole.

        What `run` is compared with.
        """
        self._begun_s = self.clock()
        with self.backend.contended(settings):
            ranked = self._local(Point(n_items, settings), self._begun_s + self.budget_s)
        return _winners(ranked)

    def _tell(self, detail: str) -> None:
        self.on_fraction(min((self.clock() - self._begun_s) / self.budget_s, 0.99), detail)

    def _of_point(self, point: Point, end_s: float) -> TunedPlan:
        now_s = self.clock()
        ranked = self._local(point, now_s + (end_s - now_s) * _LOCAL_SHARE)
        return self._global(point, ranked, end_s)

    def _local(self, point: Point, end_s: float) -> list[Ranked]:
        kinds = clusters(self.problem.layout, self.problem.batches[point.n_items])
        offered = [self.backend.candidates(kind, point.settings, self.max_error) for kind in kinds]
        guesses = [
            (choice.group(kind.tables),)
            for guess in itertools.zip_longest(*offered)
            for choice, kind in zip(guess, kinds, strict=True)
            if choice is not None
        ]
        self._prepare(guesses, point, (end_s - self.clock()) / 2)
        ranked = []
        for place, kind in enumerate(kinds):
            self._tell(f"batch {point.n_items}: tables of {place + 1} of {len(kinds)} kinds")
            choices = self._right_ones(kind, offered[place], point, end_s)
            left_s = (end_s - self.clock()) / (len(kinds) - place)
            ranked.append(self._rank(kind, choices, point, left_s))
        return ranked

    def _right_ones(
        self, kind: Cluster, offered: Sequence[Choice], point: Point, end_s: float
    ) -> list[Choice]:
        """Those of the offered that give the right sums, for as long as there is time."""
        choices: list[Choice] = []
        for choice in offered:
            if choices and self.clock() > end_s:
                break  # the best guesses are left
            if self._is_right(choice.group(kind.tables), point):
                choices.append(choice)
        if not choices:
            raise RuntimeError(
                f"no candidate looks up table {kind.tables[0]} ({kind.spec}) rightly"
            )
        return choices

    def _rank(
        self, kind: Cluster, choices: Sequence[Choice], point: Point, left_s: float
    ) -> Ranked:
        begun_s = self.clock()
        calls = [self._call((choice.group(kind.tables),), point) for choice in choices]
        times = typical(self.backend.seconds(calls, _QUICK_ROUNDS))
        kept = np.flatnonzero(times <= _KEPT * times.min())
        if len(kept) > 1 and self.clock() - begun_s < left_s:
            times[kept] = typical(self.backend.seconds([calls[k] for k in kept], _ROUNDS))
        order = np.argsort(times, kind="stable")
        best = choices[order[0]]
        row = SpreadRow(
            point.n_items,
            len(kind.tables),
            str(kind.spec),
            kind.mean_ids,
            str(best),
            1e3 * float(times.min()),
            float(times.max() / times.min()),
            len(choices),
        )
        self.spread.append(asdict(row))
        return Ranked(kind, tuple(choices[k] for k in order), tuple(times[order].tolist()))

    def _global(self, point: Point, ranked: Sequence[Ranked], end_s: float) -> TunedPlan:
        self._tell(f"batch {point.n_items}: the whole")
        specs = self.problem.layout.specs
        default = self.backend.default_plan(specs, joined=self.joined)
        default_groups = default.bucket(point.n_items).groups
        single = self._best_uniform(point, default_groups)
        mixes = _mixes(ranked, single)
        rivals = [single, default_groups, *mixes]
        self._prepare(rivals, point, math.inf)
        start = int(np.argmin(typical(self._times(rivals, point, _ROUNDS))))
        climbed = self._climb(rivals[start], ranked, point, end_s)
        final = [default_groups, single, climbed, mixes[0]]
        times = self._times(final, point, _FINAL_ROUNDS)
        best = 0
        for k in (1, 2):  # from what runs without a plan on: the next one has to be clearly faster
            if final[k] != final[best] and clearly_faster(times, best, k):
                best = k
        tuned_s = float(typical(times)[best])
        row = SizeRow(
            point.n_items,
            tuned_s * 1e3,
            " + ".join(str(_choice(group)) for group in single),
            *paired(times, 1, best),
            paired(times, 0, best)[0],
            paired(times, 3, best)[0],
            len(final[best]),
            len(ranked),
        )
        return TunedPlan(point, final[best], tuned_s, row)

    def _best_uniform(self, point: Point, default: Groups) -> Groups:
        """The fastest single schedule that is right for all tables."""
        specs = self.problem.layout.specs
        offered = self.backend.uniform(specs, point.settings, joined=self.joined)
        self._prepare([*offered, default], point, math.inf)
        right = [
            groups for groups in offered if all(self._is_right(group, point) for group in groups)
        ]
        quick = typical(self._times([*right, default], point, _ROUNDS))
        return right[int(np.argmin(quick[: len(right)]))]

    def _climb(
        self, groups: Groups, ranked: Sequence[Ranked], point: Point, end_s: float
    ) -> Groups:
        """The costliest clusters' next best candidates, tried in the whole."""
        total_s = sum(kind.seconds[0] for kind in ranked)
        n_tables = len(self.problem.layout.specs)
        for kind in sorted(ranked, key=lambda kind: -kind.seconds[0])[:_CLIMBED]:
            least_gain = TRUSTED * kind.seconds[0] / total_s
            for choice in kind.choices[: _TRIED + 1]:
                if self.clock() > end_s:
                    return groups
                rival = replaced(groups, choice, kind.cluster.tables)
                parted = any(g.schedule in WHOLE and len(g.tables) < n_tables for g in rival)
                if rival == groups or parted:
                    continue
                self._tell(f"batch {point.n_items}: trying {choice}")
                ratio, _, high = paired(self._times([rival, groups], point, _ROUNDS), 0, 1)
                if ratio < 1 - least_gain and high < 1:
                    groups = rival
        return groups

    def _buckets(self, by_size: Sequence[TunedPlan]) -> tuple[Bucket, ...]:
        """From the largest size down: a size has a bucket of its own where that gains enough.

        Else it has that of the next larger one.
        """
        *smaller, last = by_size
        buckets = [last.point.bucket(last.groups)]
        larger = last.point.n_items
        for tuned in reversed(smaller):
            n_items = tuned.point.n_items
            kept = Point(n_items, buckets[0].settings)
            if (tuned.groups, tuned.point) != (buckets[0].groups, kept):
                with self.backend.contended(tuned.point.settings):
                    calls = [
                        self._call(buckets[0].groups, kept),
                        self._call(tuned.groups, tuned.point),
                    ]
                    pays = clearly_faster(self.backend.seconds(calls, _FINAL_ROUNDS), 0, 1)
                if pays:
                    most = math.isqrt(n_items * larger)
                    buckets.insert(0, tuned.point.bucket(tuned.groups, most))
            larger = n_items
        return tuple(buckets)

    def _prepare(self, ways: Sequence[Groups], point: Point, seconds: float) -> None:
        problem = self.problem
        buckets = [point.bucket(groups) for groups in ways]
        bags = problem.batches[point.n_items][0]
        self.backend.prepare(problem.layout, problem.weight_E, buckets, bags, seconds)

    def _is_right(self, group: Group, point: Point) -> bool:
        """Whether it runs and gives the exact sums, zeros of empty bags included.

        If not, a note, and no timing.
        """
        key = (group, point.settings)
        if key not in self._right:
            layout = self.problem.layout
            bucket = point.bucket((group,))
            run = self.backend.build(layout, self.problem.weight_E, bucket, checked=False)
            try:
                wrong = self.problem.wrong(run, group.tables, self.max_error)
            except Refused as error:
                wrong = str(error)
            if wrong is not None:
                self.refused.append(f"{_choice(group)}: {wrong}")
            self._right[key] = wrong is None
        return self._right[key]

    def _times(self, ways: Sequence[Groups], point: Point, n_rounds: int) -> FloatArray:
        return self.backend.seconds([self._call(groups, point) for groups in ways], n_rounds)

    def _call(self, groups: Groups, point: Point) -> Call:
        """call(i): look up the i-th batch of this size."""
        problem = self.problem
        bucket = point.bucket(groups)
        run = self.backend.build(problem.layout, problem.weight_E, bucket, checked=False)
        batches = problem.batches[point.n_items]
        width = int(problem.layout.columns[-1])
        out_BC = torch.empty(point.n_items, width, device=problem.weight_E.device)
        return lambda i: run(batches[i % len(batches)], out_BC)


def _winners(ranked: Sequence[Ranked]) -> Groups:
    return merged([(kind.choices[0], kind.cluster.tables) for kind in ranked])


def _mixes(ranked: Sequence[Ranked], single: Groups) -> list[Groups]:
    """Every cluster's winner; and the single schedule instead where no winner is clearly better."""
    mixes = [_winners(ranked)]
    common = _choice(single[0])
    if len(single) == 1 and all(common in kind.choices for kind in ranked):
        mixes.append(
            merged([(kind.winner_if_clear(common), kind.cluster.tables) for kind in ranked])
        )
    return mixes
