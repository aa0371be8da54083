"""What holds for all studies on the kit: names, questions, and cases that can be listed."""

import importlib

import pytest
from helpers import ROOT

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
