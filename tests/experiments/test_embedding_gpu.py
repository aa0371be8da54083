"""The GPU study as far as it runs without a GPU: refusals, bound, peers, tuner, and all of it in the interpreter."""

import importlib.util
import json
import os
import subprocess
import sys
from contextlib import nullcontext

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import ROOT, run_script

from experiments.embedding import gpu, gpu_tune
from experiments.embedding.gpu_peers import Fbgemm, Input, PerTable, built, mean_ids
from experiments.embedding.gpu_plot import BOUND, COLD, WALL, draw_figure
from models.embedding.backend import Choice
from models.embedding.plan import Bucket, Group, params
from models.embedding.spec import Layout, TableSpec

CPU = torch.device("cpu")
SPECS = (TableSpec(20, 4), TableSpec(9, 8, 1), TableSpec(30, 8, 3))
NEEDS_TRITON = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="needs triton (pip install -r build/bench_requirements.txt)"
)


def input_of(lengths_TB, seed=0):
    rng, lengths = np.random.default_rng(seed), np.array(lengths_TB)
    ids = np.concatenate([rng.integers(0, spec.rows, n.sum()) for spec, n in zip(SPECS, lengths, strict=True)])
    offsets = np.concatenate(([0], np.cumsum(lengths.reshape(-1))))
    return Input.of(ids.astype(np.int32), offsets.astype(np.int32), len(SPECS), CPU)


INPUTS = [input_of([[2, 0], [1, 1], [3, 3]]), input_of([[5, 7], [1, 1], [3, 3]], 1)]


def sums(weight_E, own):
    layout, out = Layout.apart(SPECS), np.zeros((own.n_items, 20))
    offsets, ids = own.host_offsets.numpy(), own.host_ids_L.numpy()
    for table, spec in enumerate(SPECS):
        first, column = layout.elements_T[table], layout.columns[table]
        rows = weight_E.numpy()[first : first + spec.rows * spec.dim].reshape(spec.rows, spec.dim)
        for item in range(own.n_items):
            m = table * own.n_items + item
            out[item, column : column + spec.dim] = rows[ids[offsets[m] : offsets[m + 1]]].sum(axis=0)
    return torch.from_numpy(out).float()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_without_a_gpu_it_says_so_in_one_line(tmp_path):
    done = run_script("experiments/embedding/gpu.py", "--out", str(tmp_path / "out"), cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "gpu.py: needs a CUDA device; PyTorch sees none here\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("words", "why"), [
    (["--models", "A,Z"], "--models: Z unknown; expected of A, B, C, D, E"),
    (["--batches", "1,x"], "--batches is '1,x'; expected whole numbers"),
])  # fmt: skip
def test_wrong_arguments_are_refused(words, why, capsys):
    with pytest.raises(SystemExit):
        gpu.arguments(words)
    assert why in capsys.readouterr().err


def test_it_starts_with_torch_numpy_pandas_and_matplotlib_alone():
    blocked = "rich scipy numba llvmlite psutil pyarrow yaml recbole fbgemm_gpu triton"
    code = (
        "import sys\nclass Blocked:\n"
        f"    def find_spec(self, name, *_):\n        if name.split('.')[0] in {blocked.split()!r}:\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Blocked())\n"
        "import importlib.util\nfind = importlib.util.find_spec\n"
        f"importlib.util.find_spec = lambda name: None if name in {blocked.split()!r} else find(name)\n"
        "import torch\nfrom experiments.embedding import gpu\n"
        "specs, inputs = gpu.inputs_of('B', [1, 2], None, 0.01, torch.device('cpu'))\n"
        "print(len(specs), sorted(inputs), [len(own) for own in inputs.values()])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == "12 [1, 2] [4, 4]\n", done.stderr


def test_the_bound_counts_every_row_once_or_every_look_up():
    ids, offsets = [7, 7, 0, 8, 5, 5, 5, 5, 6, 5], [0, 2, 2, 3, 4, 7, 10]  # of three tables 1, 2 and 2 rows
    own = Input.of(np.array(ids, np.int32), np.array(offsets, np.int32), 3, CPU)
    other = 4 * (10 + 7) + 2 * 20 * 4
    once, often = 4 * (1 * 4 + 2 * 8 + 2 * 8), 4 * (2 * 4 + 2 * 8 + 6 * 8)
    assert gpu.floors(Layout.apart(SPECS), [own]) == (once + other, often + other)


@pytest.mark.parametrize("peer", [PerTable, Fbgemm])
def test_peers_give_the_sums_from_either_side(peer):
    layout = Layout.apart(SPECS)
    weight_E = gpu.whole_weights(layout, CPU)
    method = built(lambda: peer(layout, weight_E, INPUTS))
    if isinstance(method, str):
        assert peer is Fbgemm
        pytest.skip(f"FBGEMM: {method}")
    for i, own in enumerate(INPUTS):
        assert torch.equal(method.call(i), sums(weight_E, own))
        assert torch.equal(method.from_host(i), sums(weight_E, own))


def test_a_method_with_other_sums_is_not_timed():
    layout = Layout.apart(SPECS)
    weight_E = gpu.whole_weights(layout, CPU)
    right, wrong = (PerTable(layout, w, INPUTS) for w in (weight_E, weight_E + 1))
    gpu.check({"per table": right, "own": right}, 2)
    with pytest.raises(ValueError, match="own: other sums than the per-table look-up, input 0"):
        gpu.check({"per table": right, "own": wrong}, 2)


def test_what_cannot_be_built_is_a_line():
    def fail():
        raise RuntimeError("no such thing\nand more")

    assert built(fail) == "RuntimeError: no such thing"
    layout = Layout.apart([TableSpec(5, 6)])
    assert "multiples of 4" in built(lambda: Fbgemm(layout, torch.zeros(layout.n_elements), []))


def test_tables_cluster_by_width_and_bags():
    specs = (TableSpec(9, 8), TableSpec(9, 8), TableSpec(9, 8), TableSpec(9, 16), TableSpec(9, 8, 1))
    lengths = np.array([[3, 4], [3, 4], [60, 40], [3, 4], [1, 1]])
    offsets = np.concatenate(([0], np.cumsum(lengths.reshape(-1)))).astype(np.int32)
    own = Input.of(np.zeros(offsets[-1], np.int32), offsets, 5, CPU)
    found = gpu_tune.clusters(Layout.apart(specs), [own])
    assert [cluster.tables for cluster in found] == [(0, 1), (2,), (3,), (4,)]
    assert [cluster.mean_ids for cluster in found] == [3.5, 50, 3.5, 1]
    assert [cluster.most_ids for cluster in found] == [4, 60, 4, 1]
    assert mean_ids([own], 5).tolist() == [3.5, 3.5, 50, 3.5, 1]


def test_equal_choices_become_one_group():
    bags, gather = Choice("bags", params(tile_bags=2)), Choice("gather", ())
    found = gpu_tune.bucket_of({(0, 4): bags, (1,): gather, (2, 3): bags}, params(launch="grouped"))
    assert found.groups == (Group("bags", bags.params, (0, 2, 3, 4)), Group("gather", (), (1,)))
    assert found.settings == params(launch="grouped")


class KnownTimes:
    """A backend whose schedules take known times: a second a column block, more in one setting."""

    def settings(self, _specs):
        return [params(launch="fused", warps=4), params(launch="fused", warps=2), params(launch="grouped")]

    def candidates(self, cluster, _settings, _max_error):
        return [Choice("bags", params(tile_bags=n)) for n in (1, 2, 4, 8)] if cluster.spec.bag_ids is None else [
            Choice("gather", ())]  # fmt: skip

    def build(self, _layout, _weight, bucket, *, checked):
        assert not checked
        return lambda *_: self.cost(bucket)

    def cost(self, bucket):
        own = dict(bucket.settings)
        best = {2: 4, 4: 2, 0: 8}[own.get("warps", 0)]
        extra = {2: 0.5, 4: 0.0, 0: 0.25}[own.get("warps", 0)]
        return extra + sum(abs(dict(g.params).get("tile_bags", best) - best) for g in bucket.groups)

    def contended(self, _settings):
        return nullcontext()

    def seconds(self, calls, n_rounds):
        return np.array([[call(i) for i in range(n_rounds)] for call in calls], dtype=float)


def tuner_of(budget_s):
    own = [input_of([[5, 7], [1, 1], [3, 3]])]
    layout = Layout.apart(SPECS)
    return gpu_tune.Tuner(KnownTimes(), layout, torch.zeros(layout.n_elements), own, budget_s)


def test_the_tuner_finds_the_best_choice_of_every_setting_and_the_best_setting():
    found = tuner_of(60).tuned()
    assert set(found) == {"fused", "grouped"}
    assert dict(found["fused"][0].settings)["warps"] == 4
    assert found["fused"][1] == 0
    assert dict(found["fused"][0].groups[0].params) == {"tile_bags": 2}
    assert dict(found["grouped"][0].groups[0].params) == {"tile_bags": 8}


def test_a_tuner_without_time_takes_the_first_guess():
    assert dict(tuner_of(-1).tuned()["fused"][0].groups[0].params) == {"tile_bags": 1}


def test_measured_batches_become_buckets_up_to_their_size():
    buckets = {size: Bucket(None, (Group("bags", params(tile_bags=n), (0,)),)) for size, n in ((8, 1), (1, 2), (64, 4))}
    plan = gpu.plan_of(SPECS[:1], buckets, {"gpu": "x"})
    tiles = {n: dict(plan.bucket(n).groups[0].params)["tile_bags"] for n in (1, 2, 8, 9, 1000)}
    assert tiles == {1: 2, 2: 1, 8: 1, 9: 4, 1000: 4}
    assert plan.provenance["gpu"] == "x"


STUDY = """
import json, sys
from pathlib import Path
import numpy as np, torch
from contextlib import nullcontext
torch.set_num_threads(1)
from experiments.embedding import gpu
from models.embedding import cuda
from models.embedding.gpu_timing import wall_seconds
from models.embedding.plan import params, from_json
class Quick(cuda.CudaBackend):
    def settings(self, specs):
        return [params(launch="fused", warps=1), params(launch="grouped")]
    def clock(self, calls, n_rounds):
        return wall_seconds(calls, 1)
gpu.N_INPUTS = gpu.WARM_UPS = 1
cuda.UNIFORM_TILES = (4,)
cuda._FULL_ELEMENTS = 0
gpu.QUICK = gpu.Effort(1, 4.0, 2)
args = gpu.arguments(["--models", "B", "--batches", "1,2", "--quick", "--tables_frac", "0.002", "--out", sys.argv[1]])
clocks = gpu.Clocks(lambda calls, n, cold: wall_seconds(calls, n), lambda calls, n: wall_seconds(calls, n))
gpu.run(args, Quick(), clocks, torch.device("cpu"))
"""


@NEEDS_TRITON
def test_the_whole_study_runs_in_the_interpreter(tmp_path):
    (tmp_path / "gpu.csv").write_text("model,batch,method,time,us\nA,1,old,bound,1\nB,7,old,bound,1\n")
    environment = os.environ | {"TRITON_INTERPRET": "1", "DEEPRECSYS_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", STUDY, str(tmp_path)], cwd=ROOT, env=environment, capture_output=True, text=True,
        timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = pd.read_csv(tmp_path / "gpu.csv")
    assert set(rows["batch"]) == {1, 2}
    assert {"ours, fused", "ours, grouped", "ours, one schedule", "per table"} <= set(rows["method"])
    assert rows[rows["model"] == "B"].groupby("time")["method"].nunique()[BOUND] == 2
    assert "A" in set(rows["model"])  # measured before
    plan = json.loads((tmp_path / "gpu_plans" / "B.json").read_text())
    assert [bucket["max_batch"] for bucket in plan["buckets"]] == [1, None]
    assert plan["provenance"]["gpu"] == "none"
    assert any("batch 2: 0: {'launch': 'fused'" in note for note in plan["provenance"]["notes"])


def test_the_figure_has_a_panel_for_each_time_and_model():
    rows = [
        {"model": model, "batch": batch, "method": method, "time": what, "us": (10 if model == "A" else 20) * batch,
         "low_us": 9, "high_us": 2000}
        for model in "AB" for batch in (1, 64) for method in ("ours, fused", "per table") for what in (COLD, WALL)
    ]  # fmt: skip
    rows += [{"model": "A", "batch": 1, "method": "every row once at", "time": BOUND, "us": 3.0}]
    figure = draw_figure(pd.DataFrame(rows))
    assert len(figure.axes) == 4
    assert {axes.get_yscale() for axes in figure.axes} == {"log"}
    heights = [[patch.get_height() for patch in axes.patches] for axes in figure.axes[:2]]
    assert heights == [[10, 640, 10, 640], [20, 1280, 20, 1280]]
