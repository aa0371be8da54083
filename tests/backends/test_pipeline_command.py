"""`--pipeline FILE` as its users start it: measuring and tuning, on engines and in virtual time."""

import json

import numpy as np
import pandas as pd
import pytest
import yaml
from helpers import run_script

from infra.results import run_folder

pytestmark = pytest.mark.alone
MODEL = {
    "model_type": "dlrm",
    "arch_embedding_size": "50-60",
    "arch_sparse_feature_size": 4,
    "arch_mlp_bot": "5-4",
    "arch_mlp_top": "8-1",
    "num_indices_per_lookup": 1,
    "num_indices_per_lookup_fixed": True,
}
WORDS = [
    "--queue",
    "--pipeline",
    "two.yaml",
    "--arrival_qps",
    "200",
    "--target_latency",
    "200",
    "--log_file",
    "",
    "--inference_engines",
    "2",
    "--sub_task_batch_size",
    "32",
]


@pytest.fixture
def folder(tmp_path):
    for name, width in (("small", 2), ("large", 8)):
        sized = {**MODEL, "arch_sparse_feature_size": width, "arch_mlp_bot": f"5-{width}"}
        (tmp_path / f"{name}.json").write_text(json.dumps(sized))
    rng = np.random.default_rng(5)
    np.savez(
        tmp_path / "queries.npz",
        ids=rng.integers(0, 50, (8, 96, 2), dtype=np.int32),
        dense=rng.random((8, 96, 5), dtype=np.float32),
        labels=rng.random((8, 96)) < 0.2,
        n_items=np.full(8, 96),
    )
    write(tmp_path, {"keep_items": 24}, {"keep_items": 6})
    return tmp_path


def write(folder, first, second):
    stages = [{"model": "small.json", **first}, {"model": "large.json", **second}]
    (folder / "two.yaml").write_text(yaml.safe_dump({"queries": "queries.npz", "stages": stages}))


def test_a_measuring_run_tells_where_the_time_went_and_how_good_the_answers_are(folder):
    done = run_script("DeepRecSys.py", *WORDS, "--nepochs", "15", cwd=folder)
    assert done.returncode == 0, done.stderr
    (saved,) = run_folder.find(folder / "results")
    files = {file.name for file in saved.folder.iterdir()}
    assert sorted(files - {"rate_curve.png"}) == [  # a run so short may not tell it
        "answers.parquet",
        "disturbance.parquet",
        "disturbance.png",
        "latency.png",
        "queries.parquet",
        "run.json",
        "stages.parquet",
        "stages.png",
        "tasks.parquet",
    ]
    answers = pd.read_parquet(saved.folder / "answers.parquet")
    assert answers.groupby("query_id").size().tolist() == [6] * 120
    assert pd.read_parquet(saved.folder / "stages.parquet").groupby("stage").size().tolist() == [
        120,
        120,
    ]
    quality = saved.document["quality"]
    labels = np.load(folder / "queries.npz")["labels"]
    by_input = answers.merge(saved.rows().queries[["query_id", "input_id"]]).drop_duplicates(
        ["input_id", "place"]
    )
    hits = (
        by_input.assign(hit=labels[by_input["input_id"], by_input["item"]])
        .groupby("input_id")["hit"]
        .any()
    )
    assert quality["hit_rate"]["value"] == pytest.approx(hits.mean())
    assert saved.document["pipeline"]["stages"][0]["keep_items"] == 24
    assert "Time by stage" in done.stdout
    assert "ndcg@6: " in done.stdout
    assert "ndcg_released@6 (assumes as many clicks as places)" in done.stdout


def test_a_run_is_run_again_from_its_file_with_the_same_answers(folder):
    run_script("DeepRecSys.py", *WORDS, "--nepochs", "5", cwd=folder)
    (first,) = run_folder.find(folder / "results")
    again = run_script(
        "DeepRecSys.py",
        "--config_file",
        str(first.folder / "run.json"),
        "--results_dir",
        "second",
        cwd=folder,
    )
    assert again.returncode == 0, again.stderr
    (second,) = run_folder.find(folder / "second")
    tables = [pd.read_parquet(run.folder / "answers.parquet") for run in (first, second)]
    pd.testing.assert_frame_equal(*tables)


VIRTUAL = [
    "--backend",
    "simulated",
    "--service_law",
    "lognormal",
    "--service_mean_ms",
    "0.5",
    "--nepochs",
    "250",
]


@pytest.mark.parametrize("words", [VIRTUAL, ["--nepochs", "15"]])
def test_tuning_finds_the_rate_and_the_batch_of_a_pipeline(folder, words):
    done = run_script(
        "DeepRecSys.py",
        *WORDS,
        *words,
        "--tune_batch_qps",
        "--batch_configs",
        "16-96",
        "--rate_width",
        "0.5",
        "--probe_queries",
        "80",
        "--target_latency",
        "60",
        "--confidence",
        "0.9",
        cwd=folder,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    (saved,) = run_folder.find(folder / "results")
    phases = saved.document["tuning"]
    assert [phase["name"] for phase in phases] == ["static", "tuned CPU"]
    assert phases[1]["rate_qps"] > 0
    assert phases[1]["batch_items"] in (
        16,
        48,
        96,
    )  # 48: the baseline, half a query for each engine
    tasks = saved.rows().tasks
    assert set(tasks["stage"]) == {0, 1}
    assert tasks["n_items"].max() <= phases[1]["batch_items"]


@pytest.mark.parametrize(
    ("first", "expected"),
    [
        ({"keep_itms": 3}, "unknown key 'keep_itms'"),
        ({"keep_items": 24, "engines": 0}, "engines is 0"),
        ({"keep_items": 24, "checkpoint": "none.npz"}, "none.npz: no such file"),
        ({"keep_items": 24, "checkpoint": "queries.npz"}, "not a checkpoint of small"),
        ({"keep_items": 24, "items": 10}, "keep_items is 24, but only 10 come in"),
        ({"keep_items": 24, "model": "rm1"}, "rm1: reads"),
    ],
)
def test_a_bad_pipeline_is_one_line_and_exit_code_2(folder, first, expected):
    write(folder, first, {"keep_items": 6})
    done = run_script("DeepRecSys.py", *WORDS, cwd=folder)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("DeepRecSys.py: --pipeline ")
    assert expected in done.stderr
    assert not (folder / "results").exists() or not any((folder / "results").iterdir())


def test_a_search_does_not_go_on_over_another_pipeline(folder):
    words = [*WORDS, *VIRTUAL, "--tune_batch_qps", "--scheduler", "static", "--rate_width", "0.5"]
    done = run_script("DeepRecSys.py", *words, cwd=folder)
    assert done.returncode == 0, done.stderr
    (saved,) = run_folder.find(folder / "results")
    again = run_script("DeepRecSys.py", "--resume", saved.folder.name, cwd=folder)
    assert again.returncode == 0, again.stderr
    write(folder, {"keep_items": 90}, {"keep_items": 6})
    other = run_script("DeepRecSys.py", "--resume", saved.folder.name, cwd=folder)
    assert other.returncode == 2
    assert "a search over another pipeline" in other.stderr
    assert other.stderr.count("\n") == 1
