"""Pipelines on engines: the lists whose quality is told, calibration, both sides in turn."""

from dataclasses import replace

import pandas as pd
import pytest
from drawn_rankers import DLRM, TWO, K, drawn_weights

from accelerator.latency import Profile
from experiments.common.case_log import row_of
from experiments.recpipe import real
from experiments.recpipe.chains import Chain, Scored, quality_of
from experiments.recpipe.datasets.ranked import TrainedRanker
from infra.progress import Progress
from infra.ranking import paired
from infra.results.rows import TASK_COLUMNS, Rows
from infra.results.stages import answers_by_input


@pytest.mark.alone
def test_real_engines_answer_the_lists_whose_quality_is_told(world):
    with real.opened(world, TWO, 1, Progress("none")) as engines:
        rows = engines.run(200.0, 1, 0.5)
    answers = answers_by_input(rows)
    queries = world.scored.data.queries
    assert len(answers) == len(queries)
    told = quality_of(TWO.chain, world.scored)["hit_rate"]
    hits = [float(queries.labels(q)[items].any()) for q, items in sorted(answers.items())]
    assert hits == told.tolist()


def test_a_world_is_calibrated_by_what_engines_show(world):
    """Twice as slow as the profiles say, 50 us to wake, 20 between tasks, 300 to choose."""
    rows = []
    for query in range(40):
        start = 100_000_000 * (query + 1)
        took = [
            round(2e6 * world.cpu[name].ms(n))
            for name, n in (("small", 10), ("small", 5), ("large", 8))
        ]
        first_end = start + 50_000 + took[0]
        second_end = first_end + 20_000 + took[1]
        due = second_end + 300_000
        rows += [
            [query, 0, 0, "cores", 0, 10, start, start + 50_000, first_end],
            [query, 0, 1, "cores", 0, 5, start, first_end + 20_000, second_end],
            [query, 1, 0, "cores", 0, 8, due, due + 50_000, due + 50_000 + took[2]],
        ]
    tasks = pd.DataFrame(rows, columns=TASK_COLUMNS)
    queries = pd.DataFrame(
        {
            "query_id": range(40),
            "arrival_ns": tasks["enqueued_ns"][::3].to_numpy(),
            "done_ns": tasks.groupby("query_id")["end_ns"].max(),
            "is_warmup": False,
        }
    )
    here = real.calibrated(world, TWO, Rows(queries, tasks), 2)
    for name, n in (("small", 10), ("large", 8)):
        assert here.cpu[name].ms(n) == pytest.approx(2 * world.cpu[name].ms(n), rel=1e-3)
    assert (here.cpu["large"].wake_us, here.cpu["large"].gap_us) == (50, 20)
    assert (here.filter_ns, here.filter_item_ns, here.n_cores) == (300_000, 0.0, 2)


def test_several_stages_that_are_worse_are_no_option(world):
    alone = quality_of(Chain(("large",), (K,)), world.scored)["ndcg"]
    options = real.as_good(world)
    for chain in real.chains([20], K):
        difference = paired(quality_of(chain, world.scored)["ndcg"], alone).difference
        surely = difference.low >= -0.05 * alone.mean()
        assert (chain in options) == (surely and len(chain.rankers) > 1)
    with pytest.raises(ValueError, match="no chain of several stages"):
        real.cheapest(world, [], 50.0)


@pytest.mark.alone
def test_both_sides_are_run_in_turn_at_the_same_rates(world, monkeypatch):
    monkeypatch.setattr(real, "WARM_QPS", 400.0)
    same = TrainedRanker(DLRM, drawn_weights(DLRM, 1))
    rankers = dict.fromkeys(("small", "medium", "large"), same)  # equal quality
    costs = {"small": 0, "medium": 0.2, "large": 0.8}
    quick = replace(
        world,
        scored=Scored.of(replace(world.scored.data, rankers=rankers)),
        cpu={name: Profile({1: 0.1, 40: 0.2 + cost}) for name, cost in costs.items()},
        n_queries=100,
    )
    tables = real.compare(quick, 1, 1, 12.0, Progress("none"), 0.3, 60)
    rows = pd.DataFrame(map(row_of, tables["real"]))
    sides = rows.groupby(["load", "rate_qps", "round"])["side"].apply(list).tolist()
    assert sides == [["one stage", "several"]] * 3
    assert {row.side for row in tables["real_rates"]} == {"one stage", "several"}
    stages = pd.DataFrame(tables["real_stages"])
    assert stages.groupby("side").size().to_dict() == {"one stage": 1, "several": 2}
    assert len(real.ratios(rows)) == 3
