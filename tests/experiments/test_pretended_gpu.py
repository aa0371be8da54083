"""The GPU's commands from end to end on a device that only pretends: every tensor on the side where
CUDA wants it.

Needs Triton (pip install -r build/bench_requirements.txt); kernels run in its interpreter.
"""

import importlib.util
import os
import re
import subprocess
import sys

import pandas as pd
import pytest
from helpers import ROOT

from models.embedding.plan.plan import from_json

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="needs triton (pip install -r build/bench_requirements.txt)",
)
COMMAND = """
import sys
sys.path[:0] = ["tests", "."]
import torch
torch.set_num_threads(1)
from pretend_cuda import pretend
device = pretend()
from experiments.embedding import gpu, gpu_ablations
from models.embedding import cuda, gpu_timing, tuner
from models.embedding.plan.plan import params
once = gpu_timing.device_seconds
cuda.device_seconds = lambda calls, n_rounds: once(calls, 1)
cuda.UNIFORM_TILES, cuda._FULL_ELEMENTS, gpu_timing._FLUSH_BYTES = (4,), 0, 8
gpu.N_INPUTS = gpu.WARM_UPS = gpu_ablations.MUTATED = 1
knobs = params(launch="fused", warps=1), params(launch="grouped")
gpu.QUICK = gpu.Effort(1, 2.0, knobs)
gpu.TESTS = "tests/models/test_gpu_schedules.py"
cuda.CudaBackend.__init__.__defaults__ = knobs[:1], 2
with device:
    sys.exit((tuner if sys.argv[1] == "tuner" else gpu).main(sys.argv[2:]))
"""


def command(folder, *words):
    environment = os.environ | {"TRITON_INTERPRET": "1", "DEEPRECSYS_CACHE": str(folder / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, *words],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_quick_study_goes_through_all_its_parts(tmp_path):
    own = [
        "--quick",
        "--models",
        "B",
        "--batches",
        "1",
        "--tables_frac",
        "0.001",
        "--out",
        str(tmp_path),
    ]
    said = command(tmp_path, "study", *own)
    assert re.search(r"tests for a GPU: \d+ deselected", said)
    assert {
        "gpu.csv",
        "gpu.png",
        "gpu_speedups.png",
        "gpu_targets.csv",
        "gpu_ablations.csv",
        "gpu_ablations.png",
        "gpu_mutated.csv",
        "gpu_spread.csv",
    } <= {path.name for path in tmp_path.iterdir()}
    rows = pd.read_csv(tmp_path / "gpu.csv")
    assert {"per table, graph", "ours, fused, graph", "ours, grouped, graph"} <= set(rows["method"])
    plan = from_json((tmp_path / "gpu_plans" / "B.json").read_text())
    assert plan.provenance["gpu"] == "pretended"
    assert any(note.startswith("batch 1: no TorchRec: ") for note in plan.provenance["notes"])
    assert pd.read_csv(tmp_path / "gpu_targets.csv")["target"].tolist() == [
        "times as fast as per table, graph",
        "seconds of tuning, at most",
    ]
    assert "Targets" in said
    methods = pd.read_csv(tmp_path / "gpu_ablations.csv")
    every = ["two-stage", "naive", "map from lengths", "map from lengths, made before"]
    assert methods["plan"].tolist() == every
    assert methods["over_two_stage"][0] == 1
    assert len(pd.read_csv(tmp_path / "gpu_mutated.csv")) == 1
    assert (pd.read_csv(tmp_path / "gpu_spread.csv")["worst_over_best"] >= 1).all()


def test_a_model_of_ours_is_tuned_for_the_device(tmp_path):
    plan = tmp_path / "plan.json"
    words = ["--table_scale", "0.0001", "--batch", "1,2", "--budget_s", "1"]
    command(
        tmp_path,
        "tuner",
        "--model",
        "ncf",
        "--device",
        "cuda",
        *words,
        "--out",
        str(plan),
        "--cache",
        str(tmp_path / "plans"),
    )
    found = from_json(plan.read_text())
    assert found.device == "cuda"
    assert found.provenance["refused"] == []
    assert {row["batch"] for row in found.provenance["sizes"]} == {1, 2}
