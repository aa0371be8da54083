"""The release's gaps understate the tail."""

import pandas as pd

from experiments.load_generator import legacy_gaps


def test_whole_ms_gaps_understate_the_tail_at_any_load(tmp_path):
    assert legacy_gaps.STUDY.command(["--out", str(tmp_path)]) == 0
    p95_ms = legacy_gaps.summary(pd.read_csv(tmp_path / "legacy_gaps.csv"))
    assert list(p95_ms.index) == list(legacy_gaps.UTILISATIONS)
    assert (p95_ms["legacy"] >= legacy_gaps.SERVICE_MS).all()
    assert (p95_ms["exponential"] > 1.9 * p95_ms["legacy"]).all()
    assert (tmp_path / "legacy_gaps.png").stat().st_size > 10_000
