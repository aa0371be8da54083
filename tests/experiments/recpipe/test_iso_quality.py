"""RPAccel at a floor of quality: nothing below it, nothing that a stage cannot carry."""

import numpy as np
import pandas as pd
import pytest
from drawn_rankers import drawn_scores
from helpers import run_script

from experiments.recpipe import chip, iso_quality
from experiments.recpipe.chains import Chain, quality_of
from experiments.recpipe.chip import ChipDesign, TimedDesign

TWO = "small 9 > large"
ROWS = pd.DataFrame(
    [
        (1, "large", "a", 100.0, 5.0, 0.90),
        (1, "large", "b", 100.0, 4.0, 0.90),
        (1, "small", "a", 100.0, 1.0, 0.80),
        (2, TWO, "c", 100.0, 2.0, 0.89),
        (2, TWO, "c", 200.0, 700.0, 0.89),
    ],
    columns=["stages", "chain", "design", "rate_qps", "p95_ms", "ndcg"],
)


def test_at_the_floor_is_the_lowest_p95_of_what_has_the_quality():
    by = ["stages", "rate_qps"]
    best = iso_quality.at_floor(ROWS, 0.85).set_index(by)
    assert best.loc[(1, 100.0), ["chain", "design", "p95_ms"]].tolist() == ["large", "b", 4.0]
    assert best.loc[(2, 100.0), "p95_ms"] == 2.0
    assert best.loc[(2, 200.0), ["design", "p95_ms"]].tolist() == ["-", np.inf]  # above 500 ms
    lower = iso_quality.at_floor(ROWS, 0.7).set_index(by)
    assert lower.loc[(1, 100.0), "chain"] == "small"
    assert set(iso_quality.at_floor(ROWS, 0.895)["stages"]) == {1}


def test_the_frontier_has_every_chain_once():
    best = iso_quality.lowest(ROWS, ["stages", "chain"]).set_index("chain")
    assert best["p95_ms"].to_dict() == {"large": 4.0, "small": 1.0, "small 9 > large": 2.0}


@pytest.mark.parametrize(("rate_qps", "carried"), [(249.0, True), (251.0, False)])
def test_a_stage_carries_less_work_than_it_has_time_for(rate_qps, carried):
    design = ChipDesign(("rm-small", "rm-large"), (4096, 512), (4, 4), (1, 2), 4)
    timed = TimedDesign(design, (1.0, 1.9))  # 4 parts of 1 ms: 250 a second
    assert timed.carries(rate_qps) == carried
    arrivals = chip.arrivals_ns("exponential", rate_qps, 500)
    p95_ms = timed.p95_ms(arrivals, rate_qps)
    assert np.isfinite(p95_ms) == carried
    if carried:
        latency_ns = chip.answers_ns((1.0, 1.9), (1, 2), arrivals, 4) - arrivals
        assert p95_ms == np.quantile(latency_ns, 0.95) / 1e6


def test_every_stage_has_an_even_share_of_the_chip():
    for chain, n_splits in (
        (Chain(("large",), (64,)), 4),
        (Chain(("small", "large"), (512, 64)), 9),
        (Chain(("small", "medium", "large"), (512, 128, 64)), 27),
    ):
        designs = [*iso_quality.designs_of(chain, 4096)]
        assert len(set(designs)) == len(designs) == len(iso_quality.PARTS) * n_splits
        for design in designs:
            shares = np.array(design.engines) / design.sub_arrays
            assert (shares <= 1 / len(shares) + 1e-9).all()
            assert design.items == (4096, *chain.keeps[:-1])


def test_a_design_has_the_quality_of_its_filters_whole_or_in_parts(monkeypatch):
    # One table, many clicks, scores drawn: filters in parts let other items through.
    rng = np.random.default_rng(1)
    scored = drawn_scores("clicks", rng.integers(0, 50, (4, 4096, 1)), (50,), rng)
    chain = Chain(("small", "large"), (128, 64))
    monkeypatch.setattr(iso_quality, "chains", lambda *_: [chain])
    monkeypatch.setattr(iso_quality, "RATES_QPS", (100.0,))
    monkeypatch.setattr(iso_quality, "PARTS", (1, 4))
    rows = iso_quality.measure(scored, chip.Misses((scored,)), 200, lambda *_: None)
    expected = {n: quality_of(chain, scored, n)["ndcg"] for n in iso_quality.PARTS}
    assert (expected[1] != expected[4]).any()
    assert len(rows) == 18
    for n, lines in rows.groupby("sub_batches"):
        assert lines["ndcg"].tolist() == [expected[n].mean()] * 9
    (loss,) = iso_quality.parts_of(scored)
    assert loss.less_than_whole == pytest.approx((expected[4] - expected[1]).mean())


def test_published_levels_are_those_of_figure_14():
    rows = pd.DataFrame(iso_quality.published_levels())
    table = rows.pivot_table("p95_ms", ["kind", "stages"], "level", dropna=False)
    table = table[["low", "medium", "high"]]
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
        assert tuple(table.loc[key]) == pytest.approx(values, abs=0.006)


def test_the_study_runs(tmp_path):
    flags = f"--quick --queries 500 --cache {tmp_path} --out {tmp_path}"
    done = run_script("experiments/recpipe/iso_quality.py", *flags.split(), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    best = pd.read_csv(tmp_path / "at_floor.csv")
    large = pd.read_csv(tmp_path / "frontier.csv").set_index("chain").loc["large", "ndcg"]
    assert (best["ndcg"] >= iso_quality.KEPT_SHARE * large - 1e-4).all()
    scaling = pd.read_csv(tmp_path / "figure13.csv")
    assert len(scaling) == 2 * len(iso_quality.SCALED)
    assert scaling["ndcg"].between(0, 1).all()
    assert (tmp_path / "iso_quality.png").stat().st_size > 10_000
