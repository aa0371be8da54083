"""Pipelines on sub-arrays: service times of their stages, queues in virtual time, miss rates on the
ids they get.
"""

# Q queries, n candidates that a stage gets

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numba
import numpy as np
import numpy.typing as npt

from accelerator import rpaccel
from accelerator.rpaccel import RANKERS, RELEASED_ARRAYS, Corrections, shared, stage_parts, stage_s
from experiments.recpipe.datasets.ranked import handed_on
from experiments.recpipe.quality import Scored
from infra.clock import NS_PER_MS
from infra.load.arrivals import draw_gaps_ns
from infra.rng import stream
from infra.settings.config import LoadConfig
from models.batch import first_rows
from models.inputs.stack_distance import Locality, stack_distances

LIST_ITEMS = 64  # of the answer
CHIP_NAMES = {
    "small": "rm-small",
    "medium": "rm-med",
    "large": "rm-large",
}  # of the trained rankers
TRAINED = {chip: name for name, chip in CHIP_NAMES.items()}
FloatArray = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Design:
    """A pipeline on sub-arrays: per stage the ranker, items in, sub-arrays a chip, and how many are
    its own.

    `n_sub_batches`: equal parts that a query is cut into; a stage's filter chooses among the items
    of a part.
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
        times = []
        n = self.n_sub_batches
        for i, (name, n_items, n_arrays) in enumerate(
            zip(self.rankers, self.items, self.sub_arrays, strict=True)
        ):
            array = RELEASED_ARRAYS[n_arrays]
            last = i == len(self.items) - 1
            n_kept = (LIST_ITEMS if last else -(-self.items[i + 1] // n)) if fixes.top_k_unit else 0
            n_own = -(-n_items // n)
            parts = stage_parts(
                RANKERS[name],
                n_own,
                min(n_kept, n_own),
                array,
                fixes,
                miss[i],
                first=i == 0,
                last=last,
            )
            times.append(stage_s(parts, array) * 1e3)
        return times


@numba.njit(cache=True)
def departures_ns(arrival_ns: Int64Array, n_engines: int, service_ns: int) -> Int64Array:
    """When each task leaves a FIFO of engines that all take equally long: order is kept."""
    out = np.empty_like(arrival_ns)
    for i in range(len(arrival_ns)):
        begin = arrival_ns[i]
        if i >= n_engines and out[i - n_engines] > begin:
            begin = out[i - n_engines]
        out[i] = begin + service_ns
    return out


def answers_ns(
    stage_ms: Sequence[float],
    engines: Sequence[int],
    arrival_ns: Int64Array,
    n_sub_batches: int = 1,
) -> Int64Array:
    """When each query leaves a tandem of stages; its sub-batches are tasks of their own, the last
    one answers.

    `stage_ms`: service time of a sub-batch. Any idle engine of a stage takes the next sub-batch, so
    that those of one query run side by side, and a stage begins with what the one before it has let
    through.
    """
    at = np.repeat(arrival_ns, n_sub_batches)
    for ms, n_engines in zip(stage_ms, engines, strict=True):
        at = departures_ns(at, n_engines, round(ms * NS_PER_MS))
    return at[n_sub_batches - 1 :: n_sub_batches]


def p95_ms(
    stage_ms: Sequence[float],
    engines: Sequence[int],
    arrival_ns: Int64Array,
    n_sub_batches: int = 1,
) -> float:
    """Of the queries' latencies in such a tandem."""
    latency = answers_ns(stage_ms, engines, arrival_ns, n_sub_batches) - arrival_ns
    return float(np.quantile(latency, 0.95)) / NS_PER_MS


def arrivals_ns(process: str, rate_qps: float, n: int) -> Int64Array:
    """Whole-ms gaps as released, or Poisson arrivals."""
    gaps = draw_gaps_ns(LoadConfig(arrival_process=process), rate_qps, n, stream(7, process))
    return np.cumsum(gaps)


@dataclass(frozen=True, eq=False)
class Misses:
    """Miss rates of an embedding cache on the ids that a stage really gets, for pools of several
    sizes.

    A stage's stream is the rows of the items that the filters before it let through, query after
    query, each item's tables in turn, keys different from table to table; the cache is LRU and
    warm: the first half of the stream fills it, the second half is counted. Queries are
    exchangeable, so the engines of a stage see such streams, too.
    """

    pools: tuple[Scored, ...]
    _known: dict[tuple[tuple[str, ...], tuple[int, ...], int], Locality] = field(
        default_factory=dict
    )

    def rate(
        self, rankers: Sequence[str], items: Sequence[int], cache_rows: int, n_parts: int = 1
    ) -> float:
        """Of the stage that gets items[-1] items after `rankers` (chips' names) have filtered the
        others, in parts.
        """
        key = (tuple(rankers), tuple(items), n_parts if rankers else 1)
        if key not in self._known:
            self._known[key] = warm_locality(self.ids(rankers, items, n_parts))
        return 1 - float(self._known[key].hit_rate(cache_rows))

    def ids(self, rankers: Sequence[str], items: Sequence[int], n_parts: int = 1) -> Int64Array:
        """The stage's stream of rows."""
        pools = self.pool(items[0])
        queries = pools.data.queries
        starts = first_rows(next(iter(pools.data.rankers.values())).config.table_rows)[:-1]
        by_stage = [pools.scores[TRAINED[name]] for name in rankers]
        parts = []
        for query in range(len(queries)):
            kept = handed_on(by_stage, query, np.arange(items[0]), items[1:], n_parts)
            parts.append((queries.ids_QNT[query, kept] + starts).reshape(-1))
        return np.concatenate(parts)

    def pool(self, n_items: int) -> Scored:
        """The smallest pools with so many candidates; raises ValueError if there are none."""
        for pools in self.pools:
            if pools.data.queries.n_items_Q.min() >= n_items:
                return pools
        raise ValueError(f"no query has {n_items} candidates")

    def of(self, design: Design, fixes: Corrections) -> list[float]:
        """Of each stage's sub-array."""
        rates = []
        for i, (name, n_arrays) in enumerate(zip(design.rankers, design.sub_arrays, strict=True)):
            array = RELEASED_ARRAYS[n_arrays]
            own = shared(array) if fixes.partitioned_sram else array
            rows = own.cache_bytes / (rpaccel.FLOAT_BYTES * RANKERS[name].width)
            rates.append(
                self.rate(
                    design.rankers[:i], design.items[: i + 1], int(rows), design.n_sub_batches
                )
            )
        return rates


def warm_locality(ids: Int64Array) -> Locality:
    """Distances of the second half of a stream, after all that came before."""
    counts = np.bincount(stack_distances(ids)[len(ids) // 2 :])
    distance = np.flatnonzero(counts)
    return Locality(np.empty(0, np.int64), distance, np.cumsum(counts[distance]) / counts.sum())


def total_ms(design: Design, fixes: Corrections, misses: Misses) -> float:
    """Time of one query through an idle pipeline, an engine a stage."""
    return rpaccel.pipelined_s(
        design.stage_ms(fixes, misses.of(design, fixes)), design.n_sub_batches
    )
