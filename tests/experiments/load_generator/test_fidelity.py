"""Does the generator send what it says: the rows of short runs, without LoadGen."""

import importlib.util

import pandas as pd
import pytest

from experiments.load_generator import fidelity


@pytest.mark.alone
def test_the_sent_gaps_and_their_figure_come_from_rows(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fidelity, "RATES_QPS", (100, 1_000))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert fidelity.STUDY.command(["--seconds", "0.5", "--out", str(tmp_path)]) == 0
    assert "LoadGen is not installed" in capsys.readouterr().err
    rows = pd.read_csv(tmp_path / "fidelity.csv")
    assert rows[["who", "rate_qps", "n"]].to_numpy().tolist() == [
        ["ours", 100, 100],
        ["ours", 1_000, 500],
    ]
    assert rows["ks"].between(0, 1).all()
    assert (rows["late_p50_us"] <= rows["late_p99_us"]).all()
    gaps = pd.read_csv(tmp_path / "gaps.csv")
    for _, line in gaps.groupby("rate_qps"):
        assert line["gap"].is_monotonic_increasing
        assert line["longer"].is_monotonic_decreasing
    assert (tmp_path / "fidelity.png").stat().st_size > 10_000
