"""The tuner's command line."""

import json

import pytest
from helpers import run_script

from models.embedding import tuner
from models.embedding.plan.plan import from_json


def test_the_command_writes_a_plan_that_the_model_runs_on_and_remembers_it(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    flags = "--table_scale 0.001 --budget_s 2 --batch 1,16 --out p.json"
    words = ["--model", "ncf", *flags.split()]
    assert tuner.main(words) == 0
    plan = from_json((tmp_path / "p.json").read_text())
    assert plan.provenance["model"] == "ncf"
    assert [row["batch"] for row in plan.provenance["sizes"]] == [1, 16]
    assert "--again" not in capsys.readouterr().err
    assert tuner.main(words) == 0
    assert "--again searches anew" in capsys.readouterr().err
    assert json.loads((tmp_path / "p.json").read_text()) == json.loads(plan.to_json())
    flags = "--table_scale 0.001 --num_batches 1 --embedding_plan p.json".split()
    file = str(tuner.CONFIGS / "ncf.json")
    done = run_script("models/ncf.py", "--config_file", file, *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--model rm9", "'rm9' is neither a folder nor one of"),
        ("--model ncf --batch 0", "--batch needs"),
        ("--model .", "neither table_config.txt nor batches.parquet"),
        ("--model ncf --budget_s 0", "--budget_s more than 0"),
        ("--model . --x", "unknown flags --x"),
    ],
)
def test_what_cannot_be_tuned_is_said_in_one_line(words, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert tuner.main(words.split()) == 2
    text = capsys.readouterr().err
    assert message in text
    assert text.count("\n") == 1
