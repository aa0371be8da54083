"""The studies in their quick setting: they run, resume, and their numbers say what the rows say."""

import pandas as pd
import pytest
from helpers import run_script


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
        ["experiments/load_generator/what_load_does.py", "--models", "nix"],
    ],
)
def test_bad_input_is_one_line(tmp_path, words):
    done = run_script(*words, "--out", str(tmp_path), cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "nix" in done.stderr
