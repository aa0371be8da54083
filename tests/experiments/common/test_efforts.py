"""Efforts that are lists of cases, flags from the fields of a case, and other files of a study."""

from dataclasses import dataclass

import pytest

from experiments.common.study import Study, flags_of, of_models, out_folder
from infra.settings.fields import flag


@dataclass(frozen=True)
class PoemCase:
    """A poem of some lines."""

    model: str
    title: str
    n_lines: int = flag(1, "lines", low=1)
    feet: tuple[int, ...] = flag((5,), "feet of the lines")
    shout: bool = flag(False, "louder")


def write(case):
    """A file of the poem, and a row about it."""
    (out_folder() / "poems").mkdir(exist_ok=True)
    line = case.model.upper() if case.shout else case.model
    (out_folder() / "poems" / f"{case.model}.txt").write_text(f"{line}\n" * case.n_lines)
    return {"poems": [{"model": case.model, "feet": sum(case.feet)}]}


EFFORTS = {
    "quick": [PoemCase("oak", "Quick")],
    "full": [PoemCase("oak", "Full", 2), PoemCase("elm", "Full", 2)],
}
OPTIONS = flags_of(PoemCase, ("rose", "oak", "elm"))
STUDY = Study("poem", "What grows?", of_models, write, EFFORTS, OPTIONS, other_files="poems/*.txt")


def test_other_files_are_published_in_their_folder(monkeypatch, tmp_path):
    monkeypatch.setattr("inspect.getfile", lambda _: str(tmp_path / "study" / "run.py"))
    out = tmp_path / "out"
    assert STUDY.command(["--out", str(out), "--publish"]) == 0
    for folder in (out, tmp_path / "study" / "data"):
        assert (folder / "poems" / "oak.txt").read_text() == "oak\noak\n"
        assert (folder / "poems" / "elm.txt").is_file()
        assert (folder / "poems.csv").read_text() == "model,feet\noak,5\nelm,5\n"


def test_options_count_where_they_are_given(tmp_path):
    assert of_models(EFFORTS["full"], OPTIONS()) == EFFORTS["full"]
    words = "--models rose,elm --n_lines 7 --feet 2,3 --shout"
    assert STUDY.command(["--out", str(tmp_path), *words.split()]) == 0
    assert (tmp_path / "poems" / "elm.txt").read_text() == "ELM\n" * 7
    chosen = of_models(EFFORTS["full"], OPTIONS(("rose",), 7, (2, 3), True))
    assert chosen == [PoemCase("rose", "Full", 7, (2, 3), True)]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("--models oak,fir", "--models fir: not among rose, oak, elm"),
        ("--feet 1,x", "--feet: '1,x'; expected whole numbers like 1,8,64"),
        ("--n_lines 0", "--n_lines is 0; expected at least 1"),
    ],
)
def test_wrong_flags_are_refused_in_one_line(words, why, capsys):
    with pytest.raises(SystemExit):
        STUDY.command(words.split())
    message = capsys.readouterr().err
    assert why in message
    assert message.count("\n") == 1
