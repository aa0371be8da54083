"""Drawn benchmarks against the published numbers."""

import numpy as np
import pytest

from infra.rng import stream
from models.embedding.plan.spec import TableSpec
from models.embedding.synthesis import (
    CONFIG,
    compared,
    draw,
    draw_ids,
    draw_sizes,
    draw_specs,
    hottest_frac,
    lines_of,
    parse_line,
    statistics,
)
from models.embedding.tuning.recorded import Jagged, Recorded

# numbers of a kind: published mean of a bag that is not empty
TRUNCATED = {
    (10, 10, 50): 12.4,
    (50, 10, 100): 49.5,
    (100, 50, 200): 99.5,
    (100, 100, 500): 128,
    (100, 100, 1024): 128,
    (20, 10, 100): 20,
    (20, 50, 100): 41,
}
ONE_SIDE = {(100, 50): 102, (200, 100): 205, (10, 20): 19.7, (50, 50): 63.9}


@pytest.mark.parametrize("name", ["A", "B", "C", "D", "E"])
def test_a_benchmark_has_the_published_numbers(name):
    published = CONFIG["benchmarks"][name]["published"]
    recorded = draw(name, [100], seed=3, tables_frac=1)
    drawn = statistics(recorded)
    assert drawn["tables"] == published["tables"]
    assert drawn["one_hot_frac"] == pytest.approx(published["one_hot_frac"], abs=1e-3)
    lines = lines_of(name)
    deviations = [line.numbers[1] if len(line.numbers) > 1 else 50 for line in lines]
    spread = np.hypot.reduce([line.n_tables * d for line, d in zip(lines, deviations, strict=True)])
    error = 4 * spread / 100**0.5  # a line's tables share their lengths
    assert abs(drawn["lookups_per_item"] - published["lookups_per_item"]) < error
    dims = np.array([spec.dim for spec in recorded.specs])
    dims_error = 4 * dims.std() * len(dims) ** 0.5
    # The published ones were drawn too.
    assert abs(drawn["sum_dim"] - published["sum_dim"]) <= dims_error * 2**0.5
    assert drawn["table_mb"] == pytest.approx(published["table_mb"], rel=0.15)
    table = compared(name, recorded, 1.0).set_index("statistic")
    assert table.loc["sum_dim", "published"] == published["sum_dim"]


def test_f_is_ten_times_as_many_tables_and_mlperf_has_its_own():
    assert sum(line.n_tables for line in lines_of("F")) == 10_000
    specs = draw_specs("mlperf", 1)
    published = CONFIG["benchmarks"]["mlperf"]["published"]
    table_mb = sum(spec.rows * spec.dim * 4 for spec in specs) / 1e6
    assert table_mb == pytest.approx(published["table_mb"], rel=1e-3)
    assert sum(s.bag_ids for s in specs) == published["lookups_per_item"]


LINES = {line for kind in CONFIG["benchmarks"].values() for line in kind.get("lines", ())}


@pytest.mark.parametrize("text", sorted(LINES))
def test_a_line_draws_bags_of_the_published_length(text):
    line = parse_line(text)
    n = 20_000
    lengths = line.draw_lengths(n, np.random.default_rng(1))
    present = lengths[lengths > 0] if line.kind.startswith("multi") else lengths
    # A normal number below 1 is empty too.
    assert abs((lengths > 0).mean() - line.coverage) < 4 * 0.5 / n**0.5 + 0.02
    published = {**TRUNCATED, **ONE_SIDE}.get(tuple(int(x) for x in line.numbers))
    if published and line.coverage:
        assert present.mean() == pytest.approx(published, rel=0.06)
    elif line.coverage:
        assert {*present.tolist()} == {int(line.numbers[0]) if line.numbers else 1}
    if line.bag_ids:
        assert (lengths == line.bag_ids).all()


def test_tables_of_a_line_share_their_lengths_but_not_their_ids():
    recorded = draw("C", [50], seed=1, tables_frac=0.03)
    batch = recorded.batches[0]
    first = lines_of("C", 0.03)[0].n_tables
    same = 3 * first  # the fourth line: lengths differ from item to item
    assert np.array_equal(batch.lengths_of(same), batch.lengths_of(same + 1))
    assert len(set(batch.lengths_of(same).tolist())) > 5
    assert not np.array_equal(batch.ids_of(same), batch.ids_of(same + 1))


def test_released_ids_are_nearly_uniform_and_zipf_ids_are_not():
    specs = (TableSpec(4096, 4),)
    fracs = {}
    for alpha in (None, 0.0, 0.8, 1.05, 1.2):
        ids = draw_ids(4096, 400_000, alpha, np.random.default_rng(2))
        fracs[alpha] = hottest_frac(Recorded(specs, (Jagged.of(ids, np.array([[len(ids)]])),)))
        counts = np.bincount(ids, minlength=4096)
        if alpha is None:
            weights = np.sort(np.random.default_rng(9).power(3, 100_000))
            expected = weights.std() / weights.mean()
            assert counts.std() / counts.mean() == pytest.approx(expected, rel=0.1)
    assert fracs[None] == pytest.approx(0.13, abs=0.006)  # published
    assert fracs[0.0] == pytest.approx(0.1, abs=0.006)
    assert fracs[0.0] < fracs[None] < fracs[0.8] < fracs[1.05] < fracs[1.2]


def test_batch_sizes_are_the_published_ones():
    sizes = draw_sizes(200_000, stream(1, "x"))
    assert sizes.min() == 1
    assert sizes.max() == 512
    assert sizes.mean() == pytest.approx(251, rel=0.02)
    assert np.median(sizes) == pytest.approx(187, rel=0.06)
    assert (sizes == 512).mean() == pytest.approx(0.38, abs=0.02)
    assert (sizes <= 8).mean() == pytest.approx(0.25, abs=0.02)
    assert (sizes == 1).mean() == pytest.approx(0.16, abs=0.02)


def test_the_same_seed_draws_the_same_and_another_does_not():
    first, again, another = (draw("B", [20, 5], seed, tables_frac=0.02) for seed in (1, 1, 2))
    for batch, twin in zip(first.batches, again.batches, strict=True):
        assert np.array_equal(batch.ids_L, twin.ids_L)
    assert not np.array_equal(first.batches[0].ids_L, another.batches[0].ids_L)


@pytest.mark.parametrize("text", ["one-hot,1", "two-hot,1,1", "multi-hot,5,1,1,1", "one-hot,x,1"])
def test_a_line_that_says_nothing_is_refused(text):
    with pytest.raises(ValueError, match=r"expected one of|could not convert"):
        parse_line(text)
