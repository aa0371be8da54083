"""The study of operators: its arithmetic, the published shares, and a run on small tables."""

from dataclasses import replace

import pandas as pd
import pytest
import torch

from experiments.operator_breakdown import plot
from experiments.operator_breakdown.sweep_p import (
    STUDY,
    BreakdownEffort,
    by_released_name,
    shares,
)
from models.operator_times import RELEASED, library_times, released_name


def test_shares_are_of_the_time_without_hooks_and_add_up():
    parts = shares({"FC": 3.0, "Concat": 1.0, "Other": 0.5}, whole_ms=10.0)
    assert parts["FC"] == pytest.approx(0.3)
    assert parts["Other"] == pytest.approx(0.05)
    assert parts[plot.BETWEEN] == pytest.approx(0.55)
    assert sum(parts.values()) == pytest.approx(1)
    # the operators of one pass took longer than the whole of another
    noisy = shares({"FC": 12.0}, whole_ms=10.0)
    assert noisy["FC"] == 1
    assert sum(noisy.values()) == pytest.approx(1)


def test_names_of_the_library_and_ours_become_the_release_s():
    times = by_released_name(
        {"aten::addmm": 1.0, "FC": 2.0, "aten::cat": 3.0, "Sigmoid": 4.0, "aten::tanh": 5.0}
    )
    assert dict(times) == {"FC": 3.0, "Concat": 3.0, "Other": 9.0}
    assert {released_name(name) for name in RELEASED} == set(RELEASED)


def test_the_library_s_profiler_sees_the_operators_of_a_call():
    x = torch.rand(64, 64)
    weight = torch.rand(64, 64)
    times = library_times(lambda: torch.nn.functional.linear(x, weight, weight[0]).relu_())
    named = by_released_name(times)
    assert named["FC"] > 0
    assert named["Relu"] > 0


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_published_shares_are_whole(device):
    rows = plot.published(device)
    assert len(rows) == 8 * 4 * 7
    whole = rows.groupby(["model", "batch"])["share"].sum()
    assert whole.to_numpy() == pytest.approx(1, abs=2e-3)


def rows_with(model, batch, dominant):
    share = dict.fromkeys(plot.OPERATORS, 0.04) | {plot.BETWEEN: 0.2, dominant: 0.5}
    table = pd.DataFrame({"operator": share.keys(), "share": share.values()})
    table = table.assign(device="cpu", model=model, batch=batch)
    return [table.assign(execution=execution) for execution in ("as released", "ours")]


def test_disagreement_with_a_sure_publication_is_shouted():
    cases = [("rm3", 1, "FC"), ("rm3", 16, "Concat"), ("rm1", 1, "Concat"), ("rm1", 4, "FC")]
    table = plot.agreement(pd.concat([rows for case in cases for rows in rows_with(*case)]))
    agrees = table.set_index(["model", "batch"])["agrees"]
    assert agrees.to_dict() == {("rm1", 1): "unsure", ("rm3", 1): "yes", ("rm3", 16): "NO"}
    assert table["share here"].to_numpy() == pytest.approx(0.5 / 0.78)  # of the time in operators


def test_the_operator_sweep_runs(tmp_path, capfd):
    study = replace(STUDY, efforts={"quick": BreakdownEffort((1, 64, 1024), 0.005, 2)})
    words = "--quick --models ncf,rm3 --table_scale 0.001 --out"
    assert study.command([*words.split(), str(tmp_path)]) == 0
    assert "USDT" not in capfd.readouterr().err
    rows = pd.read_csv(tmp_path / "breakdown.csv")
    whole = rows.groupby(["model", "batch", "execution"])["share"].sum()
    assert len(whole) == 2 * 3 * 3
    assert whole.to_numpy() == pytest.approx(1, abs=2e-3)
    fc = rows[rows["operator"] == "FC"].set_index(["model", "batch", "execution"])["share"]
    assert fc["rm3", 1024, "as released"] > 0.6  # MLPs of 2560 to 512 wide, whatever the machine
    assert len(pd.read_csv(tmp_path / "agreement.csv")) == 2 * 3
    assert (tmp_path / "breakdown.png").stat().st_size > 10_000
