"""The tuner on the GPU's backend, in Triton's interpreter: every schedule's sums are checked before
it is timed.

Needs Triton: pip install -r build/bench_requirements.txt
"""

import importlib.util
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from helpers import ROOT

from models.embedding.backend import Refused
from models.embedding.gpu import backend as cuda
from models.embedding.gpu.backend import CudaBackend, CudaRun, Meter
from models.embedding.gpu.schedules import CUDA_SCHEDULES
from models.embedding.jagged import Bags

TUNED = """
import json, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from models.embedding import cuda, problem
from models.embedding.gpu.timing import wall_seconds
from models.embedding.plan.plan import params
from models.embedding.tuning.search import Search
from models.embedding.synthesis import draw

class Interpreted(cuda.CudaBackend):
    def settings(self, specs):
        return [params(launch="fused", warps=1), params(launch="grouped")]
    def candidates(self, cluster, settings, max_error):
        return super().candidates(cluster, settings, max_error)[:2]
    def clock(self, calls, n_rounds):
        return wall_seconds(calls, 1)

cuda.UNIFORM_TILES, cuda._FULL_ELEMENTS = (4,), 500
drawn = draw("B", [2, 2], seed=3, tables_frac=0.001)
found = Search(problem.of_recorded(drawn, [2], "cpu"), Interpreted(), budget_s=2).run()
print(json.dumps({"plan": json.loads(found.to_json()), "specs": len(drawn.specs)}))
"""


needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="needs triton (pip install -r build/bench_requirements.txt)",
)


@needs_triton
def test_what_triton_cannot_launch_is_refused_in_one_line_and_does_not_end_compiling_ahead(
    monkeypatch,
):
    from triton.runtime.errors import OutOfResources  # noqa: PLC0415

    def fail(*_, **__):
        raise OutOfResources(300_000, 232_448, "shared\nmemory")

    bags = Bags(torch.zeros(1, dtype=torch.int32), torch.tensor([0, 1], dtype=torch.int32), 1)
    with pytest.raises(
        Refused, match="out of resource: shared memory, Required: 300000"
    ) as refused:
        CudaRun(fail, Meter())(bags, torch.empty(1, 4))
    assert "\n" not in str(refused.value)
    monkeypatch.setattr(
        cuda, "TritonBags", lambda *_: SimpleNamespace(compiling=lambda *_, **__: {"a": fail})
    )
    CudaBackend().prepare(None, None, [None], bags, 10.0)


@needs_triton
def test_the_tuner_makes_a_plan_for_the_gpu(tmp_path):
    environment = os.environ | {"TRITON_INTERPRET": "1", "DEEPRECSYS_CACHE": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", TUNED],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    plan = found["plan"]
    assert plan["device"] == "cuda"
    assert plan["provenance"]["refused"] == []
    assert {row["batch"] for row in plan["provenance"]["sizes"]} == {2}
    assert len(plan["tables"]) > 1
    assert {group["schedule"] for bucket in plan["buckets"] for group in bucket["groups"]} <= {
        *CUDA_SCHEDULES
    }
