"""Chains: quality of their lists, FLOPs, names, what is not beaten."""

import itertools

import numpy as np
import pandas as pd
import pytest
from drawn_rankers import full_queries
from hypothesis import given
from hypothesis import strategies as st

from experiments.recpipe import chains, quality
from experiments.recpipe.chains import Chain, Scored, pareto, quality_of
from experiments.recpipe.datasets.ranked import RankedData

LARGE = Chain(("large",), (10,))


def oracle(n_queries=20, n_items=200, rate=0.2, seed=4):
    """Queries with a few clicks and a ranker that knows them."""
    shape = (n_queries, n_items)
    labels = np.random.default_rng(seed).random(shape) < rate
    queries = full_queries(np.zeros((*shape, 1)), labels)
    data = RankedData("clicks", {}, queries, 10, {})
    return Scored(data, {"large": labels.astype(np.float32)})


def test_an_oracle_s_quality_is_one_and_falls_with_the_items_it_gets():
    scored = oracle()
    whole = quality_of(LARGE, scored)
    for name in chains.MEASURES:
        assert (whole[name] == 1).all()
    shares = [chains.quality(LARGE, scored, scored.parts(share)) for share in quality.POOLS]
    for less, more in itertools.pairwise(shares):
        assert (less["ndcg"] <= more["ndcg"] + 1e-12).all()
    assert shares[0]["ndcg"].mean() < 0.9
    assert (shares[-1]["ndcg"] == 1).all()


def test_the_release_s_measure_asks_for_a_full_list_of_clicks():
    scored = oracle(rate=0.02)
    measures = quality_of(LARGE, scored)
    n_clicks = scored.data.queries.labels_QN.sum(axis=1)
    assert (measures["ndcg"][n_clicks > 0] == 1).all()
    assert (measures["ndcg_released"][n_clicks < 10] < 1).all()
    assert n_clicks.min() < 10


def test_quality_is_computed_once_a_chain(monkeypatch):
    scored = oracle()
    first = quality_of(LARGE, scored)
    monkeypatch.setattr(chains, "quality", lambda *_: pytest.fail("computed again"))
    assert quality_of(LARGE, scored) is first


def test_flops_of_a_chain_are_those_of_the_items_each_stage_ranks():
    of_item = {"small": 1.0, "medium": 10.0, "large": 100.0}
    assert LARGE.flops(1000, of_item) == 100_000
    three = Chain(("small", "medium", "large"), (200, 50, 10))
    assert three.flops(1000, of_item) == 1000 + 2000 + 5000
    two = Chain(("small", "large"), (200, 10))
    assert two.flops(100, of_item) == 100 + 10_000  # no more than there are


def test_a_chain_is_known_by_its_label():
    for chain in chains.all_chains((20, 50), 10):
        assert Chain.of(chain.label, 10) == chain
    assert Chain(("small", "large"), (20, 10)).label == "small 20 > large"


def test_the_front_has_what_no_other_beats():
    rows = pd.DataFrame(
        {"chain": list("abcd"), "mflops": [1.0, 2.0, 3.0, 3.0], "ndcg": [0.1, 0.05, 0.2, 0.3]}
    )
    assert list(quality.not_beaten(rows)["chain"]) == ["a", "d"]


@given(st.lists(st.tuples(*[st.integers(0, 4)] * 3), max_size=25))
def test_a_front_is_what_nobody_beats_each_once(rows):
    def beats(a, b):
        return all(x >= y for x, y in zip(a, b, strict=True)) and a != b

    expected = [
        row
        for i, row in enumerate(rows)
        if row not in rows[:i] and not any(beats(rival, row) for rival in rows)
    ]
    table = pd.DataFrame(rows, columns=["a", "b", "c"], dtype=int)
    kept = pareto(table, ["a", "b", "c"])
    assert [*kept.itertuples(index=False, name=None)] == expected
    kept = pareto(table.assign(c=-table["c"]), ["a", "b"], ["c"])
    assert [*kept.assign(c=-kept["c"]).itertuples(index=False, name=None)] == expected
