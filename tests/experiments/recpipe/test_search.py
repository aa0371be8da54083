"""The search over designs: all different, resumed, the best not beaten; its winner is read back."""

import json

import numpy as np
import pandas as pd
import pytest
from drawn_rankers import ONE, TWO, K

from experiments.common.case_log import PARQUET, row_of, write_table
from experiments.recpipe import design_studies, real, search
from experiments.recpipe.design_studies import DesignCase, GoalRow
from experiments.recpipe.world import GPU, SystemDesign
from infra.messages import CPU

CASE = DesignCase("movielens", "", None, 0.99, 20.0, 50.0)
GOAL = GoalRow("movielens", K, 0.3, 20.0, 50.0, 8)


def test_every_design_of_the_search_is_another_one():
    todo = list(search.designs((100, 200, 400), K, 32))
    assert len({design.key for design in todo}) == len(todo)
    kinds = {"CPU", "GPU", "GPU in front", "GPU behind", "RPAccel"}
    assert {design.kind for design in todo} == kinds
    assert all(sum(design.cores) in (0, 32) for design in todo)


def test_a_search_goes_on_where_it_ended_and_begins_anew_under_other_settings(
    world, tmp_path, monkeypatch
):
    todo = [ONE, TWO, SystemDesign(TWO.chain, (GPU, CPU), 10)]
    begun = []
    evaluate = search.evaluate

    def noted(world, design, case):
        begun.append(design)
        return evaluate(world, design, case)

    monkeypatch.setattr(search, "evaluate", noted)
    monkeypatch.setattr(design_studies, "world_of", lambda _: world)

    def searched(designs, *flags):
        monkeypatch.setattr(search, "designs", lambda *_, **__: designs)
        words = ["--out", str(tmp_path), "--rate_qps", "20", *flags]
        assert search.STUDY.command(words) == 0
        return pd.read_parquet(tmp_path / "search_clicks.parquet")

    searched(todo[:2], "--sla_ms", "50")
    file = tmp_path / "recpipe_search.cases.jsonl"
    with file.open("a") as out:
        out.write('{"case": "cut')  # killed while it wrote
    rows = searched(todo, "--sla_ms", "50")
    assert begun == todo
    assert rows["chain"].tolist() == [design.chain.label for design in todo]
    searched(todo[:1], "--sla_ms", "60")
    assert begun == [*todo, ONE]
    assert json.loads(file.read_text().splitlines()[-1])["settings"]["sla_ms"] == 60.0


def evaluated(world, designs):
    return pd.DataFrame(
        [row_of(row) for design in designs for row in search.evaluate(world, design, CASE)]
    )


def test_the_best_by_kind_have_the_quality_and_the_front_is_not_beaten(world):
    rows = evaluated(world, list(search.designs((8, 20), K, 8))[::15])
    floor = float(rows["ndcg"].median())
    goals = pd.DataFrame([GOAL]).assign(floor=floor)
    best = search.best_by_kind(rows, goals)
    assert (best["ndcg"] >= floor).all()
    for line in best.itertuples():
        is_same = (rows["kind"] == line.kind) & (rows["stages"] == line.stages)
        assert line.max_qps == rows[is_same & (rows["ndcg"] >= floor)]["max_qps"].max()
    hopeless = rows.iloc[[0]].assign(ndcg=1.0, carried=False)
    never = rows.iloc[[0]].assign(ndcg=1.0, max_qps=0.0, p95_ms=0.0)
    assert (search.not_beaten(pd.concat([rows, hopeless, never]))["ndcg"] < 1).all()
    assert search.not_beaten(rows)["max_qps"].max() == rows["max_qps"].max()
    search.draw(rows, goals)


def test_the_winner_of_a_search_is_the_best_on_shared_cores(world, tmp_path):
    slow, fast = ONE, SystemDesign(TWO.chain, TWO.devices, 40)
    split = SystemDesign(TWO.chain, TWO.devices, 10, cores=(4, 4))
    on_gpu = SystemDesign(TWO.chain, (GPU, GPU))
    rows = evaluated(world, [slow, fast, split, on_gpu])
    rows["ndcg"] = 0.4
    rows["max_qps"] = [10.0, 20.0, 30.0, 40.0]
    write_table(tmp_path, "search_movielens", rows, PARQUET)
    with pytest.raises(ValueError, match="no rows of search"):
        real.searched(tmp_path, "movielens")
    write_table(tmp_path, "search_goal_movielens", pd.DataFrame([GOAL]), PARQUET)
    design, goal = real.searched(tmp_path, "movielens")
    assert design == fast
    assert goal.sla_ms == 50.0
    rows["ndcg"] = np.where(rows["batch_items"] == 40, 0.2, 0.4)
    assert real.winner_of(rows, GOAL) == slow
    with pytest.raises(ValueError, match="no pipeline on cores"):
        real.winner_of(rows.assign(ndcg=0.0), GOAL)
