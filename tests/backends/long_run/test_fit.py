"""Service times as a run measured them: the mean by size, the scatter, its memory, neighbours."""

import numpy as np
import pytest
from scipy import signal

from backends.long_run.fit import (
    Tasks,
    fit,
    mean_by_items,
    memory_of,
    scatter_alike,
    size_classes,
)
from backends.long_run.walks import drawn_residuals

MEAN_NS = 300_000 + 20_000 * np.arange(1025)


def tasks_of_noise(n, rng, noise=0.05, slow=0.0, memory=200, per_busy=0.0):
    items = rng.integers(1, 65, n)
    n_busy = rng.integers(0, 4, n)
    factors = np.exp(rng.normal(0, noise, n)) * (1 + per_busy * n_busy)
    if slow:
        phi = np.exp(-1 / memory)
        drift = signal.lfilter([np.sqrt(1 - phi**2)], [1.0, -phi], rng.normal(0, slow, n))
        factors *= np.exp(drift)
    return Tasks(items, MEAN_NS[items] * factors, n_busy, np.zeros(n, bool), np.ones(n, bool))


def test_the_mean_by_size_is_that_of_the_tasks_also_beyond_them():
    tasks = tasks_of_noise(4000, np.random.default_rng(1))
    mean = mean_by_items(tasks.items, tasks.took_ns, 256)
    assert mean[4:64] == pytest.approx(MEAN_NS[4:64], rel=0.03)
    assert mean[256] == pytest.approx(MEAN_NS[256], rel=0.05)  # by the cost of an item
    assert (mean[1:] > 0).all()


def test_tasks_of_one_size_have_one_mean():
    mean = mean_by_items(np.full(50, 8), np.full(50, 5e6), 16)
    assert mean == pytest.approx(np.full(17, 5e6))


def test_noise_of_single_tasks_has_no_memory():
    rng = np.random.default_rng(2)
    memory = memory_of(1 + rng.normal(0, 0.05, 4000))
    assert memory.tasks == 1.0
    assert memory.mean_error == pytest.approx(0.05 / np.sqrt(4000), rel=0.3)


def test_a_slow_drift_is_seen_and_makes_the_mean_less_sure():
    n = 20_000
    tasks = tasks_of_noise(n, np.random.default_rng(3), slow=0.05)
    memory = memory_of(tasks.took_ns / MEAN_NS[tasks.items])
    assert 80 < memory.tasks < 500
    assert memory.mean_error == pytest.approx(0.05 * np.sqrt(400 / n), rel=0.6)


def test_the_error_of_the_mean_is_its_spread_over_runs():
    runs = [
        tasks_of_noise(12_000, np.random.default_rng(seed), noise=0.1, slow=0.05)
        for seed in range(60)
    ]
    residuals = [tasks.took_ns / MEAN_NS[tasks.items] for tasks in runs]
    spread = np.std([x.mean() for x in residuals])
    told = np.median([memory_of(x).mean_error for x in residuals])
    assert 0.9 * spread < told < 2 * spread  # what the run is too short to tell widens it


def test_busy_neighbours_are_found_and_noise_is_not_taken_for_them():
    slow = fit(tasks_of_noise(4000, np.random.default_rng(4), per_busy=0.1), 64)
    assert slow.law.per_busy == pytest.approx(0.1 / 1.15, rel=0.2)
    beside = slow.beside_ns(3)
    assert beside[3][64] / beside[0][64] == pytest.approx(1.3, rel=0.05)
    assert fit(tasks_of_noise(4000, np.random.default_rng(5)), 64).law.per_busy == 0.0


def test_sizes_that_scatter_in_their_own_way_keep_it():
    rng = np.random.default_rng(6)
    items = np.repeat([4, 64], 2000)
    took_ns = MEAN_NS[items] * np.where(items == 4, rng.exponential(1.0, 4000), 1.0)
    fitted = fit(Tasks(items, took_ns, np.zeros(4000, np.int64), *np.zeros((2, 4000), bool)), 64)
    small, large = (fitted.residuals[fitted.law.classes[n]] for n in (4, 64))
    assert small.std() == pytest.approx(1.0, rel=0.1)
    assert large.std() < 1e-9


def test_every_size_has_a_class_and_the_work_is_that_of_the_tasks():
    tasks = tasks_of_noise(3000, np.random.default_rng(7))
    classes = size_classes(tasks.items, 1024)
    assert len(classes) == 1025
    assert set(classes) == {0, 1, 2, 3}
    fitted = fit(tasks, 64)
    assert fitted.work_ns[tasks.items].sum() == pytest.approx(tasks.took_ns.sum(), rel=1e-3)


def test_parts_that_share_their_fate_are_told_from_parts_that_do_not():
    rng = np.random.default_rng(8)
    shared = np.repeat(rng.normal(0, 0.1, 1000), 2)
    apart = rng.normal(0, 0.05, 2000)
    is_first = np.tile([True, False], 1000)
    assert scatter_alike(1 + shared + apart, is_first)
    assert not scatter_alike(1 + apart, is_first)
    assert not scatter_alike(np.ones(2000), is_first)


def test_parts_alike_are_drawn_alike_and_from_one_query():
    rng = np.random.default_rng(9)
    took_ns = np.repeat(rng.lognormal(0, 0.3, 1000), 2) * 1e6
    is_first = np.tile([True, False], 1000)
    fitted = fit(
        Tasks(np.full(2000, 8), took_ns, np.zeros(2000, np.int64), np.zeros(2000, bool), is_first),
        8,
    )
    assert fitted.law.alike
    drawn = drawn_residuals(fitted, np.full(400, 8), is_first[:400], np.random.default_rng(1))
    assert (drawn[::2] == drawn[1::2]).all()
    assert len(set(drawn)) > 150
    odd = np.tile([True, False, False], 100)
    three = drawn_residuals(fitted, np.full(300, 8), odd, np.random.default_rng(1))
    assert (three[::3] == three[1::3]).mean() > 0.4
