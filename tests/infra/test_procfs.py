"""Texts of /proc as kernels write them, and this very process."""

import os
import subprocess
import sys
import time

import pytest

from infra import procfs
from infra.procfs import MachineReader, ProcessReader, ProcFile

STAT = """cpu  30 0 0 300 6 0 0 9 0 0
cpu0 10 0 0 100 2 0 0 4 0 0
cpu1 20 0 0 200 4 0 0 5 0 0
intr 12345 0 1
"""


def test_the_run_delay_is_the_second_number():
    assert procfs.parse_schedstat("240832 1613635 2\n") == 1_613_635
    assert procfs.parse_schedstat("") == 0


def test_a_name_in_brackets_may_hold_anything():
    rest = "1 1 1 0 -1 4194560 300 0 17 0 5 6 0 0 20 0 1 0"
    assert procfs.parse_stat(f"42 (a b) R (c) T {rest}") == ("T", 17)
    assert procfs.parse_stat("") == ("?", 0)


def test_only_the_usable_cores_count():
    tick_ns = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
    assert procfs.parse_cores(STAT, [0]) == (102 * tick_ns, 4 * tick_ns)
    assert procfs.parse_cores(STAT, [0, 1]) == (306 * tick_ns, 9 * tick_ns)


@pytest.mark.parametrize(
    ("text", "expected_ns"),
    [
        ("usage_usec 7\nnr_throttled 2\nthrottled_usec 1500\n", 1_500_000),
        ("nr_periods 0\nnr_throttled 2\nthrottled_time 1500\n", 1500),
        ("nr_periods 0\n", 0),
        ("", 0),
    ],
)
def test_both_versions_of_a_control_group_say_how_long_it_was_throttled(text, expected_ns):
    assert procfs.parse_throttled(text) == expected_ns


@pytest.mark.parametrize(
    ("groups", "path"),
    [
        ("0::/a/b\n", "a/b"),
        ("0::/elsewhere\n", ""),  # in a container: what is outside cannot be seen
        ("4:memory:/m\n3:cpu,cpuacct:/job\n0::/\n", "cpu,cpuacct/job"),
        ("4:memory:/m\n3:cpu,cpuacct:/elsewhere\n", "cpu,cpuacct"),
    ],
)
def test_the_limit_of_this_process_is_where_its_control_group_is(tmp_path, groups, path):
    (tmp_path / path).mkdir(parents=True, exist_ok=True)
    (tmp_path / path / "cpu.stat").touch()
    assert procfs.limit_file(groups, tmp_path) == tmp_path / path / "cpu.stat"


def test_without_a_limit_there_is_no_file(tmp_path):
    assert procfs.limit_file("0::/\n1:memory:/\n", tmp_path) is None


def test_a_file_that_is_gone_reads_as_nothing(tmp_path):
    file = ProcFile(tmp_path / "missing")
    assert file.text() == ""
    file.close()
    assert ProcFile(None).text() == ""


def test_a_process_is_read_until_it_is_gone():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    reader = ProcessReader(child.pid)
    times = reader.times()
    assert times.pid == child.pid
    assert not times.is_stopped
    child.communicate(b"\n")
    assert reader.times() is None
    reader.close()


def test_cpu_time_of_this_process_and_of_children_that_have_ended_is_ours():
    before_ns = procfs.our_cpu_ns([])
    spin = "import time\nwhile time.process_time() < 0.2: pass"
    subprocess.run([sys.executable, "-c", spin], check=True)
    end_ns = time.process_time_ns() + 100_000_000
    while time.process_time_ns() < end_ns:
        pass
    assert procfs.our_cpu_ns([]) - before_ns >= 290_000_000
    assert procfs.our_cpu_ns([os.getpid()]) > procfs.our_cpu_ns([])  # asked for, it counts twice


def test_the_cores_in_use_are_those_that_are_not_idle():
    reader = MachineReader()
    before = reader.times()
    end_ns = time.process_time_ns() + 300_000_000
    while time.process_time_ns() < end_ns:
        pass
    busy_ns = reader.times().busy_ns - before.busy_ns
    reader.close()
    assert busy_ns >= 250_000_000  # to two ticks of each core
