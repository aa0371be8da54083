"""The studies of look-ups on a core: ratios, rates, and that rivals compute the same."""

import importlib.util

import numpy as np
import pandas as pd
import pytest
import torch

from experiments.embedding import contenders, plot
from experiments.embedding.product import WITH, WITHOUT, rate_under_sla, summary
from experiments.embedding.run import calls_of, fbgemm_or_none, measure, problem_of
from models.embedding.backend import backend
from models.embedding.cpu.timing import seconds
from models.embedding.plan.plan import params
from models.embedding.tuning.problem import exact_sums


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)
    with torch.inference_mode():
        yield


@pytest.mark.parametrize("name", ["B", "ncf"])
def test_every_rival_gives_the_exact_sums(name):
    problem = problem_of(name, [4], 1, 0.01)
    cpu = backend("cpu")
    plan = cpu.default_plan(problem.layout.specs)
    fbgemm = fbgemm_or_none(problem)
    calls = calls_of(problem, cpu, plan, 4, fbgemm=fbgemm, compiled=False)  # raises if sums differ
    expected = exact_sums(problem.layout, problem.weight_E, problem.batches[4][1])
    for rival in ("tuned", "per table", "best single"):
        assert torch.equal(calls[rival](1).double(), expected)
    if importlib.util.find_spec("fbgemm_gpu"):
        assert torch.equal(calls["FBGEMM"](1).double(), expected)


def test_the_limit_reads_every_row_of_the_batch():
    problem = problem_of("B", [4], 1, 0.01)
    total = []
    cpu = backend("cpu")
    real = cpu.build

    def build(*args, **kwargs):
        run = real(*args, **kwargs)

        def kept(bags, out):
            run(bags, out)
            total.append(out.clone())

        return kept

    cpu.build = build
    calls = contenders.gathers(problem, cpu, contenders.rival_batches(problem, 4))
    expected = exact_sums(problem.layout, problem.weight_E, problem.batches[4][0]).sum(
        0, keepdim=True
    )
    for call in calls.values():
        call(0)
        assert torch.equal(total[-1].double(), expected)


def test_fresh_ids_are_others_for_the_same_tables():
    tuned, measured = (problem_of("C", [8], seed, 0.01) for seed in (1, 2))
    assert tuned.layout.specs == measured.layout.specs
    a = tuned.batches[8][0].ids_L
    b = measured.batches[8][0].ids_L
    assert len(a) != len(b) or not torch.equal(a, b)


def test_one_schedule_for_all_is_one_group():
    problem = problem_of("B", [2], 1, 0.01)
    groups = contenders.best_single(problem, backend("cpu"), 2).groups
    assert len(groups) == 1
    assert groups[0].tables == tuple(range(len(problem.layout.specs)))
    assert groups[0].params == params(**dict(groups[0].params))


@pytest.mark.parametrize(
    "clock",
    [
        lambda calls: measure(calls, 4),
        lambda calls: dict(zip(calls, seconds([*calls.values()], 4), strict=True)),
    ],
)
def test_everybody_is_called_in_every_round_and_nobody_finds_what_another_has_just_read(clock):
    batches = []

    def call(name):
        return lambda i: batches.append((name, i))

    times = clock({name: call(name) for name in ("a", "b")})
    assert all(len(rounds) >= 4 for rounds in times.values())
    assert [i for _, i in batches] == [*range(len(batches))]
    for name in ("a", "b"):
        assert sum(caller == name for caller, _ in batches) >= 2 + 4


def test_the_peers_read_the_ids_of_each_table():
    problem = problem_of("rm1", [3], 1, 1.0)
    layout = problem.layout
    for bags, turned in zip(
        problem.batches[3][:2], contenders.rival_batches(problem, 3), strict=False
    ):
        assert bags.item_major
        assert not turned.item_major
        for t, spec in enumerate(layout.specs):
            ids, offsets = turned.of((t,))
            before, before_offsets = bags.of((t,))
            assert torch.equal(ids + int(layout.first_ids_T[t]), before)
            assert torch.equal(offsets, before_offsets)
            assert int(ids.min()) >= 0
            assert int(ids.max()) < spec.rows


def rows():
    times = {
        "tuned": [2.0, 4.0, 2.0],
        "per table": [6.0, 12.0, 8.0],
        "FBGEMM": [3.0, 6.0, 3.0],
        "gather none": [1.5, 9.0, 9.0],
        "gather ids": [9.0, 1.0, 9.0],
    }
    return pd.DataFrame(
        [
            {"model": model, "batch": 8, "contender": name, "round": k, "ms": ms}
            for model in "AB"
            for name, rounds in times.items()
            for k, ms in enumerate(rounds)
        ]
    )


def test_ratios_are_medians_of_paired_rounds_and_the_limit_the_least_time():
    ratios = plot.ratios(rows()).set_index(["model", "rival"])
    assert ratios.loc[("A", "per table"), "ratio"] == 3
    assert ratios.loc[("A", "per table"), ["least", "most"]].tolist() == [3, 4]
    assert ratios.loc[("A", "FBGEMM"), "ratio"] == 1.5
    assert ratios.loc[("A", "limit"), "ratio"] == 0.5
    table = plot.summary(rows()).set_index("model")
    assert table.loc["mean A-E", "per table"] == pytest.approx(3)
    assert table.loc["A", "tuned ms"] == 2
    figure = plot.draw(rows())
    assert len(figure.axes) == 2


def p95_by_rate(p95_ms, plan=WITHOUT, capacity=100.0):
    return pd.DataFrame(
        {
            "model": "rm1",
            "plan": plan,
            "fraction": [0.5, 0.7, 0.9],
            "rate_qps": [50.0, 70.0, 90.0],
            "p95_ms": p95_ms,
            "sla_ms": 100,
            "capacity_qps": capacity,
        }
    )


def test_the_rate_under_the_sla_lies_on_the_line_through_the_logarithms():
    assert rate_under_sla(p95_by_rate([10.0, 50.0, 200.0])) == pytest.approx(80)
    assert rate_under_sla(p95_by_rate([10.0, 50.0, 60.0])) == 90
    assert np.isnan(rate_under_sla(p95_by_rate([101.0, 50.0, 60.0])))


def test_the_summary_sets_the_plan_against_none():
    both = pd.concat(
        [p95_by_rate([10.0, 50.0, 200.0]), p95_by_rate([9.0, 40.0, 50.0], WITH, 120.0)]
    )
    line = summary(both).iloc[0]
    assert line["p95 over"] == pytest.approx(0.8)
    assert line["capacity over"] == pytest.approx(1.2)
    assert [line["QPS under SLA"], line["QPS, plan"]] == pytest.approx([80, 90])
