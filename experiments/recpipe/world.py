"""Designs of a pipeline in virtual time: which rankers, how many items, on which engines; what that
gives and costs.
"""

# Q queries, N candidates

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from accelerator import rpaccel
from accelerator.devices import ROOT, latency_profile, load_device
from accelerator.latency import Profile, read_profile, write_profile
from accelerator.pipeline_service import FILTER_NS, FILTER_NS_PER_ITEM, PipelineService
from accelerator.profiler import measure_cpu_cores
from accelerator.rpaccel import RELEASED_ARRAYS, Corrections, SubArray, shared, stage_parts, stage_s
from accelerator.service import ServiceTable, table_of_profiles
from backends.virtual.pipeline_kernel import serve_pipeline
from experiments.recpipe.chip import CHIP_NAMES, Misses
from experiments.recpipe.quality import Chain, Scored, quality, quality_of
from infra.clock import NS_PER_MS, NS_PER_S
from infra.messages import CPU
from infra.progress import Progress
from infra.ranking import mean_with_interval
from infra.results.stats import Estimate
from infra.rng import stream
from loadGenerator import Schedule
from models.costs import costs
from models.inputs.query_pool import QueryPool
from scheduler import Policy, Stage

GPU, ARRAYS = "gpu", "rpaccel"
GPU_DEVICE = "nvidia_t4"  # RecPipe's
CORE_WATTS = 6.25  # a core of the paper's Skylake server, as accelerator/intel_skylake states it
SIZES = (1, 16, 64, 256, 1024, 4096)
KIND_SHADES = {
    "CPU": "#17507d",
    "GPU": "#2a9d8f",
    "GPU in front": "#edae49",
    "GPU behind": "#6a4c93",
    "RPAccel": "#d1495b",
}
WARM_UP = 0.1
RATE_WIDTH = 0.03
GROWTH = 0.05  # of the queries still in the system at the last arrival: the rate is not carried
MOST_QPS, MOST_QUERIES = 1e5, 40_000
RUN_S, SEED = 10.0, 1
TRIAL_SLAS = 20  # a run lasts so many times the SLA: an overload of 5 % takes that long to be late
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Design:
    """A chain and where its stages run.

    `devices` by stage: cpu (all share the cores), gpu (one, whole queries), or rpaccel with
    `sub_arrays` a chip, of which a stage has 1 / stages. `cores`: engines of a stage's own,
    () = shared.
    """

    chain: Chain
    devices: tuple[str, ...]
    batch_items: int = 256
    cores: tuple[int, ...] = ()
    sub_arrays: tuple[int, ...] = ()
    share: float = (
        1.0  # of a query's candidates, drawn at random, that the first stage ranks at all
    )

    @property
    def mapping(self) -> str:
        """For tables and figures."""
        if self.sub_arrays:
            return f"RPAccel {'+'.join(map(str, self.sub_arrays))}"
        words = [{CPU: "CPU", GPU: "GPU"}[device] for device in self.devices]
        shown = words[0] if len(set(words)) == 1 else " > ".join(words)
        return shown + (f" {'+'.join(map(str, self.cores))}" if self.cores else "")

    @property
    def kind(self) -> str:
        """CPU, GPU, GPU in front, GPU behind or RPAccel."""
        if self.sub_arrays:
            return "RPAccel"
        if len(set(self.devices)) == 1:
            return self.devices[0].upper()
        return "GPU in front" if self.devices[0] == GPU else "GPU behind"

    def key(self) -> str:
        """A name that no other design has."""
        return json.dumps(
            [self.chain.label, self.chain.keeps[-1], self.mapping, self.batch_items, self.share]
        )


@dataclass(frozen=True)
class Shown:
    """What a run in virtual time showed."""

    p95_ms: float
    carried: bool  # the queue was not growing


@dataclass(eq=False)
class World:
    """Everything that designs of one data set share: quality, service times, arrivals.

    Common random numbers.
    """

    scored: Scored
    cpu: dict[str, Profile]
    n_cores: int = 32
    n_queries: int = 2000
    fixes: Corrections = field(
        default_factory=lambda: replace(Corrections.all(), sub_batches=False)
    )
    filter_ns: int = FILTER_NS
    filter_item_ns: float = FILTER_NS_PER_ITEM
    misses: Misses | None = (
        None  # of RPAccel's embedding cache on the ids that stages get; None: half, as released
    )
    _quality: dict[tuple[Chain, float], Estimate] = field(default_factory=dict)
    _tables: dict[tuple[object, ...], ServiceTable] = field(default_factory=dict)

    @cached_property
    def sizes(self) -> npt.NDArray[np.int32]:
        """Candidates of the queries of a run: the data set's own, drawn with equal chance."""
        own = self.scored.data.queries.n_items_Q
        return own[stream(5, "queries").integers(0, len(own), MOST_QUERIES)].astype(np.int32)

    @cached_property
    def unit_s(self) -> FloatArray:
        """Poisson arrivals at 1 query a second."""
        return np.cumsum(stream(5, "arrivals").exponential(1.0, MOST_QUERIES))

    def schedule(self, rate_qps: float, lasts_s: float = 0.0) -> Schedule:
        """The load at a rate: `n_queries`, or as many more as it takes to last so long."""
        n = int(min(max(self.n_queries, rate_qps * lasts_s), MOST_QUERIES))
        arrival_ns = np.rint(self.unit_s[:n] / rate_qps * NS_PER_S).astype(np.int64)
        return Schedule(arrival_ns, self.sizes[:n], np.zeros(n, np.int32), round(WARM_UP * n))

    def quality(self, chain: Chain, share: float = 1.0) -> Estimate:
        """NDCG of what the chain answers, the very lists of its filters; mean and interval over the
        queries.
        """
        key = (chain, share)
        if key not in self._quality:
            by_query = (
                quality_of(chain, self.scored)
                if share == 1
                else (quality(chain, self.scored, self.scored.parts(share)))
            )
            self._quality[key] = mean_with_interval(by_query["ndcg"])
        return self._quality[key]

    def run(self, design: Design, rate_qps: float, lasts_s: float = RUN_S) -> Shown:
        """p95 at a rate; carried where the work that arrives is less than the engines can do."""
        stages, engines, service = self.built(design)
        schedule = self.schedule(rate_qps, lasts_s)
        ranked = np.maximum(np.rint(schedule.n_items * design.share), 1).astype(np.int32)
        schedule = replace(schedule, n_items=ranked)
        served = serve_pipeline(schedule, stages, engines, service)
        arrival = schedule.arrival_ns
        counted = slice(schedule.n_warmup, None)
        left = int((served.done_ns > arrival[-1]).sum())
        load = max(ns / engines[pool] for pool, ns in served.busy_ns.items()) / max(
            int(arrival[-1]), 1
        )
        p95 = float(np.quantile((served.done_ns - arrival)[counted], 0.95)) / NS_PER_MS
        return Shown(
            p95, load < 1 and left <= max(GROWTH * len(arrival), 2 * sum(engines.values()))
        )

    def max_qps(self, design: Design, sla_ms: float, start_qps: float = 100.0) -> float:
        """The highest rate at which p95 meets the SLA, to RATE_WIDTH; 0 where even an idle pipeline
        does not.
        """

        def meets(rate_qps: float) -> bool:
            shown = self.run(design, rate_qps, TRIAL_SLAS * sla_ms / 1e3)
            return shown.carried and shown.p95_ms <= sla_ms

        low = 0.0
        high = start_qps
        while meets(high) and high < MOST_QPS:
            low = high
            high = 2 * high
        while low == 0.0 and high > 1e-2:
            if meets(high / 4):
                low = high / 4
            else:
                high /= 4
        while low > 0 and high / low > 1 + RATE_WIDTH:
            middle = float(np.sqrt(low * high))
            low, high = (middle, high) if meets(middle) else (low, middle)
        return low

    def watts(self, design: Design) -> float:
        """Of all engines that the design uses: cores, the GPU's TDP, the accelerator's chip as
        synthesised.
        """
        cores = self.n_cores * CORE_WATTS if CPU in design.devices else 0.0
        gpu = (load_device(ROOT, GPU_DEVICE).tdp_w or 0.0) if GPU in design.devices else 0.0
        chip = (
            sum(rpaccel.power_mw(rpaccel.RPACCEL_CHIP).values()) / 1e3
            if ARRAYS in design.devices
            else 0.0
        )
        return cores + gpu + chip

    def built(self, design: Design) -> tuple[list[Stage], dict[str, int], PipelineService]:
        """Stages, engines by pool and service times."""
        n_stages = len(design.devices)
        stages = []
        engines = dict[str, int]()
        tables = []
        for i, (name, device) in enumerate(zip(design.chain.rankers, design.devices, strict=True)):
            pool = device
            n_engines = 1
            batch = int(self.sizes.max())
            if device == CPU:
                batch = design.batch_items
                pool = f"{CPU}{i}" if design.cores else CPU
                n_engines = design.cores[i] if design.cores else self.n_cores
            elif device == ARRAYS:
                pool = f"{ARRAYS}{i}"
                n_engines = max(design.sub_arrays[i] // n_stages, 1)
            engines[pool] = n_engines
            keep = design.chain.keeps[i]
            stages.append(Stage(Policy(batch), keep, pool))
            tables.append(self._table(name, design, i))
        on_chip = ARRAYS in design.devices  # its filter is part of the stage
        filters = (0, 0.0) if on_chip else (self.filter_ns, self.filter_item_ns)
        cores = frozenset(pool for pool in engines if pool.startswith(CPU))
        return stages, engines, PipelineService(tuple(tables), cores, *filters)

    def _table(self, name: str, design: Design, stage: int) -> ServiceTable:
        device = design.devices[stage]
        keeps = design.chain.keeps
        key: tuple[object, ...] = (name, device)
        if (
            device == ARRAYS
        ):  # what came before decides which ids come, and a chain's ends cross the link
            before = design.chain.rankers[:stage], keeps[: stage + 1]
            key = (name, device, design.sub_arrays[stage], *before, stage == len(keeps) - 1)
        if key not in self._tables:
            self._tables[key] = self._new_table(name, design, stage)
        return self._tables[key]

    def _new_table(self, name: str, design: Design, stage: int) -> ServiceTable:
        most = int(self.sizes.max())
        config = self.scored.data.rankers[name].config
        if design.devices[stage] == CPU:
            return table_of_profiles(self.cpu[name], [], most, seed=SEED)
        if design.devices[stage] == GPU:
            profile = latency_profile(
                load_device(ROOT, GPU_DEVICE), replace(config, model_name=f"recpipe-{name}"), most
            )
            return table_of_profiles(profile, [], most, seed=SEED)
        array = RELEASED_ARRAYS[design.sub_arrays[stage]]
        ranker = accelerated(self.scored, name)
        first = stage == 0
        last = stage == len(design.devices) - 1
        kept = design.chain.keeps[stage]
        miss = self._miss_rate(design.chain, stage, array, ranker.width)
        ns = [1]
        for n in range(1, most + 1):
            parts = stage_parts(
                ranker, n, min(kept, n), array, self.fixes, miss, first=first, last=last
            )
            ns.append(max(1, round(stage_s(parts, array) * NS_PER_S)))
        return ServiceTable(np.array([ns], np.int64))

    def _miss_rate(self, chain: Chain, stage: int, array: SubArray, width: int) -> float:
        if self.misses is None:
            return rpaccel.RELEASED_MISS_RATE
        own = shared(array) if self.fixes.partitioned_sram else array
        before = [CHIP_NAMES[name] for name in chain.rankers[:stage]]
        items = (int(self.sizes.max()), *chain.keeps[:stage])
        return self.misses.rate(before, items, int(own.cache_bytes / (rpaccel.FLOAT_BYTES * width)))


def accelerated(scored: Scored, name: str) -> rpaccel.Ranker:
    """A trained ranker as the accelerator's model takes it."""
    config = scored.data.rankers[name].config
    width = config.arch_sparse_feature_size
    n_tables = len(config.table_rows)
    if config.model_type == "ncf":
        *tower, out = config.top_widths
        return rpaccel.Ranker(
            name, width, (2 * width, *tower), (width + tower[-1], out), n_tables, width
        )
    return rpaccel.Ranker(name, width, config.bot_widths, config.top_widths, n_tables)


def cpu_profiles(
    scored: Scored, folder: Path, progress: Progress, n_neighbours: int = 1
) -> dict[str, Profile]:
    """Every ranker's times on a core of this machine by items, alone and beside a neighbour;
    measured once.

    A profile of another net, processor or PyTorch in the folder is refused: raises ValueError.
    """
    profiles = {}
    for name, ranker in scored.data.rankers.items():
        file = folder / f"{scored.data.name}_{name}.csv"
        key = (
            f"{costs(ranker.config, 1).flops:g} FLOPs an item, {ranker.config.table_bytes} "
            "bytes of tables"
        )
        if file.is_file():
            known = read_profile(file)
            if known.provenance.get("net") != key:
                raise ValueError(
                    f"{file}: of another net ({known.provenance.get('net')}, not {key}); remove it"
                )
            profiles[name] = known
            continue
        queries = scored.data.queries
        inputs = QueryPool(queries, ranker.config)
        with progress.step(f"measuring {name}") as on_fraction:
            measured = measure_cpu_cores(ranker.model(), inputs, SIZES, n_neighbours, on_fraction)
        profiles[name] = replace(measured, provenance={**measured.provenance, "net": key})
        folder.mkdir(parents=True, exist_ok=True)
        write_profile(file, profiles[name])
    return profiles


def pareto(rows: Sequence[tuple[float, ...]]) -> list[int]:
    """Indices of the rows that no other row equals or beats in every number (larger is better) and
    beats in one.

    Nothing is rounded; of equal rows the first stays.
    """
    values = np.array(rows, dtype=float)
    kept = []
    for i, own in enumerate(values):
        better = np.all(values >= own, axis=1) & np.any(values > own, axis=1)
        if not better.any() and not np.all(values[:i] == own, axis=1).any():
            kept.append(i)
    return kept
