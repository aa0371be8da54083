"""A pipeline's YAML: what it may state, and one line for everything it may not."""

import json

import numpy as np
import pytest
import yaml

from infra.labelled_queries import read_queries
from infra.settings.config import ConfigError
from infra.settings.pipeline import read_pipeline

SMALL = {
    "model_type": "dlrm",
    "arch_embedding_size": "50-60",
    "arch_sparse_feature_size": 4,
    "arch_mlp_bot": "5-4",
    "arch_mlp_top": "8-1",
    "num_indices_per_lookup": 1,
    "num_indices_per_lookup_fixed": True,
}


@pytest.fixture
def write(tmp_path):
    (tmp_path / "small.json").write_text(json.dumps(SMALL))

    def write(document):
        file = tmp_path / "p.yaml"
        file.write_text(document if isinstance(document, str) else yaml.safe_dump(document))
        return str(file)

    return write


def stages(*facts, **top):
    return {**top, "stages": [{"model": "small.json", **stage} for stage in facts]}


def test_models_come_by_name_or_file_and_settings_change_them(write):
    document = {
        "stages": [
            {"model": "rm1", "keep_items": 9, "settings": {"table_scale": 0.5}},
            {"model": "small.json"},
        ]
    }
    pipeline = read_pipeline(write(document), 3)
    assert [stage.model.name for stage in pipeline.stages] == ["rm1", "small"]
    assert pipeline.stages[0].model.table_scale == 0.5
    assert [(pool.name, pool.engines, pool.device) for pool in pipeline.pools] == [
        ("cpu", 3, "cpu")
    ]
    assert pipeline.name == "p"


def test_engines_are_shared_by_pool_or_a_stage_s_own(write):
    document = stages(
        {"keep_items": 5, "pool": "both"},
        {"keep_items": 3, "engines": 2},
        {"pool": "both"},
        pools={"both": {"engines": 4}},
        items=10,
    )
    pipeline = read_pipeline(write(document), 1)
    assert [stage.pool for stage in pipeline.stages] == ["both", "stage1", "both"]
    assert {pool.name: pool.engines for pool in pipeline.pools} == {"both": 4, "stage1": 2}
    assert pipeline.n_items == 10


BAD = {
    "unknown stage key": (
        stages({"keep_itms": 3}),
        "stage 0: unknown key 'keep_itms'; did you mean 'keep_items'",
    ),
    "unknown top key": (stages({}, pool={}), "unknown key 'pool'"),
    "no stages": ({"items": 3}, "needs 'stages'"),
    "empty list": ({"stages": []}, "needs 'stages'"),
    "no mapping": ("- 3", "expected keys with values"),
    "no YAML": ("a: [", "not readable as YAML"),
    "stage is a number": ({"stages": [3]}, "stage 0: is 3"),
    "keeps more than comes in": (
        stages({"keep_items": 11}, {}, items=10),
        "stage 0: keep_items is 11, but only 10",
    ),
    "second keeps more": (
        stages({"keep_items": 4}, {"keep_items": 5}),
        "stage 1: keep_items is 5, but only 4 come in",
    ),
    "items contradict": (
        stages({"keep_items": 4}, {"items": 5}),
        "stage 1: items is 5, but 4 come in",
    ),
    "nothing kept in the middle": (stages({}, {}), "stage 0: has no keep_items"),
    "zero engines": (
        stages({"engines": 0}),
        "stage 0: engines is 0; expected a whole number of at least 1",
    ),
    "zero engines in a pool": (
        stages({"pool": "a"}, pools={"a": {"engines": 0}}),
        "pool 'a': engines is 0",
    ),
    "unknown pool": (stages({"pool": "b"}, pools={"a": {}}), "pool 'b' is not under 'pools' (a)"),
    "pool and engines": (stages({"pool": "a", "engines": 1}, pools={"a": {}}), "give one"),
    "unused pool": (stages({}, pools={"a": {}}), "pool 'a' serves no stage"),
    "reserved pool": (
        stages({"pool": "accel"}, pools={"accel": {}}),
        "a name that is given to others",
    ),
    "the shared cores' pool": (
        stages({"pool": "cpu"}, pools={"cpu": {}}),
        "a name that is given to others",
    ),
    "a stage's own pool": (
        stages({"pool": "stage1"}, pools={"stage1": {}}),
        "a name that is given to others",
    ),
    "a list of pools": (
        stages({"pool": ["a"]}, pools={"a": {}}),
        "pool ['a'] is not under 'pools'",
    ),
    "a date that is none": ("a: 2020-13-45", "not readable as YAML"),
    "two engines on cuda": (stages({"engines": 2, "device": "cuda"}), "a CUDA device has one"),
    "missing checkpoint": (stages({"checkpoint": "none.npz"}), "stage 0: checkpoint:"),
    "missing queries": (stages({}, queries="none.npz"), "queries:"),
    "unknown model": ({"stages": [{"model": "rm9"}]}, "model 'rm9' is none of"),
    "no model": ({"stages": [{"keep_items": 3}]}, "stage 0: needs 'model'"),
    "bad setting": (stages({"settings": {"table_scale": 2}}), "table_scale is 2"),
    "unknown setting": (stages({"settings": {"tables": 2}}), "settings: unknown key 'tables'"),
    "text for a number": (stages({"keep_items": "many"}), "keep_items is 'many'"),
    "true for a number": (stages({"keep_items": True}), "keep_items is True"),
    "batch of none": (stages({"batch_items": 0}), "batch_items is 0"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_told_in_one_line(write, name):
    document, expected = BAD[name]
    with pytest.raises(ConfigError) as caught:
        read_pipeline(write(document), 1)
    assert caught.value.flag == "pipeline"
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        read_pipeline(str(tmp_path / "none.yaml"), 1)


def arrays(**changed):
    arrays = {
        "ids": np.zeros((2, 3, 4), np.int32),
        "dense": np.zeros((2, 3, 5), np.float32),
        "labels": np.array([[1, 0, 0], [0, 1, 0]], np.float32),
        "n_items": np.array([3, 2], np.int32),
    }
    return {**arrays, **changed}


def test_queries_give_the_quality_of_lists(tmp_path):
    np.savez(tmp_path / "q.npz", **arrays())
    queries = read_queries(str(tmp_path / "q.npz"))
    quality = queries.quality({0: np.array([0, 1], np.int32), 1: np.array([0, 1], np.int32)}, 2)
    assert quality["ndcg"].value == pytest.approx((1 + 1 / np.log2(3)) / 2)
    assert quality["mrr"].value == pytest.approx(0.75)
    assert quality["hit_rate"].value == 1
    assert (
        quality["ndcg_released"].value < quality["ndcg"].value
    )  # two clicks are assumed where there is one


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"labels": np.full((2, 3), 0.5, np.float32)}, "neither 0 nor 1"),
        ({"n_items": np.array([3, 4], np.int32)}, "queries have 3 to 4 items of 3"),
        ({"n_items": np.array([3], np.int32)}, "do not belong to the same queries"),
        ({"ids": np.full((2, 3, 4), -1, np.int32)}, "an id is negative"),
        ({"ids": np.full((2, 3, 4), 2**32 + 1)}, "an id is 4294967297"),
        ({"ids": np.full((2, 3, 4), 0.7)}, "ids is float64; expected whole numbers"),
        ({"labels": np.full((2, 3), "no")}, "expected numbers"),
        ({"dense": np.zeros((2, 3), np.float32)}, "dense has 2 axes; expected 3"),
    ],
)
def test_bad_queries_are_told_in_one_line(tmp_path, changed, expected):
    file = tmp_path / "q.npz"
    np.savez(file, **arrays(**changed))
    with pytest.raises(ConfigError, match=expected):
        read_queries(str(file))


@pytest.mark.parametrize("content", [b"no archive", b""])
def test_what_is_no_archive_is_told(tmp_path, content):
    (tmp_path / "q.npz").write_bytes(content)
    with pytest.raises(ConfigError, match="expected an"):
        read_queries(str(tmp_path / "q.npz"))


def test_one_array_is_no_archive(tmp_path):
    np.save(tmp_path / "q.npy", np.zeros(3))
    with pytest.raises(ConfigError, match="expected an"):
        read_queries(str(tmp_path / "q.npy"))


def test_another_pipeline_or_another_file_of_it_has_another_fingerprint(write, tmp_path):
    np.savez(tmp_path / "q.npz", **arrays())
    document = stages({"keep_items": 2}, queries="q.npz")
    known = read_pipeline(write(document), 1).fingerprint()
    assert read_pipeline(write(document), 1).fingerprint() == known
    assert (
        read_pipeline(write(stages({"keep_items": 1}, queries="q.npz")), 1).fingerprint() != known
    )
    np.savez(tmp_path / "q.npz", **arrays(n_items=np.array([3, 3], np.int32)))
    assert read_pipeline(write(document), 1).fingerprint() != known
