"""The two stages: each cluster of like tables by itself under contention, then the whole; on any
device.

What is faster by less than TRUSTED, or not for sure, counts as equal: then stays what runs without
a plan, or after it the best single schedule.
"""

# B items, T tables, C columns = sum of D

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from infra.progress import OnFraction
from models.embedding.backend import Backend, Choice, Cluster, FloatArray, Refused
from models.embedding.plan.catalogue import WHOLE, Params
from models.embedding.plan.plan import Bucket, Group, Plan
from models.embedding.tuning.clusters import clusters
from models.embedding.tuning.problem import Problem

TRUSTED = 0.05
_QUICK_ROUNDS, _ROUNDS, _FINAL_ROUNDS = 3, 7, 28
_RANKS = 0.98  # 1.96 standard deviations of how many of n rounds lie below the median: sqrt(n) / 2
_KEPT = 1.5  # candidates within this factor of the best are timed again
_LOCAL_SHARE = 0.6  # of the budget
_CLIMBED, _TRIED = 6, 2  # costliest clusters, next best candidates of each

Groups = tuple[Group, ...]


@dataclass(frozen=True)
class Ranked:
    """A cluster's candidates, fastest first, with seconds under contention."""

    cluster: Cluster
    choices: tuple[Choice, ...]
    seconds: tuple[float, ...]

    def seconds_of(self, choice: Choice) -> float:
        """Infinite if it was not timed."""
        return self.seconds[self.choices.index(choice)] if choice in self.choices else math.inf


@dataclass(frozen=True)
class Found:
    """The best for one batch size and setting."""

    n_items: int
    settings: Params
    groups: Groups
    seconds: float
    row: dict[str, Any]  # for the report


def typical(times: FloatArray) -> FloatArray:
    """Seconds of each call: the lower quartile of its rounds, for what else runs on the machine
    only ever adds.
    """
    found: FloatArray = np.quantile(times, 0.25, axis=1)
    return found


def paired(times: FloatArray, one: int, other: int) -> tuple[float, float, float]:
    """Time of `one` over `other`: median of the rounds, and its 95 % interval from order
    statistics.
    """
    ratios = np.sort(times[one] / times[other])
    n = len(ratios)
    half = _RANKS * math.sqrt(len(ratios))
    low = max(math.ceil(n / 2 - half) - 1, 0)
    high = min(math.floor(n / 2 + half), n - 1)
    return float(np.median(ratios)), float(ratios[low]), float(ratios[high])


def clearly_faster(times: FloatArray, slow: int, fast: int) -> bool:
    """Whether `fast` gains at least TRUSTED in the median, and is the faster one with 95 %
    confidence.
    """
    ratio, low, _ = paired(times, slow, fast)
    return ratio >= 1 + TRUSTED and low > 1


def merged(parts: Sequence[tuple[Choice, Sequence[int]]]) -> Groups:
    """Tables with the same choice as one group."""
    tables: dict[Choice, list[int]] = {}
    for choice, own in parts:
        tables.setdefault(choice, []).extend(own)
    return tuple(
        Group(choice.schedule, choice.params, tuple(sorted(own))) for choice, own in tables.items()
    )


@dataclass
class Search:
    """Finds a plan for a problem. `joined`: its tables are one matrix and its bags item-major."""

    problem: Problem
    backend: Backend
    budget_s: float
    max_error: float = 0.0
    joined: bool = False
    on_fraction: OnFraction = lambda _fraction, _detail="": None
    clock: Callable[[], float] = time.monotonic
    refused: list[str] = field(default_factory=list)
    spread: list[dict[str, Any]] = field(default_factory=list)  # of the candidates of each cluster
    _right: dict[tuple[Any, ...], bool] = field(default_factory=dict)
    _begun_s: float = 0.0

    def run(self) -> Plan:
        """The plan; its provenance holds a row a batch size."""
        self._begun_s = self.clock()
        sizes = sorted(self.problem.batches)
        specs = self.problem.layout.specs
        best: dict[int, Found] = {}
        knobs = list(self.backend.settings(specs))
        jobs = [(settings, n_items) for settings in knobs for n_items in sizes]
        for place, (settings, n_items) in enumerate(jobs):
            with self.backend.contended(settings):
                share = (place + 2) / (len(jobs) + 1)  # twice for the first: it compiles for all
                found = self._of_size(n_items, settings, self._begun_s + self.budget_s * share)
            if n_items not in best or found.seconds < best[n_items].seconds * (1 - TRUSTED):
                best[n_items] = found
        buckets = self._buckets([best[n_items] for n_items in sizes])
        provenance = {
            "sizes": [best[n].row for n in sizes],
            "refused": self.refused,
            "seconds": round(self.clock() - self._begun_s, 1),
        }
        return Plan(self.backend.name, specs, buckets, provenance)

    def winners(self, n_items: int, settings: Params) -> Groups:
        """Every kind of table's fastest candidate and nothing tried in the whole: what `run` is
        compared with.
        """
        self._begun_s = self.clock()
        with self.backend.contended(settings):
            ranked = self._local(n_items, settings, self._begun_s + self.budget_s)
        return merged([(own.choices[0], own.cluster.tables) for own in ranked])

    def _tell(self, detail: str) -> None:
        self.on_fraction(min((self.clock() - self._begun_s) / self.budget_s, 0.99), detail)

    def _of_size(self, n_items: int, settings: Params, end_s: float) -> Found:
        now = self.clock()
        ranked = self._local(n_items, settings, now + (end_s - now) * _LOCAL_SHARE)
        return self._global(n_items, settings, ranked, end_s)

    def _local(self, n_items: int, settings: Params, end_s: float) -> list[Ranked]:
        found = []
        own = clusters(self.problem.layout, self.problem.batches[n_items])
        offered = [self.backend.candidates(cluster, settings, self.max_error) for cluster in own]
        guesses = [
            (Group(choice.schedule, choice.params, cluster.tables),)
            for one_each in itertools.zip_longest(*offered)
            for choice, cluster in zip(one_each, own, strict=True)
            if choice is not None
        ]
        self._prepare(guesses, settings, n_items, (end_s - self.clock()) / 2)
        for place, cluster in enumerate(own):
            self._tell(f"batch {n_items}: tables of {place + 1} of {len(own)} kinds")
            choices: list[Choice] = []
            for choice in offered[place]:
                if choices and self.clock() > end_s:
                    break  # the best guesses are left
                if self._is_right(choice, cluster.tables, settings):
                    choices.append(choice)
            if not choices:
                raise RuntimeError(
                    f"no candidate looks up table {cluster.tables[0]} ({cluster.spec}) rightly"
                )
            left_s = (end_s - self.clock()) / (len(own) - place)
            found.append(self._rank(cluster, choices, settings, left_s))
        return found

    def _rank(
        self, cluster: Cluster, choices: Sequence[Choice], settings: Params, left_s: float
    ) -> Ranked:
        begun = self.clock()
        calls = [
            self._call((Group(c.schedule, c.params, cluster.tables),), settings, cluster.n_items)
            for c in choices
        ]
        first = typical(self.backend.seconds(calls, _QUICK_ROUNDS))
        kept = np.flatnonzero(first <= _KEPT * first.min())
        times = {choices[k]: float(first[k]) for k in range(len(choices))}
        if len(kept) > 1 and self.clock() - begun < left_s:
            again = typical(self.backend.seconds([calls[int(k)] for k in kept], _ROUNDS))
            times |= {choices[int(k)]: float(s) for k, s in zip(kept, again, strict=True)}
            first[kept] = again
        order = sorted(times, key=lambda choice: times[choice])
        self.spread.append(
            {
                "batch": cluster.n_items,
                "tables": len(cluster.tables),
                "spec": str(cluster.spec),
                "mean_ids": cluster.mean_ids,
                "best": _name(order[0]),
                "ms": 1e3 * times[order[0]],
                "worst_over_best": float(first.max() / first.min()),
                "candidates": len(choices),
            }
        )
        return Ranked(cluster, tuple(order), tuple(times[choice] for choice in order))

    def _global(
        self, n_items: int, settings: Params, ranked: Sequence[Ranked], end_s: float
    ) -> Found:
        self._tell(f"batch {n_items}: the whole")
        specs = self.problem.layout.specs
        every = tuple(range(len(specs)))
        offered = self.backend.uniform(specs, settings, joined=self.joined)
        default = self.backend.default_plan(specs, joined=self.joined).bucket(n_items).groups
        self._prepare([*offered, default], settings, n_items, math.inf)
        uniform = [
            groups
            for groups in offered
            if all(self._is_right(Choice(g.schedule, g.params), every, settings) for g in groups)
        ]
        whole = [*uniform, default]
        calls = [self._call(groups, settings, n_items) for groups in whole]
        quick = typical(self.backend.seconds(calls, _ROUNDS))
        single = int(np.argmin(quick[: len(uniform)]))
        mixes = self._mixes(ranked, uniform[single])
        rivals = [uniform[single], default, *mixes]
        self._prepare(rivals, settings, n_items, math.inf)
        times = self.backend.seconds(
            [self._call(groups, settings, n_items) for groups in rivals], _ROUNDS
        )
        start = int(np.argmin(typical(times)))
        groups = self._climb(rivals[start], ranked, settings, n_items, end_s)
        final = [default, uniform[single], groups, mixes[0]]
        times = self.backend.seconds(
            [self._call(own, settings, n_items) for own in final], _FINAL_ROUNDS
        )
        best = 0
        for k in (1, 2):  # from what runs without a plan on: the next one has to be clearly faster
            if final[k] != final[best] and clearly_faster(times, best, k):
                best = k
        groups, (gain, low, high) = final[best], paired(times, 1, best)
        own_s = float(typical(times)[best])
        row = {
            "batch": n_items,
            "ms": own_s * 1e3,
            "single": " + ".join(_name(_choice(g)) for g in uniform[single]),
            "single_over_tuned": gain,
            "low": low,
            "high": high,
            "default_over_tuned": paired(times, 0, best)[0],
            "local_winners_over_tuned": paired(times, 3, best)[0],
            "schedules": len(groups),
            "clusters": len(ranked),
        }
        return Found(n_items, settings, groups, own_s, row)

    def _prepare(
        self, every: Sequence[Groups], settings: Params, n_items: int, seconds: float
    ) -> None:
        buckets = [Bucket(None, groups, settings) for groups in every]
        layout = self.problem.layout
        weight_E = self.problem.weight_E
        bags = self.problem.batches[n_items][0]
        self.backend.prepare(layout, weight_E, buckets, bags, seconds)

    def _mixes(self, ranked: Sequence[Ranked], single: Groups) -> list[Groups]:
        """Every cluster's winner; and the same with the single schedule where the winner is not
        clearly better.
        """
        common = _choice(single[0])
        calm = [
            own.choices[0] if own.seconds[0] < (1 - TRUSTED) * own.seconds_of(common) else common
            for own in ranked
        ]
        found = [merged([(own.choices[0], own.cluster.tables) for own in ranked])]
        if len(single) == 1 and all(common in own.choices for own in ranked):
            found.append(
                merged([(c, own.cluster.tables) for c, own in zip(calm, ranked, strict=True)])
            )
        return found

    def _climb(
        self, groups: Groups, ranked: Sequence[Ranked], settings: Params, n_items: int, end_s: float
    ) -> Groups:
        """The costliest clusters' next best candidates, tried in the whole."""
        total_s = sum(own.seconds[0] for own in ranked)
        n_tables = len(self.problem.layout.specs)
        for own in sorted(ranked, key=lambda one: -one.seconds[0])[:_CLIMBED]:
            for choice in own.choices[: _TRIED + 1]:
                if self.clock() > end_s:
                    return groups
                other = replaced(groups, choice, own.cluster.tables)
                if other == groups or any(
                    g.schedule in WHOLE and len(g.tables) < n_tables for g in other
                ):
                    continue
                self._tell(f"batch {n_items}: trying {_name(choice)}")
                times = self.backend.seconds(
                    [self._call(g, settings, n_items) for g in (other, groups)], _ROUNDS
                )
                ratio, _, high = paired(times, 0, 1)
                if ratio < 1 - TRUSTED * own.seconds[0] / total_s and high < 1:
                    groups = other
        return groups

    def _buckets(self, found: Sequence[Found]) -> tuple[Bucket, ...]:
        """From the largest size down: the next larger plan is kept where a plan of its own gains
        too little.
        """
        last = found[-1]
        buckets = [Bucket(None, last.groups, last.settings)]
        larger = last.n_items
        for own in reversed(found[:-1]):
            kept = buckets[0]
            if (own.groups, own.settings) != (kept.groups, kept.settings):
                with self.backend.contended(own.settings):
                    calls = [
                        self._call(kept.groups, kept.settings, own.n_items),
                        self._call(own.groups, own.settings, own.n_items),
                    ]
                    pays = clearly_faster(self.backend.seconds(calls, _FINAL_ROUNDS), 0, 1)
                if pays:
                    buckets.insert(
                        0, Bucket(math.isqrt(own.n_items * larger), own.groups, own.settings)
                    )
            larger = own.n_items
        return tuple(buckets)

    def _is_right(self, choice: Choice, tables: Sequence[int], settings: Params) -> bool:
        """Whether it runs and gives the exact sums, zeros of empty bags included; if not, a note,
        and no timing.
        """
        key = (choice, tuple(tables), settings)
        if key not in self._right:
            bucket = Bucket(None, (Group(choice.schedule, choice.params, tuple(tables)),), settings)
            run = self.backend.build(
                self.problem.layout, self.problem.weight_E, bucket, checked=False
            )
            try:
                wrong = self.problem.wrong(run, tables, self.max_error)
            except Refused as error:
                wrong = str(error)
            if wrong is not None:
                self.refused.append(f"{_name(choice)}: {wrong}")
            self._right[key] = wrong is None
        return self._right[key]

    def _call(self, groups: Groups, settings: Params, n_items: int) -> Callable[[int], object]:
        """call(i): look up the i-th batch of this size."""
        problem = self.problem
        bucket = Bucket(None, groups, settings)
        run = self.backend.build(problem.layout, problem.weight_E, bucket, checked=False)
        batches = problem.batches[n_items]
        width = int(problem.layout.columns[-1])
        out_BC = torch.empty(n_items, width, device=problem.weight_E.device)
        return lambda i: run(batches[i % len(batches)], out_BC)


def replaced(groups: Groups, choice: Choice, tables: Sequence[int]) -> Groups:
    """The groups with another choice for these tables."""
    moved = {*tables}
    parts = [(_choice(group), [t for t in group.tables if t not in moved]) for group in groups]
    return merged(
        [(own, rest) for own, rest in itertools.chain(parts, [(choice, [*tables])]) if rest]
    )


def _choice(group: Group) -> Choice:
    return Choice(group.schedule, group.params)


def _name(choice: Choice) -> str:
    return " ".join((choice.schedule, *(f"{name}={value}" for name, value in choice.params)))
