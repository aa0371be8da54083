"""Arrivals and sizes against their laws (fixed seeds), streams, the Pacer, files."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from infra.load.arrivals import RateCurve, draw_gaps_ns
from infra.rng import stream
from infra.settings.config import ConfigError, InputConfig, LoadConfig, RunConfig
from loadGenerator import (
    MLPERF_ITEMS,
    CommonLoad,
    Pacer,
    Schedule,
    burst,
    draw_arrivals_ns,
    draw_schedule,
    draw_sizes,
    production_quantile,
    too_short,
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
    rounding = np.random.default_rng(2).uniform(-0.5e-6, 0.5e-6, N)  # to whole ns: undo it
    gaps = np.abs(gaps + rounding)
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
    load = LoadConfig(batch_size_distribution=name, **settings)
    return draw_sizes(load, max_items, N, stream(1, "sizes"))


def test_normal_sizes():
    drawn = sizes("normal", avg_mini_batch_size=256, var_mini_batch_size=32)
    law = stats.norm(256, 32)
    edges = np.arange(180, 341, 10)
    shares = np.diff(np.concatenate(([0], law.cdf(edges + 0.5), [1])))
    observed = np.bincount(np.searchsorted(edges, drawn, side="left"), minlength=len(edges) + 1)
    assert stats.chisquare(observed, shares * N).pvalue > P_LIMIT


def test_lognormal_sizes_take_mean_and_deviation_of_the_log():
    drawn = sizes("lognormal", avg_mini_batch_size=5.1, var_mini_batch_size=0.2)
    law = stats.norm(5.1, 0.2)
    assert stats.kstest(np.log(drawn), law.cdf).statistic < 0.02  # rounding to whole items


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


def test_the_production_tail_is_pareto_with_its_index_cut_at_its_largest():
    knee = 90 * np.exp(0.45 * stats.norm.ppf(0.75))  # the upper quartile of the body
    for share_of_tail in (0.1, 0.5, 0.9, 0.99):
        size = production_quantile(np.array([0.75 + 0.25 * share_of_tail]))[0]
        larger = ((size / knee) ** -1.9 - (1024 / knee) ** -1.9) / (1 - (1024 / knee) ** -1.9)
        assert larger == pytest.approx(1 - share_of_tail, abs=1e-9)


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
    first, again, second = (draw_schedule(CONFIG, 500, 10, 100.0, run) for run in (0, 0, 1))
    assert (first.arrival_ns == again.arrival_ns).all()
    assert (first.n_items == again.n_items).all()
    assert (first.arrival_ns != second.arrival_ns).any()


def test_changing_the_sizes_leaves_arrivals_and_inputs_alone():
    production = replace(CONFIG, load=LoadConfig(batch_size_distribution="production"))
    a = draw_schedule(CONFIG, 500, 0, 100.0)
    b = draw_schedule(production, 500, 0, 100.0)
    assert (a.n_items != b.n_items).any()
    assert (a.arrival_ns == b.arrival_ns).all()
    assert (a.input_id == b.input_id).all()


def test_each_pass_uses_every_input_once():
    ids = draw_schedule(CONFIG, 64, 0, 100.0).input_id.reshape(4, 16)
    for ids_of_pass in ids:
        assert sorted(ids_of_pass) == list(range(16))
    assert (ids[0] != ids[1]).any()


def test_a_burst_arrives_at_once():
    assert not burst(CONFIG, 50, 1).arrival_ns.any()


@pytest.mark.parametrize("run_index", [0, 3])
def test_arrivals_and_sizes_of_a_schedule_come_from_streams_of_their_own(run_index):
    config = replace(CONFIG, load=LoadConfig(batch_size_distribution="production"))
    schedule = draw_schedule(config, 500, 0, 100.0, run_index)
    seed = config.inputs.numpy_rand_seed
    drawn = draw_sizes(config.load, 1024, 500, stream(seed, "sizes", run_index))
    assert schedule.n_items.tolist() == drawn.tolist()
    arrival_ns = draw_arrivals_ns(config.load, 100.0, 500, stream(seed, "arrivals", run_index))
    assert schedule.arrival_ns.tolist() == arrival_ns.tolist()


def test_streams_of_different_names_are_independent():
    a = stream(5, "arrivals").random(N)
    b = stream(5, "sizes").random(N)
    assert abs(np.corrcoef(a, b)[0, 1]) < 4 / np.sqrt(N)


GAPS_NS = st.lists(st.integers(0, 50), min_size=1, max_size=40)
LOOKS_NS = st.lists(st.integers(0, 60), max_size=40)


@given(GAPS_NS, LOOKS_NS)
def test_the_pacer_gives_every_query_once_in_order_and_never_early(gaps, looks):
    arrival_ns = np.cumsum(gaps).astype(np.int64)
    n = len(gaps)
    pacer = Pacer(Schedule(arrival_ns, np.ones(n, np.int32), np.zeros(n, np.int32)))
    seen = []
    now = 0
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


def dispersion(rates, share, burst_s, window_s):
    """Variance over mean of the counts of a two-state Markov-modulated Poisson process in windows.

    Fischer and Meier-Hellstern, The MMPP cookbook (1993), eq. for two states.
    """
    leaving_calm = share / ((1 - share) * burst_s)  # its stays have mean 1 / leaving
    leaving_burst = 1 / burst_s
    both = leaving_calm + leaving_burst
    mean = rates[0] * (1 - share) + rates[1] * share
    excess = 2 * (rates[1] - rates[0]) ** 2 * share * (1 - share) / (mean * both)
    return 1 + excess * (1 - (1 - np.exp(-both * window_s)) / (both * window_s))


@pytest.mark.parametrize(("share", "factor", "burst_s"), [(0.1, 10.0, 0.5), (0.3, 4.0, 0.2)])
def test_bursts_have_the_dispersion_of_their_law(share, factor, burst_s):
    load = LoadConfig(
        arrival_process="mmpp",
        arrival_burst_share=share,
        arrival_burst_factor=factor,
        arrival_burst_s=burst_s,
    )
    rate = 200.0
    n = 400_000
    arrival_s = draw_arrivals_ns(load, rate, n, stream(5, "arrivals")) / 1e9
    assert (np.diff(arrival_s) >= 0).all()
    calm = rate / (1 + share * (factor - 1))
    for window_s in (0.05, 0.5, 2.0):
        counts = np.histogram(arrival_s, np.arange(0, arrival_s[-1], window_s))[0]
        blocks = [block.var(ddof=1) / block.mean() for block in np.array_split(counts, 20)]
        wanted = dispersion((calm, factor * calm), share, burst_s, window_s)
        if window_s < 10 * burst_s and len(counts) / 20 * window_s > 20 * burst_s:
            error = 4 * np.std(blocks) / np.sqrt(20)
            assert counts.var() / counts.mean() == pytest.approx(wanted, abs=error)
    bounds = np.searchsorted(arrival_s, np.arange(40, 2000, 40))
    blocks = [len(block) for block in np.split(arrival_s, bounds)]
    error = 4 * np.std(blocks) / 40 / np.sqrt(len(blocks)) + 1
    assert n / arrival_s[-1] == pytest.approx(rate, abs=error)


def test_gaps_within_bursts_of_factor_one_are_exponential():
    load = LoadConfig(arrival_process="mmpp", arrival_burst_factor=1.0)
    gaps = np.diff(draw_arrivals_ns(load, 200.0, N, stream(1, "arrivals"))) / 1e6
    assert stats.kstest(gaps, stats.expon(scale=5.0).cdf).pvalue > P_LIMIT


DAY = ((0, 1.0), (2, 5.0), (2, 0.0), (3, 0.0), (5, 4.0))


def test_diurnal_arrivals_follow_their_curve(tmp_path):
    file = tmp_path / "day.csv"
    file.write_text("# a day of 5 s\ntime_s,rate\n" + "\n".join(f"{t},{r}" for t, r in DAY))
    load = LoadConfig(arrival_process="diurnal", arrival_file=str(file), arrival_time_scale=2.0)
    rate = 500.0
    arrival_s = draw_arrivals_ns(load, rate, 50_000, stream(7, "arrivals")) / 1e9
    time_s, height = np.array(DAY).T
    mean = 10 / 5  # the areas: 6 + 0 + 4, over 5 s

    def expected(t):  # integral by a fine sum, an oracle apart from the code's quadratic
        grid = np.linspace(0, 10, 200_001)
        rates = np.interp(grid, 2 * time_s, height) * rate / mean
        rates[(grid >= 4) & (grid <= 6)] = 0
        until = np.concatenate(([0], np.cumsum((rates[1:] + rates[:-1]) / 2 * np.diff(grid))))
        return t // 10 * until[-1] + np.interp(t % 10, grid, until)

    assert stats.kstest(np.diff(expected(arrival_s)), stats.expon().cdf).pvalue > P_LIMIT
    assert not ((arrival_s % 10 > 4.001) & (arrival_s % 10 < 5.999)).any()


@pytest.mark.parametrize("process", ["mmpp", "diurnal"])
def test_bursts_and_days_last_as_long_at_any_rate(process, tmp_path):
    file = tmp_path / "day.csv"
    file.write_text("time_s,rate\n0,0\n1,2\n2,0\n")
    load = LoadConfig(arrival_process=process, arrival_file=str(file), arrival_burst_s=0.2)
    config = replace(CONFIG, load=load)
    slow, fast = (draw_schedule(config, 40_000, 0, rate) for rate in (100.0, 1000.0))
    assert (slow.n_items == fast.n_items).all()
    assert (draw_schedule(config, 500, 0, 100.0).arrival_ns == slow.arrival_ns[:500]).all()
    with pytest.raises(ValueError, match="no others at another rate"):
        CommonLoad(config, 4000)
    for schedule, rate in ((slow, 100.0), (fast, 1000.0)):
        arrival_s = schedule.arrival_ns / 1e9
        if process == "diurnal":
            # A triangle of 2 s: the middle second has three quarters of the arrivals.
            within = arrival_s % 2
            assert ((within > 0.5) & (within < 1.5)).mean() == pytest.approx(0.75, abs=0.02)
        else:
            counts = np.histogram(arrival_s, np.arange(0, arrival_s[-1], 0.5))[0]
            calm = rate / (1 + 0.1 * 9)
            wanted = dispersion((calm, 10 * calm), 0.1, 0.2, 0.5)
            assert counts.var() / counts.mean() == pytest.approx(wanted, rel=0.35)


def test_a_run_shorter_than_its_load_is_said(tmp_path):
    file = tmp_path / "day.csv"
    file.write_text("time_s,rate\n0,1\n86400,2\n")
    day = LoadConfig(arrival_process="diurnal", arrival_file=str(file), arrival_time_scale=1e-4)
    bursts = LoadConfig(arrival_process="mmpp", arrival_burst_s=0.1, arrival_burst_share=0.1)
    for load, needed_s in ((day, 8.64), (bursts, 10.0)):
        config = replace(CONFIG, load=load)
        long, short = (draw_schedule(config, n, 0, 100.0) for n in (2000, 200))
        assert too_short(config, long) == ()
        (reason,) = too_short(config, short)
        assert f"{needed_s:.3g} s" in reason
    assert too_short(CONFIG, draw_schedule(CONFIG, 10, 0, 100.0)) == ()


def test_a_trace_replays_arrivals_and_sizes(tmp_path):
    file = tmp_path / "queries.parquet"
    arrival_ns = np.cumsum(np.arange(1, 101)) * 1_000_000 + 77
    pd.DataFrame({"arrival_ns": arrival_ns, "n_items": np.arange(100) % 7 + 1}).to_parquet(file)
    load = LoadConfig(
        arrival_process="trace",
        arrival_file=str(file),
        arrival_time_scale=0.5,
        batch_size_distribution="trace",
    )
    schedule = draw_schedule(replace(CONFIG, load=load), 90, 0, rate_qps=1.0)
    assert (schedule.arrival_ns == (arrival_ns[:90] - arrival_ns[0]) // 2).all()
    assert (schedule.n_items == np.arange(90) % 7 + 1).all()
    seconds = tmp_path / "trace.csv"
    seconds.write_text("arrival_s\n0.5\n0.75\n2\n")
    load = LoadConfig(arrival_process="trace", arrival_file=str(seconds))
    assert list(draw_arrivals_ns(load, 1.0, 3, stream(1, "x"))) == [0, 250_000_000, 1_500_000_000]


BAD_TRACES = [
    ("trace", "arrival_s\n0\n2\n1\n", "arrival 3: time runs backwards"),
    ("trace", "arrival_s\n0,5\n1,5\n2,5\n", "not readable as a table"),
    ("trace", "arrival_s\n0\n1\n1e11\n", "the last arrival is at 1e"),
    ("file", "100 3\n200 5\n300 1\n", "line 1: '100 3' is no finite number; expected one a line"),
    ("diurnal", "time_s,rate\n0,0,1\n5,5,2\n", "not readable as a table"),
    ("trace", "arrival_s\n0\nnan\n1\n", "row 2: arrival_s is nan"),
    ("trace", "arrival_s\n0\nsoon\n1\n", "row 2: arrival_s is soon"),
    ("trace", "arrival_s\n", "has no rows"),
    ("trace", "", "not readable as a table"),
    ("trace", "0\n1\n2\n", "has columns 0; expected one of arrival_ns"),
    ("trace", "arrival_s\n0\n", "1 arrivals, but the run has 3"),
    (
        "file",
        "arrival\n0\n1\n",
        "line 1: 'arrival' is no finite number; expected one a line and no header",
    ),
    ("file", "0\n1\n0.5\n", "arrival 3: time runs backwards"),
    ("file", "0\nNaN\n2\n", "line 2: 'NaN' is no finite number"),
    ("file", "", "is empty"),
    ("diurnal", "time_s,rate\n0,1\n", "two points or more"),
    ("diurnal", "time_s,rate\n0,1\n2,1\n1,1\n", "must not descend"),
    ("diurnal", "time_s,rate\n0,1\n2,-1\n", "at least 0"),
    ("diurnal", "time_s,rate\n0,0\n2,0\n", "rise above 0"),
    ("diurnal", "0,1\n2,1\n", "expected time_s and rate"),
]


@pytest.mark.parametrize(("process", "text", "message"), BAD_TRACES)
def test_a_bad_load_file_is_named_with_its_line(process, text, message, tmp_path):
    file = tmp_path / "load.csv"
    file.write_text(text)
    load = LoadConfig(arrival_process=process, arrival_file=str(file))
    with pytest.raises(ConfigError, match=rf"load\.csv.*{message}"):
        draw_arrivals_ns(load, 1.0, 3, stream(1, "x"))


def test_an_epoch_s_nanoseconds_are_kept(tmp_path):
    file = tmp_path / "epoch.parquet"
    gaps = np.array([0, 100, 200, 301])
    pd.DataFrame({"arrival_ns": 1_763_740_800_000_000_000 + gaps}).to_parquet(file)
    load = LoadConfig(arrival_process="trace", arrival_file=str(file))
    assert (draw_arrivals_ns(load, 1.0, 4, stream(1, "x")) == gaps).all()


def test_dates_are_no_numbers(tmp_path):
    file = tmp_path / "dates.parquet"
    pd.DataFrame({"arrival_s": pd.date_range("2026-01-01", periods=3, freq="s")}).to_parquet(file)
    load = LoadConfig(arrival_process="trace", arrival_file=str(file))
    with pytest.raises(ConfigError, match="arrival_s is of type datetime"):
        draw_arrivals_ns(load, 1.0, 3, stream(1, "x"))


@pytest.mark.parametrize("size", ["0", "1.5", "nan", "", "101"])
def test_a_bad_size_in_a_trace_is_named_with_its_row(size, tmp_path):
    file = tmp_path / "trace.csv"
    file.write_text(f"arrival_s,n_items\n0,1\n1,{size}\n")
    load = LoadConfig(
        arrival_process="trace", arrival_file=str(file), batch_size_distribution="trace"
    )
    with pytest.raises(ConfigError, match=r"trace\.csv, row 2: n_items is"):
        draw_sizes(load, 100, 2, stream(1, "x"))


WIDTHS_S = st.just(0.0) | st.floats(1e-3, 3)
RATES = st.just(0.0) | st.floats(1e-3, 5)
STEPS = st.lists(st.tuples(WIDTHS_S, RATES), min_size=1, max_size=8)


@given(STEPS, st.lists(st.floats(0, 50), min_size=1, max_size=20))
def test_the_inverse_of_a_rate_curve_is_its_inverse(steps, targets):
    widths, rates = np.array(steps).T
    time_s = np.concatenate(([0.0], np.cumsum(widths), [widths.sum() + 1]))
    rate = np.append(rates, [1.0, 2.0])
    curve = RateCurve(time_s, rate)
    times = curve.times_s(np.sort(targets))
    assert (np.diff(times) >= -1e-9).all()
    periods, within = np.divmod(times, time_s[-1])
    part = np.clip(np.searchsorted(time_s, within, side="right") - 1, 0, len(time_s) - 2)
    width = time_s[part + 1] - time_s[part]
    into = within - time_s[part]
    rise = rate[part + 1] - rate[part]
    slope = np.divide(rise, width, out=np.zeros_like(width), where=width > 0)
    within_part = into * (rate[part] + slope * into / 2)
    back = periods * curve.expected[-1] + curve.expected[part] + within_part
    assert back == pytest.approx(np.sort(targets), abs=1e-6)


def test_bursty_arrivals_begin_in_a_burst_as_often_as_it_bursts():
    load = LoadConfig(
        arrival_process="mmpp",
        arrival_burst_share=0.2,
        arrival_burst_factor=50.0,
        arrival_burst_s=5.0,
    )
    calm_qps = 100.0 / (1 + 0.2 * 49)
    first_s = [draw_arrivals_ns(load, 100.0, 1, stream(seed, "x"))[0] / 1e9 for seed in range(2000)]
    # Of the first gaps those shorter than 5 ms: almost all in a burst (50 times the calm rate), few
    # in the calm.
    early = 0.2 * (1 - np.exp(-50 * calm_qps * 0.005)) + 0.8 * (1 - np.exp(-calm_qps * 0.005))
    error = 4 * np.sqrt(early * (1 - early) / 2000)
    assert (np.array(first_s) < 0.005).mean() == pytest.approx(early, abs=error)
