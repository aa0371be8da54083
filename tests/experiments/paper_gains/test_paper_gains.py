"""The study of the paper's gains: service times by hand, gains in closed form, published rows."""

import mmap
import time

import numpy as np
import pandas as pd
import pytest

from accelerator.devices import ROOT, load_device, published_speedups
from experiments.common.study import plain
from experiments.paper_gains import plot, real, run, services
from experiments.paper_gains.services import (
    AT_SCALE,
    OURS,
    PROPORTIONAL,
    RELEASED,
    Service,
    table_of,
    waste,
    work_ns,
)
from infra.messages import WireTask
from scheduler import Policy

FOLDER = ROOT.parent / "experiments/paper_gains"
PUBLISHED_ROWS = FOLDER / "data/paper_gains.csv"
SEARCH = {"slas": ("high",), "seed": 1, "search_queries": 3_000, "n_queries": 10_000}


def core_ns(model, service):
    return table_of(model, service).cpu_ns[-1]


def test_at_scale_a_task_takes_feeding_running_and_converting():
    wnd_64_ms = 0.5031 + 3.1106 + 0.8  # rows of released_times.csv and released_conversion.csv
    assert core_ns("wnd", Service(AT_SCALE))[64] == round(1e6 * wnd_64_ms)
    assert core_ns("wnd", Service(AT_SCALE, slower=2.5))[64] == round(2.5e6 * wnd_64_ms)


@pytest.mark.parametrize("model", ["rm2", "ncf"])
def test_a_task_converts_the_same_however_few_items_it_has(model):
    more_ns = core_ns(model, Service(AT_SCALE)) - core_ns(model, Service(RELEASED))
    assert np.ptp(more_ns[1:]) <= 1
    assert more_ns[1] == pytest.approx({"rm2": 129e6, "ncf": 0.12e6}[model], abs=1)


def test_the_card_is_so_much_faster_than_its_cores_and_converts_nothing():
    service = Service(AT_SCALE, 2.5, card_cores=10)
    speedup = published_speedups(load_device(ROOT, services.CARD), "wnd")[256]
    expected_ns = 2.5e6 * (1.1355 + 11.0813) / speedup / 10
    assert table_of("wnd", service).accel_ns[0, 256] == pytest.approx(expected_ns, abs=1)


def test_waste_by_hand():
    assert waste(core_ns("wnd", Service(PROPORTIONAL))) == pytest.approx(0, abs=1e-5)
    with_cost = waste(core_ns("wnd", Service(PROPORTIONAL, task_cost=1)))
    assert with_cost == pytest.approx((25 + 25) / (25 * (256 + 25) / 256) - 1, rel=1e-5)


def test_the_engine_time_of_a_query_by_hand():
    cpu_ns = np.array([0, 10, 13, 19])
    assert work_ns(cpu_ns, np.array([5, 2]), 2) == (13 + 13 + 10 + 13) / 2
    assert work_ns(cpu_ns, np.array([5, 2]), 3) == (19 + 13 + 13) / 2


def searched(service, **settings):
    (row,) = run.search(run.GainsCase("wnd", service, **{**SEARCH, **settings}))["paper_gains"]
    return row


def test_there_is_no_gain_where_a_task_wastes_nothing():
    row = searched(Service(PROPORTIONAL))
    assert row.cpu_qps / row.static_qps == pytest.approx(1, abs=2 * run.MEASURED_WIDTH)


def test_where_the_sla_leaves_room_the_gain_is_the_ratio_of_engine_times():
    row = searched(Service(OURS, task_cost=2))
    assert row.work_gain > 2.5
    assert row.cpu_qps / row.static_qps == pytest.approx(row.work_gain, rel=0.04)


def test_more_cost_a_task_more_gain():
    rows = [searched(Service(OURS, task_cost=cost)) for cost in (0, 1)]
    first, second = (row.cpu_qps / row.static_qps for row in rows)
    assert 1.1 < first < 1.4
    assert 1.8 < second < 2.4


def test_with_the_card_batch_and_threshold_carry_more():
    row = searched(run.FITTED, slas=("medium",))
    assert row.card_threshold is not None
    assert row.card_qps > 1.3 * row.cpu_qps > 1.3 * row.static_qps


def drawn(model, seed, static_qps, cpu_qps, card_qps):
    service = plain(run.FITTED)
    rates = {"static_qps": static_qps, "cpu_qps": cpu_qps, "card_qps": card_qps}
    return {"model": model, "sla": "low", "seed": seed, **service, **rates}


def test_means_are_geometric_over_models_whose_baseline_meets_the_sla():
    rows = [
        drawn("wnd", 1, 10, 20, 60),
        drawn("ncf", 1, 10, 80, 60),
        drawn("rm2", 1, 0, 50, 60),
        drawn("wnd", 2, 10, 40, 60),
        drawn("ncf", 2, 10, 90, 60),
    ]
    table = plot.means(pd.DataFrame(rows)).set_index("gain")
    cpu = table.loc["CPU"]
    assert (cpu["least"], cpu["mean"], cpu["most"]) == pytest.approx((4, 5, 6))
    assert (cpu["models"], cpu["seeds"]) == (2, 2)
    assert table.loc["CPU + GPU", "mean"] == pytest.approx(6)
    per_watt = [np.sqrt(3 * 8), np.sqrt(4 * 9)]  # the card's rate counts half: twice the watts
    assert table.loc["QPS/W", "mean"] == pytest.approx(np.mean(per_watt))


def test_the_figures_fit_the_fitted_service():
    assert tuple(plain(run.FITTED).values()) == plot.FITTED


def test_the_line_starts_without_gain_and_ends_below_the_tasks_of_a_query():
    wasted, gain = plot.engine_time_line()
    assert gain[0] == pytest.approx(1, abs=0.01)
    assert (np.diff(gain) > 0).all()
    assert (np.diff(wasted) > 0).all()
    assert 4 < gain[-1] < (-(-services.production_sizes() // 25)).mean()


class Scores:
    def warm_up(self):
        raise AssertionError("asked")

    def score(self, task):
        return bytes([task.n_items])


def test_a_costly_engine_spins_and_then_scores():
    cost_ns = memoryview(mmap.mmap(-1, 8)).cast("q")
    engine = real.CostlyFactory(lambda _: Scores(), cost_ns)(0)
    task = WireTask(1, 0, 0, 0, 7)
    cost_ns[0] = 3_000_000
    begun_ns = time.thread_time_ns()
    assert engine.score(task) == bytes([7])
    assert time.thread_time_ns() - begun_ns >= 3_000_000
    with pytest.raises(AssertionError, match="asked"):
        engine.warm_up()


def test_a_gain_is_foretold_by_engine_time():
    plain_gain = real.foretold_gain("rm1", 0, Policy(1000))
    assert 1.1 < plain_gain < 1.3
    n_tasks = -(-services.production_sizes() // 25)
    huge = real.foretold_gain("rm1", 10**9, Policy(1000))  # the items' time does not count
    assert huge == pytest.approx(n_tasks.mean(), rel=1e-3)


def published():
    return pd.read_csv(PUBLISHED_ROWS)


def test_the_published_rows_are_those_of_all_cases():
    rows = published()
    expected = {
        (case.model, *plain(case.service).values(), case.seed, sla)
        for case in run.cases(run.STUDY.efforts["full"], run.GainsOptions())
        for sla in case.slas
    }
    columns = ["model", *plot.SERVICE, "seed", "sla"]
    assert {tuple(row) for row in rows[columns].itertuples(index=False)} == expected


def test_the_page_has_the_gains_of_the_published_rows():
    page = (FOLDER / "README.md").read_text()
    table = plot.mean_table(published())
    services_shown = {plot.FITTED, (OURS, 1.0, 0.0, 0), (RELEASED, 1.0, 0.0, 0)}
    shown = [row for row in table.itertuples(index=False) if tuple(row[:4]) in services_shown]
    assert len(shown) == 5
    for row in shown:
        assert f"| {row.low} | {row.medium} | {row.high} |" in page


def test_the_published_rows_meet_the_claim():
    table = plot.means(published()).set_index([*plot.SERVICE, "gain", "sla"])["mean"]
    for gain, values in plot.PUBLISHED.items():
        for sla, value in zip(plot.SLAS, values, strict=True):
            assert table.loc[(*plot.FITTED, gain, sla)] == pytest.approx(value, rel=0.3)
    assert table.loc[(OURS, 1.0, 0.0, 0, "CPU")].between(1.1, 1.4).all()


@pytest.mark.parametrize("name", run.STUDY.figures)
def test_the_figures_are_drawn_from_the_published_rows(name):
    figure = run.STUDY.figures[name].function(published())
    assert all(axes.has_data() for axes in figure.axes)
