"""What is said before the load."""

import os
import subprocess
import sys

import pytest

from backends.processes import quiet_check as checking
from backends.processes.quiet_check import cpu_times, quiet_check, warning

SECOND = 1_000_000_000


def test_the_busiest_process_is_named_with_what_to_do():
    before = {1: 5 * SECOND, os.getpid(): 0}
    after = {1: 5 * SECOND, os.getpid(): SECOND, 2: SECOND // 10}
    line = warning(0.71, 2.0, before, after)
    name = checking.name_of(os.getpid())
    assert f"71% of the cores (most of all {name}, process {os.getpid()}: 50% of a core)" in line
    assert "end them, or measure later" in line
    assert "\n" not in line


def test_a_program_that_cannot_be_seen_is_said_to_be_so():
    assert "(none that can be seen from here)" in warning(0.5, 1.0, {}, {})
    assert checking.name_of(1_000_000_000) == "a program that has ended"


def test_this_process_and_its_engines_are_no_others():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert child.pid in cpu_times([])
    assert not {child.pid, os.getpid()} & set(cpu_times([child.pid]))
    child.communicate(b"\n")


def test_a_quiet_machine_is_passed_over_in_silence(monkeypatch):
    monkeypatch.setattr(checking.ForeignUse, "share", lambda _: 0.03)
    assert quiet_check(0.01, []) == ""


def test_it_can_be_switched_off(monkeypatch):
    monkeypatch.setattr(checking, "ForeignUse", None)
    assert quiet_check(0, []) == ""


@pytest.mark.alone
def test_a_busy_program_is_found_out():
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        line = quiet_check(0.5, [])
    finally:
        busy.kill()
        busy.wait()
    assert "other programs use " in line
