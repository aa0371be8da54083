"""A real run as service times: its tasks' own times, to be replayed, and what the harness added."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from accelerator.service import Overhead, Recording, ServiceTable, ServiceTimes
from infra.messages import ACCEL, CPU
from infra.results.rows import Rows
from infra.results.run_folder import read
from infra.results.stages import stage_table
from infra.settings.config import ConfigError, RunConfig

STALLS = 0.01  # of the delays, the longest, are no overhead


def replayed_rows(config: RunConfig) -> Rows:
    """The run whose schedule and tasks are replayed; raises ConfigError."""
    folder = Path(config.simulation.service_profile)
    try:
        rows = read(folder).rows()
        recorded_times(rows)
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        expected = "service_law replay expects the folder of a saved run"
        raise ConfigError("service_profile", f"is {str(folder)!r}; {expected}: {reason}") from error
    return rows


def recorded_times(rows: Rows, on_cores: frozenset[str] = frozenset({CPU})) -> ServiceTimes:
    """The times of a run's tasks, stage by stage; raises ValueError as `recording_of` does."""
    stages = stage_table(rows).groupby("stage")
    chosen_ns = {
        int(stage): (table["next_ns"] - table["end_ns"]).fillna(0).to_numpy(np.int64)
        for stage, table in stages
    }
    tables = []
    for stage, choosing_ns in chosen_ns.items():
        recording = replace(recording_of(rows, stage), choosing_ns=choosing_ns)
        tables.append(ServiceTable(np.ones((1, 2), np.int64), recording=recording))
    return ServiceTimes(tuple(tables), on_cores)


def recording_of(rows: Rows, stage: int = 0) -> Recording:
    """The times of a run's tasks in a stage, every part of queries 0 .. n - 1 once.

    Raises ValueError if a query is missing or has parts missing.
    """
    tasks = rows.tasks.assign(delay_ns=delays_of(rows)["delay_ns"])
    tasks = tasks[tasks["stage"] == stage].sort_values(["query_id", "part"])
    query_id = tasks["query_id"].to_numpy(np.int64)
    part = tasks["part"].to_numpy(np.int64)
    first = np.searchsorted(query_id, np.arange(len(rows.queries) + 1)).astype(np.int64)
    missing = np.flatnonzero(np.diff(first) == 0)
    if len(missing):
        raise ValueError(f"the run has no task of query {missing[0]} in stage {stage}")
    if (part != np.arange(len(part)) - first[query_id]).any():
        raise ValueError("the run's tasks are not each part of each query once")
    took_ns = (tasks["end_ns"] - tasks["start_ns"]).to_numpy(np.int64)
    return Recording(first, took_ns, tasks["delay_ns"].to_numpy(np.int64))


def overheads_of(rows: Rows) -> dict[str, Overhead]:
    """Mean delay of tasks on idle and on busy engines, by pool; the longest (stalls) left out."""
    delays = delays_of(rows)
    delay_ns, was_idle = delays["delay_ns"], delays["was_idle"]
    overheads = {}
    for pool in dict.fromkeys([CPU, ACCEL, *rows.tasks["pool"].unique()]):
        in_pool = rows.tasks["pool"] == pool
        means = [_mean_delay(delay_ns[in_pool & when]) for when in (was_idle, ~was_idle)]
        overheads[pool] = Overhead(*means)
    return overheads


def _mean_delay(delay_ns: pd.Series) -> int:
    usual = delay_ns.sort_values().to_numpy()[: max(1, int((1 - STALLS) * len(delay_ns)))]
    return int(usual.mean()) if len(usual) else 0


def delays_of(rows: Rows) -> pd.DataFrame:
    """By task `delay_ns`, from when it was due and its engine free to its start, and `was_idle`.

    A task of the first stage is due when its query arrives, a later one when it is enqueued; its
    engine was idle if it had nothing to do before.
    """
    tasks = rows.tasks.sort_values("start_ns")
    arrival = tasks["query_id"].map(rows.queries.set_index("query_id")["arrival_ns"])
    due = arrival.where(tasks["stage"] == 0, tasks["enqueued_ns"]).astype(np.int64)
    free = tasks.groupby(["pool", "engine"])["end_ns"].shift().fillna(0).astype(np.int64)
    delay = (tasks["start_ns"] - np.maximum(due, free)).clip(lower=0)
    delays = pd.DataFrame({"delay_ns": delay, "was_idle": free <= due})
    return delays.reindex(rows.tasks.index)
