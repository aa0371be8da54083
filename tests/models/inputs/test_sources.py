"""Inputs with ids from Zipf's law, stack distances and data sets: what tables see; bad files."""

import numpy as np
import pytest

from infra.settings.config import ConfigError, InputConfig, ModelConfig, RunConfig
from models.inputs.datasets import read_criteo, read_interactions
from models.inputs.sources import source_of
from models.inputs.stack_distance import locality_of, write_locality
from models.inputs.synthetic import InputPool

N_INPUTS = 3
N_ITEMS = 16


def small(model_type="wnd", **settings):
    shape = {
        "arch_embedding_size": "40-30-50",
        "arch_mlp_bot": "4",
        "arch_mlp_top": "8-1",
        "arch_sparse_feature_size": 4,
        "num_indices_per_lookup": 2,
        "num_indices_per_lookup_fixed": True,
    }
    return ModelConfig(model_type=model_type, **{**shape, **settings})


def run_of(model, **settings):
    return RunConfig(
        model=model,
        inputs=InputConfig(
            num_batches=N_INPUTS, max_mini_batch_size=N_ITEMS, numpy_rand_seed=7, **settings
        ),
    )


def ids_by_table(config):
    """What every table is asked for, in order, from the batches that engines slice."""
    pool = InputPool.of(config)
    rows = config.model.table_rows
    seen = [[] for _ in rows]
    starts = np.concatenate(([0], np.cumsum(rows)))
    for i in range(N_INPUTS):
        for first in range(0, N_ITEMS, 8):
            batch = pool.batch(i, first, 8)
            for bag in range(len(batch.offsets) - 1):
                table = bag % len(rows)
                first_id, end = batch.offsets[bag : bag + 2]
                ids = batch.ids_L[first_id:end].numpy() - starts[table]
                assert ids.min() >= 0
                assert ids.max() < rows[table]
                seen[table] += ids.tolist()
    return seen


def test_zipf_ids_are_skewed_and_popular_rows_differ_between_tables():
    config = run_of(
        small(arch_embedding_size="1000-1000", num_indices_per_lookup=20),
        data_generation="zipf",
        zipf_alpha=2.0,
    )
    seen = ids_by_table(config)
    tops = [np.bincount(ids, minlength=1000) for ids in seen]
    for counts in tops:
        expected = 1 / 1.6439  # 1 / (1 + 1/4 + 1/9 + ...)
        assert counts.max() / counts.sum() == pytest.approx(expected, abs=0.06)
    assert tops[0].argmax() != tops[1].argmax()


@pytest.mark.parametrize("fixed", [True, False])
def test_stack_distances_come_from_one_file_a_table_and_run_through_all_inputs(fixed, tmp_path):
    traces = [np.tile([3, 1, 4], 100), np.tile([1, 5, 9, 2, 6], 100), np.array([7])]
    for table, trace in enumerate(traces):
        write_locality(tmp_path / f"join_{table}.log", locality_of(trace))
    config = run_of(
        small(num_indices_per_lookup_fixed=fixed),
        data_generation="synthetic",
        data_trace_file=str(tmp_path / "join_j.log"),
    )
    seen = ids_by_table(config)
    assert set(seen[0][:3]) == {3, 1, 4}
    assert locality_of(seen[0]).distance.tolist()[-1] == 3
    assert locality_of(seen[1]).distance.tolist()[-1] == 5
    assert sorted(seen[2][:50]) == sorted({*seen[2][:50]})  # a profile of first uses only
    assert len(seen[0]) == N_INPUTS * N_ITEMS * 2 or not fixed


@pytest.mark.parametrize("generation", ["zipf", "synthetic"])
def test_ids_repeat_with_their_seed(generation, tmp_path):
    write_locality(tmp_path / "sd.log", locality_of([1, 2, 1, 3, 2, 1]))
    settings = {"data_generation": generation, "data_trace_file": str(tmp_path / "sd.log")}
    first, again = (ids_by_table(run_of(small(), **settings)) for _ in range(2))
    assert first == again


def test_a_profile_outside_of_its_table_is_refused(tmp_path):
    write_locality(tmp_path / "sd.log", locality_of([1, 35]))
    config = run_of(small(), data_generation="synthetic", data_trace_file=str(tmp_path / "sd.log"))
    with pytest.raises(ConfigError, match=r"sd\.log: id 35 is outside of table 1 of 30 rows"):
        source_of(config.model, config.inputs)


def test_a_missing_profile_is_named_with_its_table(tmp_path):
    config = run_of(
        small(), data_generation="synthetic", data_trace_file=str(tmp_path / "sd_j.log")
    )
    with pytest.raises(ConfigError, match=r"sd_0\.log"):
        source_of(config.model, config.inputs)


RATINGS = [
    ("u9", "i5", 3, 400),
    ("u2", "i5", 4, 100),
    ("u9", "i1", 1, 200),
    ("u9", "i3", 2, 300),
    ("u2", "i1", 5, 500),
]
LAYOUTS = {
    "u.data": ("", "\t"),
    "ratings.dat": ("", "::"),
    "ratings.csv": ("userId,movieId,rating,timestamp\n", ","),
    "my.inter": ("user_id:token\titem_id:token\trating:float\ttimestamp:float\n", "\t"),
}


def write_ratings(folder, layout, ratings=RATINGS):
    header, separator = LAYOUTS[layout]
    lines = [separator.join(map(str, rating)) for rating in ratings]
    (folder / layout).write_text(header + "\n".join(lines) + "\n")
    return folder / layout


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("as_folder", [True, False])
def test_interactions_are_read_in_the_order_of_time(layout, as_folder, tmp_path):
    file = write_ratings(tmp_path, layout)
    data = read_interactions(str(tmp_path if as_folder else file))
    assert data.time.tolist() == [100, 200, 300, 400, 500]
    assert data.rating.tolist() == [4, 1, 2, 3, 5]
    u9 = data.user[1]
    u2 = data.user[0]
    assert data.user.tolist() == [u2, u9, u9, u9, u2]
    i5, i1, i3 = data.item[:3]
    assert data.item.tolist() == [i5, i1, i3, i5, i1]
    assert data.item_before(1).tolist() == [i5, i1, i1, i3, i5]
    assert data.item_before(2).tolist() == [i5, i1, i1, i1, i5]  # who has fewer is counted round


def test_ncf_reads_users_and_items_in_order(tmp_path):
    write_ratings(tmp_path, "u.data")
    model = small("ncf", arch_embedding_size="1000-1000-1000-1000", num_indices_per_lookup=1)
    config = run_of(
        model,
        data_generation="dataset",
        data_set="movielens",
        raw_data_file=str(tmp_path),
        data_randomize="none",
    )
    users, items, more_users, more_items = ids_by_table(config)
    assert users[:5] == users[5:10]  # the data begins anew
    for ids, groups in (
        (users, (0, 1, 1, 1, 0)),
        (items, (0, 1, 2, 0, 1)),
        (more_users, (0, 1, 1, 1, 0)),
        (more_items, (0, 1, 2, 0, 1)),
    ):
        assert [[a == b for b in ids[:5]] for a in ids[:5]] == [
            [a == b for b in groups] for a in groups
        ]
    assert users[:5] != more_users[:5]  # hashed anew for every table


def test_din_reads_the_user_s_earlier_items(tmp_path):
    ratings = [("u", f"i{k}", 5, k) for k in range(50)]
    write_ratings(tmp_path, "u.data", ratings)
    model = small(
        "din",
        arch_embedding_size="500-90000-90000-24",
        num_indices_per_lookup=1,
        user_behavior_tables=3,
    )
    config = run_of(
        model,
        data_generation="dataset",
        data_set="movielens",
        raw_data_file=str(tmp_path),
        data_randomize="none",
    )
    user, last, before, third, ad, hour = ids_by_table(config)
    assert len(set(user)) == 1
    assert len(set(ad[:48])) == 48
    assert len(set(last[1:48])) == 47
    assert len(set(before[2:48])) == 46
    assert set(hour) == {hour[0]}
    assert third[5] != last[5]


def shuffled(tmp_path, randomize):
    ratings = [(f"u{k}", "i", 5, k) for k in range(70)]
    write_ratings(tmp_path, "u.data", ratings)
    model = small("ncf", arch_embedding_size="100000-100-100-100", num_indices_per_lookup=1)
    return ids_by_table(
        run_of(
            model,
            data_generation="dataset",
            data_set="movielens",
            raw_data_file=str(tmp_path),
            data_randomize=randomize,
        )
    )[0]


def test_samples_are_shuffled_in_whole_or_by_sevenths(tmp_path):
    none, day, total = (shuffled(tmp_path, how) for how in ("none", "day", "total"))
    assert none != day != total
    assert set(none[:10]) == set(day[:10])
    assert none[:10] != day[:10]
    assert set(none[:10]) != set(total[:10])


BAD_RATINGS = [
    ("u.data", "", "not readable|is empty"),
    ("u.data", "1\t2\n", "2 columns; expected user, item, rating, time"),
    (
        "u.data",
        "user\titem\trating\ttime\n1\t2\t3\t4\n",
        "line 1: user, item, rating, time; expected .* no header",
    ),
    ("u.data", "1\t2\t3\t4\n1\t2\tnan\t4\n", "line 2"),
    ("ratings.csv", "userId,movieId,rating,timestamp\n1,2,3,4\n1,,3,4\n", "line 3"),
    ("ratings.csv", "1,2,3,4\n5,6,7,8\n", "its header has no column for the user"),
    ("ratings.csv", "userId,movieId,rating,timestamp\n1,2,3,4,5\n1,2,3,4,5\n", "not readable"),
]


@pytest.mark.parametrize(("layout", "text", "message"), BAD_RATINGS)
def test_bad_interactions_are_named_with_their_line(layout, text, message, tmp_path):
    (tmp_path / layout).write_text(text)
    config = run_of(
        small(), data_generation="dataset", data_set="movielens", raw_data_file=str(tmp_path)
    )
    with pytest.raises(ConfigError, match=message) as error:
        source_of(config.model, config.inputs)
    assert layout in str(error.value)


def test_a_folder_without_a_known_file_says_what_is_known(tmp_path):
    with pytest.raises(ValueError, match=r"has none of \*\.inter, \*u\.data"):
        read_interactions(str(tmp_path))
    with pytest.raises(ValueError, match="no such file or folder"):
        read_interactions(str(tmp_path / "ml"))


def criteo_line(label=1, dense="5", sparse="68fd1e64"):
    return "\t".join([str(label), *[dense] * 13, *[sparse] * 26])


def test_click_logs_give_dense_features_and_one_column_a_table(tmp_path):
    file = tmp_path / "train.txt"
    lines = [criteo_line(dense="-1"), criteo_line(0, "", ""), criteo_line(1, "9", "aa")] * 10
    file.write_text("\n".join(lines) + "\n")
    model = small(
        arch_embedding_size="-".join(["1000"] * 27), arch_mlp_bot="15", num_indices_per_lookup=1
    )
    config = run_of(
        model, data_generation="dataset", raw_data_file=str(file), data_randomize="none"
    )
    dense = InputPool.of(config).batch(0, 0, 3).dense_BF.numpy()
    assert dense.shape == (3, 15)
    assert dense[:, 0] == pytest.approx([0, 0, np.log(10)])
    seen = ids_by_table(config)
    for ids in seen:
        assert len(set(ids[:3])) == 3
        assert ids[:3] == ids[3:6]
    assert seen[0] != seen[26]  # the 27th table holds the first column, hashed differently


def test_quotes_are_letters_like_others(tmp_path):
    file = tmp_path / "train.txt"
    file.write_text(criteo_line(sparse='"a') + "\n" + criteo_line(sparse="b") + "\n")
    assert len(read_criteo(str(file), 10)) == 2


BAD_CLICKS = [
    ("label\t" + criteo_line()[2:], "line 1: label"),
    (criteo_line() + "\n" + criteo_line(dense="x"), "line 2"),
    (criteo_line() + "\n" + criteo_line(label=3), "line 2: 3"),
    (criteo_line(dense="nan"), "line 1"),
    (criteo_line() + "\n1\t5\t5\n", "line 2: 3 columns; expected 40"),
    ("1\t2", "line 1: 2 columns; expected 40"),
    ("", "not readable"),
]


@pytest.mark.parametrize(("text", "message"), BAD_CLICKS)
def test_bad_click_logs_are_named_with_their_line(text, message, tmp_path):
    file = tmp_path / "train.txt"
    file.write_text(text)
    with pytest.raises(ValueError, match=rf"train\.txt.*{message}"):
        read_criteo(str(file), 10)
