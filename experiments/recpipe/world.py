"""Pipelines in virtual time: what a design gives (quality, tail, rate) and costs (power)."""

# Q queries, N candidates

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from accelerator import rpaccel
from accelerator.deployment_service import FILTER_NS, FILTER_NS_PER_ITEM
from accelerator.devices import ROOT, latency_profile, load_device
from accelerator.latency import Profile, read_profile, write_profile
from accelerator.profiler import measure_cpu_cores
from accelerator.rpaccel import RELEASED_ARRAYS, Corrections, stage_cycles, stage_s
from accelerator.service import ServiceTable, ServiceTimes, table_of_profiles
from backends.virtual.pipeline_kernel import serve_pipeline
from experiments.recpipe.chains import Chain, Ndcg, Scored, quality_of
from experiments.recpipe.chip import CHIP_NAMES, Misses, cache_rows
from infra.clock import NS_PER_MS, NS_PER_S
from infra.messages import CPU
from infra.progress import Progress
from infra.rng import stream
from loadGenerator import Schedule
from models.costs import costs
from models.inputs.query_pool import QueryPool
from scheduler import Policy, Stage

GPU, ARRAYS = "gpu", "rpaccel"
GPU_DEVICE = "nvidia_t4"  # RecPipe's
CORE_WATTS = 6.25  # a core of the paper's Skylake server, as accelerator/intel_skylake states it
SIZES = (1, 16, 64, 256, 1024, 4096)
WARM_UP = 0.1
RATE_WIDTH = 0.03
GROWTH = 0.05  # of the queries still in the system at the last arrival: the rate is not carried
MOST_QPS, MOST_QUERIES = 1e5, 40_000
RUN_S, SEED = 10.0, 1
TRIAL_SLAS = 20  # a run lasts so many times the SLA: an overload of 5 % takes that long to be late


@dataclass(frozen=True)
class SystemDesign:
    """A chain and where its stages run.

    `devices` by stage: cpu (all share the cores), gpu (one, whole queries), or rpaccel with
    `sub_arrays` a chip, of which a stage has 1 / stages. `cores`: engines of each stage alone,
    () = shared. `share` of a query's candidates, drawn at random, that are ranked at all.
    """

    chain: Chain
    devices: tuple[str, ...]
    batch_items: int = 256
    cores: tuple[int, ...] = ()
    sub_arrays: tuple[int, ...] = ()
    share: float = 1.0

    @property
    def mapping(self) -> str:
        """The devices, for tables and figures."""
        if self.sub_arrays:
            return f"RPAccel {'+'.join(map(str, self.sub_arrays))}"
        words = [device.upper() for device in self.devices]
        devices = words[0] if len(set(words)) == 1 else " > ".join(words)
        return devices + (f" {'+'.join(map(str, self.cores))}" if self.cores else "")

    @property
    def kind(self) -> str:
        """CPU, GPU, GPU in front, GPU behind or RPAccel."""
        if self.sub_arrays:
            return "RPAccel"
        if len(set(self.devices)) == 1:
            return self.devices[0].upper()
        return "GPU in front" if self.devices[0] == GPU else "GPU behind"

    @property
    def key(self) -> str:
        """A name that no other design has."""
        return json.dumps(
            [self.chain.label, self.chain.keeps[-1], self.mapping, self.batch_items, self.share]
        )

    @property
    def cpu_batch(self) -> int:
        """Items of a task on a core; 0 where no stage runs on cores."""
        return self.batch_items if CPU in self.devices else 0

    def pool(self, stage: int, n_cores: int) -> tuple[str, int]:
        """The stage's pool on a server of so many cores, and the number of its engines."""
        device = self.devices[stage]
        if device == ARRAYS:
            return f"{ARRAYS}{stage}", max(self.sub_arrays[stage] // len(self.devices), 1)
        if device == CPU and self.cores:
            return f"{CPU}{stage}", self.cores[stage]
        return device, n_cores if device == CPU else 1


@dataclass(frozen=True)
class RunTail:
    """Columns of a row: what a run in virtual time showed; carried: its queue was not growing."""

    p95_ms: float
    carried: bool


@dataclass(eq=False)
class RankingWorld:
    """Everything that designs of one data set share: quality, service times, arrivals.

    Random numbers are common to all designs. `misses`: of RPAccel's embedding cache on the ids that
    stages get; None: half of them, as released.
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
    misses: Misses | None = None
    _tables: dict[object, ServiceTable] = field(default_factory=dict, init=False)

    @cached_property
    def sizes(self) -> npt.NDArray[np.int32]:
        """Candidates of the queries of a run: the data set's, drawn with equal chance."""
        n_items_Q = self.scored.data.queries.n_items_Q
        drawn = stream(5, "queries").integers(0, len(n_items_Q), MOST_QUERIES)
        return n_items_Q[drawn].astype(np.int32)

    @property
    def most_items(self) -> int:
        """Candidates of the largest query."""
        return int(self.sizes.max())

    @cached_property
    def unit_s(self) -> npt.NDArray[np.float64]:
        """Poisson arrivals at 1 query a second."""
        return np.cumsum(stream(5, "arrivals").exponential(1.0, MOST_QUERIES))

    def schedule(self, rate_qps: float, lasts_s: float = 0.0, share: float = 1.0) -> Schedule:
        """The load at a rate: `n_queries`, or as many more as it takes to last so long."""
        n = int(min(max(self.n_queries, rate_qps * lasts_s), MOST_QUERIES))
        arrival_ns = np.rint(self.unit_s[:n] / rate_qps * NS_PER_S).astype(np.int64)
        n_items = np.maximum(np.rint(self.sizes[:n] * share), 1).astype(np.int32)
        return Schedule(arrival_ns, n_items, np.zeros(n, np.int32), round(WARM_UP * n))

    def quality(self, chain: Chain, share: float = 1.0) -> Ndcg:
        """NDCG of the very lists that the chain answers."""
        return Ndcg.of(quality_of(chain, self.scored, share=share))

    def run(self, design: SystemDesign, rate_qps: float, lasts_s: float = RUN_S) -> RunTail:
        """p95 at a rate; carried where the work that arrives is less than the engines can do."""
        stages, engines, service = self.built(design)
        schedule = self.schedule(rate_qps, lasts_s, design.share)
        served = serve_pipeline(schedule, Policy(design.batch_items), stages, engines, service)
        arrival_ns = schedule.arrival_ns
        latency_ns = (served.done_ns - arrival_ns)[schedule.n_warmup :]
        n_left = int((served.done_ns > arrival_ns[-1]).sum())
        work_ns = max(ns / engines[pool] for pool, ns in served.busy_ns.items())
        load = work_ns / max(int(arrival_ns[-1]), 1)
        most_left = max(GROWTH * len(arrival_ns), 2 * sum(engines.values()))
        p95_ms = float(np.quantile(latency_ns, 0.95)) / NS_PER_MS
        return RunTail(p95_ms, load < 1 and n_left <= most_left)

    def max_qps(self, design: SystemDesign, sla_ms: float, start_qps: float = 100.0) -> float:
        """The highest rate at which p95 meets the SLA, to RATE_WIDTH; 0 if it never does."""

        def meets(rate_qps: float) -> bool:
            tail = self.run(design, rate_qps, TRIAL_SLAS * sla_ms / 1e3)
            return tail.carried and tail.p95_ms <= sla_ms

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

    def watts(self, design: SystemDesign) -> float:
        """Power of all engines in use: cores, the GPU's TDP, the accelerator's synthesised chip."""
        cores = self.n_cores * CORE_WATTS if CPU in design.devices else 0.0
        gpu = (load_device(ROOT, GPU_DEVICE).tdp_w or 0.0) if GPU in design.devices else 0.0
        chip = sum(rpaccel.power_mw(rpaccel.RPACCEL_CHIP).values()) / 1e3
        return cores + gpu + (chip if ARRAYS in design.devices else 0.0)

    def built(self, design: SystemDesign) -> tuple[list[Stage], dict[str, int], ServiceTimes]:
        """Stages, engines by pool and service times."""
        pools = [design.pool(i, self.n_cores) for i in range(len(design.devices))]
        stages = [
            Stage(keep, pool, None if device == CPU else self.most_items)
            for device, keep, (pool, _) in zip(
                design.devices, design.chain.keeps, pools, strict=True
            )
        ]
        tables = tuple(self._table(design, i) for i in range(len(pools)))
        on_chip = ARRAYS in design.devices  # its filter is part of the stage
        filters = (0, 0.0) if on_chip else (self.filter_ns, self.filter_item_ns)
        cores = frozenset(pool for pool, _ in pools if pool.startswith(CPU))
        return stages, dict(pools), ServiceTimes(tables, cores, *filters)

    def _table(self, design: SystemDesign, stage: int) -> ServiceTable:
        name = design.chain.rankers[stage]
        device = design.devices[stage]
        key: object = (name, device)
        if device == ARRAYS:
            # What came before decides which ids come, and a chain's ends cross the link.
            chain = (design.chain.rankers[: stage + 1], design.chain.keeps[: stage + 1])
            key = (chain, design.sub_arrays[stage], stage + 1 == len(design.devices))
        if key not in self._tables:
            self._tables[key] = (
                self._chip_table(design, stage)
                if device == ARRAYS
                else table_of_profiles(self._profile(name, device), [], self.most_items, seed=SEED)
            )
        return self._tables[key]

    def _profile(self, name: str, device: str) -> Profile:
        if device == CPU:
            return self.cpu[name]
        config = self.scored.data.rankers[name].config
        config = replace(config, model_name=f"recpipe-{name}")
        return latency_profile(load_device(ROOT, GPU_DEVICE), config, self.most_items)

    def _chip_table(self, design: SystemDesign, stage: int) -> ServiceTable:
        chain = design.chain
        array = RELEASED_ARRAYS[design.sub_arrays[stage]]
        ranker = accelerated(self.scored, chain.rankers[stage])
        miss = rpaccel.RELEASED_MISS_RATE
        if self.misses is not None:
            before = [CHIP_NAMES[name] for name in chain.rankers[:stage]]
            items = (self.most_items, *chain.keeps[:stage])
            miss = self.misses.rate(before, items, cache_rows(array, self.fixes, ranker.width))
        ends = {"first": stage == 0, "last": stage + 1 == len(chain.rankers)}
        times_ns = [1]
        for n in range(1, self.most_items + 1):
            n_kept = min(chain.keeps[stage], n)
            parts = stage_cycles(ranker, n, n_kept, array, self.fixes, miss, **ends)
            times_ns.append(max(1, round(stage_s(parts, array) * NS_PER_S)))
        return ServiceTable(np.array([times_ns], np.int64))


def accelerated(scored: Scored, name: str) -> rpaccel.Ranker:
    """A trained ranker as the accelerator's model takes it."""
    config = scored.data.rankers[name].config
    width = config.arch_sparse_feature_size
    n_tables = len(config.table_rows)
    if config.model_type != "ncf":
        return rpaccel.Ranker(name, width, config.bot_widths, config.top_widths, n_tables)
    *tower, out = config.top_widths
    final = (width + tower[-1], out)
    return rpaccel.Ranker(name, width, (2 * width, *tower), final, n_tables, width)


def cpu_profiles(
    scored: Scored, folder: Path, progress: Progress, n_neighbours: int = 1
) -> dict[str, Profile]:
    """Each ranker's times on a core of this machine by items, alone and beside a neighbour.

    They are measured once and kept in the folder; one of another net there is refused: ValueError.
    """
    profiles = {}
    for name, ranker in scored.data.rankers.items():
        file = folder / f"{scored.data.name}_{name}.csv"
        flops = costs(ranker.config, 1).flops
        net = f"{flops:g} FLOPs an item, {ranker.config.table_bytes} bytes of tables"
        if not file.is_file():
            inputs = QueryPool(scored.data.queries, ranker.config)
            with progress.step(f"measuring {name}") as on_fraction:
                profile = measure_cpu_cores(
                    ranker.model(), inputs, SIZES, n_neighbours, on_fraction
                )
            write_profile(file, replace(profile, provenance={**profile.provenance, "net": net}))
        profiles[name] = read_profile(file)
        measured = profiles[name].provenance.get("net")
        if measured != net:
            raise ValueError(f"{file}: of another net ({measured}, not {net}); remove it")
    return profiles
