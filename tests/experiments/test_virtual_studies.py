"""The studies of virtual time in their quick setting.

Where they need engines, virtual time stands in for them.
"""

import importlib.util

import numpy as np
import pandas as pd
import pytest
from helpers import run_script

from experiments.cluster import plot as cluster_plot
from experiments.simulator_speed import peers
from experiments.simulator_speed.run import World
from experiments.simulator_validation import plot as validation_plot


def script(folder, path, *words, timeout=240):
    done = run_script(path, *words, "--out", str(folder), cwd=folder, timeout=timeout)
    assert done.returncode == 0, done.stderr
    return done


def test_the_validation_of_engines_that_are_the_model_finds_no_error(tmp_path):
    script(
        tmp_path,
        "experiments/simulator_validation/run.py",
        "--quick",
        "--models",
        "wnd",
        "--backend",
        "simulated",
    )
    rows = pd.read_csv(tmp_path / "validation.csv")
    assert len(rows) == 2 * 4 * 3 * 3  # modes, loads, kinds, quantiles
    assert rows.query("kind == 'replay'")["error"].abs().max() < 1e-9
    modelled = rows.query("kind == 'model' and quantile == 0.5 and load < 0.6")
    assert modelled["error"].abs().median() < 0.15  # some hundred queries
    assert (rows["low"] <= rows["error"] + 1e-9).mean() > 0.9
    assert pd.read_csv(tmp_path / "rates.csv")["error"].abs().max() < 0.2
    done = run_script("experiments/simulator_validation/plot.py", str(tmp_path), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "validation.png").stat().st_size > 10_000


def test_the_tables_of_the_validation_say_what_the_rows_say():
    rows = pd.DataFrame(
        [
            {"kind": kind, "quantile": 0.95, "load": load, "error": error, "service_ratio": 1.1}
            for kind in validation_plot.KINDS
            for load, error in ((0.3, 0.02), (0.3, -0.04), (0.9, 0.2))
        ]
    )
    table = validation_plot.summary(rows).loc[("model", 0.95)]
    assert table["median"] == pytest.approx(4.0)
    assert table["worst"] == pytest.approx(20.0)
    assert table["median, signed"] == pytest.approx(2.0)
    assert table["within 5 %"] == pytest.approx(200 / 3)
    by_load = validation_plot.by_load(rows)
    assert by_load.loc[0.3, "replay"] == pytest.approx(3.0)
    assert by_load.loc[0.9, "drift"] == pytest.approx(10.0)


def test_the_fleet_study_runs_and_its_numbers_hang_together(tmp_path):
    script(tmp_path, "experiments/cluster/run.py", "--quick")
    routing = pd.read_csv(tmp_path / "routing.csv").set_index(["load", "route"])
    for load in (0.8, 0.9):
        assert (
            routing.loc[(load, "shortest_queue"), "p99_ms"]
            <= routing.loc[(load, "random"), "p99_ms"]
        )
    tuning = pd.read_csv(tmp_path / "tuning.csv").set_index("policies")
    tail = tuning.loc["tuned for the tail"]
    assert tail["p95 gain"] == pytest.approx(
        tuning.loc["static", "p95_ms"] / tail["p95_ms"], rel=1e-3
    )
    assert (
        tail["p95 gain"] > 0.98
    )  # the static policy is one to choose from, but for the load of the day
    sampling = pd.read_csv(tmp_path / "sampling.csv")
    assert sampling["error_95"].iloc[-1] < sampling["error_95"].iloc[0]
    assert (sampling["median_error"] <= sampling["error_95"]).all()
    speed = pd.read_csv(tmp_path / "speed.csv")
    assert set(speed["servers"]) == {1, 10, 100}
    done = run_script("experiments/cluster/plot.py", str(tmp_path), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for name in ("routing", "tuning", "sampling"):
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000


def test_machines_needed_is_the_first_that_is_within_a_tenth():
    rows = pd.DataFrame({
        "model": ["a", "a", "a", "b", "b"], "machines": [1, 2, 5, 1, 2], "error_95": [0.3, 0.09, 0.01, 0.2, 0.11],
    })  # fmt: skip
    needed = cluster_plot.machines_needed(rows)
    assert needed["a"] == 2
    assert np.isnan(needed["b"])


def test_the_speed_bench_runs_every_simulator_that_is_there(tmp_path):
    script(tmp_path, "experiments/simulator_speed/run.py", "--quick")
    rows = pd.read_csv(tmp_path / "peers.csv")
    assert {"event loop", "kernel, all rows", "kernel, rows of queries"} <= set(rows["simulator"])
    assert rows["largest_difference_ms"].max() < 1e-3
    assert (rows["tasks_per_s"] > 0).all()
    assert set(pd.read_csv(tmp_path / "ours.csv")["what"]) == {
        "kernel alone",
        "event loop, 1 tasks a query",
        "event loop, 6 tasks a query",
    }


@pytest.mark.parametrize(
    ("module", "simulate"), [("simpy", peers.simpy_mmc), ("ciw", peers.ciw_mmc)]
)
def test_a_peer_simulates_the_same_customers(module, simulate):
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is optional: build/bench_requirements.txt")
    world = World(500, 3, 1)
    ours = world.run(world.session(compiled=True))
    assert world.peer(simulate) == pytest.approx(ours, abs=1e-3)


def test_guided_against_exhaustive(tmp_path):
    script(
        tmp_path,
        "experiments/scheduling/guided.py",
        "--quick",
        "--models",
        "wnd",
        "--backend",
        "simulated",
        "--table_scale",
        "1",
    )
    (line,) = pd.read_csv(tmp_path / "guided.csv").to_dict("records")
    assert line["guided trials"] <= 3
    assert line["exhaustive trials"] > line["guided trials"]
    assert line["guided_over_exhaustive"] > 0.95


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("experiments/simulator_validation/run.py", ["--models", "nix"]),
        ("experiments/scheduling/guided.py", ["--models", "nix"]),
        ("experiments/scheduling/virtual.py", ["--device", "nix"]),
    ],
)
def test_bad_input_is_one_line(tmp_path, path, words):
    done = run_script(path, *words, "--out", str(tmp_path), cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "nix" in done.stderr
