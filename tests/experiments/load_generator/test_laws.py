"""The laws of sizes and arrivals have the shapes that are published."""

import pandas as pd
import pytest

from experiments.load_generator import laws


def test_the_laws_have_the_published_shape(tmp_path):
    assert laws.STUDY.command(["--out", str(tmp_path)]) == 0
    facts = pd.read_csv(tmp_path / "size_facts.csv").set_index("law")
    share = facts.loc["production (ISCA 2020)", "items in the largest quarter"]
    assert share == pytest.approx(0.5, abs=0.03)
    assert facts.loc["mlperf (DLRM-v2)", "p50"] == 200
    arrivals = pd.read_csv(tmp_path / "arrivals.csv")
    by_window = arrivals[arrivals["what"] == "dispersion"].pivot_table(
        "value", index="law", columns="at_s"
    )
    spread = by_window.iloc[:, 5]
    assert spread["Poisson"] == pytest.approx(1, abs=0.1)
    assert spread["gamma, k = 0.25"] > 2
    assert spread["release's whole ms"] < 0.7
    assert (tmp_path / "laws.png").stat().st_size > 10_000
