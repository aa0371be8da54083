"""Worlds whose long run is known, and what their runs tell."""

import math

import numpy as np
import pandas as pd
import pytest

from experiments.intervals.real import PacedEngine
from experiments.intervals.run import IntervalCase, coverage, told, truth
from experiments.intervals.worlds import WORLDS
from infra.clock import monotonic_ns
from infra.messages import CPU, Task


@pytest.mark.parametrize("name", WORLDS)
def test_a_world_is_as_busy_as_it_says(name):
    world = WORLDS[name]
    schedule = world.schedule(0.8, 20_000, 1)
    tasks = world.run(schedule, 1).tasks
    busy_ns = (tasks["end_ns"] - tasks["start_ns"]).sum()
    utilisation = busy_ns / world.engines / schedule.arrival_ns[-1]
    assert utilisation == pytest.approx(0.8, rel=0.05)


def test_the_truth_of_md1_is_the_literatures():
    tail_ms, error = truth("M/D/1", 0.8, 2)
    assert tail_ms == pytest.approx(7.29, rel=0.05)
    assert 0 < error < 0.05
    assert truth("M/M/1", 0.8, 2) == (pytest.approx(math.log(20) / 0.2), 0.0)


def test_a_drift_lasts_and_noise_does_not():
    def correlation(name, lag):
        world = WORLDS[name]
        rows = world.run(world.schedule(0.5, 8_000, 3), 3)
        took = rows.tasks.sort_values(["query_id", "part"])
        logs = np.log((took["end_ns"] - took["start_ns"]) / world.mean_ms[took["n_items"]])
        logs = logs.to_numpy() - logs.mean()
        return float((logs[:-lag] * logs[lag:]).mean() / logs.var())

    assert abs(correlation("production, 2 engines", 20)) < 0.05
    assert 0.1 < correlation("production, 2 engines, drift", 20) < 0.3


def test_one_run_is_told_three_ways():
    row = told(IntervalCase("M/M/1", 0.5, 2048, 0, 1, 2), 4)
    assert row.truth_ms == pytest.approx(2 * math.log(20))
    assert row.independent_low < row.observed_ms < row.independent_high
    assert row.long_run_low < row.value_ms < row.long_run_high
    assert row.utilisation_low < 0.5 < row.utilisation_high


def test_coverage_counts_the_told_and_the_held():
    rows = pd.DataFrame(
        {
            "world": "w",
            "utilisation": 0.5,
            "truth_ms": 10.0,
            "observed_ms": [9.0, 11.0, 10.0, 10.0],
            "value_ms": [10.0, 12.0, 10.0, math.nan],
            "independent_low": 9.5,
            "independent_high": [9.8, 10.5, 10.5, 10.5],
            "effective_low": -math.inf,
            "effective_high": math.inf,
            "long_run_low": [9.0, 11.0, 9.0, -math.inf],
            "long_run_high": [11.0, 13.0, 11.0, math.inf],
        }
    )
    (line,) = coverage(rows).to_dict("records")
    assert line["independent_held"] == 0.75
    assert line["effective_told"] == 0.0
    assert line["long_run_told"] == 0.75
    assert line["long_run_held"] == pytest.approx(2 / 3)
    assert line["long_run_width"] == pytest.approx(0.2)


def test_a_paced_engine_takes_its_time():
    task = Task(0, 0, 0, 0, 64, CPU)
    begun = monotonic_ns()
    PacedEngine(0).score(task)
    took_ms = (monotonic_ns() - begun) / 1e6
    assert took_ms > 0.8 * WORLDS["production, 2 engines"].mean_ms[64]
