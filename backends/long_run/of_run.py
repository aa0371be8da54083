"""The long run of a run's rows: what was measured, checked against the run itself, then walked."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from accelerator.replay import delays_of, overheads_of
from backends.long_run.estimate import Estimator, Measured
from backends.long_run.fit import Tasks, busy_beside, tasks_of
from backends.long_run.walks import ServerModel
from backends.session import whole_inputs
from infra.arrays import FloatArray
from infra.clock import NS_PER_MS
from infra.deployment import Deployment
from infra.load.arrivals import STEADY
from infra.messages import ACCEL
from infra.results.long_run import LongRun
from infra.results.rows import Rows
from infra.results.stages import stage_table
from loadGenerator import Schedule, draw_schedule
from scheduler import Policy, stages_of

PERCENTILES = (50.0, 95.0, 99.0, 99.9)
FEWEST_TASKS = 200
_FIRST_LOAD = 2_000_000  # number of the first fresh load, for its random streams
_AS_RECORDED = ("file", "trace")  # arrivals: the load is what the file holds


def long_run_of(
    rows: Rows, deployment: Deployment, policy: Policy, schedule: Schedule, rate_qps: float
) -> LongRun:
    """Percentiles, utilisation and rate curve of the endless run at the law's rate.

    Withheld where this run does not tell: `LongRun.withheld` says why.
    """
    reason = unknown(rows, deployment, policy, schedule)
    if reason:
        return LongRun(withheld=reason)
    tune = deployment.config.tune
    estimator = estimator_of(rows, deployment, policy, schedule, rate_qps)
    long_run = estimator.long_run(sorted({*PERCENTILES, tune.sla_percentile}))
    if not long_run.is_above_capacity:
        wrong = _wrong(estimator, rows, deployment, schedule)
        if wrong:
            return replace(long_run, percentiles={}, withheld=wrong)
    if estimator.withheld():
        return long_run
    other_load = no_curve(deployment)
    if other_load:
        return replace(long_run, no_curve=other_load)
    return replace(long_run, curve=estimator.curve(tune.sla_percentile, tune.target_latency))


def estimator_of(
    rows: Rows, deployment: Deployment, policy: Policy, schedule: Schedule, rate_qps: float
) -> Estimator:
    """What estimates from a run in which every query was answered (`unknown` tells)."""
    is_file = _is_file(deployment)
    sent = whole_inputs(schedule, deployment.candidates)

    def draw(n: int, number: int) -> Schedule:
        if is_file:
            return _repeated(sent, n)
        fresh = draw_schedule(deployment.config, n, 0, rate_qps, _FIRST_LOAD + number)
        return whole_inputs(fresh, deployment.candidates)

    seed = deployment.config.inputs.numpy_rand_seed
    return Estimator(_measured(rows, deployment, policy), draw, seed, is_drawn=not is_file)


def unknown(rows: Rows, deployment: Deployment, policy: Policy, schedule: Schedule) -> str:
    """Why the run's times cannot be walked; empty where they can."""
    if len(rows.queries) < len(schedule) or rows.queries["done_ns"].isna().any():
        return "not every query was answered"
    if rows.tasks.empty:
        return "the run has no rows of its tasks"
    if rows.tasks.duplicated(["pool", "engine", "start_ns"]).any():
        return "engines merged tasks, and a merged task's own time is not known"
    if deployment.is_staged and any(
        stage.under(policy).offload_items for stage in stages_of(deployment)
    ):
        return "a pipeline that offloads is not walked"
    if policy.offload_items is not None and not (rows.tasks["pool"] == ACCEL).any():
        return "no query was offloaded, so the accelerator's times are not known"
    return ""


def _wrong(estimator: Estimator, rows: Rows, deployment: Deployment, schedule: Schedule) -> str:
    """Why the estimate is not believed although the engines keep up."""
    if len(rows.tasks) < FEWEST_TASKS:
        return f"{len(rows.tasks)} tasks are too few (at least {FEWEST_TASKS})"
    sent = whole_inputs(schedule, deployment.candidates)
    return estimator.check(sent, _observed_ms(rows))


def _observed_ms(rows: Rows) -> FloatArray:
    queries = rows.queries[~rows.queries["is_warmup"]]
    took_ns: FloatArray = (queries["done_ns"] - queries["arrival_ns"]).to_numpy(float)
    return took_ns / NS_PER_MS


def no_curve(deployment: Deployment) -> str:
    """Why the load at another rate is another load; empty where it is not."""
    load = deployment.config.load
    if _is_file(deployment):
        return "the load is a recorded one"
    if load.arrival_process not in STEADY or load.arrival_process == "legacy":
        return f"{load.arrival_process} arrivals are others at another rate"
    return ""


def _is_file(deployment: Deployment) -> bool:
    """Whether the load is what a file holds, and so is no random one."""
    config = deployment.config
    recorded = config.load.arrival_process in _AS_RECORDED
    sizes_recorded = config.load.batch_size_distribution == "trace"
    return recorded or sizes_recorded or config.simulation.service_law == "replay"


def _measured(rows: Rows, deployment: Deployment, policy: Policy) -> Measured:
    # tasks that start together in the order of their FIFO: that of their ends would sort the times
    table = rows.tasks.sort_values(["start_ns", "query_id", "stage", "part"])
    table = table.assign(is_offloaded=table["pool"] == ACCEL)
    on_cores = frozenset(pool.name for pool in deployment.pools if pool.on_cores)
    n_busy = np.zeros(len(table), np.int64)
    are_neighbours = table["pool"].isin(on_cores).to_numpy()
    n_busy[are_neighbours] = busy_beside(table[are_neighbours])
    delays = delays_of(rows)
    table = table.assign(n_busy=n_busy, was_idle=delays["was_idle"].reindex(table.index))
    table = table[_settled(table, rows.queries)]
    used: dict[tuple[int, bool], Tasks] = {}
    for stage in range(len(deployment.stages)):
        for offloaded in (False, True):
            tasks = tasks_of(table, stage, offloaded=offloaded)
            if len(tasks):
                used[stage, offloaded] = tasks
    engines = {pool.name: pool.engines for pool in deployment.pools}
    stages = stages_of(deployment)
    server = ServerModel(
        engines, stages, overheads_of(rows), on_cores, _choosing_ns(rows, deployment)
    )
    return Measured(server, policy, used, deployment.config.inputs.max_mini_batch_size)


def _settled(table: pd.DataFrame, queries: pd.DataFrame) -> np.ndarray:
    """Which tasks are of queries after the warm-up; all where that leaves too few."""
    warm_up = queries.loc[queries["is_warmup"], "query_id"]
    after = ~table["query_id"].isin(warm_up).to_numpy()
    return after if after.sum() >= FEWEST_TASKS else np.ones(len(table), bool)


def _choosing_ns(rows: Rows, deployment: Deployment) -> int:
    """Mean ns from the end of a stage that chooses until the best items are known."""
    choosing = [i for i, stage in enumerate(deployment.stages) if stage.keep_items is not None]
    if not choosing:
        return 0
    stages = stage_table(rows)
    stages = stages[stages["stage"].isin(choosing)]
    return round(float((stages["next_ns"] - stages["end_ns"]).mean()))


def _repeated(schedule: Schedule, n: int) -> Schedule:
    """The schedule again and again, a mean gap between two rounds."""
    rounds = -(-n // len(schedule))
    last_ns = int(schedule.arrival_ns[-1])
    round_ns = last_ns + max(1, last_ns // len(schedule))
    begins_ns = np.repeat(np.arange(rounds) * round_ns, len(schedule))
    return Schedule(
        (np.tile(schedule.arrival_ns, rounds) + begins_ns)[:n],
        np.tile(schedule.n_items, rounds)[:n],
        np.tile(schedule.input_id, rounds)[:n],
    )
