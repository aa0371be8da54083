"""Arrivals and sizes against their laws (fixed seeds), streams, the Pacer, files."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from infra.config import ConfigError, InputConfig, LoadConfig, RunConfig
from infra.rng import stream
from loadGenerator import (
    MLPERF_ITEMS,
    Pacer,
    Schedule,
    burst,
    draw_gaps_ns,
    draw_schedule,
    draw_sizes,
    production_quantile,
)

N = 20_000
P_LIMIT = 1e-3  # a right law fails once in a thousand seeds; the seeds are fixed
CONFIG = RunConfig(inputs=InputConfig(num_batches=16, nepochs=64, max_mini_batch_size=1024))


def gaps_ms(process, rate_qps=200.0, **settings):
    load = LoadConfig(arrival_process=process, **settings)
    return draw_gaps_ns(load, rate_qps, N, stream(1, "arrivals")) / 1e6


def test_gaps_are_exponential():
    assert stats.kstest(gaps_ms("exponential"), stats.expon(scale=5.0).cdf).pvalue > P_LIMIT


@pytest.mark.parametrize("shape", [0.25, 0.5, 3.0])
def test_gamma_gaps_have_their_law_and_the_asked_rate(shape):
    gaps = gaps_ms("gamma", arrival_gamma_shape=shape)
    gaps = np.abs(gaps + np.random.default_rng(2).uniform(-0.5e-6, 0.5e-6, N))  # undo the rounding to whole ns
    assert stats.kstest(gaps, stats.gamma(shape, scale=5.0 / shape).cdf).pvalue > P_LIMIT
    assert gaps.mean() == pytest.approx(5.0, rel=4 / np.sqrt(shape * N))


def test_constant_gaps_are_constant():
    assert set(gaps_ms("constant")) == {5.0}


def test_legacy_gaps_are_whole_ms_and_poisson_distributed():
    gaps = gaps_ms("legacy")
    assert (gaps == np.rint(gaps)).all()
    values = np.arange(12)
    observed = np.array([(gaps == v).sum() for v in values] + [(gaps > 11).sum()])
    law = stats.poisson(5.0)
    expected = np.append(law.pmf(values), law.sf(11)) * N
    assert stats.chisquare(observed, expected).pvalue > P_LIMIT
    assert gaps.var() == pytest.approx(5.0, rel=0.1)  # where exponential gaps have 25


def sizes(name, max_items=1024, **settings):
    return draw_sizes(LoadConfig(batch_size_distribution=name, **settings), max_items, N, stream(1, "sizes"))


def test_normal_sizes():
    drawn = sizes("normal", avg_mini_batch_size=256, var_mini_batch_size=32)
    law = stats.norm(256, 32)
    edges = np.arange(180, 341, 10)
    shares = np.diff(np.concatenate(([0], law.cdf(edges + 0.5), [1])))
    observed = np.bincount(np.searchsorted(edges, drawn, side="left"), minlength=len(edges) + 1)
    assert stats.chisquare(observed, shares * N).pvalue > P_LIMIT


def test_lognormal_sizes_take_mean_and_deviation_of_the_log():
    drawn = sizes("lognormal", avg_mini_batch_size=5.1, var_mini_batch_size=0.2)
    assert stats.kstest(np.log(drawn), stats.norm(5.1, 0.2).cdf).statistic < 0.02  # rounding to whole items


def test_fixed_sizes():
    assert set(sizes("fixed", avg_mini_batch_size=77)) == {77}


def test_sizes_are_cut_to_one_and_the_largest():
    drawn = sizes("normal", max_items=256, avg_mini_batch_size=128, var_mini_batch_size=500)
    assert drawn.min() == 1
    assert drawn.max() == 256


def test_mlperf_sizes_follow_the_twenty_quantiles():
    drawn = sizes("mlperf")
    values, counts = np.unique(MLPERF_ITEMS, return_counts=True)
    assert len(MLPERF_ITEMS) == 20
    observed = np.array([(drawn == v).sum() for v in values])
    assert observed.sum() == N
    assert stats.chisquare(observed, counts / 20 * N).pvalue > P_LIMIT


def test_production_sizes_have_the_published_shape():
    drawn = np.sort(sizes("production"))
    largest_quarter = drawn[-N // 4 :].sum() / drawn.sum()
    assert 0.45 < largest_quarter < 0.55  # "about half of the work"
    assert 900 < drawn.max() <= 1024  # "the largest near 1,000 items"
    assert np.median(drawn) < drawn.mean()  # "most queries small"


def test_production_has_a_heavier_tail_than_the_lognormal_of_its_mean_and_spread():
    drawn = sizes("production").astype(float)
    spread = np.sqrt(np.log(1 + drawn.var() / drawn.mean() ** 2))
    law = stats.lognorm(spread, scale=drawn.mean() / np.exp(spread**2 / 2))
    for far in (600, 800):
        assert (drawn > far).mean() > 1.5 * law.sf(far)


def test_production_quantiles_rise():
    assert (np.diff(production_quantile(np.linspace(0, 0.999999, 5000))[1:]) >= 0).all()


def test_file_sizes_are_drawn_uniformly_from_the_list(tmp_path):
    file = tmp_path / "sizes.txt"
    file.write_text("10\n20\n20\n40\n")
    drawn = sizes("file", batch_dist_file=str(file))
    observed = [(drawn == v).sum() for v in (10, 20, 40)]
    assert stats.chisquare(observed, np.array([0.25, 0.5, 0.25]) * N).pvalue > P_LIMIT


@pytest.mark.parametrize("text", [None, "", "1\ntwo\n", "inf\n"])
def test_a_bad_size_file_is_named(tmp_path, text):
    file = tmp_path / "sizes.txt"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigError, match=r"sizes\.txt"):
        sizes("file", batch_dist_file=str(file))


def test_arrivals_can_come_from_a_file(tmp_path):
    file = tmp_path / "arrivals.txt"
    file.write_text("\n".join(str(0.5 * i) for i in range(2000)))
    config = replace(CONFIG, load=LoadConfig(arrival_process="file", arrival_file=str(file)))
    schedule = draw_schedule(config, 1024, 0, rate_qps=1.0)
    assert (schedule.arrival_ns == 500_000 * np.arange(1024)).all()
    with pytest.raises(ConfigError, match="2000 arrivals, but the run has 3000"):
        draw_schedule(config, 3000, 0, rate_qps=1.0)
    file.write_text("3\n2\n1\n")
    with pytest.raises(ConfigError, match="must not descend"):
        draw_schedule(config, 2, 0, rate_qps=1.0)


def test_a_schedule_repeats_with_its_seed_and_differs_between_runs():
    one, again, other = (draw_schedule(CONFIG, 500, 10, 100.0, run) for run in (0, 0, 1))
    assert (one.arrival_ns == again.arrival_ns).all()
    assert (one.n_items == again.n_items).all()
    assert (one.arrival_ns != other.arrival_ns).any()


def test_changing_the_sizes_leaves_arrivals_and_inputs_alone():
    other = replace(CONFIG, load=LoadConfig(batch_size_distribution="production"))
    a, b = draw_schedule(CONFIG, 500, 0, 100.0), draw_schedule(other, 500, 0, 100.0)
    assert (a.n_items != b.n_items).any()
    assert (a.arrival_ns == b.arrival_ns).all()
    assert (a.input_id == b.input_id).all()


def test_each_pass_uses_every_input_once():
    ids = draw_schedule(CONFIG, 64, 0, 100.0).input_id.reshape(4, 16)
    for one_pass in ids:
        assert sorted(one_pass) == list(range(16))
    assert (ids[0] != ids[1]).any()


def test_a_burst_arrives_at_once():
    assert not burst(CONFIG, 50, 1).arrival_ns.any()


def test_streams_of_different_names_are_independent():
    a, b = stream(5, "arrivals").random(N), stream(5, "sizes").random(N)
    assert abs(np.corrcoef(a, b)[0, 1]) < 4 / np.sqrt(N)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=40), st.lists(st.integers(0, 60), max_size=40))
def test_the_pacer_gives_every_query_once_in_order_and_never_early(gaps, looks):
    arrival_ns = np.cumsum(gaps).astype(np.int64)
    n = len(gaps)
    pacer = Pacer(Schedule(arrival_ns, np.ones(n, np.int32), np.zeros(n, np.int32)))
    seen, now = [], 0
    for look in [*np.cumsum(looks).tolist(), int(arrival_ns[-1]) + 3000]:
        now = max(now, look)
        for query in pacer.due(now):
            assert query.arrival_ns <= now
            seen.append(query.query_id)
        assert pacer.next_ns is None or pacer.next_ns > now
    assert seen == list(range(n))
    assert pacer.next_ns is None


def test_a_schedule_must_not_go_back_in_time():
    with pytest.raises(ValueError, match="descend"):
        Schedule(np.array([2, 1]), np.ones(2, np.int32), np.zeros(2, np.int32))
    with pytest.raises(ValueError, match="differ in length"):
        Schedule(np.array([1]), np.ones(2, np.int32), np.zeros(2, np.int32))
