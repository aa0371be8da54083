"""Look-ups and tails by the ids' law, on small tables."""

from dataclasses import replace

import pandas as pd
import pytest

from experiments.locality import look_ups


@pytest.mark.alone
def test_look_ups_and_tails_by_law(tmp_path, monkeypatch):
    monkeypatch.setattr(look_ups, "ALPHAS", (0.0, 1.2))
    effort = replace(look_ups.STUDY.efforts["quick"], rounds=2)
    study = replace(look_ups.STUDY, efforts={"quick": effort})
    words = "--quick --models ncf --seconds 0.3 --table_scale 0.001 --out"
    assert study.command([*words.split(), str(tmp_path)]) == 0
    rows = pd.read_csv(tmp_path / "look_ups.csv")
    assert set(rows["law"]) == {look_ups.law_name(alpha) for alpha in look_ups.ALPHAS}
    assert (rows[rows["law"] == "uniform"]["over_uniform"] == 1).all()
    p95 = pd.read_csv(tmp_path / "p95.csv")
    assert len(set(p95["rate_qps"])) == 1
    assert (p95["p50_ms"] <= p95["p95_ms"]).all()
