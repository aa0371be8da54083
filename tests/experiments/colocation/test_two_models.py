"""Two models on one machine: runs alone and at once, and what each carries."""

import pandas as pd
import pytest
from helpers import run_script

from experiments.colocation import two_models
from infra.provenance import usable_cores


@pytest.mark.skipif(len(usable_cores()) < 2, reason="one core: two engines do not fit")
@pytest.mark.alone
def test_two_models_are_served_alone_and_at_once(tmp_path):
    words = ["--pairs", "rm1+ncf", "--seconds", "0.3", "--table_scale", "0.001"]
    words = ["experiments/colocation/two_models.py", *words, "--out", str(tmp_path)]
    done = run_script(*words, cwd=tmp_path, timeout=200)
    assert done.returncode == 0, done.stderr
    rows = pd.read_csv(tmp_path / "two_models.csv")
    assert len(rows) == 4 * len(two_models.FRACTIONS)
    assert (rows["p50_ms"] <= rows["p95_ms"]).all()
    rates = rows.pivot_table("rate_qps", index=["model", "fraction"], columns="company")
    assert rates["alone"].to_numpy() == pytest.approx(rates["both at once"].to_numpy())
    assert (tmp_path / "two_models.png").stat().st_size > 10_000


@pytest.mark.parametrize("pair", ["wnd", "wnd+wnd", "wnd+rm9"])
def test_a_pair_is_two_different_models(tmp_path, pair, capsys):
    assert two_models.STUDY.command(["--pairs", pair, "--out", str(tmp_path)]) == 2
    assert "expected two different ones" in capsys.readouterr().err


def test_what_two_models_carry_is_the_highest_rate_that_met_the_sla():
    p95_ms = {
        ("alone", 0.5): 5.0,
        ("alone", 0.7): 8.0,
        ("both at once", 0.5): 7.5,
        ("both at once", 0.7): 16.0,
    }
    rows = pd.DataFrame(p95_ms.keys(), columns=["company", "fraction"])
    rows = rows.assign(pair="a+b", model="a", sla_ms=10.0, rate_qps=100 * rows["fraction"])
    rows = rows.assign(p95_ms=p95_ms.values(), meets_sla=[ms <= 10 for ms in p95_ms.values()])
    (line,) = two_models.summary(rows).to_dict("records")
    assert line["QPS, alone"] == pytest.approx(70)
    assert line["QPS, both at once"] == pytest.approx(50)
    assert line["p95 together/alone"] == pytest.approx((1.5 + 2) / 2)
