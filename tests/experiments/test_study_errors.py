"""The studies start from any folder, and say in one line what they do not know."""

import pytest
from helpers import run_script


@pytest.mark.parametrize(
    ("path", "words", "expected"),
    [
        ("operator_breakdown/sweep_p.py", "--models nix", "--models nix: not among"),
        ("speedup/sweep_rt.py", "--devices nix", "accel_device is 'nix'"),
        ("roofline/run.py", "--models nix", "--models nix: not among"),
        ("colocation/engines.py", "--profile nix", "accel_device is 'nix'"),
        ("colocation/pairs.py", "--models nix", "--models nix: not among"),
        ("colocation/two_models.py", "--pairs wnd+nix", "expected two different ones"),
        ("locality/look_ups.py", "--models nix", "--models nix: not among"),
        ("locality/hit_rates.py", "--n 20 --movielens nix", "no such file or folder"),
        ("load_generator/what_load_does.py", "--models nix", "--models nix: not among"),
    ],
)
def test_a_study_starts_from_any_folder_and_says_what_it_does_not_know(
    tmp_path, path, words, expected
):
    words = [*words.split(), "--out", str(tmp_path)]
    bad = run_script(f"experiments/{path}", *words, cwd=tmp_path)
    assert bad.returncode == 2
    assert expected in bad.stderr
    assert bad.stderr.count("\n") == 1
