"""Pipelines on sub-arrays: service times, queues in virtual time, miss rates of their caches."""

# Q queries, n candidates that a stage gets

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from accelerator.rpaccel import (
    FLOAT_BYTES,
    RANKERS,
    RELEASED_ARRAYS,
    RELEASED_MISS_RATE,
    Corrections,
    SubArray,
    pipelined_s,
    shared,
    stage_cycles,
    stage_s,
)
from experiments.recpipe.chains import Scored
from experiments.recpipe.datasets.ranked import handed_on
from infra.clock import NS_PER_MS, NS_PER_S
from infra.load.arrivals import draw_gaps_ns
from infra.rng import stream
from infra.settings.config import LoadConfig
from models.batch import first_rows
from models.inputs.stack_distance import Locality, stack_distances

LIST_ITEMS = 64  # of the answer
CHIP_NAMES = {"small": "rm-small", "medium": "rm-med", "large": "rm-large"}  # of trained rankers
TRAINED = {chip: name for name, chip in CHIP_NAMES.items()}
Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ChipDesign:
    """A pipeline on sub-arrays: each stage's ranker, items in, sub-arrays a chip, and its share.

    `engines`: how many of the sub-arrays are the stage's. `n_sub_batches`: equal parts that a query
    is cut into; a stage's filter chooses among the items of a part.
    """

    rankers: tuple[str, ...]
    items: tuple[int, ...]
    sub_arrays: tuple[int, ...]
    engines: tuple[int, ...]
    n_sub_batches: int = 1

    @property
    def label(self) -> str:
        """Sub-arrays a chip x engines, stage by stage."""
        parts = f", {self.n_sub_batches} sub-batches" if self.n_sub_batches > 1 else ""
        return f"{','.join(map(str, self.sub_arrays))} x {','.join(map(str, self.engines))}{parts}"

    def stage_ms(self, fixes: Corrections, miss: Sequence[float]) -> list[float]:
        """Service time of each stage for one sub-batch."""
        items = [-(-n // self.n_sub_batches) for n in self.items]
        handed = [*items[1:], LIST_ITEMS]
        times = []
        for i, name in enumerate(self.rankers):
            array = RELEASED_ARRAYS[self.sub_arrays[i]]
            n_kept = min(handed[i], items[i]) if fixes.top_k_unit else 0
            ends = {"first": i == 0, "last": i == len(items) - 1}
            parts = stage_cycles(RANKERS[name], items[i], n_kept, array, fixes, miss[i], **ends)
            times.append(stage_s(parts, array) * 1e3)
        return times


def departures_ns(arrival_ns: Int64Array, n_engines: int, service_ns: int) -> Int64Array:
    """When each task leaves a FIFO of engines that all take equally long: order is kept.

    So engine i serves task i, i + n_engines, ...: a row for each round of the engines.
    """
    n_rounds = -(-len(arrival_ns) // n_engines)
    rounds = np.resize(arrival_ns, (n_rounds, n_engines))  # the end is filled up, and cut off again
    worked_ns = service_ns * np.arange(n_rounds)[:, None]
    begun_ns = np.maximum.accumulate(rounds - worked_ns, axis=0) + worked_ns
    return (begun_ns + service_ns).reshape(-1)[: len(arrival_ns)]


def answers_ns(
    stage_ms: Sequence[float],
    engines: Sequence[int],
    arrival_ns: Int64Array,
    n_sub_batches: int = 1,
) -> Int64Array:
    """When each query leaves a tandem of stages; its last sub-batch answers it.

    `stage_ms`: service time of a sub-batch. Any idle engine of a stage takes the next sub-batch, so
    that those of one query run side by side, and a stage begins with what the one before it has let
    through.
    """
    at_ns = np.repeat(arrival_ns, n_sub_batches)
    for ms, n_engines in zip(stage_ms, engines, strict=True):
        at_ns = departures_ns(at_ns, n_engines, round(ms * NS_PER_MS))
    return at_ns[n_sub_batches - 1 :: n_sub_batches]


def arrivals_ns(process: str, rate_qps: float, n: int) -> Int64Array:
    """Whole-ms gaps as released (`legacy`), or Poisson arrivals (`exponential`)."""
    gaps = draw_gaps_ns(LoadConfig(arrival_process=process), rate_qps, n, stream(7, process))
    return np.cumsum(gaps)


def cache_rows(array: SubArray, fixes: Corrections, width: int) -> int:
    """Embedding rows of a width that the sub-array's cache holds."""
    cached = shared(array) if fixes.partitioned_sram else array
    return int(cached.cache_bytes / (FLOAT_BYTES * width))


@dataclass(frozen=True, eq=False)
class Misses:
    """Miss rates of an embedding cache on the ids that a stage really gets, for pools of any size.

    A stage's stream is the rows of the items that the filters before it let through, query after
    query, each item's tables in turn, keys different from table to table; the cache is LRU and
    warm: the first half of the stream fills it, the second half is counted. Queries are
    exchangeable, so the engines of a stage see such streams, too.
    """

    pools: tuple[Scored, ...]
    _localities: dict[tuple[tuple[str, ...], tuple[int, ...], int], Locality] = field(
        default_factory=dict, init=False
    )

    def rate(
        self, rankers: Sequence[str], items: Sequence[int], n_rows: int, n_parts: int = 1
    ) -> float:
        """Miss rate of a stage that gets items[-1] items after `rankers` have filtered the others.

        `rankers`: the chip's names; `n_rows`: of the cache; filters work in `n_parts`.
        """
        key = (tuple(rankers), tuple(items), n_parts if rankers else 1)
        if key not in self._localities:
            self._localities[key] = warm_locality(self.ids(rankers, items, n_parts))
        return 1 - float(self._localities[key].hit_rate(n_rows))

    def ids(self, rankers: Sequence[str], items: Sequence[int], n_parts: int = 1) -> Int64Array:
        """The stage's stream of rows."""
        pools = self.pool(items[0])
        queries = pools.data.queries
        starts = first_rows(next(iter(pools.data.rankers.values())).config.table_rows)[:-1]
        by_stage = [pools.scores[TRAINED[name]] for name in rankers]
        pool = np.arange(items[0])
        kept = [
            queries.ids_QNT[query, handed_on(by_stage, query, pool, items[1:], n_parts)]
            for query in range(len(queries))
        ]
        return (np.concatenate(kept) + starts).reshape(-1)

    def pool(self, n_items: int) -> Scored:
        """The smallest pools with so many candidates; raises ValueError if there are none."""
        for pools in self.pools:
            if pools.data.queries.n_items_Q.min() >= n_items:
                return pools
        raise ValueError(f"no query has {n_items} candidates")

    def of(self, design: ChipDesign, fixes: Corrections) -> list[float]:
        """Miss rate of each stage's sub-array."""
        rates = []
        for i, (name, n_arrays) in enumerate(zip(design.rankers, design.sub_arrays, strict=True)):
            n_rows = cache_rows(RELEASED_ARRAYS[n_arrays], fixes, RANKERS[name].width)
            items = design.items[: i + 1]
            rates.append(self.rate(design.rankers[:i], items, n_rows, design.n_sub_batches))
        return rates


def warm_locality(ids: Int64Array) -> Locality:
    """Distances of the second half of a stream, after all that came before."""
    counts = np.bincount(stack_distances(ids)[len(ids) // 2 :])
    distance = np.flatnonzero(counts)
    return Locality(np.empty(0, np.int64), distance, np.cumsum(counts[distance]) / counts.sum())


@dataclass(frozen=True)
class TimedDesign:
    """A design, and how long a sub-batch takes in each stage."""

    design: ChipDesign
    stage_ms: Sequence[float]

    @classmethod
    def of(
        cls, design: ChipDesign, fixes: Corrections, misses: Misses | None = None
    ) -> TimedDesign:
        """The design with its service times; without `misses` the caches miss as released."""
        released = [RELEASED_MISS_RATE] * len(design.items)
        return cls(design, design.stage_ms(fixes, misses.of(design, fixes) if misses else released))

    def idle_ms(self) -> float:
        """Time of one query through an idle pipeline, an engine a stage."""
        return pipelined_s(self.stage_ms, self.design.n_sub_batches)

    def carries(self, rate_qps: float) -> bool:
        """Whether every stage has more time than work."""
        n = self.design.n_sub_batches
        return all(
            rate_qps * n * ms * NS_PER_MS / NS_PER_S < engines
            for ms, engines in zip(self.stage_ms, self.design.engines, strict=True)
        )

    def p95_ms(self, arrival_ns: Int64Array, rate_qps: float = 0.0) -> float:
        """p95 of the queries; inf where a stage has more work than time at the rate."""
        if not self.carries(rate_qps):
            return np.inf
        design = self.design
        done_ns = answers_ns(self.stage_ms, design.engines, arrival_ns, design.n_sub_batches)
        return float(np.quantile(done_ns - arrival_ns, 0.95)) / NS_PER_MS
