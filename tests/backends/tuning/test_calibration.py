"""Service times measured through a session are those of its engines.

The engines are virtual, so the truth is known.
"""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from accelerator.latency import SPREAD
from accelerator.service import Overhead, ServiceTable
from backends.tuning.calibration import calibrate, sizes_to_measure, slope_of
from backends.virtual.simulated import SimulatedSession
from infra.deployment import resolve
from infra.messages import ACCEL, CPU
from infra.settings.cli import parse

CONFIG = parse(
    "--queue --num_batches 8 --max_mini_batch_size 256 --inference_engines 2 --model_accel".split()
)
ITEMS = np.arange(257)


def engines(**more):
    """Two CPU engines that slow each other down by a fifth, one accelerator, times with a spread of
    20 %.
    """
    alone = ITEMS * 20_000 + 100_000
    factors = np.random.default_rng(3).lognormal(0, 0.2, (1, SPREAD))
    row = np.zeros(257, np.int64)
    return ServiceTable(
        np.stack([alone, alone * 6 // 5]),
        (ITEMS * 2_000 + 500_000)[None],
        factors / factors.mean(),
        row,
        cpu_overhead=Overhead(70_000, 90_000),
        seed=5,
        **more,
    )


def measured(truth):
    session = SimulatedSession({CPU: 2, ACCEL: 1}, truth)
    (calibration,) = calibrate(session, resolve(CONFIG), offloads=True)
    return calibration


def test_it_finds_times_neighbours_overheads_and_the_mean_of_the_spread():
    truth = engines()
    calibration = measured(truth)
    table = calibration.table(256, seed=1)
    mean = table.factors[table.cpu_row].mean(axis=1)
    for n_busy in (0, 1):
        expected = truth.cpu_ns[n_busy, 1:] * truth.factors.mean()
        assert (table.cpu_ns[n_busy, 1:] * mean[1:]) == pytest.approx(expected, rel=0.06)
    assert table.accel_ns[0, 1:] == pytest.approx(truth.accel_ns[0, 1:], rel=0.02)
    assert (calibration.cpu.wake_us, calibration.cpu.gap_us) == pytest.approx((70, 90), abs=1)


def test_what_arrivals_take_is_nothing_where_they_take_nothing():
    assert measured(engines()).cpu.arrival_us == 0


@pytest.mark.parametrize("n", [3, 500])
def test_a_slope_and_its_error_are_those_of_least_squares(n):
    rng = np.random.default_rng(n)
    x = rng.normal(5, 2, n)
    y = 3 - 0.7 * x + rng.normal(0, 1, n)
    expected = stats.linregress(x, y)
    assert slope_of(x, y) == pytest.approx((expected.slope, expected.stderr), rel=1e-9)


def test_what_arrivals_take_is_found():
    assert measured(replace(engines(), stolen_ns=150_000)).cpu.arrival_us == pytest.approx(
        150, rel=0.25
    )


def test_the_sizes_reach_from_one_item_to_the_largest_query():
    for largest in (1, 2, 37, 1024):
        sizes = sizes_to_measure(largest)
        assert sizes[0] == 1
        assert sizes[-1] == largest
        assert max(np.diff(np.log2(sizes)), default=0) <= 1
