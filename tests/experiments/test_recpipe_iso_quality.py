"""RPAccel at a floor of quality: nothing below it, nothing that a stage cannot carry, published
levels as published.
"""

import numpy as np
import pandas as pd
import pytest
from helpers import run_script

from experiments.recpipe import chip, iso_quality
from experiments.recpipe.chip import Design
from experiments.recpipe.datasets.click_rankers import RANKERS
from experiments.recpipe.datasets.ranked import Queries, RankedData, Ranker
from experiments.recpipe.iso_quality import Chain, Trial
from experiments.recpipe.quality import Scored

ROWS = pd.DataFrame([
    {"stages": 1, "chain": "large", "design": "a", "rate_qps": 100.0, "p95_ms": 5.0, "ndcg": 0.90},
    {"stages": 1, "chain": "large", "design": "b", "rate_qps": 100.0, "p95_ms": 4.0, "ndcg": 0.90},
    {"stages": 1, "chain": "small", "design": "a", "rate_qps": 100.0, "p95_ms": 1.0, "ndcg": 0.80},
    {"stages": 2, "chain": "small 9 > large", "design": "c", "rate_qps": 100.0, "p95_ms": 2.0, "ndcg": 0.89},
    {"stages": 2, "chain": "small 9 > large", "design": "c", "rate_qps": 200.0, "p95_ms": 700.0, "ndcg": 0.89},
])  # fmt: skip


def test_at_the_floor_is_the_lowest_p95_of_what_has_the_quality():
    best = iso_quality.at_floor(ROWS, 0.85).set_index(["stages", "rate_qps"])
    assert best.loc[(1, 100.0), ["chain", "design", "p95_ms"]].tolist() == ["large", "b", 4.0]
    assert best.loc[(2, 100.0), "p95_ms"] == 2.0
    assert best.loc[(2, 200.0), ["design", "p95_ms"]].tolist() == ["-", np.inf]  # above 500 ms
    assert (
        iso_quality.at_floor(ROWS, 0.7).set_index(["stages", "rate_qps"]).loc[(1, 100.0), "chain"]
        == "small"
    )
    assert set(iso_quality.at_floor(ROWS, 0.895)["stages"]) == {1}


def test_the_frontier_has_every_chain_once():
    best = iso_quality.lowest(ROWS, ["stages", "chain"]).set_index("chain")
    assert best["p95_ms"].to_dict() == {"large": 4.0, "small": 1.0, "small 9 > large": 2.0}


@pytest.mark.parametrize(("rate_qps", "carried"), [(249.0, True), (251.0, False)])
def test_a_stage_carries_less_work_than_it_has_time_for(rate_qps, carried):
    design = Design(("rm-small", "rm-large"), (4096, 512), (4, 4), (1, 2), 4)
    trial = Trial(
        Chain(("small", "large"), (512, 64)), design, (1.0, 1.9)
    )  # 4 parts of 1 ms: 250 a second
    assert trial.carries(rate_qps) == carried
    arrivals = chip.arrivals_ns("exponential", rate_qps, 500)
    found = trial.p95_ms(arrivals, rate_qps)
    assert np.isfinite(found) == carried
    if carried:
        assert found == chip.p95_ms((1.0, 1.9), (1, 2), arrivals, 4)


def test_every_stage_has_an_even_share_of_the_chip():
    for own in (
        Chain(("large",), (64,)),
        Chain(("small", "large"), (512, 64)),
        Chain(("small", "medium", "large"), (512, 128, 64)),
    ):
        found = [*iso_quality.designs_of(own, 4096)]
        assert (
            len(set(found))
            == len(found)
            == len(iso_quality.PARTS) * {1: 4, 2: 9, 3: 27}[len(own.rankers)]
        )
        for design in found:
            shares = [
                n / n_chip for n, n_chip in zip(design.engines, design.sub_arrays, strict=True)
            ]
            assert all(share <= 1 / len(shares) + 1e-9 for share in shares)
            assert design.items == (4096, *own.keeps[:-1])


def drawn_scores(n_queries=4, n_items=4096, seed=1):
    """One table, many clicks, scores drawn: filters in parts let other items through."""
    rng = np.random.default_rng(seed)
    shape = (n_queries, n_items)
    queries = Queries(
        rng.integers(0, 50, (*shape, 1), np.int32),
        np.zeros((*shape, 13), np.float32),
        rng.integers(0, 2, shape).astype(np.uint8),
        np.full(n_queries, n_items, np.int32),
    )
    rankers = {config.name: Ranker(config.model_config((50,)), {}) for config in RANKERS}
    return Scored(
        RankedData("clicks", rankers, queries, 64, {}),
        {name: rng.random(shape, np.float32) for name in rankers},
    )


def test_a_design_has_the_quality_of_its_filters_whole_or_in_parts(monkeypatch):
    scored = drawn_scores()
    own = Chain(("small", "large"), (128, 64))
    monkeypatch.setattr(iso_quality, "chains", lambda *_: [own])
    monkeypatch.setattr(iso_quality, "RATES_QPS", (100.0,))
    monkeypatch.setattr(iso_quality, "PARTS", (1, 4))
    rows = iso_quality.measure(scored, chip.Misses((scored,)), 200, lambda *_: None)
    expected = {n: iso_quality.quality_of(own, scored, n)["ndcg"] for n in iso_quality.PARTS}
    assert (expected[1] != expected[4]).any()
    assert len(rows) == 18
    for n, lines in rows.groupby("sub_batches"):
        assert lines["ndcg"].tolist() == [expected[n].mean()] * 9
    (loss,) = iso_quality.parts_of(scored).to_dict("records")
    assert loss["less_than_whole"] == pytest.approx((expected[4] - expected[1]).mean())


def test_published_levels_are_those_of_figure_14():
    found = (
        iso_quality.published_levels()
        .pivot_table(index=["kind", "stages"], columns="level", values="p95_ms", dropna=False)
        .loc[:, ["low", "medium", "high"]]
    )
    inf = np.inf
    expected = {
        ("CPU, published", 1): (68.49, 88.39, inf),
        ("CPU, published", 2): (40.78, 48.07, inf),
        ("CPU, published", 3): (47.63, 63.8, inf),
        ("GPU, published", 1): (15.85, inf, inf),
        ("GPU, published", 2): (17.78, inf, inf),
        ("RPAccel, published", 1): (2.5, 13.95, inf),
        ("RPAccel, published", 2): (1.91, 2.88, 6.33),
        ("RPAccel, published", 3): (2.17, 3.41, 6.32),
    }
    for key, values in expected.items():
        assert tuple(found.loc[key]) == pytest.approx(values, abs=0.006)


def test_the_study_runs(tmp_path):
    done = run_script(
        "experiments/recpipe/iso_quality.py",
        "--quick",
        "--queries",
        "500",
        "--cache",
        str(tmp_path),
        "--out",
        str(tmp_path),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    best = pd.read_csv(tmp_path / "at_floor.csv")
    large = pd.read_csv(tmp_path / "frontier.csv").set_index("chain").loc["large", "ndcg"]
    assert (best["ndcg"] >= iso_quality.FLOOR * large - 1e-4).all()
    scaling = pd.read_csv(tmp_path / "figure13.csv")
    assert len(scaling) == 2 * len(iso_quality.SCALED)
    assert scaling["ndcg"].between(0, 1).all()
    assert (tmp_path / "iso_quality.png").stat().st_size > 10_000
