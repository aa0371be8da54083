"""The GPU's look-up: its suite in Triton's interpreter (and on a GPU), its kernels for sm_90.

Needs Triton: pip install -r build/bench_requirements.txt
"""

import ast
import dataclasses
import hashlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
import torch

from models.embedding.gpu.codegen import cache_folder, load_kernel, source
from models.embedding.gpu.look_up import TritonBags
from models.embedding.gpu.schedules import Branch, combining, power_of_two
from models.embedding.plan.plan import Bucket, Group, params
from models.embedding.plan.spec import Layout, TableSpec, element_offsets

if importlib.util.find_spec("triton") is None:
    pytest.skip(
        "needs triton (pip install -r build/bench_requirements.txt)", allow_module_level=True
    )
ROOT = Path(__file__).resolve().parents[4]  # helpers needs SciPy, which a GPU machine may lack
SUITE = Path(__file__).with_name("triton_suite.py")
PYTEST = (sys.executable, "-m", "pytest", "-q")
TESTS = [
    node.name
    for node in ast.parse(SUITE.read_text()).body
    if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
]
GPU_ONLY = {
    "test_twenty_runs_give_the_same_bits",
    "test_rows_beyond_two_to_the_31_elements_are_found",
    "test_a_large_batch",
}


def compiling():
    """The environment in which Triton compiles and does not interpret."""
    return {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}


def run_suite(folder, **environment):
    """Outcomes of the suite's cases by test: (case, what went wrong, skipped)."""
    report = folder / "report.xml"
    done = subprocess.run(
        [*PYTEST, f"--junitxml={report}", f"--basetemp={folder / 'tmp'}", str(SUITE)],
        cwd=ROOT,
        env=compiling() | environment | {"TRITON_CACHE_DIR": str(folder / "triton")},
        capture_output=True,
        text=True,
        timeout=230,
        check=False,
    )
    assert report.is_file(), done.stdout + done.stderr
    outcomes = defaultdict(list)
    for case in ET.parse(report).iter("testcase"):  # noqa: S314 (our own pytest wrote it)
        wrong = "\n".join(part.text or "" for part in case if part.tag in {"failure", "error"})
        name = case.get("name", "")
        outcomes[name.split("[")[0]].append((name, wrong, case.find("skipped") is not None))
    return outcomes


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory):
    return run_suite(tmp_path_factory.mktemp("interpreted"), TRITON_INTERPRET="1")


@pytest.fixture(scope="module")
def on_gpu(tmp_path_factory):
    return run_suite(tmp_path_factory.mktemp("gpu"))


@pytest.mark.parametrize("test", [test for test in TESTS if test not in GPU_ONLY])
def test_in_the_interpreter(test, interpreted):
    assert interpreted[test]
    assert not "\n".join(wrong for _, wrong, _ in interpreted[test] if wrong)
    assert not any(skipped for _, _, skipped in interpreted[test])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("test", TESTS)
def test_on_the_gpu(test, on_gpu):
    assert on_gpu[test]
    assert not "\n".join(wrong for _, wrong, _ in on_gpu[test] if wrong)
    assert not any(skipped for _, _, skipped in on_gpu[test])


def branch(schedule, dim, tile_bags, tile_ids=1, lanes=0, parts=1, ids=0, align=4):
    lanes = min(lanes or power_of_two(dim), power_of_two(dim))
    return Branch(schedule, dim, ids, tile_bags, tile_ids, lanes, parts, 4, align)


COMPILED = {
    "gather": [branch("gather", 8, 64), branch("gather", 128, 4), branch("gather", 6, 64, align=2)],
    "fixed_length": [
        branch("fixed_length", 16, 32, 4, ids=10),
        branch("fixed_length", 200, 2, 8, lanes=64, ids=50),
    ],
    "bags": [
        branch("bags", 8, 64),
        branch("bags", 128, 1, 16),
        branch("bags", 1, 128, align=1),
        branch("bags", 3, 64),
    ],
    "split": [branch("split", 64, 1, 8, parts=8), branch("split", 4, 1, 64, parts=16)],
}
COMPILED["combine"] = [combining(split) for split in COMPILED["split"]]
COMPILED["all"] = [
    piece for name in ("gather", "fixed_length", "bags", "split") for piece in COMPILED[name]
]


COMPILE = """
import dataclasses, json, sys
from pathlib import Path
from models.embedding.gpu.schedules import Branch
from experiments.embedding.gpu_static import kernel_needs
needs_of = {}
for name, numbers, rows, indices in json.load(sys.stdin):
    branches = [Branch(*branch) for branch in numbers]
    needs = kernel_needs(
        branches, warps=4, rows=rows, indices=indices, cache=Path(sys.argv[1])
    )
    needs_of[name] = dataclasses.asdict(needs) | {"threads": needs.threads_per_sm(4)}
print(json.dumps(needs_of))
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Resources by name of COMPILED, from a process of its own: nothing is interpreted there."""
    folder = tmp_path_factory.mktemp("compiled")
    wanted = [(name, branches, "fp32", "i64") for name, branches in COMPILED.items()]
    wanted += [
        ("half", COMPILED["bags"], "fp16", "i32"),
        ("bfloat16", COMPILED["split"], "bf16", "i32"),
    ]
    rows = [
        (name, [dataclasses.astuple(branch) for branch in branches], *types)
        for name, branches, *types in wanted
    ]
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, str(folder)],
        cwd=ROOT,
        input=json.dumps(rows),
        capture_output=True,
        text=True,
        timeout=99,
        env=compiling() | {"TRITON_CACHE_DIR": str(folder / "triton")},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", [*COMPILED, "half", "bfloat16"])
def test_every_branch_compiles_for_sm_90_without_spills(name, compiled):
    needs = compiled[name]
    assert needs["stack_bytes"] == 0
    assert 0 < needs["registers"] <= 128
    assert needs["threads"] >= 512


@pytest.mark.parametrize("name", ["gather", "fixed_length", "bags", "split"])
def test_rows_of_multiples_of_four_floats_are_read_16_bytes_at_a_time(name, compiled):
    assert compiled[name]["wide_loads"] > 0


def test_one_kernel_of_all_branches_needs_the_registers_of_its_largest(compiled):
    parts = [compiled[name]["registers"] for name in ("gather", "fixed_length", "bags", "split")]
    assert compiled["all"]["registers"] <= 1.25 * max(parts) < sum(parts)


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """What look-ups would launch, from Triton's compiler and launcher: the device does nothing."""
    folder = tmp_path_factory.mktemp("launched")
    environment = {
        "TRITON_CACHE_DIR": str(folder / "triton"),
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    done = subprocess.run(
        [sys.executable, str(SUITE.with_name("triton_launches.py")), str(folder)],
        cwd=ROOT,
        env=compiling() | environment,
        capture_output=True,
        text=True,
        timeout=99,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_groups_of_equal_warps_share_a_launch_and_parts_are_combined_in_another(launched):
    # bags: two tables, 4 bags a tile; split: 4 parts of every bag; 32 bags are gathered a tile
    def tiles(n):
        return [2 * -(-n // 4) + 4 * n, -(-n // 32), -(-n // 8)]

    for n in (1, 2, 16, 5, 64):
        assert [(launch["grid"], launch["warps"]) for launch in launched[f"fused {n}"]] == [
            ([tasks, 1, 1], warps) for tasks, warps in zip(tiles(n), (2, 4, 4), strict=True)
        ]
    assert [launch["grid"][0] for launch in launched["grouped"]] == [4, 1, 20, 1]
    assert [launch["warps"] for launch in launched["grouped"]] == [2, 4, 2, 4]
    assert launched["empty"] == []


def test_schedules_may_be_launched_apart(launched):
    for name, warps in (("by schedule", [2, 2, 4, 4]), ("by schedule, alike", [2, 2, 2, 4])):
        numbers = {(launch["grid"][0], launch["warps"]) for launch in launched[name]}
        assert numbers == {*zip([4, 20, 1, 1], warps, strict=True)}


def test_settings_reach_the_compiler(launched):
    numbers = [
        (launch["grid"][0], launch["warps"], launch["registers"])
        for launch in launched["one launch"]
    ]
    assert numbers == [(25, 8, 40), (1, 4, 40)]


def test_what_is_compiled_before_is_what_is_launched(launched):
    assert launched["compiled"] == [3, 0, 3]


def test_no_batch_size_or_width_is_compiled_anew_but_other_types_are(launched):
    def kernels(name):
        return [launch["hash"] for launch in launched[name]]

    usual = kernels("fused 1")
    for n in (2, 16, 5, 64):
        assert kernels(f"fused {n}") == usual
    for wider in ("wider 112", "wider 128"):
        assert kernels(wider) == usual
    for changed in ("int32", "item-major"):
        assert not {*kernels(changed)[:2]} & {*usual}


def test_a_kernel_has_one_branch_for_each_schedule_and_literals_for_its_numbers():
    text = source(COMPILED["all"])
    assert text.count("if branch < ") == len(COMPILED["all"]) - 1
    depths = [len(line) - len(line.lstrip()) for line in text.splitlines() if "(values" in line]
    assert max(depths) <= 4 * (1 + 4)
    calls = re.findall(r"^ +(gather|fixed_length|bags|split)\(", text, re.MULTILINE)
    assert calls == [piece.schedule for piece in COMPILED["all"]]
    assert "D=200, L=50, BB=2, BL=8, BD=64, AO=4, COUNT=COUNT" in text
    assert "D=4, K=16, BB=1, BL=64, BD=4)" in text
    with pytest.raises(ValueError, match="at least one branch"):
        source([])


def test_equal_kernels_are_one_file_and_others_are_not_touched(tmp_path):
    first = load_kernel(COMPILED["gather"], tmp_path)
    (path,) = tmp_path.glob("look_up_*.py")
    stamp = path.stat().st_mtime_ns
    assert load_kernel(COMPILED["gather"], tmp_path) is first
    load_kernel(COMPILED["bags"], tmp_path)
    assert len([*tmp_path.iterdir()]) == 2
    assert path.stat().st_mtime_ns == stamp
    assert path.read_text() == source(COMPILED["gather"])


def test_a_file_that_was_tampered_with_is_written_again(tmp_path):
    branches = [branch("bags", 8, 2, 2)]
    name = f"look_up_{hashlib.sha256(source(branches).encode()).hexdigest()[:16]}"
    (tmp_path / f"{name}.py").write_text("look_up = None")
    assert load_kernel(branches, tmp_path) is not None


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("DEEPRECSYS_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("DEEPRECSYS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "deeprecsys" / "triton"


def test_tables_on_the_cpu_are_refused_where_triton_compiles(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    specs = [TableSpec(4, 4)]
    weight = torch.zeros(int(element_offsets(specs)[-1]))
    words = "the tables are on cpu; Triton's kernels need a CUDA device"
    with pytest.raises(ValueError, match=words):
        TritonBags(Layout.apart(specs), Bucket(None, (Group("bags", params(), (0,)),)), weight)
