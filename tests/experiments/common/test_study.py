"""The study kit keeps rows by what made them, and goes on after whatever may happen."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from helpers import ROOT

from experiments.common.case_log import CaseLog, digest_of, frame_of, plain, row_of
from tests.experiments.common import toy_study
from tests.experiments.common.toy_study import STUDY, ToyCase

CASE = ToyCase("wnd", 1, 1.0, "none", "")


def start(tmp_path, *words):
    """The toy study in a process of its own."""
    command = [sys.executable, toy_study.__file__, "--out", tmp_path / "out", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True
    )


def command(tmp_path, *words):
    return STUDY.command(["--out", str(tmp_path / "out"), *map(str, words)])


def computed(folder):
    return sorted(path.stem for path in folder.iterdir())


@pytest.fixture
def traces(tmp_path):
    folder = tmp_path / "traces"
    folder.mkdir()
    return folder


def test_the_digest_is_that_of_all_that_makes_a_row():
    seeded = dataclasses.make_dataclass("Seeded", [("model", str), ("seed", int)], frozen=True)
    named = dataclasses.make_dataclass("Named", [("model", str), ("seed", int)], frozen=True)
    nested = dataclasses.make_dataclass("Nested", [("inner", object)], frozen=True)
    digests = [
        digest_of("study", 1, seeded("wnd", 1)),
        digest_of("study", 1, seeded("ncf", 1)),
        digest_of("study", 1, seeded("wnd", 2)),
        digest_of("study", 2, seeded("wnd", 1)),
        digest_of("studies", 1, seeded("wnd", 1)),
        digest_of("study", 1, named("wnd", 1)),
        digest_of("study", 1, nested(seeded("wnd", 1))),
        digest_of("study", 1, nested(seeded("wnd", 2))),
    ]
    assert len(set(digests)) == len(digests)
    assert digest_of("study", 1, seeded("wnd", 1)) == digests[0]


def test_a_live_object_is_no_part_of_a_case():
    with pytest.raises(TypeError, match="plain values"):
        plain({"file": sys.stdout})


def test_a_record_within_a_row_adds_its_columns():
    inner = dataclasses.make_dataclass("Inner", ["p50_ms", "p95_ms"])
    outer = dataclasses.make_dataclass("Outer", ["model", "tails", "last"])
    columns = {"model": "wnd", "p50_ms": 1, "p95_ms": 2, "last": None}
    assert row_of(outer("wnd", inner(1, 2), None)) == columns
    assert list(row_of(outer("wnd", inner(1, 2), None))) == list(columns)
    assert row_of(columns) == columns


def test_rows_of_another_setting_are_never_taken(tmp_path, traces):
    assert command(tmp_path, "--quick", "--folder", traces) == 0
    n_first = len(computed(traces))
    first = pd.read_csv(tmp_path / "out/squares.csv")
    assert command(tmp_path, "--quick", "--folder", traces, "--scale", "2") == 0
    assert len(computed(traces)) == 2 * n_first
    second = pd.read_csv(tmp_path / "out/squares.csv")
    assert (second["square"] == 2 * first["square"]).all()
    assert command(tmp_path, "--quick", "--folder", traces) == 0  # all there
    assert len(computed(traces)) == 2 * n_first
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "out/squares.csv"), first)


def test_another_version_of_the_function_computes_again(tmp_path, traces):
    words = ["--out", str(tmp_path / "out"), "--quick", "--folder", str(traces), "--jobs", "1"]
    assert STUDY.command(words) == 0
    assert dataclasses.replace(STUDY, version=2).command(words) == 0
    assert (tmp_path / "out/toy.cases.jsonl").read_text().count("\n") == 8


def test_a_failing_case_is_told_and_the_others_go_on(tmp_path, capsys):
    assert command(tmp_path, "--event", "fail", "--jobs", "2") == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if "RuntimeError" in line]
    assert len(lines) == 2  # wnd's and ncf's
    assert "model=wnd, number=3" in "".join(lines)
    assert "three is not a number" in lines[0]
    assert "Traceback" in (tmp_path / "out/toy.failures.log").read_text()
    assert pd.read_csv(tmp_path / "out/squares.csv")["number"].tolist() == [0, 1, 2, 4] * 2


def test_a_case_whose_process_is_killed_is_a_failed_case(tmp_path, capsys):
    assert command(tmp_path, "--event", "kill", "--jobs", "2") == 1
    assert "number=3" in capsys.readouterr().err


@pytest.mark.parametrize("jobs", [1, 2])
def test_after_a_kill_in_mid_case_only_what_is_missing_is_computed(tmp_path, traces, jobs):
    words = ["--models", "wnd", "--folder", str(traces), "--jobs", str(jobs)]
    process = start(tmp_path, *words, "--event", "wait")
    wait_for(lambda: {"wnd0", "wnd1", "wnd2", "wnd3"} <= set(computed(traces)))
    log = tmp_path / "out/toy.cases.jsonl"
    wait_for(lambda: log.read_text().count("\n") == 3)
    process.kill()
    process.wait()
    process.stderr.close()
    wait_for(lambda: not any(alive(path) for path in traces.iterdir()))
    for path in traces.iterdir():
        path.unlink()
    line = log.read_text().splitlines()[0]
    log.write_text(log.read_text() + line[: len(line) // 2])  # and in mid-write
    with CaseLog(log) as entries:
        assert len(entries.finished) == 3
    assert command(tmp_path, *words, "--event", "wait", "--only", "number=0,number=1") == 0
    assert computed(traces) == []
    assert pd.read_csv(tmp_path / "out/squares.csv")["number"].tolist() == [0, 1]


def wait_for(condition):
    while not condition():
        time.sleep(0.01)


def alive(path):
    return Path(f"/proc/{path.suffix[1:]}").exists()


@pytest.mark.parametrize(
    ("jobs", "number"), [(1, signal.SIGINT), (2, signal.SIGINT), (2, signal.SIGTERM)]
)
def test_an_interruption_keeps_what_is_done_and_ends_the_children(tmp_path, traces, jobs, number):
    words = ["--models", "wnd", "--folder", str(traces), "--jobs", str(jobs), "--event", "wait"]
    process = start(tmp_path, *words)
    wait_for(lambda: "wnd3" in computed(traces))
    wait_for(lambda: (tmp_path / "out/toy.cases.jsonl").read_text().count("\n") == 3)
    process.send_signal(number)
    errors = process.communicate()[1]
    assert process.returncode == 128 + number
    assert errors.count("\n") == 1
    assert "3 of 5 cases done" in errors
    assert not any(alive(path) for path in traces.iterdir())
    assert pd.read_csv(tmp_path / "out/squares.csv")["number"].tolist() == [0, 1, 2]


def test_a_signal_that_somebody_else_has_handled_ends_the_study(tmp_path, capsys):
    def session(_case):
        handler = signal.signal(signal.SIGTERM, lambda *_: None)
        os.kill(os.getpid(), signal.SIGTERM)
        signal.signal(signal.SIGTERM, handler)
        return {"squares": []}

    study = dataclasses.replace(STUDY, run=session, parallel=False)
    assert study.command(["--out", str(tmp_path / "out"), "--quick"]) == 128 + signal.SIGTERM
    assert "0 of 4 cases done" in capsys.readouterr().err


def test_parallel_cases_give_the_bytes_of_serial_ones(tmp_path):
    words = ["--scale", "1.37"]
    assert STUDY.command(["--out", str(tmp_path / "one"), "--jobs", "1", *words]) == 0
    assert STUDY.command(["--out", str(tmp_path / "three"), "--jobs", "3", *words]) == 0
    for name in ("squares.csv", "halves.csv", "means.csv"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "three" / name).read_bytes()


def test_only_takes_cases_by_their_fields(tmp_path):
    assert command(tmp_path, "--only", "model=ncf,number=1,number=4") == 0
    rows = pd.read_csv(tmp_path / "out/squares.csv")
    assert rows[["model", "number"]].to_numpy().tolist() == [["ncf", 1], ["ncf", 4]]
    assert not (tmp_path / "out/no_such_table.csv").exists()


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--only", "colour=red"], "'colour'; expected model, number"),
        (["--only", "model=rm1"], "no model is rm1: ncf, wnd"),
        (["--only", "model"], "expected FIELD=VALUE"),
        (["--publish", "--quick"], "--publish"),
        (["--publish", "--only", "model=wnd"], "--publish"),
        (["--plot", "nowhere"], "no rows of toy"),
    ],
)
def test_what_cannot_be_is_one_line(tmp_path, capsys, words, part):
    assert command(tmp_path, *words) == 2
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    assert part in errors
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--nix"], "unknown flag --nix"),
        (["--models", "wnd,nix"], "nix: not among wnd, ncf"),
        (["--scale", "0.1"], "at least 0.5"),
        (["--scale", "much"], "much"),
        (["--event", "nix"], "expected one of none, fail"),
        (["--effort", "nix"], "nix"),
        (["--jobs", "0"], "--jobs"),
    ],
)
def test_a_bad_flag_is_one_line(tmp_path, capsys, words, part):
    with pytest.raises(SystemExit) as end:
        command(tmp_path, *words)
    assert end.value.code == 2
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    assert part in errors
    assert not (tmp_path / "out").exists()


def test_list_prints_the_cases_and_runs_nothing(tmp_path, capsys):
    assert command(tmp_path, "--only", "model=wnd,number=0") == 0
    capsys.readouterr()
    assert command(tmp_path, "--list", "--quick") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert "model=wnd, number=0" in lines[0]
    assert lines[0].endswith("(done)")
    assert not any(line.endswith("(done)") for line in lines[1:])


def test_publish_copies_rows_and_figures_beside_the_study(tmp_path):
    (tmp_path / "study").mkdir()
    study = tmp_path / "study/run.py"
    study.write_text(Path(toy_study.__file__).read_text())
    words = [sys.executable, str(study), "--out", str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([*words, "--quick"], env=environment, check=True, capture_output=True)
    assert not (tmp_path / "study/data").exists()
    subprocess.run([*words, "--publish"], env=environment, check=True, capture_output=True)
    published = sorted(path.name for path in (tmp_path / "study/data").iterdir())
    assert published == ["halves.csv", "means.csv", "squares.csv", "squares.png", "toy.json"]


def test_rows_go_to_a_new_folder_unless_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert STUDY.command(["--quick"]) == 0
    (folder,) = tmp_path.glob("results/toy-*")
    assert (folder / "squares.csv").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["results"]


def test_figures_are_drawn_again_from_the_rows(tmp_path, capsys):
    assert command(tmp_path, "--quick") == 0
    output = capsys.readouterr()
    assert "warning: not shown: bad" in output.err  # and the rest is there
    assert "Means" in output.out
    (tmp_path / "out/squares.png").unlink()
    log = (tmp_path / "out/toy.cases.jsonl").read_bytes()
    assert STUDY.command(["--plot", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out/squares.png").stat().st_size > 1000
    assert (tmp_path / "out/toy.cases.jsonl").read_bytes() == log


def test_a_complaint_about_the_rows_is_exit_code_one(tmp_path, capsys):
    assert command(tmp_path, "--scale", "100") == 1
    assert "1600 is too large" in capsys.readouterr().err


def test_a_timed_study_runs_its_cases_alone(tmp_path, traces, capsys):
    study = dataclasses.replace(STUDY, parallel=False)
    words = ["--out", str(tmp_path / "out"), "--quick", "--jobs", "3", "--folder", str(traces)]
    assert study.command(words) == 0
    assert "alone" in capsys.readouterr().err
    assert {path.suffix[1:] for path in traces.iterdir()} == {str(os.getpid())}


def test_two_runs_do_not_write_into_the_same_folder(tmp_path, traces):
    process = start(tmp_path, "--models", "wnd", "--folder", str(traces), "--event", "wait")
    wait_for(lambda: "wnd3" in computed(traces))
    second = start(tmp_path, "--models", "wnd")
    assert "another run" in second.communicate()[1]
    assert second.returncode == 2
    process.terminate()
    process.communicate()


def test_whole_numbers_stay_whole_where_some_are_missing():
    table = frame_of([{"n": 1234567, "x": 1.0}, {"n": None, "x": 2.5}, {"x": None}])
    assert table.to_csv(index=False, float_format="%.3g") == "n,x\n1234567,1\n,2.5\n,\n"


def test_the_kit_is_imported_without_torch():
    code = "import sys, experiments.common.study; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
