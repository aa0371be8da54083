"""Service times of virtual time: laws, spread, overheads, a run's own tasks."""

import math

import numpy as np
import pandas as pd
import pytest

from accelerator.deployment_service import service_of
from accelerator.devices import ROOT, load_device, published_speedups
from accelerator.latency import SPREAD, Profile, read_profile, spread_of, write_profile
from accelerator.replay import overheads_of, recording_of
from accelerator.service import (
    Overhead,
    ServiceTable,
    drawn_index,
    law_factors,
    table_of_profiles,
)
from infra.deployment import resolve
from infra.messages import ACCEL, CPU
from infra.results.rows import TASK_COLUMNS, Rows
from infra.settings.cli import parse
from infra.settings.config import ConfigError

SIMULATED = [
    "--queue",
    "--backend",
    "simulated",
    "--num_batches",
    "4",
    "--max_mini_batch_size",
    "16",
]


def test_draws_are_even_and_independent_of_each_other():
    draws = np.array(
        [[drawn_index(query, 0, part, 7, 16) for part in range(8)] for query in range(4000)]
    )
    expected = draws.size / 16
    chi_square = ((np.bincount(draws.ravel(), minlength=16) - expected) ** 2 / expected).sum()
    assert chi_square < 45  # the 0.9999 quantile with 15 degrees of freedom is 44.3
    for a, b in ((draws[:-1, 0], draws[1:, 0]), (draws[:, 0], draws[:, 1])):
        assert abs(np.corrcoef(a, b)[0, 1]) < 4 / math.sqrt(len(a))


def test_a_draw_depends_on_each_of_its_coordinates_and_on_nothing_else():
    draws = {
        drawn_index(*at, 1 << 30)
        for at in ((1, 2, 3, 4), (2, 2, 3, 4), (1, 3, 3, 4), (1, 2, 4, 4), (1, 2, 3, 5))
    }
    assert len(draws) == 5
    assert drawn_index(1, 2, 3, 4, 1 << 30) == drawn_index(1, 2, 3, 4, 1 << 30)


@pytest.mark.parametrize(
    ("law", "cv"), [("exponential", 1.0), ("lognormal", 0.8), ("deterministic", 0.0)]
)
def test_a_law_has_its_mean_and_its_variation(law, cv):
    factors = law_factors(law, cv)
    assert factors.mean() == pytest.approx(1, rel=1e-9)
    assert factors.std() == pytest.approx(cv, rel=2e-3)


def test_the_spread_of_a_profile_keeps_mean_and_quantiles_through_its_file(tmp_path):
    times = np.random.default_rng(1).lognormal(0, 0.2, 5000)
    profile = Profile(
        {8: float(np.median(times))},
        {},
        {},
        {8: spread_of(times, float(np.median(times)))},
        70.0,
        90.0,
    )
    write_profile(tmp_path / "x.csv", profile)
    known = read_profile(tmp_path / "x.csv")
    assert (known.wake_us, known.gap_us) == (70.0, 90.0)
    table = table_of_profiles(known, [], 8, seed=3)
    drawn = [
        table.factors[table.cpu_row[8], drawn_index(q, 0, 0, 3, SPREAD)] for q in range(20_000)
    ]
    served = np.array(drawn) * table.cpu_ns[0, 8] / 1e6
    assert served.mean() == pytest.approx(times.mean(), rel=0.01)
    assert np.quantile(served, 0.5) == pytest.approx(np.median(times), rel=0.02)
    assert np.quantile(served, 0.9) == pytest.approx(np.quantile(times, 0.9), rel=0.03)
    assert table.cpu_overhead == Overhead(70_000, 90_000)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"spread": {8: (1.0,) * 3}}, "20 factors"),
        ({"spread": {8: (0.0,) * SPREAD}}, "above 0"),
        ({"wake_us": -1.0}, "wake_us"),
        ({"gap_us": math.nan}, "gap_us"),
    ],
)
def test_a_profile_that_makes_no_sense_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Profile({8: 1.0}, **settings)


def run_rows(tasks, arrivals):
    """Rows of (query, part, engine, start, end), the queries due at `arrivals`."""
    rows = [
        (q, 0, part, CPU, engine, 4, arrivals[q], start, end)
        for q, part, engine, start, end in tasks
    ]
    queries = pd.DataFrame({"query_id": range(len(arrivals)), "arrival_ns": arrivals})
    return Rows(queries, pd.DataFrame(rows, columns=TASK_COLUMNS))


def test_a_recording_holds_every_part_and_what_passed_before_it():
    rows = run_rows([(0, 1, 1, 13, 20), (0, 0, 0, 11, 30), (1, 0, 1, 24, 40)], [10, 15])
    recording = recording_of(rows)
    assert recording.first.tolist() == [0, 2, 3]
    assert recording.ns.tolist() == [19, 7, 16]
    assert recording.delays_ns.tolist() == [
        1,
        3,
        4,
    ]  # 24 is 4 after the engine's task before, which ended at 20
    assert overheads_of(rows) == {
        CPU: Overhead(1, 4),
        ACCEL: Overhead(0, 0),
    }  # the longest of two wakes is left out


@pytest.mark.parametrize(
    ("tasks", "message"),
    [([(0, 0, 0, 1, 2)], "no task of query 1"), ([(0, 0, 0, 1, 2), (1, 1, 0, 3, 4)], "each part")],
)
def test_a_run_with_tasks_missing_is_not_replayed(tasks, message):
    with pytest.raises(ValueError, match=message):
        recording_of(run_rows(tasks, [0, 1]))


def test_settings_name_the_service_times(tmp_path):
    profile = tmp_path / "mine.csv"
    write_profile(profile, Profile({1: 1.0, 16: 4.0}, {"source": "by hand"}))
    config = parse(
        [*SIMULATED, "--service_profile", str(profile), "--model_accel", "--model_name", "wnd"]
    )
    times, facts = service_of(resolve(config))
    (table,) = times.tables
    assert table.cpu_ns[0, 16] == 4_000_000
    speedup = published_speedups(load_device(ROOT, "nvidia_gtx_1080_ti"), "wnd")[1]
    assert table.accel_ns[0, 1] == pytest.approx(1_000_000 / speedup, abs=1)
    assert facts["source"] == f"{profile}: by hand"
    words = [*SIMULATED, "--service_law", "lognormal", "--service_mean_ms", "3"]
    law, facts = service_of(resolve(parse(words)))
    assert law.tables[0].cpu_ns[0].tolist() == [3_000_000] * 17
    assert "lognormal, mean 3 ms" in facts["source"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--service_profile", "nowhere"],
            "service_profile is 'nowhere'; expected a profile's file or a folder of",
        ),
        (
            ["--service_law", "replay"],
            "service_profile is 'amd_epyc_zen4'; .* folder of a saved run",
        ),
    ],
)
def test_service_times_that_are_not_there_are_named(words, message):
    with pytest.raises(ConfigError, match=message):
        service_of(resolve(parse([*SIMULATED, *words])))


def test_a_table_needs_rows_of_factors():
    with pytest.raises(ValueError, match="factors"):
        ServiceTable(np.ones((1, 3), np.int64), factors=np.ones(4))
