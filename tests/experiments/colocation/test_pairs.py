"""Neighbours: times alone and beside, and who pays."""

import itertools
from dataclasses import replace

import pandas as pd
import pytest

from experiments.colocation import pairs


@pytest.mark.skipif(len(pairs.usable_cores()) < 2, reason="one core: no neighbour fits")
@pytest.mark.alone
def test_pairs_are_measured_alone_and_together(tmp_path):
    study = replace(pairs.STUDY, efforts={"quick": pairs.PairEffort((64,), 3, 0.01)})
    words = "--quick --models ncf,wnd --table_scale 0.001 --out"
    assert study.command([*words.split(), str(tmp_path)]) == 0
    rows = pd.read_csv(tmp_path / "pairs.csv")
    measured = {*zip(rows["model"], rows["neighbour"], strict=True)}
    assert measured == {*itertools.product(("ncf", "wnd"), repeat=2)}
    assert ((rows["least"] <= rows["slowdown"]) & (rows["slowdown"] <= rows["most"])).all()
    assert (tmp_path / "pairs.png").stat().st_size > 10_000


def test_the_cost_of_neighbours_is_summed_up_by_who_pays_and_who_causes():
    slowdowns = {
        ("rm1", "rm1"): 1.2,
        ("rm1", "ncf"): 1.0,
        ("ncf", "rm1"): 1.6,
        ("ncf", "ncf"): 1.0,
    }
    rows = pd.DataFrame(slowdowns.keys(), columns=["model", "neighbour"])
    rows = rows.assign(batch=64, slowdown=slowdowns.values())
    rows = rows.assign(p95_over_p50_alone=1.1, p95_over_p50_beside=1.2)
    table = pairs.summary(rows).set_index("model")
    assert table.loc["ncf", "mean slow-down"] == pytest.approx(1.3)
    assert table.loc["ncf", "beside"] == "rm1"
    assert table.loc["rm1", "costs others"] == pytest.approx(1.4)
