"""The scheduling studies in their quick setting: they resume, and their numbers hang together."""

import numpy as np
import pandas as pd
import pytest
from helpers import run_script

from experiments.scheduling import plot
from infra.provenance import usable_cores as cores


def test_the_virtual_study_resumes_and_hill_is_near_the_oracle(tmp_path):
    words = ["experiments/scheduling/virtual.py", "--quick", "--out", str(tmp_path)]
    assert run_script(*words, "--models", "wnd", cwd=tmp_path).returncode == 0
    one_model = (tmp_path / "virtual.csv").read_text()
    assert run_script(*words, cwd=tmp_path).returncode == 0  # only what is missing
    assert (tmp_path / "virtual.csv").read_text().startswith(one_model)
    rows = pd.read_csv(tmp_path / "virtual.csv")
    assert rows.groupby("model").size().to_dict() == {"wnd": 8, "ncf": 8}
    hill = plot.regret(rows).query("search.str.startswith('hill')")
    assert (hill["share_of_best"] > 0.95).all()
    assert (hill["share_of_queries"] < 0.2).all()
    for name in ("gains", "regret", "qps_by_batch", "qps_by_threshold", "qps_map"):
        figure = tmp_path / f"{name}.png"
        assert figure.stat().st_size > 10_000
        figure.unlink()
    assert run_script(*words[:1], "--plot", str(tmp_path), cwd=tmp_path).returncode == 0
    assert (tmp_path / "qps_map.png").stat().st_size > 10_000


def made_up():
    rates = {
        "static": 100,
        "exhaustive, CPU": 200,
        "hill, CPU": 190,
        "released, CPU": 50,
        "exhaustive, CPU + accelerator": 400,
        "hill, CPU + accelerator": 400,
        "released, CPU + accelerator": 100,
        "hill, QPS per watt": 400,
    }
    true_qps = np.array(list(rates.values()))
    columns = {"sla": "low", "search": list(rates), "queries": 10, "trials": 3, "batch_items": 8}
    rows = pd.DataFrame({**columns, "watts": [250.0] * 4 + [500.0] * 4})
    models = {"wnd": true_qps, "ncf": 4 * true_qps}
    return pd.concat(
        rows.assign(model=model, true_qps=qps, found_qps=1.1 * qps) for model, qps in models.items()
    )


def test_gains_and_regret_are_what_they_say():
    table = plot.geometric_means(made_up())
    assert table.loc["hill, CPU", "low"] == pytest.approx(1.9)
    per_watt = table.loc["hill, QPS per watt", "low"]
    assert per_watt == pytest.approx(2.0)  # four times the rate at twice the power
    assert table.loc["hill, CPU", "paper, low"] == 1.7
    regret = plot.regret(made_up()).set_index(["search", "model"])
    assert regret.loc[("hill, CPU", "wnd"), "share_of_best"] == pytest.approx(0.95)
    released = regret.loc[("released, CPU + accelerator", "ncf"), "share_of_best"]
    assert released == pytest.approx(0.25)
    assert regret["claimed_over_true"].to_numpy() == pytest.approx(1.1)


def test_guided_against_exhaustive(tmp_path):
    words = ["experiments/scheduling/guided.py", "--quick", "--models", "wnd", "--out", tmp_path]
    flags = ["--backend", "simulated", "--table_scale", "1"]
    done = run_script(*map(str, words), *flags, cwd=tmp_path, timeout=240)
    assert done.returncode == 0, done.stderr
    (line,) = pd.read_csv(tmp_path / "guided.csv").to_dict("records")
    assert line["guided trials"] <= 3
    assert line["exhaustive trials"] > line["guided trials"]
    assert line["guided_over_exhaustive"] > 0.95


@pytest.mark.alone
def test_a_real_search_becomes_a_line_per_phase(tmp_path):
    words = "real.py --models ncf --schedulers static --quick --nepochs 2 --rate_width 1 --out"
    script = [*f"experiments/scheduling/{words}".split(), str(tmp_path)]
    done = run_script(*script, cwd=tmp_path, timeout=220)
    assert done.returncode == 0, done.stderr
    (row,) = pd.read_csv(tmp_path / "real.csv").to_dict("records")
    assert row["phase"] == "static"
    assert row["batch_items"] == -(-1024 // len(cores()))
    assert row["queries"] > 0
    assert len(list(tmp_path.glob("results/*/run.json"))) == 1


@pytest.mark.parametrize(
    "words",
    [
        ["virtual.py", "--device", "nix"],
        ["virtual.py", "--models", "nix"],
        ["guided.py", "--models", "nix"],
        ["guided.py", "--nix", "3"],
        ["real.py", "--models", "nix"],
        ["real.py", "--slas", "nix"],
        ["real.py", "--schedulers", "nix"],
    ],
)
def test_bad_input_is_one_line(tmp_path, words):
    script = f"experiments/scheduling/{words[0]}"
    done = run_script(script, *words[1:], "--out", str(tmp_path / "out"), cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "nix" in done.stderr
    assert not (tmp_path / "out").exists()
