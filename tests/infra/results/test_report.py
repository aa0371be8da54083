"""What people see: progress, tables, figures."""

import io
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from helpers import poisson_schedule
from rich.console import Console

from backends.virtual.simulated import SimulatedSession
from infra.messages import CPU, Query
from infra.progress import Progress
from infra.results import figures, report
from infra.results.long_run import LatencyCurve, LongRun
from infra.results.quantiles import Estimate
from infra.results.rows import Recorder
from infra.results.stats import summarize
from scheduler import Policy


@pytest.fixture
def measured():
    rows = SimulatedSession({CPU: 1}, lambda _: 1_000_000).run(
        poisson_schedule(500, 400), Policy(1)
    )
    return rows, summarize(rows.queries, rows.tasks, sla_ms=5.0)


def text_of(renderable):
    out = io.StringIO()
    Console(file=out, width=140).print(renderable)
    return out.getvalue()


def test_the_table_says_what_was_measured(measured):
    rows, summary = measured
    memory = {"driver_rss_mib": 123.0, "engine_private_mib": [1.0, 7.0]}
    shown = text_of(report.measurement("wnd", summary, memory, rows.queries["n_items"]))
    assert f"{summary.p95_ms.value:,.2f} ms" in shown
    assert "too short to tell" in shown
    assert "VALID" in shown
    assert "INVALID" not in shown
    assert "123 MiB" in shown
    assert "7 MiB" in shown


CURVE = LatencyCurve(
    95.0,
    5.0,
    (100.0, 400.0, 800.0),
    (Estimate(3.0, 2.9, 3.1), Estimate(4.0, 3.8, 4.2), Estimate(9.0, 8.0, 11.0)),
    Estimate(550.0, 540.0, 561.5),
)
TOLD = LongRun(
    {50.0: Estimate(1.5, 1.4, 1.6), 95.0: Estimate(4.25, 4.0, 4.5)},
    {"cpu": Estimate(0.5, 0.49, 0.51)},
    3.0,
    curve=CURVE,
)


def lines_of(summary, rows):
    shown = text_of(report.measurement("wnd", summary, {}, rows.queries["n_items"]))
    return {line.split("│")[1].strip(): line for line in shown.splitlines() if "│" in line}


def test_the_table_shows_the_long_run_beside_the_run(measured):
    rows, summary = measured
    lines = lines_of(summary.with_long_run(TOLD), rows)
    assert "4.25 ms" in lines["long-run p95"]
    assert "[4.00, 4.50]" in lines["long-run p95"]
    assert f"{summary.p95_ms.value:.2f} ms" in lines["latency p95"]
    assert "50.0%" in lines["utilisation, cpu"]
    assert "550.00 QPS" in lines["highest rate"]
    assert "[540.00, 561.50] inside p95 <= 5 ms" in lines["highest rate"]
    assert "met" in lines["SLA"]
    assert "the long run 4.25 ms" in lines["SLA"]


def test_the_table_says_why_the_long_run_is_not_told(measured):
    rows, summary = measured
    silent = LongRun({}, {}, 1.0, "3 tasks are too few")
    lines = lines_of(summary.with_long_run(silent), rows)
    assert "3 tasks are too few" in lines["long run"]
    assert "this run" in lines["SLA"]
    no_curve = replace(TOLD, curve=None, no_curve="the load is a recorded one")
    assert "recorded" in lines_of(summary.with_long_run(no_curve), rows)["highest rate"]


def test_a_run_above_capacity_is_invalid_and_misses_its_sla(measured):
    rows, summary = measured
    above = LongRun({}, {"cpu": Estimate(1.04, 1.03, 1.05)}, 1.0, "above capacity")
    judged = summary.with_long_run(above)
    assert not judged.valid
    assert "1.04" in judged.invalid_reasons[0]
    assert judged.sla_verdict == "missed"
    assert "without end" in lines_of(judged, rows)["SLA"]


def test_the_rate_curve_shows_the_band_the_sla_the_run_and_the_highest_rate(measured):
    _, summary = measured
    (axes,) = figures.rate_curve(summary.with_long_run(TOLD), "wnd").axes
    labels = " ".join(text.get_text() for text in axes.get_legend().get_texts())
    for part in ("long run", "this run", "SLA 5 ms", "highest rate 550 QPS (540 to 561.5)"):
        assert part in labels
    assert "QPS" in axes.get_xlabel()
    assert "p95" in axes.get_ylabel()
    assert figures.rate_curve(summary, "wnd").axes


def test_the_cdf_marks_the_long_run(measured):
    rows, summary = measured
    (axes,) = figures.latency_cdf(rows.queries, summary.with_long_run(TOLD), "wnd").axes
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert sum("long run" in label for label in labels) == 1


def test_an_invalid_run_says_why(measured):
    rows, _ = measured
    bad = summarize(
        rows.queries, rows.tasks, sla_ms=5.0, extra=("interrupted after 3 of 9 queries",)
    )
    shown = text_of(report.measurement("wnd", bad, {}, rows.queries["n_items"]))
    assert "interrupted after 3 of 9" in shown
    assert report.verdict(bad) == "INVALID: interrupted after 3 of 9 queries"


@pytest.mark.parametrize(
    ("n_items", "expected"),
    [
        ([128, 128, 128], ["128 items", "of every query"]),
        ([100, 20, 1024], ["381.3 items", "mean; 20 to 1,024"]),
        ([], ["-", "no query was sent"]),
    ],
)
def test_the_table_says_how_large_the_queries_were(measured, n_items, expected):
    shown = text_of(report.measurement("wnd", measured[1], {}, pd.Series(n_items, dtype=int)))
    (line,) = (line for line in shown.splitlines() if "query size" in line)
    assert all(words in line for words in expected)


def test_numbers_that_are_not_known_are_dashes():
    assert report.number(float("nan")) == "-"
    assert report.interval(Estimate(1.0, 0.5, float("inf"))) == "[0.50, ...]"


def test_the_cdf_names_its_axes_and_draws_sla_and_percentiles(measured):
    rows, summary = measured
    (axes,) = figures.latency_cdf(rows.queries, summary, "wnd").axes
    assert "ms" in axes.get_xlabel()
    assert axes.get_ylabel()
    labels = " ".join(text.get_text() for text in axes.get_legend().get_texts())
    for part in ("SLA", "p50", "p95", "p99", "400 queries"):
        assert part in labels
    curve = axes.lines[0]
    assert curve.get_color() == figures.MODEL_COLORS["wnd"]
    assert curve.get_ydata()[-1] == 1.0
    assert (np.diff(curve.get_xdata()) >= 0).all()


def test_the_cdf_of_a_run_without_answers_is_drawn_too():
    recorder = Recorder(0)
    recorder.sent(Query(0, 0, 1, 0), 0)
    empty = recorder.rows().queries
    tasks = pd.DataFrame({"query_id": [], "pool": [], "n_items": []})
    assert figures.latency_cdf(empty, summarize(empty, tasks, 5.0), "wnd").axes


def test_a_tuned_run_that_cannot_be_trusted_says_why(measured):
    rows, sure = measured
    line = {
        "name": "static",
        "limit_qps": {"value": 9.0, "low": 8.0, "high": 10.0},
        "is_told": False,
        "gain_interval": None,
        "of_exhaustive": None,
        "n_trials": 3,
        "n_queries": 900,
        "seconds": 5.0,
    }
    late = summarize(
        rows.queries, rows.tasks, sla_ms=5.0, extra=("the generator was late", "a query was lost")
    )
    for summary, words in (
        (late, ["static: INVALID: the generator was late; a query was lost"]),
        (sure, []),
        (None, []),
    ):
        limit, *rest = report.search_notes([{**line, "summary": summary}], 0.99)
        assert limit.startswith("static: limit about 9.0 QPS")
        assert rest == words


TUNED = {
    "name": "tuned CPU",
    "batch_items": 128,
    "offload_items": None,
    "rate_qps": 1234.6,
    "limit_qps": {"value": 1234.6, "low": 1200.0, "high": 1270.0},
    "is_told": True,
    "foreseen_ms": (4.0, 6.0),
    "gain": 1.01,
    "gain_interval": {"value": 1.01, "low": 0.98, "high": 1.04},
    "of_exhaustive": None,
    "n_trials": 3,
    "n_queries": 900,
    "seconds": 5.0,
    "qps_per_watt": None,
}


def test_a_rate_and_a_gain_have_intervals_and_no_gain_is_said(measured):
    line = {**TUNED, "summary": measured[1]}
    shown = text_of(report.search("wnd", [line]))
    assert "1,235 [1,200, 1,270]" in shown
    assert "1.01x [0.98, 1.04]" in shown
    (note,) = report.search_notes([line], 0.99)
    assert "4.00 to 6.00 were foreseen" in note
    assert "no gain could be shown" in note
    better = {**line, "gain_interval": {"value": 1.01, "low": 1.001, "high": 1.04}}
    assert "no gain" not in report.search_notes([better], 0.99)[0]


def test_a_rate_that_was_bisected_has_no_interval_of_its_own(measured):
    bisected = {**TUNED, "summary": measured[1], "is_told": False, "foreseen_ms": None}
    shown = text_of(report.search("wnd", [bisected]))
    assert "1,235" in shown
    assert "[1,200" not in shown


def test_the_search_figure_shows_every_update_and_the_sla():
    updates = pd.DataFrame(
        {
            "phase": ["static"] * 3 + ["tuned CPU"] * 4,
            "batch_items": [512] * 3 + [256] * 2 + [128] * 2,
            "offload_items": [None] * 7,
            "rate_qps": [100.0, 110, 120, 120, 130, 130, 120],
            "p_sla_ms": [5.0] * 7,
            "verdict": ["met", "missed", "undecided", *["met"] * 4],
        }
    )
    rate, tail = figures.search_walk(updates, 25.0, 95.0).axes
    drawn = np.concatenate([line.get_xdata() for line in rate.lines])
    assert set(drawn) == set(range(1, 8))
    assert any(set(line.get_ydata()) == {25.0} for line in tail.lines)
    assert {text.get_text() for text in rate.texts} == {"512", "256", "128"}
    assert len(rate.get_legend().get_texts()) == 2 + 3  # phases, verdicts
    bounds = {"limit_qps": 115.0, "limit_low_qps": 111.0, "limit_high_qps": 121.0}
    told = figures.search_walk(updates.assign(**bounds), 25.0, 95.0).axes[0]
    assert len(told.get_legend().get_texts()) == 2 + 3 + 1
    assert {115.0} in [set(line.get_ydata()) for line in told.lines]


@pytest.mark.parametrize("mode", ["auto", "none"])
def test_progress_is_quiet_where_nobody_watches(mode, capfd):
    with Progress(mode) as progress, progress.step("building") as on_fraction:
        on_fraction(0.5, "half")
    assert capfd.readouterr() == ("", "")


def test_plain_progress_is_lines_with_an_estimate(capfd, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("infra.progress.time.monotonic", lambda: now[0])
    with Progress("plain") as progress, progress.step("building") as on_fraction:
        now[0] = 1.0
        on_fraction(0.1)  # too soon to say again
        now[0] = 10.0
        on_fraction(0.25, "table 3")
    assert capfd.readouterr().err.splitlines() == [
        "building",
        "building table 3: 25%, about 30 s left",
    ]
