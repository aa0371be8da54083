"""Engines beside each other in virtual time."""

import pandas as pd
import pytest

from experiments.colocation import engines


def test_one_engine_has_no_neighbours_and_more_are_slower(tmp_path):
    assert engines.STUDY.command(["--quick", "--out", str(tmp_path)]) == 0
    rows = pd.read_csv(tmp_path / "engines.csv")
    ratios = {world: engines.ratios(rows, world) for world in (engines.BESIDE, engines.ADDING)}
    for ratio in ratios.values():
        assert ratio[1].to_numpy() == pytest.approx(1, abs=1e-3)
        assert ratio[40].min() >= 0.999
    assert ratios[engines.ADDING][40].mean() > ratios[engines.BESIDE][40].mean()
    assert (tmp_path / "engines.png").stat().st_size > 10_000
