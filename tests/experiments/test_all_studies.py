"""What holds for all studies on the kit: names, questions, and cases that can be listed."""

import importlib
import os
import subprocess
import sys

import pytest
from helpers import ROOT, run_script

FILES = [
    path.relative_to(ROOT)
    for path in sorted((ROOT / "experiments").rglob("*.py"))
    if "\nSTUDY = Study(" in path.read_text()
]


def study_of(path):
    return importlib.import_module(".".join(path.with_suffix("").parts)).STUDY


def test_no_two_studies_have_the_same_name():
    names = [study_of(path).name for path in FILES]
    assert len(set(names)) == len(names) >= 9


@pytest.mark.parametrize("effort", ["quick", "full"])
@pytest.mark.parametrize("path", FILES, ids=str)
def test_a_study_lists_its_cases_and_writes_nothing(path, effort, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert study_of(path).command(["--list", "--effort", effort]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len({line.split()[0] for line in lines}) == len(lines) > 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", FILES, ids=str)
def test_a_study_leaves_the_search_path_as_it_is(path):
    assert "sys.path" not in (ROOT / path).read_text()


def test_a_study_starts_as_a_module_and_as_a_file(tmp_path):
    words = "-m experiments.released_at_scale.run --list --quick"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *words.split()]
    module = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    script = run_script("experiments/released_at_scale/run.py", *words.split()[2:], cwd=tmp_path)
    assert script.stdout == module.stdout
    assert script.stdout.count("\n") == 6
