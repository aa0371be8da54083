"""RPAccel's latency model (Gupta et al., RecPipe, MICRO 2021), released and corrected.

Pure functions of a ranker, a number of items and a sub-array of the chip; cycles unless a name says
otherwise. With `Corrections()` the numbers are the released model's to the last bit; each fault is
corrected by a switch of its own.
"""

# N items of a stage, l look-ups an item, d embedding width, A multipliers along a side of the array

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace

FLOAT_BYTES = 4
NS_PER_S = 1e9
NS_PER_US = 1e3
GIB_S_IN_BYTES_PER_NS = 2**30 / 1e9
SRAM_BYTES_PER_CYCLE = 64
SCORE_BINS = 16  # the filter takes so many scores a cycle
RELEASED_MISS_RATE = 0.5  # of the embedding cache: a constant in the release
# The link's times in us; the release adds 1000 times as cycles.
PCIE_START = 5.0
PCIE_IN_PER_ITEM = 12 / 4096
PCIE_OUT_PER_ITEM = 5 / 4096
CHIP_SIDE = 128  # multipliers along a side of the whole array


@dataclass(frozen=True, slots=True)
class SubArray:
    """A systolic array with a weight buffer, an embedding cache and a share of the bandwidth."""

    side: int
    dram_gib_s: float
    clock_ns: float = 8.0
    dram_latency_cycles: float = 100.0
    flash_latency_cycles: float = 20_000.0
    flash_gib_s: float = 0.1
    weight_sram_bytes: float = 1e6
    cache_bytes: float = 1e6

    @property
    def n_on_chip(self) -> int:
        """How many of them make a chip."""
        return (CHIP_SIDE // self.side) ** 2


# The release's hardware by the number of sub-arrays; 64 has a quarter of its share of bandwidth.
RELEASED_ARRAYS = {
    1: SubArray(128, 32),
    4: SubArray(64, 8),
    16: SubArray(32, 2),
    64: SubArray(16, 0.125),
}


@dataclass(frozen=True, slots=True)
class Ranker:
    """A model as the accelerator sees it.

    `bottom` and `top` are widths; `top` without its input for DLRM.
    """

    name: str
    width: int
    bottom: tuple[int, ...]
    top: tuple[int, ...]
    lookups: int = 26
    mf_width: int | None = None  # of NeuMF's matrix factorisation; None: DLRM

    def top_widths(self, *, dot: bool) -> tuple[int, ...]:
        """Widths of the top MLP: the release concatenates what the model multiplies."""
        if self.mf_width is not None:
            return self.top
        n_vectors = self.lookups + 1
        n_in = self.width + n_vectors * (n_vectors - 1) // 2 if dot else self.width * n_vectors
        return (n_in, *self.top)

    def row_bytes(self, n_items: int) -> float:
        """Size of the embedding rows read for so many items."""
        if self.mf_width is not None:
            return FLOAT_BYTES * (self.lookups / 2) * (self.width + self.mf_width) * n_items
        return FLOAT_BYTES * self.width * self.lookups * n_items

    def weight_bytes(self, *, dot: bool) -> float:
        """Size of both MLPs."""
        layers = [*itertools.pairwise(self.bottom), *itertools.pairwise(self.top_widths(dot=dot))]
        return sum(FLOAT_BYTES * n_in * n_out for n_in, n_out in layers)


RANKERS = {
    ranker.name: ranker
    for ranker in (
        Ranker("rm-small", 4, (13, 64, 4), (64, 1)),
        Ranker("rm-med", 16, (13, 64, 16), (64, 1)),
        Ranker("rm-large", 32, (13, 512, 256, 128, 64, 32), (96, 1)),
        Ranker("neumf-1m-small", 32, (64, 32, 1), (129, 1), 4, 128),
        Ranker("neumf-1m-medium", 128, (800, 512, 256, 128, 64, 32, 1), (17, 1), 4, 16),
        Ranker("neumf-1m-large", 384, (1024, 512, 256, 128, 1), (128, 1), 4, 128),
    )
}


@dataclass(frozen=True, slots=True)
class Corrections:
    """Which faults of the released model are corrected; none by default."""

    # PCIe in us and not 8 times that, the filter's cycles undivided, sums and last slices counted
    units: bool = False
    dot_interaction: bool = False  # the interaction that the models have, and its products
    partitioned_sram: bool = False  # sub-arrays share the chip's buffers and its DRAM evenly
    # what fits the weight buffer is loaded once and not for every query
    resident_weights: bool = False
    # a layer computes while the next weights load, rows are gathered beside the bottom MLP
    overlap: bool = False
    embedding_cache: bool = False  # the miss rate is the caller's, of an LRU cache on real ids
    # the cache's port is as wide as the array; the release's as the smallest array's for all
    cache_port: bool = False
    # the filter hands out the best, which takes time, and they go back over the link
    top_k_unit: bool = False
    pcie_once: bool = False  # a query crosses the link once, not once a stage
    sub_batches: bool = False  # a stage begins with what the one before it has let through

    @classmethod
    def all(cls) -> Corrections:
        """All corrections."""
        return cls(**{field.name: True for field in fields(cls)})


RELEASED = Corrections()


@dataclass(frozen=True, slots=True)
class StageCycles:
    """Cycles of a stage by its parts."""

    pcie_in: float
    embedding: float
    bottom: float
    interaction: float
    top: float
    filter: float
    pcie_out: float
    hidden: float = 0.0  # what overlaps with other parts, taken off the sum

    @property
    def total(self) -> float:
        """Cycles from the query's arrival on the link to its answer."""
        computed = self.pcie_in + self.embedding + self.bottom + self.interaction + self.top
        return computed + self.filter + self.pcie_out - self.hidden


def transfer_cycles(n_bytes: float, array: SubArray) -> float:
    """A read from DRAM: its latency, then the bytes at its bandwidth."""
    streamed_ns = n_bytes / (array.dram_gib_s * GIB_S_IN_BYTES_PER_NS)
    return array.dram_latency_cycles + streamed_ns / array.clock_ns


def load_cycles(n_in: int, n_out: int, array: SubArray, *, exact: bool = False) -> float:
    """A layer's weights into their buffer, slice by slice.

    The release charges the last slice in full, `exact` by its size.
    """
    n_bytes = FLOAT_BYTES * n_in * n_out
    n_slices = math.ceil(n_bytes / array.weight_sram_bytes)
    if exact:
        latency = array.dram_latency_cycles
        return n_slices * latency + transfer_cycles(n_bytes, array) - latency
    return n_slices * transfer_cycles(min(array.weight_sram_bytes, n_bytes), array)


def compute_cycles(
    n_in: int, n_out: int, n_items: int, array: SubArray, *, sums: bool = False
) -> float:
    """A layer on the array, weights stationary: every tile is filled, drained and streamed through.

    `sums`: adding up the partial sums of the tiles, which the release computes and drops.
    """
    side = array.side
    tiles_in = math.ceil(n_in / array.side)
    n_tiles = tiles_in * math.ceil(n_out / side)
    cycles = float(n_tiles * (min(n_in, side) + min(n_out, side) + n_items))
    return cycles + (n_out + tiles_in) / 8 if sums else cycles


def mlp_cycles(
    widths: Sequence[int],
    n_items: int,
    array: SubArray,
    fixes: Corrections = RELEASED,
    *,
    loaded: bool = True,
) -> float:
    """A stack of layers; `loaded`: weights come from DRAM for this query."""
    cycles = 0.0
    for n_in, n_out in itertools.pairwise(widths):
        load = load_cycles(n_in, n_out, array, exact=fixes.units) if loaded else 0.0
        compute = compute_cycles(n_in, n_out, n_items, array, sums=fixes.units)
        cycles += max(load, compute) if fixes.overlap else load + compute
    return cycles


def embedding_cycles(
    ranker: Ranker,
    n_items: int,
    array: SubArray,
    miss: float,
    flash_miss: float = 0.0,
    *,
    wide_port: bool = False,
) -> float:
    """Rows from DRAM where the cache misses, from flash where the DRAM does, else from SRAM.

    `wide_port`: SRAM gives a number to each multiplier along a side in every cycle.
    """
    n_bytes = ranker.row_bytes(n_items)
    if n_bytes == 0:
        return 0.0
    dram = transfer_cycles(n_bytes * miss, array)
    flash = 0.0
    if flash_miss:
        streamed_ns = n_bytes * flash_miss / (array.flash_gib_s * GIB_S_IN_BYTES_PER_NS)
        flash = array.flash_latency_cycles + streamed_ns / array.clock_ns
    port_bytes = FLOAT_BYTES * array.side if wide_port else SRAM_BYTES_PER_CYCLE
    return max(flash, dram) + n_bytes * (1 - miss) / port_bytes


def filter_cycles(
    n_items: int, n_kept: int, array: SubArray, fixes: Corrections = RELEASED
) -> float:
    """Choosing the best on the chip.

    The release's is independent of how many, and once too often over the clock.
    """
    taken = n_items / SCORE_BINS
    handed_out = n_kept if fixes.top_k_unit else 0
    return (taken if fixes.units else taken / array.clock_ns) + handed_out


def host_sort_ns(n_items: int) -> float:
    """Choosing the best on the host, as the release states it up to 4096 items.

    Raises ValueError beyond.
    """
    for most, ns in ((511, 0.03e6), (1024, 0.07e6), (4096, 0.35e6)):
        if n_items <= most:
            return ns
    raise ValueError(f"{n_items} items: the release states sorting times up to 4096")


def pcie_cycles(
    n_items: int, us_per_item: float, array: SubArray, fixes: Corrections = RELEASED
) -> float:
    """A transfer over the link, start included.

    The release adds nanoseconds as cycles, 8 times the time it means.
    """
    ns = (PCIE_START + us_per_item * n_items) * NS_PER_US
    return ns / array.clock_ns if fixes.units else ns


def interaction_cycles(ranker: Ranker, n_items: int, array: SubArray) -> float:
    """All vectors with each other, item after item.

    A factor fills the array, the other streams through.
    """
    if ranker.mf_width is not None:
        return float(math.ceil(ranker.mf_width / array.side) * n_items)
    n_vectors = ranker.lookups + 1
    side = array.side
    n_tiles = math.ceil(ranker.width / side) * math.ceil(n_vectors / side)
    return float(n_items * n_tiles * (min(ranker.width, side) + n_vectors))


def shared(array: SubArray) -> SubArray:
    """The sub-array with its even share of the chip's buffers and bandwidth."""
    n = array.n_on_chip
    whole = RELEASED_ARRAYS[1]
    return replace(
        array,
        dram_gib_s=whole.dram_gib_s / n,
        weight_sram_bytes=whole.weight_sram_bytes / n,
        cache_bytes=whole.cache_bytes / n,
    )


def stage_cycles(
    ranker: Ranker,
    n_items: int,
    n_kept: int,
    array: SubArray,
    fixes: Corrections = RELEASED,
    miss: float = RELEASED_MISS_RATE,
    *,
    first: bool = True,
    last: bool = True,
) -> StageCycles:
    """A stage of a query.

    `n_kept`: items handed out (the release always passes 0); `miss` is read with the correction of
    the cache; `first`, `last`: where the stage stands in its pipeline, for PCIe once a query.
    """
    if fixes.partitioned_sram:
        array = shared(array)
    if not fixes.embedding_cache:
        miss = RELEASED_MISS_RATE
    dot = fixes.dot_interaction
    fits = ranker.weight_bytes(dot=dot) <= array.weight_sram_bytes
    loaded = not (fixes.resident_weights and fits)
    crosses_in = first or not fixes.pcie_once
    crosses_out = last or not fixes.pcie_once
    embedding = embedding_cycles(ranker, n_items, array, miss, wide_port=fixes.cache_port)
    bottom = mlp_cycles(ranker.bottom, n_items, array, fixes, loaded=loaded)
    return StageCycles(
        pcie_in=pcie_cycles(n_items, PCIE_IN_PER_ITEM, array, fixes) if crosses_in else 0.0,
        embedding=embedding,
        bottom=bottom,
        interaction=interaction_cycles(ranker, n_items, array) if dot else 0.0,
        top=mlp_cycles(ranker.top_widths(dot=dot), n_items, array, fixes, loaded=loaded),
        filter=filter_cycles(n_items, n_kept, array, fixes),
        pcie_out=pcie_cycles(n_kept, PCIE_OUT_PER_ITEM, array, fixes) if crosses_out else 0.0,
        hidden=min(embedding, bottom) if fixes.overlap else 0.0,
    )


def stage_s(parts: StageCycles, array: SubArray) -> float:
    """Seconds of a stage."""
    return parts.total * array.clock_ns / NS_PER_S


def pipelined_s(sub_batch_s: Sequence[float], n_sub_batches: int) -> float:
    """A query cut into equal sub-batches that follow each other through the stages.

    `sub_batch_s`: what a sub-batch takes in each stage. The slowest stage sets the pace; the others
    are passed through once.
    """
    if n_sub_batches < 1:
        raise ValueError(f"{n_sub_batches} sub-batches; expected at least 1")
    return sum(sub_batch_s) + (n_sub_batches - 1) * max(sub_batch_s, default=0.0)


def fifo_misses(keys: Iterable[int], cache_rows: int, dram_rows: int) -> tuple[float, float]:
    """Miss rates of two caches in a row that throw out what came first, both cold.

    It is the release's "online" mode.
    """
    caches: tuple[OrderedDict[int, None], ...] = (OrderedDict(), OrderedDict())
    misses = [0, 0]
    n = 0
    for key in keys:
        n += 1
        for level, capacity in enumerate((cache_rows, dram_rows)):
            if key in caches[level]:
                break
            misses[level] += 1
            if len(caches[level]) >= capacity:
                caches[level].popitem(last=False)
            caches[level][key] = None
    return misses[0] / max(n, 1), misses[1] / max(n, 1)


def sub_array_splits(n_stages: int) -> list[tuple[int, ...]]:
    """The designs that the release tries: how many sub-arrays a chip has, for every stage.

    A single stage may also have the whole. A stage gets 1 of n_stages of the sub-arrays of its kind
    as engines, rounded down.
    """
    sizes = (1, 4, 16, 64) if n_stages == 1 else (4, 16, 64)
    return list(itertools.product(sizes, repeat=n_stages))


# Synthesis in GF 12LP, 0.70 V, 25 C, typical corner, as published with figure 11: area in um2,
# power in mW.
_BLOCKS = {
    "array 32x32": (506_891.581305, 166.4236),
    "array 32x32 that splits": (527_807.821880, 171.0079),
    "crossbar": (287.659001, 0.3195),
    "accumulator": (106.178689, 0.1404),
    "filter": (453.333886, 0.1983),
    "SRAM 32K": (29_142.0, 2.4),
    "SRAM 4K": (4_684.0, 0.8),
    "SRAM 256K": (183_290.0, 8.4),
}
BASELINE_CHIP = {"array 32x32": 16, "accumulator": 128, "SRAM 32K": 128, "SRAM 256K": 80}
RPACCEL_CHIP = {
    "array 32x32 that splits": 16,
    "accumulator": 1024,
    "crossbar": 256,
    "filter": 1024,
    "SRAM 4K": 1024,
    "SRAM 256K": 80,
}


def area_mm2(blocks: dict[str, int]) -> dict[str, float]:
    """Area of each kind of block; their sum is the chip's."""
    return {name: n * _BLOCKS[name][0] / 1e6 for name, n in blocks.items()}


def power_mw(blocks: dict[str, int]) -> dict[str, float]:
    """Power of each kind of block."""
    return {name: n * _BLOCKS[name][1] for name, n in blocks.items()}
