"""Pipelines by quality and tail latency: rows, the lowest p95, the published points."""

import numpy as np
import pandas as pd
import pytest
from drawn_rankers import K

from experiments.common.case_log import row_of
from experiments.recpipe import pipelines
from experiments.recpipe.design_studies import DesignCase, GoalRow


def test_the_lowest_p95_is_of_enough_quality_and_what_is_not_carried_ends_a_design(
    world, monkeypatch
):
    monkeypatch.setattr(pipelines, "RATES_QPS", (10.0, 1e5, 2e5))
    case = DesignCase("movielens", "", None, 0.1, 10.0, np.inf)
    goal = GoalRow("movielens", K, 0.1, 10.0, np.inf, 8)
    todo = [d for d in pipelines.designs((8, 20, 30), K, quick=True) if d.batch_items == 256]
    measured = [row for design in todo for row in pipelines.measure(world, design, case)]
    rows = pd.DataFrame(map(row_of, measured))
    assert (rows["rate_qps"] < 2e5).all()
    assert np.isinf(rows["p95_ms"][rows["rate_qps"] == 1e5]).all()
    best = pipelines.lowest(rows, 0.0, "stages")
    assert len(best) == 3
    pipelines.draw(rows[rows["rate_qps"] == 10.0], pd.DataFrame([goal]))


def test_published_points_are_those_of_equal_quality():
    points = pipelines.published()
    assert set(points["kind"]) == {"CPU", "GPU", "GPU in front", "GPU behind"}
    cpu = points[points["kind"] == "CPU"].groupby(["stages", "rate_qps"])["p95_ms"].min()
    # RecPipe's headline: two stages against one at 1000 QPS.
    assert cpu[2, 1000.0] == pytest.approx(66.6, abs=0.05)
    assert cpu[1, 1000.0] == pytest.approx(210.9, abs=0.05)
