"""The architecture as a test: who may import whom, where torch may be, how long things may get."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT

LAYERS = [  # a name may import only from lines above it, or its own package
    {"infra"},
    {"models", "scheduler", "loadGenerator"},
    {"accelerator"},
    {"inferenceEngine", "accelInferenceEngine"},
    {"backends"},
    {"DeepRecSys"},
    {"experiments"},
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
# CudaEngine is the model on another device: it builds what the CPU engine builds.
ALLOWED = {("accelInferenceEngine", "inferenceEngine")}
TORCH = {
    "models", "accelerator/profiler.py", "inferenceEngine.py", "accelInferenceEngine.py", "DeepRecSys.py",
    "experiments/embedding", "experiments/model_speed", "experiments/operator_breakdown", "experiments/roofline",
    "experiments/common/core_limits.py", "experiments/common/fresh_calls.py", "experiments/common/look_up_peers.py",
    "experiments/colocation/pairs.py", "experiments/locality/look_ups.py", "experiments/recpipe/datasets/movielens.py",
    "experiments/recpipe/datasets/click_rankers.py", "experiments/recpipe/datasets/ranked.py",
}  # fmt: skip
FILES = [
    p
    for p in sorted(ROOT.rglob("*.py"))
    if p.relative_to(ROOT).parts[0].removesuffix(".py") in RANK
]
SIBLINGS = {"process", "simulated", "ray_cluster"}


def imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module


def test_there_is_something_to_check():
    assert len(FILES) > 30


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path: Path):
    here = path.relative_to(ROOT).parts[0].removesuffix(".py")
    for name in {
        module.split(".")[0] for module in imports(ast.parse(path.read_text()))
    } & RANK.keys() - {here}:
        assert RANK[name] < RANK[here] or (here, name) in ALLOWED, (
            f"{here} must not import {name}: arrows point down"
        )


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_torch_and_matplotlib_stay_where_they_are_used(path: Path):
    inside = str(path.relative_to(ROOT))
    names = {module.split(".")[0] for module in imports(ast.parse(path.read_text()))}
    if "torch" in names:
        assert any(inside == place or inside.startswith(f"{place}/") for place in TORCH), (
            f"{inside} imports torch"
        )
    if "matplotlib" in names:
        assert inside == "infra/results/figures.py" or inside.startswith("experiments/")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_backends_are_siblings_that_do_not_know_each_other(path: Path):
    if path.parent.name == "backends" and path.stem in SIBLINGS:
        for module in imports(ast.parse(path.read_text())):
            assert module not in {f"backends.{other}" for other in SIBLINGS - {path.stem}}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_stay_small(path: Path):
    source = path.read_text()
    assert source.count("\n") <= 400
    for f in ast.walk(ast.parse(source)):
        if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef):
            assert f.end_lineno - f.lineno < 50, f"{path.name}:{f.lineno} {f.name} is too long"


def test_the_driver_and_the_simulator_start_without_torch():
    modules = (
        "backends.virtual.simulated, backends.processes.process, backends.tuning.policy_tuner, "
        "scheduler, loadGenerator, infra.results.run_folder"
    )
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


def test_what_runs_on_a_borrowed_gpu_needs_neither_rich_nor_numba():
    modules = (
        "models.embedding.bags, models.embedding.tuning.search, models.embedding.tuner, "
        "models.embedding.gpu.backend"
    )
    code = (
        "import sys; sys.modules |= dict.fromkeys(('rich', 'numba', 'llvmlite')); "
        f"import {modules}, experiments.embedding.gpu; print('done')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "done", done.stderr
