"""build/env.sh, with an interpreter that notes what it is asked for instead of installing."""

import os
import shutil
import subprocess

import pytest
from helpers import ROOT

INTERPRETER = """#!/bin/bash
echo "$*" >>"{notes}"
if [[ $1 == -m && $2 == venv ]]; then
    mkdir -p "$3/bin" "$3/lib/python3.11/site-packages"
    cp "$0" "$3/bin/python"
fi
{ending}
"""


@pytest.fixture
def project(tmp_path):
    """A project that has build/ only, with its interpreter in `python`."""
    shutil.copytree(ROOT / "build", tmp_path / "project" / "build")
    write_interpreter(tmp_path)
    return tmp_path / "project"


def write_interpreter(folder, ending=""):
    file = folder / "python"
    file.write_text(INTERPRETER.format(notes=folder / "notes", ending=ending))
    file.chmod(0o755)


def set_up(project, command='echo "$PATH"; echo "$PYTHONPATH"', cwd="/", **variables):
    done = subprocess.run(
        ["bash", "-euc", f'source "{project}/build/env.sh"; {command}'],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env={
            "PATH": os.environ["PATH"],
            "PYTHON": str(project.parent / "python"),
            "PYTHONPATH": "/elsewhere",
            **variables,
        },
    )
    notes = project.parent / "notes"
    asked = notes.read_text().splitlines() if notes.exists() else []
    notes.unlink(missing_ok=True)
    return done, [line.split()[-1] for line in asked if "pip install" in line]


def test_a_fresh_machine_gets_what_a_run_needs_once(project):
    done, installed = set_up(project)
    assert installed == [f"{project}/build/pip_requirements.txt"]
    path, python_path = done.stdout.splitlines()
    assert path.startswith(f"{project}/.venv/bin:")
    assert python_path == f"{project}:/elsewhere"
    assert set_up(project)[1] == []


def test_tests_get_what_they_need_on_top(project):
    run, tests = (f"{project}/build/{name}_requirements.txt" for name in ("pip", "test"))
    assert set_up(project, DEEPRECSYS_TESTS="1")[1] == [run, tests]
    assert set_up(project, DEEPRECSYS_TESTS="1")[1] == []
    (project / "build/test_requirements.txt").write_text("pytest\n")
    assert set_up(project)[1] == []
    assert set_up(project, DEEPRECSYS_TESTS="1")[1] == [tests]


def test_the_project_can_be_imported_from_its_own_environment(project):
    set_up(project)
    (file,) = project.glob(".venv/lib/*/site-packages/deeprecsys.pth")
    assert file.read_text() == f"{project}\n"


def test_an_environment_elsewhere_belongs_to_no_tree(project, tmp_path):
    done, installed = set_up(project, DEEPRECSYS_VENV=str(tmp_path / "shared"))
    assert installed
    assert not list(tmp_path.rglob("deeprecsys.pth"))
    assert done.stdout.splitlines()[1] == f"{project}:/elsewhere"


def test_the_path_does_not_grow_with_every_source(project):
    twice = f'source "{project}/build/env.sh"; echo "$PYTHONPATH"'
    assert set_up(project, twice)[0].stdout == f"{project}:/elsewhere\n"


def test_an_error_of_pip_is_said_and_nothing_counts_as_installed(project):
    write_interpreter(project.parent, ending='[[ "$*" != *"pip install"* ]]')
    done, _ = set_up(project)
    assert done.returncode == 2
    assert "pip could not install" in done.stderr
    write_interpreter(project.parent)
    shutil.rmtree(project / ".venv")
    assert set_up(project)[1] != []


def test_an_interpreter_that_is_too_old_is_refused(project):
    write_interpreter(project.parent, ending="[[ $1 != -c ]]")
    done, installed = set_up(project)
    assert done.returncode == 2
    assert "older than Python 3.11" in done.stderr
    assert installed == []
