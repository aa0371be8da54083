"""Designs of pipelines in virtual time: fronts, rates, power, a search that goes on, and answers as
foretold.
"""

import argparse
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from drawn_rankers import DLRM, drawn_queries, drawn_weights
from hypothesis import given
from hypothesis import strategies as st

from accelerator.latency import Profile
from experiments.recpipe import pipelines, real, search
from experiments.recpipe.datasets.ranked import RankedData, Ranker
from experiments.recpipe.quality import Chain, Scored, quality_of
from experiments.recpipe.world import (
    ARRAYS,
    CORE_WATTS,
    GPU,
    MOST_QPS,
    RATE_WIDTH,
    Design,
    World,
    pareto,
)
from infra.messages import CPU
from infra.progress import Progress
from infra.ranking import paired
from infra.results.rows import TASK_COLUMNS, Rows
from infra.results.stages import answers_by_input

K = 4


@pytest.fixture(scope="module")
def world():
    """Three rankers with drawn weights on queries of 40 candidates; made-up times."""
    rankers = {
        name: Ranker(DLRM, drawn_weights(DLRM, i))
        for i, name in enumerate(("small", "medium", "large"))
    }
    scored = Scored.of(RankedData("movielens", rankers, drawn_queries(DLRM, [40] * 12, 3), K, {}))
    cpu = {
        name: Profile({1: 0.1 * cost, 40: 2.0 * cost})
        for name, cost in (("small", 1), ("medium", 3), ("large", 9))
    }
    return World(scored, cpu, n_cores=8, n_queries=400)


ONE = Design(Chain(("large",), (K,)), (CPU,), 10)
TWO = Design(Chain(("small", "large"), (8, K)), (CPU, CPU), 10)


@given(st.lists(st.tuples(*[st.integers(0, 4)] * 3), max_size=25))
def test_a_front_is_what_nobody_beats_each_once(rows):
    kept = pareto(rows)

    def beats(a, b):
        return all(x >= y for x, y in zip(a, b, strict=True)) and a != b

    assert [rows[i] for i in kept] == [
        r
        for i, r in enumerate(rows)
        if r not in rows[:i] and not any(beats(other, r) for other in rows)
    ]


@pytest.mark.parametrize(
    "design",
    [
        ONE,
        TWO,
        Design(TWO.chain, (GPU, CPU), 10),
        Design(TWO.chain, (ARRAYS, ARRAYS), sub_arrays=(16, 4)),
    ],
)
def test_the_highest_rate_meets_the_sla_and_a_little_more_does_not(world, design):
    sla_ms = 4 * world.run(design, 1.0).p95_ms
    found = world.max_qps(design, sla_ms)
    lasts_s = 20 * sla_ms / 1e3
    assert world.run(design, found, lasts_s).p95_ms <= sla_ms
    above = world.run(design, found * (1 + RATE_WIDTH), lasts_s)
    assert above.p95_ms > sla_ms or not above.carried or found >= MOST_QPS
    assert world.max_qps(design, 0.001) == 0


def test_fewer_items_cost_less_and_find_less(world):
    few = Design(ONE.chain, (CPU,), 10, share=0.25)
    assert world.run(few, 10.0).p95_ms < world.run(ONE, 10.0).p95_ms
    assert world.quality(few.chain, 0.25).value < world.quality(ONE.chain).value


def test_what_is_beyond_the_capacity_is_not_carried(world):
    assert world.run(ONE, 10.0).carried
    assert not world.run(ONE, 5000.0).carried
    capacity = 1 / (4 * world.cpu["large"].ms(10) / 1e3) * 8  # four tasks of 10 items, 8 cores
    assert world.run(ONE, 0.9 * capacity).carried
    assert not world.run(ONE, 1.03 * capacity).carried


def test_the_warm_up_is_not_counted(world):
    """The first tenth of the queries as one burst: what they wait is nobody's p95."""
    unit_s = world.unit_s.copy()
    few = replace(world, n_queries=400, _tables={})
    unit_s[:40] = unit_s[40] - 1.0
    few.__dict__["unit_s"] = unit_s
    assert few.run(ONE, 10.0, 0.0).p95_ms < 2 * world.run(ONE, 10.0, 0.0).p95_ms


def test_a_design_gives_the_same_whoever_ran_before(world):
    fresh = replace(world, _tables={})
    first = fresh.run(TWO, 30.0)
    assert replace(world, _tables={}).run(
        Design(Chain(("medium", "small"), (8, K)), (CPU, CPU), 10), 30.0
    )
    other = replace(world, _tables={})
    other.run(
        Design(Chain(("large", "small"), (8, K)), (CPU, CPU), 10), 30.0
    )  # the same rankers at other stages
    assert other.run(TWO, 30.0) == first


def test_only_the_hosts_filter_takes_the_hosts_time(world):
    assert world.built(TWO)[2].filter_ns > 0
    assert world.built(Design(TWO.chain, (ARRAYS, ARRAYS), sub_arrays=(16, 4)))[2].filter_ns == 0


def test_power_is_that_of_the_devices_used(world):
    assert world.watts(ONE) == 8 * CORE_WATTS
    assert world.watts(Design(TWO.chain, (GPU, CPU))) == 8 * CORE_WATTS + 70
    assert world.watts(Design(ONE.chain, (GPU,))) == 70
    assert world.watts(Design(ONE.chain, (ARRAYS,), sub_arrays=(4,))) == pytest.approx(
        4.655232, rel=1e-3
    )


def test_stages_share_cores_or_have_their_own_and_arrays_are_split(world):
    assert world.built(TWO)[1] == {CPU: 8}
    assert world.built(Design(TWO.chain, (CPU, CPU), 10, (2, 6)))[1] == {"cpu0": 2, "cpu1": 6}
    assert world.built(Design(TWO.chain, (GPU, GPU)))[1] == {GPU: 1}
    assert world.built(Design(TWO.chain, (ARRAYS, ARRAYS), sub_arrays=(16, 4)))[1] == {
        "rpaccel0": 8,
        "rpaccel1": 2,
    }


def test_every_design_of_the_search_is_another_one():
    todo = list(search.designs((100, 200, 400), K, 32))
    assert len({design.key() for design in todo}) == len(todo)
    assert {design.kind for design in todo} == {
        "CPU",
        "GPU",
        "GPU in front",
        "GPU behind",
        "RPAccel",
    }
    assert all(sum(design.cores) in (0, 32) for design in todo)


def arguments(**own):
    return argparse.Namespace(**{"data": "movielens", "sla_ms": 50.0, "rate_qps": 20.0, **own})


def test_a_search_goes_on_where_it_ended_and_begins_anew_under_other_settings(
    world, tmp_path, monkeypatch
):
    todo = [ONE, TWO, Design(TWO.chain, (GPU, CPU), 10)]
    file = tmp_path / "search.jsonl"
    begun = []
    evaluate = search.evaluate
    monkeypatch.setattr(
        search,
        "evaluate",
        lambda world, design, *how: begun.append(design) or evaluate(world, design, *how),
    )
    search.search(world, todo[:2], arguments(), file, Progress("none"))
    with file.open("a") as out:
        out.write('{"key": "cut')  # killed while it wrote
    rows = search.search(world, todo, arguments(), file, Progress("none"))
    assert begun == todo
    assert rows["chain"].tolist() == [design.chain.label for design in todo]
    search.search(world, todo[:1], arguments(sla_ms=60.0), file, Progress("none"))
    assert begun == [*todo, ONE]
    assert json.loads(file.read_text().splitlines()[0])["sla_ms"] == 60.0


def test_the_best_by_kind_have_the_quality_and_the_front_is_not_beaten(world, tmp_path):
    todo = list(search.designs((8, 20), K, 8))[::15]
    rows = search.search(world, todo, arguments(), tmp_path / "s.jsonl", Progress("none"))
    floor = float(rows["ndcg"].median())
    best = search.best_by_kind(rows, floor)
    assert (best["ndcg"] >= floor).all()
    for line in best.itertuples():
        same = rows[
            (rows["kind"] == line.kind) & (rows["stages"] == line.stages) & (rows["ndcg"] >= floor)
        ]
        assert line.max_qps == same["max_qps"].max()
    hopeless = rows.iloc[[0]].assign(ndcg=1.0, carried=False)
    never = rows.iloc[[0]].assign(ndcg=1.0, max_qps=0.0, p95_ms=0.0)
    assert (search.front(pd.concat([rows, hopeless, never]))["ndcg"] < 1).all()
    front = search.front(rows)
    assert front["max_qps"].max() == rows["max_qps"].max()
    search.draw(rows, floor, 50.0, 20.0)


def test_the_lowest_p95_is_of_enough_quality_and_what_is_not_carried_ends_a_design(world):
    todo = [own for own in pipelines.designs((8, 20, 30), K, quick=True) if own.batch_items == 256]
    rows = pipelines.measure(world, todo, [10.0, 1e5, 2e5], Progress("none"))
    assert (rows["rate_qps"] < 2e5).all()
    assert np.isinf(rows["p95_ms"][rows["rate_qps"] == 1e5]).all()
    best = pipelines.lowest(rows, 0.0, "stages")
    assert len(best) == 3
    pipelines.draw(rows[rows["rate_qps"] == 10.0], 0.1, 10.0, K)


def test_published_points_are_those_of_equal_quality():
    points = pipelines.published()
    assert set(points["kind"]) == {"CPU", "GPU", "GPU in front", "GPU behind"}
    cpu = points[points["kind"] == "CPU"].groupby(["stages", "rate_qps"])["p95_ms"].min()
    assert cpu[2, 1000.0] == pytest.approx(
        66.6, abs=0.05
    )  # RecPipe's headline: two stages against one at 1000 QPS
    assert cpu[1, 1000.0] == pytest.approx(210.9, abs=0.05)


@pytest.mark.alone
def test_real_engines_answer_the_lists_whose_quality_is_told(world):
    with real.opened(world, TWO, 1, Progress("none")) as (config, session):
        rows = real.run(config, session, 200.0, 1, 0.5)
    answers = answers_by_input(rows)
    assert len(answers) == len(world.scored.data.queries)
    labels = world.scored.data.queries
    told = quality_of(TWO.chain, world.scored)["hit_rate"]
    found = [float(labels.labels(query)[items].any()) for query, items in sorted(answers.items())]
    assert found == told.tolist()


def test_a_world_is_calibrated_by_what_engines_show(world):
    """Twice as slow as the profiles say, 50 us to wake, 20 between tasks, 300 to choose: found
    again.
    """
    rows = []
    start = 0
    for query in range(40):
        start += 100_000_000
        first = [0, 0, 0, "cores", 0, 10, start, start + 50_000]
        took = [
            round(2e6 * world.cpu[name].ms(n))
            for name, n in (("small", 10), ("small", 5), ("large", 8))
        ]
        first.append(first[-1] + took[0])
        second = [0, 0, 1, "cores", 0, 5, start, first[-1] + 20_000, first[-1] + 20_000 + took[1]]
        due = second[-1] + 300_000
        third = [0, 1, 0, "cores", 0, 8, due, due + 50_000, due + 50_000 + took[2]]
        rows += [[query, *task[1:]] for task in (first, second, third)]
    tasks = pd.DataFrame(rows, columns=TASK_COLUMNS)
    ends = tasks.groupby("query_id")["end_ns"].max()
    queries = pd.DataFrame(
        {
            "query_id": range(40),
            "arrival_ns": tasks["enqueued_ns"][::3].to_numpy(),
            "done_ns": ends,
            "is_warmup": False,
        }
    )
    found = real.calibrated(world, TWO, Rows(queries, tasks), 2)
    assert found.cpu["small"].ms(10) == pytest.approx(2 * world.cpu["small"].ms(10), rel=1e-3)
    assert found.cpu["large"].ms(8) == pytest.approx(2 * world.cpu["large"].ms(8), rel=1e-3)
    assert (found.cpu["large"].wake_us, found.cpu["large"].gap_us) == (50, 20)
    assert (found.filter_ns, found.filter_item_ns, found.n_cores) == (300_000, 0.0, 2)


def test_several_stages_that_are_worse_are_no_option(world):
    alone = quality_of(Chain(("large",), (K,)), world.scored)["ndcg"]
    options = real.as_good(world)
    for own in real.chains([20], K):
        surely = (
            paired(quality_of(own, world.scored)["ndcg"], alone).difference.low
            >= -0.05 * alone.mean()
        )
        assert (own in options) == (surely and len(own.rankers) > 1)
    with pytest.raises(ValueError, match="no chain of several stages"):
        real.cheapest(world, [], 50.0)


@pytest.mark.alone
def test_both_sides_are_run_in_turn_at_the_same_rates(world, monkeypatch):
    monkeypatch.setattr(real, "WARM_QPS", 400.0)
    same = {name: Ranker(DLRM, drawn_weights(DLRM, 1)) for name in ("small", "medium", "large")}
    scored = Scored.of(replace(world.scored.data, rankers=same))  # equal quality
    quick = replace(
        world,
        scored=scored,
        _quality={},
        cpu={
            name: Profile({1: 0.1, 40: 0.2 + cost})
            for name, cost in (("small", 0), ("medium", 0.2), ("large", 0.8))
        },
        n_queries=100,
        _tables={},
    )
    found = real.compare(quick, 1, 1, 12.0, Progress("none"), 0.3, 60)
    rows = found["real"]
    assert (
        rows.groupby(["load", "rate_qps", "round"])["side"].apply(list).tolist()
        == [["one stage", "several"]] * 3
    )
    assert set(found["real_rates"]["side"]) == {"one stage", "several"}
    assert found["real_stages"].groupby("side").size().to_dict() == {"one stage": 1, "several": 2}
    assert len(real.ratios(rows)) == 3
