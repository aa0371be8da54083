"""The command line that profiles traces and generates them."""

from pathlib import Path

import numpy as np
import pytest

from models.inputs.__main__ import main
from models.inputs.stack_distance import (
    locality_of,
    read_locality,
    write_locality,
)
from models.inputs.zipf import draw_rows


def test_the_command_line_profiles_and_generates(tmp_path, capsys):
    trace, profile, out = (tmp_path / name for name in ("trace.txt", "sd.log", "new.txt"))
    ids = draw_rows(500, 1.0, 3000, np.random.default_rng(1))
    trace.write_text("\n".join(", ".join(map(str, row)) for row in ids.reshape(-1, 10)))
    shares = tmp_path / "shares.log"
    files = ["--sd_file_cumm", str(profile), "--sd_file", str(shares)]
    assert main(["profile", "--profile_trace_file", str(trace), *files]) == 0
    assert "3000 accesses" in capsys.readouterr().out
    assert (read_locality(profile).distance == locality_of(ids).distance).all()
    written = shares.read_text().splitlines()[2].split(",")
    assert sum(map(float, written)) == pytest.approx(1, abs=1e-9)
    sizes = "--table_size 600 --num_batches 4 --mini_batch_size 5 --pooling_factor 10".split()
    words = ["generate", "--sd_file_cumm", str(profile), "--trace_file", str(out), *sizes]
    assert main(words) == 0
    lines = out.read_text().splitlines()
    assert len(lines) == 20
    assert {len(line.split()) for line in lines} == {10}
    assert main([*words[:4], str(out.with_suffix(".npy")), *words[5:]]) == 0
    assert list(np.load(out.with_suffix(".npy"))) == [
        int(word) for line in lines for word in line.split()
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("id\n1\n", "line 1: 'id' is no id"),
        ("1 2\n3 -4\n", "line 2: '-4'"),
        ("1\n2.5\n", "line 2: '2.5'"),
        ("1\n18446744073709551615\n", "line 2: '18446744073709551615'"),
        ("1 \u0663\n", "line 1: '\u0663'"),
        ("1\nnan\n", "line 2: 'nan'"),
        (None, "no such file"),
    ],
)
def test_a_bad_trace_is_one_line_and_exit_code_2(text, message, tmp_path, capsys):
    trace = tmp_path / "trace.txt"
    if text is not None:
        trace.write_text(text)
    profile = str(tmp_path / "sd.log")
    assert main(["profile", "--profile_trace_file", str(trace), "--sd_file_cumm", profile]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not Path(tmp_path / "sd.log").exists()


def test_an_empty_or_fractional_array_is_one_line(tmp_path, capsys):
    for name, content in (("a.npy", b""), ("b.npy", np.array([0.5]))):
        if isinstance(content, bytes):
            (tmp_path / name).write_bytes(content)
        else:
            np.save(tmp_path / name, content)
        trace = str(tmp_path / name)
        profile = str(tmp_path / "sd.log")
        assert main(["profile", "--profile_trace_file", trace, "--sd_file_cumm", profile]) == 2
        assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--table_size", "0"], "table_size is 0"),
        (["--table_size", "3"], "id 7 is outside of its table of 3 rows"),
    ],
)
def test_generating_refuses_tables_that_do_not_fit(words, message, tmp_path, capsys):
    write_locality(tmp_path / "sd.log", locality_of([7, 7, 2]))
    out = tmp_path / "out.txt"
    files = ["--sd_file_cumm", str(tmp_path / "sd.log"), "--trace_file", str(out)]
    assert main(["generate", *files, *words]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()
