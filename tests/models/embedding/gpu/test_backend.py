"""The GPU's backend: without a GPU, and its search in Triton's interpreter.

Every schedule's sums are checked before it is timed. Needs Triton in part: pip install -r
build/bench_requirements.txt
"""

import importlib.util
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from models.embedding.backend import Cluster, Refused
from models.embedding.gpu import backend as gpu
from models.embedding.gpu.backend import CudaBackend, CudaRun, Meter
from models.embedding.gpu.schedules import branches
from models.embedding.jagged import Bags
from models.embedding.plan.catalogue import CUDA_SCHEDULES
from models.embedding.plan.spec import TableSpec
from tests.models.drawn import SPECS

TUNED = """
import json, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from models.embedding.gpu import backend as gpu
from models.embedding.gpu.timing import wall_seconds
from models.embedding.plan.plan import params
from models.embedding.synthesis import draw
from models.embedding.tuning.problem import of_recorded
from models.embedding.tuning.search import PlanSearch

class Interpreted(gpu.CudaBackend):
    def settings(self, specs):
        return [params(launch="fused", warps=1), params(launch="grouped")]
    def candidates(self, cluster, settings, max_error):
        return super().candidates(cluster, settings, max_error)[:2]
    def clock(self, calls, n_rounds):
        return wall_seconds(calls, 1)

gpu.UNIFORM_TILES = (4,)
gpu._FULL_ELEMENTS = 500
drawn = draw("B", [2, 2], seed=3, tables_frac=0.001)
plan = PlanSearch(of_recorded(drawn, [2], "cpu"), Interpreted(), budget_s=2).run()
print(plan.to_json())
"""


CLUSTER = Cluster((0, 1), TableSpec(4096, 32), 40.0, 100, 0.2, 0.9, 512)
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="needs triton (pip install -r build/bench_requirements.txt)",
)


@needs_triton
def test_what_triton_cannot_launch_is_refused_in_one_line_and_does_not_end_compiling_ahead(
    monkeypatch,
):
    from triton.runtime.errors import OutOfResources  # noqa: PLC0415 (Triton may be missing)

    def fail(*_, **__):
        raise OutOfResources(300_000, 232_448, "shared\nmemory")

    bags = Bags(torch.zeros(1, dtype=torch.int32), torch.tensor([0, 1], dtype=torch.int32), 1)
    words = "out of resource: shared memory, Required: 300000"
    with pytest.raises(Refused, match=words) as refused:
        CudaRun(fail, Meter())(bags, torch.empty(1, 4))
    assert "\n" not in str(refused.value)
    kernels = SimpleNamespace(compiling=lambda *_, **__: {"a": fail})
    monkeypatch.setattr(gpu, "TritonBags", lambda *_: kernels)
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
    plan = json.loads(done.stdout)
    assert plan["device"] == "cuda"
    assert plan["provenance"]["refused"] == []
    assert {row["batch"] for row in plan["provenance"]["sizes"]} == {2}
    assert len(plan["tables"]) > 1
    groups = [group for bucket in plan["buckets"] for group in bucket["groups"]]
    assert {group["schedule"] for group in groups} <= {*CUDA_SCHEDULES}


@settings(deadline=None, max_examples=30)
@given(specs=st.lists(SPECS, min_size=1, max_size=8))
def test_the_default_plan_is_a_plan_for_any_tables(specs):
    plan = CudaBackend().default_plan(specs)
    assert plan.device == "cuda"
    for n_items in (1, 8, 9, 65, 5000):
        assert sorted(branches(specs, plan.bucket(n_items).groups)) == list(range(len(specs)))


def test_the_backend_offers_the_warps_of_its_settings():
    cuda = CudaBackend()
    for knobs in cuda.settings([CLUSTER.spec]):
        candidates = cuda.candidates(CLUSTER, knobs, 0.0)
        warps = {dict(choice.params)["warps"] for choice in candidates}
        assert warps == {dict(knobs)["warps"]} if "warps" in dict(knobs) else len(warps) > 1
        assert all(choice.schedule in CUDA_SCHEDULES for choice in candidates)


def test_equal_kernels_are_compiled_once_and_none_when_time_is_up(monkeypatch):
    made = []

    class Kernels:
        def __init__(self, _layout, bucket, _weight):
            self.bucket = bucket

        def compiling(self, _ids, _offsets, *, item_major):
            assert item_major
            return {name: lambda name=name: made.append(name) for name in (self.bucket, "same")}

    monkeypatch.setattr(gpu, "TritonBags", Kernels)
    cuda = CudaBackend()
    bags = Bags(torch.zeros(0), torch.zeros(5), 2, item_major=True)
    cuda.prepare(None, None, ["a", "b"], bags, 0.0)
    assert made == []
    cuda.prepare(None, None, ["a", "b"], bags, 60.0)
    assert sorted(made) == ["a", "b", "same"]
    cuda.prepare(None, None, ["b", "c"], bags, 60.0)
    assert sorted(made) == ["a", "b", "c", "same"]


def test_a_kind_of_tables_has_so_many_candidates_at_most():
    def candidates(**options):
        return [*CudaBackend(**options).candidates(CLUSTER, gpu.KNOBS[0], 0.0)]

    plenty = candidates(most=99)
    assert candidates(most=3) == plenty[:3]
    assert len(candidates()) == gpu.MOST_CANDIDATES < len(plenty)


def test_contention_ends_with_its_block():
    cuda = CudaBackend()
    with cuda.contended(()):
        assert cuda._fill_elements > 0
    assert cuda._fill_elements == 0


def test_a_run_tells_how_often_it_looked_up():
    class Thrice:
        def __call__(self, *_, item_major):
            assert item_major

        def repeats(self, n_items):
            return n_items + 1

    meter = Meter()
    ids = torch.zeros(0, dtype=torch.int32)
    bags = Bags(ids, torch.zeros(5, dtype=torch.int32), 2, item_major=True)
    CudaRun(Thrice(), meter)(bags, torch.empty(2, 4))
    assert meter.repeats == 3


def test_the_time_of_what_was_repeated_is_that_of_one_look_up(monkeypatch):
    cuda = CudaBackend()

    def call_of(repeats):
        def call(_):
            cuda._meter.repeats = repeats

        return call

    def plain(_):
        return None

    monkeypatch.setattr(gpu, "device_seconds", lambda calls, n: np.full((len(calls), n), 12.0))
    assert cuda.seconds([call_of(4), plain, call_of(3)], 2).tolist() == [[3, 3], [12, 12], [4, 4]]
