"""Plans for the GPU study: two stages, first every kind of table by itself, then all together."""

# T tables

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from experiments.embedding.gpu_peers import Input
from models.embedding.backend import Backend, Choice, Cluster
from models.embedding.catalogue import Params
from models.embedding.jagged import Bags
from models.embedding.plan import Bucket, Group
from models.embedding.spec import Layout


def clusters(layout: Layout, inputs: Sequence[Input]) -> list[Cluster]:
    """Tables of one width, one number of ids, and bags within a factor of two of each other."""
    n_tables, n_items = len(layout.specs), inputs[0].n_items
    lengths_TB = np.concatenate([np.diff(own.host_offsets.numpy()).reshape(n_tables, -1) for own in inputs], axis=1)
    mean_T, most_T = lengths_TB.mean(axis=1), lengths_TB.max(axis=1)
    found: dict[tuple[object, ...], list[int]] = {}
    for table, spec in enumerate(layout.specs):
        sizes = [round(float(np.log2(1 + n[table]))) for n in (mean_T, most_T)]
        found.setdefault((spec.dim, spec.bag_ids, *sizes), []).append(table)
    return [
        Cluster(tuple(own), layout.specs[own[0]], float(mean_T[own].mean()), int(most_T[own].max()),
                float((lengths_TB[own] == 0).mean()), 1.0, n_items)
        for own in found.values()
    ]  # fmt: skip


@dataclass
class Tuner:
    """Measures through a backend; `budget_s` bounds the local stage, after which the guess decides."""

    backend: Backend
    layout: Layout
    weight_E: Tensor
    inputs: Sequence[Input]
    budget_s: float
    most: int = 6
    n_rounds: int = 5
    notes: list[str] = field(default_factory=list)

    def tuned(self) -> dict[str, tuple[Bucket, float]]:
        """The best bucket and its seconds for every `launch`: all in one, and one a group."""
        best: dict[str, tuple[Bucket, float]] = {}
        settings, own = self.backend.settings(self.layout.specs), clusters(self.layout, self.inputs)
        for i, knobs in enumerate(settings):
            end = time.monotonic() + self.budget_s / len(settings)
            bucket = bucket_of({cluster.tables: self.choice(cluster, knobs, end) for cluster in own}, knobs)
            seconds = self.seconds([bucket])[0]
            launch = str(dict(knobs)["launch"])
            self.notes.append(f"{i}: {dict(knobs)}: {len(bucket.groups)} groups, {seconds * 1e6:.1f} us")
            if launch not in best or seconds < best[launch][1]:
                best[launch] = bucket, seconds
        return best

    def choice(self, cluster: Cluster, knobs: Params, end: float) -> Choice:
        """The fastest candidate of these tables by themselves; the first guess if time is up."""
        candidates = self.backend.candidates(cluster, knobs, 0.0)[: self.most]
        if time.monotonic() > end or len(candidates) == 1:
            return candidates[0]
        with self.backend.contended(knobs):
            seconds = self.seconds([bucket_of({cluster.tables: one}, knobs) for one in candidates])
        return candidates[int(np.argmin(seconds))]

    def single(self) -> tuple[Bucket, float]:
        """The best bucket of one schedule with the same parameters for all tables."""
        buckets = [Bucket(None, groups) for groups in self.backend.uniform(self.layout.specs, (), joined=False)]
        seconds = self.seconds(buckets)
        best = int(np.argmin(seconds))
        return buckets[best], float(seconds[best])

    def seconds(self, buckets: Sequence[Bucket]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """Median for each bucket, inputs and buckets in turn; inf for one that cannot run here."""
        calls = [self.call(bucket) for bucket in buckets]
        return np.asarray(np.median(self.backend.seconds(calls, self.n_rounds), axis=1))

    def call(self, bucket: Bucket) -> Callable[[int], object]:
        """The bucket on input after input."""
        run = self.backend.build(self.layout, self.weight_E, bucket, checked=False)
        n_tables = len(self.layout.specs)
        bags = [Bags(own.ids_L, own.offsets, n_tables) for own in self.inputs]
        out = self.weight_E.new_empty(self.inputs[0].n_items, int(self.layout.columns[-1]))
        return lambda i: run(bags[i % len(bags)], out)


def bucket_of(choices: Mapping[tuple[int, ...], Choice], knobs: Params) -> Bucket:
    """Tables of equal choices become a group."""
    groups: dict[Choice, list[int]] = {}
    for tables, choice in choices.items():
        groups.setdefault(choice, []).extend(tables)
    return Bucket(
        None, tuple(Group(one.schedule, one.params, tuple(sorted(own))) for one, own in groups.items()), knobs
    )
