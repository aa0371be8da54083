#!/usr/bin/env python3
"""Pipelines on the engines of this machine: the best of several stages against the best of one, at
equal quality.

python experiments/recpipe/real.py [--data clicks|movielens] [--engines 2] [--quick]

The chain is the cheapest (virtual time, these engines) whose NDCG is surely (95 %, query by query)
not worse than the large ranker's by more than a margin: 1 %, MovieLens 5 %, where one item is
sought and the intervals are wide. Both sides run in turn, several rounds, at the same rates: p95
(real_<data>.csv), time by stage (real_stages_<data>.csv); then twice the highest rate under the SLA
(real_rates_<data>.csv). Some 6 minutes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np
import pandas as pd
import yaml

from backends.opening import OpenSession, open_session
from backends.pipeline import pipeline_of, with_pipeline
from backends.tuning.probe import Sla, latencies_ms, max_rate_qps
from experiments.recpipe.datasets import rankers
from experiments.recpipe.quality import KEPT, Chain, Scored, chains, quality_of
from experiments.recpipe.world import WARM_UP, Design, World, cpu_profiles
from infra.clock import NS_PER_MS, NS_PER_S, NS_PER_US
from infra.messages import CPU
from infra.progress import Progress
from infra.ranking import paired
from infra.results.report import console, frame
from infra.results.rows import Rows
from infra.results.stages import answers_by_input, stage_parts, stage_table
from infra.results.stats import quantile, summarize
from infra.rng import stream
from infra.settings.config import RunConfig, from_settings
from loadGenerator import CommonLoad, Schedule
from scheduler import Policy, Stage

HERE = Path(__file__).resolve().parent
RUN_S, PROBE_QUERIES = 8.0, 400
WARM_QPS = 20.0  # of the first run, which is not counted
MARGINS = {"movielens": 0.05, "clicks": 0.01, "criteo": 0.01}  # of the large ranker's NDCG
LOADS = (0.3, 0.6, 0.8)  # of what one stage carries
BATCHES = (256, 1024, 4096)


@contextmanager
def opened(
    world: World, design: Design, n_engines: int, progress: Progress
) -> Iterator[tuple[RunConfig, OpenSession]]:
    """The design's engines on this machine, all stages on shared ones."""
    data = world.scored.data
    with tempfile.TemporaryDirectory() as folder:
        rankers.export(data, Path(folder), min(len(data.queries), 64))
        stages = [
            {
                "model": f"{name}.json",
                "checkpoint": f"{name}.npz",
                "keep_items": keep,
                "pool": "cores",
            }
            for name, keep in zip(design.chain.rankers, design.chain.keeps, strict=True)
        ]
        document = {
            "queries": "queries.npz",
            "pools": {"cores": {"engines": n_engines}},
            "stages": stages,
        }
        (Path(folder) / "pipeline.yaml").write_text(yaml.safe_dump(document))
        config = from_settings(
            {
                "queue": True,
                "pipeline": str(Path(folder) / "pipeline.yaml"),
                "nepochs": 1,
                "sub_task_batch_size": design.batch_items,
            }
        )
        config = with_pipeline(config, pipeline_of(config, n_engines))
        with open_session(config, progress) as session:
            yield config, session


def run(
    config: RunConfig, session: OpenSession, rate_qps: float, seed: int, lasts_s: float = RUN_S
) -> Rows:
    """Poisson arrivals."""
    n = max(int(rate_qps * lasts_s), 200)
    rng = stream(seed, "real")
    arrival_ns = np.cumsum(rng.exponential(NS_PER_S / rate_qps, n)).astype(np.int64)
    inputs = rng.integers(0, config.inputs.num_batches, n).astype(np.int32)
    sizes = np.full(n, config.inputs.max_mini_batch_size, np.int32)
    schedule = Schedule(arrival_ns, sizes, inputs, round(WARM_UP * n))
    return session.session.run(schedule, [Stage(Policy(config.engines.sub_task_batch_size))])


def calibrated(world: World, design: Design, rows: Rows, n_engines: int) -> World:
    """The world with so many engines as a run at leisure on them showed: the level of each stage's
    times, what passes before a task on an idle and on a busy engine, what choosing takes (medians).
    """
    tasks = rows.tasks.sort_values("start_ns")
    took_ms = (tasks["end_ns"] - tasks["start_ns"]) / NS_PER_MS
    free = tasks.groupby(["pool", "engine"])["end_ns"].shift().fillna(0)
    delay_us = (tasks["start_ns"] - np.maximum(free, tasks["enqueued_ns"])) / NS_PER_US
    idle = free <= tasks["enqueued_ns"]
    wake_us, gap_us = (float(delay_us[on].median()) if on.any() else 0.0 for on in (idle, ~idle))
    cpu = dict(world.cpu)
    for stage, name in enumerate(design.chain.rankers):
        own = tasks["stage"] == stage
        expected = tasks["n_items"][own].map(world.cpu[name].ms)
        level = float((took_ms[own] / expected).median())
        known = world.cpu[name]
        cpu[name] = replace(
            known,
            batch_ms={n: ms * level for n, ms in known.batch_ms.items()},
            wake_us=wake_us,
            gap_us=gap_us,
            busy_ms={
                k: {n: ms * level for n, ms in times.items()} for k, times in known.busy_ms.items()
            },
        )
    table = stage_table(rows)
    choosing = table[table["stage"] < len(design.devices) - 1] if len(design.devices) > 1 else table
    filter_ns = round(float((choosing["next_ns"] - choosing["end_ns"]).median()))
    return replace(
        world, cpu=cpu, n_cores=n_engines, filter_ns=filter_ns, filter_item_ns=0.0, _tables={}
    )


def confirm(
    world: World, design: Design, n_engines: int, sla_ms: float, progress: Progress
) -> pd.DataFrame:
    """A design foretold for so many engines and run on them, at shares of the rate that it is
    foretold to carry.

    The SLA is longer by a quarter of the factor by which the engines are fewer; the forecast is
    calibrated by a run at a tenth of that rate.
    """
    slower = sla_ms * max(world.n_cores / n_engines / 4, 1.0)
    rough = replace(world, n_cores=n_engines, _tables={}).max_qps(design, slower)
    lines = []
    with opened(world, design, n_engines, progress) as (config, session):
        run(config, session, rough / 4, 0, 2.0)
        here = calibrated(world, design, run(config, session, rough / 10, 2), n_engines)
        carried = here.max_qps(design, slower)
        for load in LOADS:
            rows = run(config, session, load * carried, 1)
            measured = quantile(
                latencies_ms(rows)[rows.queries["is_warmup"].to_numpy().sum() :], 0.95
            )
            foretold = here.run(design, load * carried).p95_ms
            lines.append(
                {
                    "chain": design.chain.label,
                    "engines": n_engines,
                    "batch_items": design.batch_items,
                    "rate_qps": load * carried,
                    "foretold p95_ms": foretold,
                    "p95_ms": measured.value,
                    "low_ms": measured.low,
                    "high_ms": measured.high,
                    "error": foretold / measured.value - 1,
                }
            )
    return pd.DataFrame(lines)


def as_good(world: World) -> list[Chain]:
    """Chains of several stages that are not worse than the large ranker alone by more than MARGINS,
    query by query: the whole interval of the paired difference lies above that.
    """
    data = world.scored.data
    alone = quality_of(Chain(("large",), (data.k,)), world.scored)["ndcg"]
    return [
        own
        for own in chains([n for n in KEPT[data.name] if n < world.sizes.max()], data.k)
        if len(own.rankers) > 1
        and paired(quality_of(own, world.scored)["ndcg"], alone).difference.low
        >= -MARGINS[data.name] * alone.mean()
    ]


def cheapest(world: World, options: Sequence[Chain], sla_ms: float) -> Design:
    """The highest rate under the SLA in virtual time, over the batches too; raises ValueError
    without an option.
    """
    if not options:
        raise ValueError("no chain of several stages is as good as the large ranker alone")
    all_designs = [
        Design(own, (CPU,) * len(own.rankers), batch) for own in options for batch in BATCHES
    ]
    return max(all_designs, key=lambda design: world.max_qps(design, sla_ms))


def compare(
    world: World,
    n_engines: int,
    rounds: int,
    sla_ms: float,
    progress: Progress,
    lasts_s: float = RUN_S,
    probe_queries: int = PROBE_QUERIES,
) -> dict[str, pd.DataFrame]:
    """p95 by rate and round (real), the highest rate of each side with its interval (real_rates),
    the time by stage at the lowest load (real_stages).
    """
    here = replace(world, n_cores=n_engines, _tables={})
    data = world.scored.data
    one = cheapest(here, [Chain(("large",), (data.k,))], sla_ms)
    more = cheapest(here, as_good(here), sla_ms)
    sides = {"one stage": one, "several": more}
    lines = []
    limits = list[dict[str, Any]]()
    parts = []
    with ExitStack() as stack:
        running = {
            name: stack.enter_context(opened(world, own, n_engines, progress))
            for name, own in sides.items()
        }
        for config, session in running.values():
            run(config, session, WARM_QPS, 0, 1.0)
        shown = calibrated(
            here,
            one,
            run(*running["one stage"], here.max_qps(one, sla_ms) / 10, 2, lasts_s),
            n_engines,
        )
        carried = shown.max_qps(one, sla_ms)
        with progress.step("p95, both sides in turn") as on_fraction:
            steps = [
                (k, load, name)
                for k in range(rounds)
                for load in LOADS
                for name in ([*sides] if k % 2 == 0 else [*sides][::-1])
            ]
            for done, (k, load, name) in enumerate(steps):
                rows = run(*running[name], load * carried, 10 + k, lasts_s)
                lines.append(_line(world, sides[name], name, load, load * carried, k, rows))
                if load == LOADS[0]:
                    parts.append(stage_parts(rows).assign(side=name, round=k))
                on_fraction((done + 1) / len(steps))
        for name, (config, session) in [*running.items()] * 2:
            sla = Sla(sla_ms, max_queries=probe_queries)
            common = CommonLoad(config, probe_queries, 2)
            with progress.step(f"{name}: highest rate under p95 <= {sla_ms:g} ms"):
                limit = max_rate_qps(session.session, common, _policy(config), sla, carried / 2)
            limits.append(
                {
                    "round": len(limits) // 2,
                    "side": name,
                    "chain": sides[name].chain.label,
                    "batch_items": sides[name].batch_items,
                    "max_qps": limit.value,
                    "low": limit.low,
                    "high": limit.high,
                    "foretold": here.max_qps(sides[name], sla_ms),
                }
            )
    return {
        "real": pd.DataFrame(lines),
        "real_rates": pd.DataFrame(limits),
        "real_stages": pd.concat(parts),
    }


def _policy(config: RunConfig) -> Policy:
    return Policy(config.engines.sub_task_batch_size)


def _line(
    world: World, design: Design, side: str, load: float, rate_qps: float, k: int, rows: Rows
) -> dict[str, Any]:
    """A run's row; the quality is that of the very answers."""
    counted = latencies_ms(rows)[rows.queries["is_warmup"].to_numpy().sum() :]
    p95 = quantile(counted, 0.95)
    valid = summarize(rows.queries, rows.tasks, 1e3 * RUN_S, extra=rows.notes).valid
    data = world.scored.data
    labels = data.queries.sample(min(len(data.queries), 64))
    answers = answers_by_input(rows)
    hits = float(np.mean([labels.labels(q)[items].mean() for q, items in answers.items()]))
    parts = stage_parts(rows)
    late_ns = rows.queries["sent_ns"] - rows.queries["arrival_ns"]
    return {
        "side": side,
        "chain": design.chain.label,
        "batch_items": design.batch_items,
        "load": load,
        "rate_qps": rate_qps,
        "round": k,
        "p50_ms": float(np.median(counted)),
        "p95_ms": p95.value,
        "low_ms": p95.low,
        "high_ms": p95.high,
        "valid": valid,
        "positives_in_list": hits,
        "filter_ms": float(parts["filter_ms"].sum()),
        "late_ms": float(late_ns.astype(float).quantile(0.99)) / NS_PER_MS,
    }


def ratios(lines: pd.DataFrame) -> pd.DataFrame:
    """p95 of one stage over that of several by load: median and range over the rounds."""
    wide = lines.pivot_table(
        index=["load", "rate_qps", "round"], columns="side", values="p95_ms"
    ).reset_index()
    wide["ratio"] = wide["one stage"] / wide["several"]
    grouped = wide.groupby(["load", "rate_qps"])
    table = grouped[["one stage", "several", "ratio"]].median()
    table["lowest"], table["highest"] = grouped["ratio"].min(), grouped["ratio"].max()
    return table.reset_index()


def main(argv: Sequence[str]) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    rankers.add_flags(parser)
    parser.add_argument("--engines", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sla_ms", type=float, default=150.0)
    parser.add_argument("--out", type=Path, default=HERE)
    args = parser.parse_args(argv)
    rankers.check_positive(parser, args, "engines", "rounds", "sla_ms")
    args.out.mkdir(parents=True, exist_ok=True)
    out = console()
    try:
        scored = Scored.of(rankers.load(args))
        with Progress("auto") as progress:
            world = World(scored, cpu_profiles(scored, args.out / "profiles", progress))
            found = compare(
                world, args.engines, 2 if args.quick else args.rounds, args.sla_ms, progress
            )
    except ValueError as error:
        parser.error(str(error))
    for name, table in found.items():
        table.to_csv(args.out / f"{name}_{args.data}.csv", index=False, float_format="%.5g")
    out.print(
        frame(
            "p95 (ms) of one stage and of several at the same rates; ratio: median and range",
            ratios(found["real"]),
        )
    )
    out.print(frame(f"Highest rate with p95 <= {args.sla_ms:g} ms", found["real_rates"]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
