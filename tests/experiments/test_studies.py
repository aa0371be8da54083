"""The studies in their quick setting: they run, resume, and their numbers say what the rows say."""

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
    done = run_script("experiments/scheduling/plot.py", str(tmp_path), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for name in ("gains", "regret", "qps_by_batch", "qps_by_threshold", "qps_map"):
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000


def made_up():
    names = [
        "static",
        "exhaustive, CPU",
        "hill, CPU",
        "released, CPU",
        "exhaustive, CPU + accelerator",
        "hill, CPU + accelerator",
        "released, CPU + accelerator",
        "hill, QPS per watt",
    ]
    rates = [100, 200, 190, 50, 400, 400, 100, 400]
    return pd.concat(
        [
            pd.DataFrame(
                {
                    "model": model,
                    "sla": "low",
                    "search": names,
                    "true_qps": np.array(rates) * scale,
                    "found_qps": np.array(rates) * scale * 1.1,
                    "queries": 10,
                    "trials": 3,
                    "batch_items": 8,
                    "watts": [250.0] * 4 + [500.0] * 4,
                }
            )
            for model, scale in (("wnd", 1), ("ncf", 4))
        ]
    )


def test_gains_and_regret_are_what_they_say():
    table = plot.geometric_means(made_up())
    assert table.loc["hill, CPU", "low"] == pytest.approx(1.9)
    assert table.loc["hill, QPS per watt", "low"] == pytest.approx(
        2.0
    )  # four times the rate at twice the power
    assert table.loc["hill, CPU", "paper, low"] == 1.7
    regret = plot.regret(made_up()).set_index(["search", "model"])
    assert regret.loc[("hill, CPU", "wnd"), "share_of_best"] == pytest.approx(0.95)
    assert regret.loc[("released, CPU + accelerator", "ncf"), "share_of_best"] == pytest.approx(
        0.25
    )
    assert regret["claimed_over_true"].to_numpy() == pytest.approx(1.1)


def test_the_load_study_runs(tmp_path):
    done = run_script(
        "experiments/load_generator/what_load_does.py",
        "--quick",
        "--out",
        str(tmp_path),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    rows = pd.read_csv(tmp_path / "what_load_does.csv").set_index(["sizes", "arrivals"])
    bursty = [name for name in rows.index.levels[1] if name.startswith("bursty")][0]  # noqa: RUF015
    for law in ("fixed", "normal", "lognormal", "production"):
        assert rows.loc[(law, bursty), "p95_ms"] > rows.loc[(law, "Poisson"), "p95_ms"]
        assert rows.loc[(law, bursty), "best_qps"] < rows.loc[(law, "Poisson"), "best_qps"]
    assert (tmp_path / "what_load_does.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    "words",
    [
        ["experiments/scheduling/real.py", "--models", "nix"],
        ["experiments/scheduling/real.py", "--slas", "nix"],
        ["experiments/load_generator/what_load_does.py", "--models", "nix"],
    ],
)
def test_bad_input_is_one_line(tmp_path, words):
    done = run_script(*words, "--out", str(tmp_path), cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "nix" in done.stderr


@pytest.mark.alone
def test_a_real_search_becomes_a_line_per_phase(tmp_path):
    words = [
        "--models",
        "ncf",
        "--schedulers",
        "static",
        "--quick",
        "--nepochs",
        "2",
        "--rate_width",
        "1",
    ]
    done = run_script(
        "experiments/scheduling/real.py", *words, "--out", str(tmp_path), cwd=tmp_path, timeout=220
    )
    assert done.returncode == 0, done.stderr
    (row,) = pd.read_csv(tmp_path / "real.csv").to_dict("records")
    assert row["phase"] == "static"
    assert row["batch_items"] == -(-1024 // len(cores()))
    assert row["queries"] > 0
