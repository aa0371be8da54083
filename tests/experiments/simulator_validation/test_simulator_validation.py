"""The validation, with virtual time in the place of the engines."""

import pandas as pd
import pytest
from helpers import run_script

from experiments.simulator_validation import plot

SCRIPT = "experiments/simulator_validation/run.py"


def test_the_validation_of_engines_that_are_the_model_finds_no_error(tmp_path):
    words = f"{SCRIPT} --quick --models wnd --backend simulated --out"
    done = run_script(*words.split(), str(tmp_path), cwd=tmp_path, timeout=240)
    assert done.returncode == 0, done.stderr
    rows = pd.read_csv(tmp_path / "validation.csv")
    assert len(rows) == 2 * 4 * 3 * 3  # modes, loads, kinds, quantiles
    assert rows.query("kind == 'replay'")["error"].abs().max() < 1e-9
    modelled = rows.query("kind == 'model' and quantile == 0.5 and load < 0.6")
    assert modelled["error"].abs().median() < 0.15  # some hundred queries
    assert (rows["low"] <= rows["error"] + 1e-9).mean() > 0.9
    assert pd.read_csv(tmp_path / "rates.csv")["error"].abs().max() < 0.2
    assert (tmp_path / "validation.png").stat().st_size > 10_000


def test_the_tables_of_the_validation_say_what_the_rows_say():
    rows = pd.DataFrame(
        [
            {"kind": kind, "quantile": 0.95, "load": load, "error": error, "service_ratio": 1.1}
            for kind in plot.KINDS
            for load, error in ((0.3, 0.02), (0.3, -0.04), (0.9, 0.2))
        ]
    )
    table = plot.summary(rows).loc[("model", 0.95)]
    assert table["median"] == pytest.approx(4.0)
    assert table["worst"] == pytest.approx(20.0)
    assert table["median, signed"] == pytest.approx(2.0)
    assert table["within 5 %"] == pytest.approx(200 / 3)
    by_load = plot.by_load(rows)
    assert by_load.loc[0.3, "replay"] == pytest.approx(3.0)
    assert by_load.loc[0.9, "drift"] == pytest.approx(10.0)


def test_bad_input_is_one_line(tmp_path):
    done = run_script(SCRIPT, "--models", "nix", "--out", str(tmp_path), cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "nix" in done.stderr
