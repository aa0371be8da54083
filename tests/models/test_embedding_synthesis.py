"""Drawn benchmarks against the published numbers, and folders that come back as they were written."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
from models.embedding.tuning.recorded import Recorded, joined, read

TRUNCATED = {(10, 10, 50): 12.4, (50, 10, 100): 49.5, (100, 50, 200): 99.5, (100, 100, 500): 128, (100, 100, 1024): 128,
             # kind: published mean of a bag that is not empty
             (20, 10, 100): 20, (20, 50, 100): 41}  # fmt: skip
ONE_SIDE = {(100, 50): 102, (200, 100): 205, (10, 20): 19.7, (50, 50): 63.9}


@pytest.mark.parametrize("name", ["A", "B", "C", "D", "E"])
def test_a_benchmark_has_the_published_numbers(name):
    published = CONFIG["benchmarks"][name]["published"]
    recorded = draw(name, [100], seed=3, tables_frac=1)
    found = statistics(recorded)
    assert found["tables"] == published["tables"]
    assert found["one_hot_frac"] == pytest.approx(published["one_hot_frac"], abs=1e-3)
    lines = lines_of(name)
    spread = (
        sum(
            (line.n_tables * (line.numbers[1] if len(line.numbers) > 1 else 50)) ** 2
            for line in lines
        )
        ** 0.5
    )
    error = 4 * spread / 100**0.5  # a line's tables share their lengths
    assert abs(found["lookups_per_item"] - published["lookups_per_item"]) < error
    dims = np.array([spec.dim for spec in recorded.specs])
    dims_error = 4 * dims.std() * len(dims) ** 0.5
    assert (
        abs(found["sum_dim"] - published["sum_dim"]) <= dims_error * 2**0.5
    )  # the published ones were drawn too
    assert found["table_mb"] == pytest.approx(published["table_mb"], rel=0.15)
    table = compared(name, recorded, 1.0).set_index("statistic")
    assert table.loc["sum_dim", "published"] == published["sum_dim"]


def test_f_is_ten_times_as_many_tables_and_mlperf_has_its_own():
    assert sum(line.n_tables for line in lines_of("F")) == 10_000
    specs = draw_specs("mlperf", 1)
    published = CONFIG["benchmarks"]["mlperf"]["published"]
    assert sum(s.rows * s.dim * 4 for s in specs) / 1e6 == pytest.approx(
        published["table_mb"], rel=1e-3
    )
    assert sum(s.bag_ids for s in specs) == published["lookups_per_item"]


@pytest.mark.parametrize(
    "text", sorted({line for own in CONFIG["benchmarks"].values() for line in own.get("lines", ())})
)
def test_a_line_draws_bags_of_the_published_length(text):
    line = parse_line(text)
    n = 20_000
    lengths = line.draw_lengths(n, np.random.default_rng(1))
    present = lengths[lengths > 0] if line.kind.startswith("multi") else lengths
    assert (
        abs((lengths > 0).mean() - line.coverage) < 4 * 0.5 / n**0.5 + 0.02
    )  # a normal number below 1 is empty too
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
        fracs[alpha] = hottest_frac(Recorded(specs, (joined(ids, np.array([[len(ids)]])),)))
        counts = np.bincount(ids, minlength=4096)
        if alpha is None:
            weights = np.sort(np.random.default_rng(9).power(3, 100_000))
            assert counts.std() / counts.mean() == pytest.approx(
                weights.std() / weights.mean(), rel=0.1
            )
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


@settings(deadline=None, max_examples=20)
@given(data=st.data())
def test_a_folder_is_read_as_it_was_written(data, tmp_path_factory):
    spec = st.builds(
        TableSpec, st.integers(1, 40), st.integers(1, 9), st.sampled_from((None, 1, 2))
    )
    specs = tuple(data.draw(st.lists(spec, min_size=1, max_size=4)))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    batches = []
    for n_items in data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=3)):
        lengths = np.stack(
            [
                np.full(n_items, s.bag_ids) if s.bag_ids else rng.integers(0, 4, n_items)
                for s in specs
            ]
        )
        ids = [rng.integers(0, s.rows, n.sum()) for s, n in zip(specs, lengths, strict=True)]
        batches.append(joined(np.concatenate(ids), lengths))
    recorded = Recorded(specs, tuple(batches))
    for save in (recorded.save_text, recorded.save_parquet):
        folder = tmp_path_factory.mktemp("tables")
        save(folder)
        found = read(folder)
        assert found.specs == specs
        for own, other in zip(found.batches, batches, strict=True):
            assert np.array_equal(own.ids_L, other.ids_L)
            assert np.array_equal(own.offsets, other.offsets)


def test_the_same_seed_draws_the_same_and_another_does_not():
    one, same, other = (draw("B", [20, 5], seed, tables_frac=0.02) for seed in (1, 1, 2))
    assert all(
        np.array_equal(a.ids_L, b.ids_L) for a, b in zip(one.batches, same.batches, strict=True)
    )
    assert not np.array_equal(one.batches[0].ids_L, other.batches[0].ids_L)


@pytest.mark.parametrize(("file", "text", "message"), [
    ("table_config.txt", "10,4\n3\n", "needs `rows,dim` a line"),
    ("table_config.txt", "10,x\n", "expected whole numbers"),
    ("data/f0.txt", "1,2\n", "1 samples; batch_sizes.txt has 2"),
    ("data/f0.txt", "1\n10\n", "has 10 rows, but ids 1 to 10"),
    ("bags_config.txt", "1\n", "declares 1 ids a bag"),
])  # fmt: skip
def test_a_folder_that_does_not_fit_together_is_refused(file, text, message, tmp_path):
    batch = joined(np.array([1, 2, 3]), np.array([[1, 2]]))
    Recorded((TableSpec(10, 4),), (batch,)).save_text(tmp_path)
    (tmp_path / file).write_text(text)
    with pytest.raises(ValueError, match=message):
        read(tmp_path)


@pytest.mark.parametrize("text", ["one-hot,1", "two-hot,1,1", "multi-hot,5,1,1,1", "one-hot,x,1"])
def test_a_line_that_says_nothing_is_refused(text):
    with pytest.raises(ValueError, match=r"expected one of|could not convert"):
        parse_line(text)
