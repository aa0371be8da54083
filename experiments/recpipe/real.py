#!/usr/bin/env python3
"""Pipelines on the engines of this machine: the best of several stages against the best of one.

python experiments/recpipe/real.py [--data clicks|movielens] [--engines 2] [--rounds 5]
    [--sla_ms 150] [--search FOLDER] [--quick] [--out FOLDER]

The chain is the cheapest (virtual time, these engines) whose NDCG is surely (95 %, query by query)
not worse than the large ranker's by more than a margin: 1 %, MovieLens 5 %, where one item is
sought and the intervals are wide. Both sides run in turn, several rounds, at the same rates: p95
(real_<data>.csv), time by stage (real_stages_<data>.csv); then twice the highest rate under the SLA
(real_rates_<data>.csv). Some 6 minutes. --search FOLDER, with the rows of search.py: its best
pipeline on shared cores is foretold for the engines of this machine and run on them, too;
confirmed_<data>.csv.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from accelerator.latency import Profile
from backends.opening import OpenSession, open_session
from backends.tuning.probe import Sla, latencies_ms, max_rate_qps
from experiments.common.case_log import PARQUET, read_table
from experiments.common.study import Study, progress
from experiments.common.tails import P95, p95_of
from experiments.recpipe.chains import KEPT, Chain, chains, quality_of
from experiments.recpipe.datasets.ranked import sample
from experiments.recpipe.datasets.rankers import export
from experiments.recpipe.design_studies import WorldOptions, WorldSettings, world_of, worlds
from experiments.recpipe.drawing import views
from experiments.recpipe.world import WARM_UP, RankingWorld, SystemDesign
from infra.clock import NS_PER_MS, NS_PER_S, NS_PER_US
from infra.deployment import resolve
from infra.messages import CPU
from infra.progress import Progress
from infra.ranking import paired
from infra.results.quantiles import Estimate
from infra.results.rows import Rows
from infra.results.stages import answers_by_input, stage_parts, stage_table
from infra.results.stats import summarize
from infra.rng import stream
from infra.settings.config import RunConfig, from_settings
from infra.settings.fields import flag
from loadGenerator import CommonLoad, Schedule
from scheduler import Policy

RUN_S, PROBE_QUERIES = 8.0, 400
WARM_QPS = 20.0  # of the first run, which is not counted
N_LABELLED = 64  # queries on the engines
MARGINS = {"movielens": 0.05, "clicks": 0.01, "criteo": 0.01}  # of the large ranker's NDCG
LOADS = (0.3, 0.6, 0.8)  # of what one stage carries
BATCHES = (256, 1024, 4096)


@dataclass(frozen=True)
class EnginePipelineOptions(WorldOptions):
    """The study's flags."""

    engines: int = flag(2, "CPU engines on this machine", low=1)
    rounds: int = flag(5, "runs of both sides at each rate (--quick: 2)", low=1)
    sla_ms: float = flag(150.0, "p95 that is allowed", above=0)
    search: str = flag("", "folder with the rows of search.py, whose winner is run, too")


@dataclass(frozen=True)
class EnginePipelineCase:
    """Both sides in turn, or the `winner` of a search, on so many engines of this machine."""

    data: str
    settings: WorldSettings
    n_engines: int
    rounds: int
    sla_ms: float
    winner: SystemDesign | None = None


@dataclass(frozen=True)
class SideRow:
    """A run of one side; `positives_in_list`: of the very lists that were answered."""

    side: str
    chain: str
    batch_items: int
    load: float
    rate_qps: float
    round: int
    p50_ms: float
    p95: P95
    valid: bool
    positives_in_list: float
    filter_ms: float
    late_ms: float


@dataclass(frozen=True)
class SideRateRow:
    """The highest rate of one side under the SLA, measured and foretold."""

    round: int
    side: str
    chain: str
    batch_items: int
    max_qps: float
    low: float
    high: float
    foretold: float


@dataclass(frozen=True)
class DesignEngines:
    """Engines on this machine that run a design."""

    opened: OpenSession

    @property
    def config(self) -> RunConfig:
        """The settings of the run."""
        return self.opened.deployment.config

    @property
    def policy(self) -> Policy:
        """Queries are split as the design says."""
        return Policy(self.config.engines.sub_task_batch_size)

    def run(self, rate_qps: float, seed: int, lasts_s: float = RUN_S) -> Rows:
        """Rows of Poisson arrivals."""
        n = max(int(rate_qps * lasts_s), 200)
        rng = stream(seed, "real")
        arrival_ns = np.cumsum(rng.exponential(NS_PER_S / rate_qps, n)).astype(np.int64)
        inputs = rng.integers(0, self.config.inputs.num_batches, n).astype(np.int32)
        sizes = np.full(n, self.config.inputs.max_mini_batch_size, np.int32)
        schedule = Schedule(arrival_ns, sizes, inputs, round(WARM_UP * n))
        return self.opened.session.run(schedule, self.policy)

    def max_qps(self, sla_ms: float, n_queries: int, start_qps: float) -> Estimate:
        """The highest rate under the SLA, with its interval."""
        sla = Sla(sla_ms, max_queries=n_queries)
        load = CommonLoad(self.config, n_queries, 2)
        return max_rate_qps(self.opened.session, load, self.policy, sla, start_qps)


@contextmanager
def opened(
    world: RankingWorld, design: SystemDesign, n_engines: int, shown: Progress
) -> Iterator[DesignEngines]:
    """The design's engines on this machine, all stages on shared ones."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        export(world.scored.data, folder, N_LABELLED)
        stages = [
            {"model": f"{ranker}.json", "checkpoint": f"{ranker}.npz", "keep_items": keep}
            for ranker, keep in zip(design.chain.rankers, design.chain.keeps, strict=True)
        ]
        document = {
            "queries": "queries.npz",
            "pools": {"cores": {"engines": n_engines}},
            "stages": [{**stage, "pool": "cores"} for stage in stages],
        }
        file = folder / "pipeline.yaml"
        file.write_text(yaml.safe_dump(document))
        settings = {"queue": True, "pipeline": str(file), "nepochs": 1}
        config = from_settings({**settings, "sub_task_batch_size": design.batch_items})
        with open_session(resolve(config), shown) as session:
            yield DesignEngines(session)


def calibrated(
    world: RankingWorld, design: SystemDesign, rows: Rows, n_engines: int
) -> RankingWorld:
    """The world with so many engines as a run at leisure on them showed, by medians.

    The level of each stage's times, what passes before a task on an idle and on a busy engine, what
    choosing takes.
    """
    tasks = rows.tasks.sort_values("start_ns")
    took_ms = (tasks["end_ns"] - tasks["start_ns"]) / NS_PER_MS
    free_ns = tasks.groupby(["pool", "engine"])["end_ns"].shift().fillna(0)
    delay_us = (tasks["start_ns"] - np.maximum(free_ns, tasks["enqueued_ns"])) / NS_PER_US
    idle = free_ns <= tasks["enqueued_ns"]
    wake_us, gap_us = (
        float(delay_us[those].median()) if those.any() else 0.0 for those in (idle, ~idle)
    )
    cpu = dict(world.cpu)
    for stage, name in enumerate(design.chain.rankers):
        here = tasks["stage"] == stage
        profile = world.cpu[name]
        level = float((took_ms[here] / tasks["n_items"][here].map(profile.ms)).median())
        cpu[name] = replace(_slower(profile, level), wake_us=wake_us, gap_us=gap_us)
    table = stage_table(rows)
    if len(design.devices) > 1:
        table = table[table["stage"] < len(design.devices) - 1]
    filter_ns = round(float((table["next_ns"] - table["end_ns"]).median()))
    return replace(world, cpu=cpu, n_cores=n_engines, filter_ns=filter_ns, filter_item_ns=0.0)


def _slower(profile: Profile, level: float) -> Profile:
    levels = {0: profile.batch_ms, **profile.busy_ms}
    slower = {k: {n: ms * level for n, ms in times.items()} for k, times in levels.items()}
    return replace(profile, batch_ms=slower.pop(0), busy_ms=slower)


def counted_ms(rows: Rows) -> np.ndarray:
    """Latencies of the queries after the warm-up."""
    return latencies_ms(rows)[rows.queries["is_warmup"].to_numpy().sum() :]


def as_good(world: RankingWorld) -> list[Chain]:
    """Chains of several stages that are not worse than the large ranker alone by more than MARGINS.

    They are compared query by query: the whole interval of the difference lies above that.
    """
    data = world.scored.data
    alone = quality_of(world.scored.large, world.scored)["ndcg"]
    least = -MARGINS[data.name] * alone.mean()
    return [
        chain
        for chain in chains([n for n in KEPT[data.name] if n < world.most_items], data.k)
        if len(chain.rankers) > 1
        and paired(quality_of(chain, world.scored)["ndcg"], alone).difference.low >= least
    ]


def cheapest(world: RankingWorld, options: Sequence[Chain], sla_ms: float) -> SystemDesign:
    """The chain and batch of the highest rate under the SLA in virtual time.

    Raises ValueError without an option.
    """
    if not options:
        raise ValueError("no chain of several stages is as good as the large ranker alone")
    designs = [
        SystemDesign(chain, (CPU,) * len(chain.rankers), batch)
        for chain, batch in itertools.product(options, BATCHES)
    ]
    return max(designs, key=lambda design: world.max_qps(design, sla_ms))


def compare(
    world: RankingWorld,
    n_engines: int,
    rounds: int,
    sla_ms: float,
    shown: Progress,
    lasts_s: float = RUN_S,
    probe_queries: int = PROBE_QUERIES,
) -> dict[str, list[Any]]:
    """Rows: p95 by rate and round (real), the highest rate of each side (real_rates).

    Also the time by stage at the lowest load (real_stages).
    """
    here = replace(world, n_cores=n_engines)
    alone = cheapest(here, [world.scored.large], sla_ms)
    sides = {"one stage": alone, "several": cheapest(here, as_good(here), sla_ms)}
    runs = []
    parts = []
    limits = []
    with ExitStack() as stack:
        engines = {
            side: stack.enter_context(opened(world, design, n_engines, shown))
            for side, design in sides.items()
        }
        for warming in engines.values():
            warming.run(WARM_QPS, 0, 1.0)
        at_leisure = engines["one stage"].run(here.max_qps(alone, sla_ms) / 10, 2, lasts_s)
        carried = calibrated(here, alone, at_leisure, n_engines).max_qps(alone, sla_ms)
        steps = [
            (k, load, side)
            for k in range(rounds)
            for load in LOADS
            for side in ([*sides] if k % 2 == 0 else [*sides][::-1])
        ]
        with shown.step("p95, both sides in turn") as on_fraction:
            for n_done, (k, load, side) in enumerate(steps, start=1):
                rows = engines[side].run(load * carried, 10 + k, lasts_s)
                runs.append(_side_row(world, sides[side], side, (load, load * carried, k), rows))
                if load == LOADS[0]:
                    parts.append(stage_parts(rows).assign(side=side, round=k))
                on_fraction(n_done / len(steps))
        for k, (side, design) in itertools.product(range(2), sides.items()):
            with shown.step(f"{side}: highest rate under p95 <= {sla_ms:g} ms"):
                limit = engines[side].max_qps(sla_ms, probe_queries, carried / 2)
            highest = (limit.value, limit.low, limit.high, here.max_qps(design, sla_ms))
            limits.append(SideRateRow(k, side, design.chain.label, design.batch_items, *highest))
    return {"real": runs, "real_rates": limits, "real_stages": pd.concat(parts).to_dict("records")}


def _side_row(
    world: RankingWorld,
    design: SystemDesign,
    side: str,
    load: tuple[float, float, int],
    rows: Rows,
) -> SideRow:
    """The row of a run; `load`: share of what one stage carries, rate and round."""
    latency_ms = counted_ms(rows)
    queries = sample(world.scored.data.queries, N_LABELLED)
    answers = answers_by_input(rows)
    hits = [queries.labels(query)[items].mean() for query, items in answers.items()]
    late_ns = (rows.queries["sent_ns"] - rows.queries["arrival_ns"]).astype(float)
    return SideRow(
        side,
        design.chain.label,
        design.batch_items,
        *load,
        float(np.median(latency_ms)),
        p95_of(latency_ms),
        summarize(rows.queries, rows.tasks, 1e3 * RUN_S, extra=rows.notes).valid,
        float(np.mean(hits)),
        float(stage_parts(rows)["filter_ms"].sum()),
        float(late_ns.quantile(0.99)) / NS_PER_MS,
    )


def ratios(rows: pd.DataFrame) -> pd.DataFrame:
    """p95 of one stage over that of several by load: median and range over the rounds."""
    by = ["load", "rate_qps"]
    wide = rows.pivot_table(index=[*by, "round"], columns="side", values="p95_ms").reset_index()
    wide["ratio"] = wide["one stage"] / wide["several"]
    grouped = wide.groupby(by)
    table = grouped[["one stage", "several", "ratio"]].median()
    table["lowest"] = grouped["ratio"].min()
    table["highest"] = grouped["ratio"].max()
    return table.reset_index()


def confirm(
    world: RankingWorld, design: SystemDesign, n_engines: int, sla_ms: float, shown: Progress
) -> list[dict[str, Any]]:
    """Rows of a design foretold and run, at shares of the rate that it is foretold to carry.

    The SLA is longer by a quarter of the factor by which the engines are fewer; the forecast is
    calibrated by a run at a tenth of the highest rate.
    """
    longer_ms = sla_ms * max(world.n_cores / n_engines / 4, 1.0)
    rough_qps = replace(world, n_cores=n_engines).max_qps(design, longer_ms)
    rows = []
    with opened(world, design, n_engines, shown) as engines:
        engines.run(rough_qps / 4, 0, 2.0)
        here = calibrated(world, design, engines.run(rough_qps / 10, 2), n_engines)
        carried_qps = here.max_qps(design, longer_ms)
        for load in LOADS:
            rate_qps = load * carried_qps
            p95 = p95_of(counted_ms(engines.run(rate_qps, 1)))
            foretold_ms = here.run(design, rate_qps).p95_ms
            rows.append(
                {
                    "chain": design.chain.label,
                    "engines": n_engines,
                    "batch_items": design.batch_items,
                    "rate_qps": rate_qps,
                    "foretold p95_ms": foretold_ms,
                    **asdict(p95),
                    "error": foretold_ms / p95.p95_ms - 1,
                }
            )
    return rows


def winner_of(rows: pd.DataFrame, goal: Any) -> SystemDesign:
    """The design on shared cores of the highest rate among those of enough quality."""
    is_shared = (rows["kind"] == "CPU") & ~rows["mapping"].str.contains(r"\d")
    able = rows[is_shared & (rows["ndcg"] >= goal.floor) & (rows["max_qps"] > 0)]
    if able.empty:
        raise ValueError(
            f"no pipeline on cores has p95 <= {goal.sla_ms:g} ms and NDCG >= {goal.floor:.4f}"
        )
    best = able.loc[able["max_qps"].idxmax()]
    chain = Chain.of(best["chain"], int(goal.k))
    return SystemDesign(chain, (CPU,) * len(chain.rankers), int(best["batch_items"]))


def searched(folder: Path, data: str) -> tuple[SystemDesign, Any]:
    """The winner of a search and its goal; raises ValueError if the folder has none."""
    rows, goals = (read_table(folder, f"search{part}_{data}", PARQUET) for part in ("", "_goal"))
    if rows is None or goals is None:
        raise ValueError(f"--search: {folder} has no rows of search.py on {data}")
    (goal,) = goals.itertuples()
    return winner_of(rows, goal), goal


def cases(quick: bool, options: EnginePipelineOptions) -> list[EnginePipelineCase]:
    """Both sides of each data set, and the winner of its search."""
    rounds = 2 if quick else options.rounds
    cases = []
    for settings in worlds(options, 32, quick=quick):
        data = settings.source.data
        both = EnginePipelineCase(data, settings, options.engines, rounds, options.sla_ms)
        cases.append(both)
        if options.search:
            design, goal = searched(Path(options.search), data)
            server = replace(settings, n_cores=int(goal.n_cores))
            sla_ms = float(goal.sla_ms)
            cases.append(replace(both, settings=server, rounds=1, sla_ms=sla_ms, winner=design))
    return cases


def run(case: EnginePipelineCase) -> dict[str, list[Any]]:
    """The rows of both sides, or of the winner."""
    world = world_of(case.settings)
    if case.winner:
        rows = confirm(world, case.winner, case.n_engines, case.sla_ms, progress())
        return {f"confirmed_{case.data}": rows}
    tables = compare(world, case.n_engines, case.rounds, case.sla_ms, progress())
    return {f"{name}_{case.data}": rows for name, rows in tables.items()}


STUDY = Study(
    "recpipe_real",
    "Are pipelines of several stages faster on real engines, at equal quality?",
    cases,
    run,
    efforts={"quick": True, "full": False},
    options=EnginePipelineOptions,
    report={
        **views("p95 (ms) of one stage and of several, {}", ratios, "real_{}"),
        **views("Highest rate under the SLA, {}", pd.DataFrame, "real_rates_{}"),
        **views("Foretold and run, {}", pd.DataFrame, "confirmed_{}"),
    },
)

if __name__ == "__main__":
    STUDY.main()
