"""The speed bench in its quick setting, and its peers."""

import importlib.util

import pandas as pd
import pytest
from helpers import run_script

from experiments.simulator_speed.run import PEERS, QueueWorld


def test_the_speed_bench_runs_every_simulator_that_is_there(tmp_path):
    words = ["experiments/simulator_speed/run.py", "--quick", "--out", str(tmp_path)]
    done = run_script(*words, cwd=tmp_path, timeout=240)
    assert done.returncode == 0, done.stderr
    rows = pd.read_csv(tmp_path / "peers.csv")
    assert {"event loop", "kernel, all rows", "kernel, rows of queries"} <= set(rows["simulator"])
    assert rows["largest_difference_ms"].max() < 1e-3
    assert (rows["tasks_per_s"] > 0).all()
    assert set(pd.read_csv(tmp_path / "ours.csv")["what"]) == {
        "kernel alone",
        "event loop, 1 tasks a query",
        "event loop, 6 tasks a query",
    }


@pytest.mark.parametrize(("module", "simulate"), PEERS.values())
def test_a_peer_simulates_the_same_customers(module, simulate):
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is optional: build/bench_requirements.txt")
    world = QueueWorld(500, 3, 1)
    ours = world.run(world.session(compiled=True))
    assert world.peer(simulate) == pytest.approx(ours, abs=1e-3)
