"""The GPU's commands from end to end on a device that only pretends.

Every tensor must be on the side where CUDA wants it. Needs Triton (pip install -r
build/bench_requirements.txt); kernels run in its interpreter.
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
import torch
torch.set_num_threads(1)
from tests.experiments.embedding.pretend_cuda import pretend
device = pretend()
from experiments.embedding import contenders, gpu, gpu_setup
from models.embedding import tuner
from models.embedding.gpu import backend as cuda, timing
from models.embedding.plan.plan import params
once = timing.device_seconds
cuda.device_seconds = lambda calls, n_rounds: once(calls, 1)
cuda.UNIFORM_TILES = (4,)
cuda._FULL_ELEMENTS = 0
timing._FLUSH_BYTES = 8
gpu_setup.N_INPUTS = gpu_setup.WARM_UPS = contenders.MUTATED = 1
knobs = params(launch="fused", warps=1), params(launch="grouped")
gpu.QUICK[:] = [gpu.GpuCase("A", (1,), n_rounds=1, tune_s=2.0, knobs=knobs)]
gpu.TESTS = "tests/models/embedding/gpu/test_schedules.py"
cuda.CudaBackend.__init__.__defaults__ = knobs[:1], 2
main = tuner.main if sys.argv[1] == "tuner" else gpu.STUDY.command
with device:
    sys.exit(main(sys.argv[2:]))
"""


def command(folder, words):
    environment = os.environ | {"TRITON_INTERPRET": "1", "DEEPRECSYS_CACHE": str(folder / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, *words.split()],
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
    words = "study --quick --models B --batches 1 --tables_frac 0.001"
    printed = command(tmp_path, f"{words} --out {tmp_path}")
    assert re.search(r"tests for a GPU: \d+ deselected", printed)
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
    assert "Targets" in printed
    methods = pd.read_csv(tmp_path / "gpu_ablations.csv")
    maps = ["map from lengths", "map from lengths, made before"]
    assert methods["plan"].tolist() == ["two-stage", "naive", *maps]
    assert methods["over_two_stage"][0] == 1
    assert len(pd.read_csv(tmp_path / "gpu_mutated.csv")) == 1
    assert (pd.read_csv(tmp_path / "gpu_spread.csv")["worst_over_best"] >= 1).all()


def test_a_model_of_ours_is_tuned_for_the_device(tmp_path):
    words = "tuner --model ncf --device cuda --table_scale 0.0001 --batch 1,2 --budget_s 1"
    command(tmp_path, f"{words} --out {tmp_path}/plan.json --cache {tmp_path}/plans")
    plan = from_json((tmp_path / "plan.json").read_text())
    assert plan.device == "cuda"
    assert plan.provenance["refused"] == []
    assert {row["batch"] for row in plan.provenance["sizes"]} == {1, 2}
