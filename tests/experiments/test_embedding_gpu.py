"""The GPU study as far as it runs without a GPU: refusals, bound, peers, tuner, and all of it in
the interpreter.
"""

import importlib.util
import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import ROOT, run_script

from experiments.embedding import gpu
from experiments.embedding.gpu_peers import Fbgemm, Input, PerTable, TorchRec, built
from experiments.embedding.gpu_plot import (
    BOUND,
    COLD,
    GRAPHED,
    ONCE,
    WALL,
    draw_figure,
    draw_speedups,
    speedups,
)
from models.embedding import tuner
from models.embedding.gpu import backend as cuda
from models.embedding.plan.plan import Bucket, Group, params
from models.embedding.plan.spec import Layout, TableSpec

CPU = torch.device("cpu")
SPECS = (TableSpec(20, 4), TableSpec(9, 8, 1), TableSpec(30, 8, 3))
NEEDS_TRITON = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="needs triton (pip install -r build/bench_requirements.txt)",
)


def input_of(lengths_TB, seed=0):
    rng = np.random.default_rng(seed)
    lengths = np.array(lengths_TB)
    ids = np.concatenate(
        [rng.integers(0, spec.rows, n.sum()) for spec, n in zip(SPECS, lengths, strict=True)]
    )
    offsets = np.concatenate(([0], np.cumsum(lengths.reshape(-1))))
    return Input.of(ids.astype(np.int32), offsets.astype(np.int32), len(SPECS), CPU)


INPUTS = [input_of([[2, 0], [1, 1], [3, 3]]), input_of([[5, 7], [1, 1], [3, 3]], 1)]


def weights(layout):
    rng = np.random.default_rng(3)
    return torch.from_numpy(rng.integers(-8, 9, layout.n_elements).astype(np.float32))


def sums(weight_E, own):
    layout = Layout.apart(SPECS)
    out = np.zeros((own.n_items, 20))
    offsets = own.host_offsets.numpy()
    ids = own.host_ids_L.numpy()
    for table, spec in enumerate(SPECS):
        first = layout.elements_T[table]
        column = layout.columns[table]
        rows = weight_E.numpy()[first : first + spec.rows * spec.dim].reshape(spec.rows, spec.dim)
        for item in range(own.n_items):
            m = table * own.n_items + item
            out[item, column : column + spec.dim] = rows[ids[offsets[m] : offsets[m + 1]]].sum(
                axis=0
            )
    return torch.from_numpy(out).float()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_without_a_gpu_it_says_so_in_one_line(tmp_path):
    done = run_script("experiments/embedding/gpu.py", "--out", str(tmp_path / "out"), cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "gpu.py: needs a CUDA device; PyTorch sees none here\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--models", "A,Z"], "--models: Z unknown; expected of A, B, C, D, E"),
        (["--batches", "1,x"], "--batches is '1,x'; expected whole numbers"),
    ],
)
def test_wrong_arguments_are_refused(words, why, capsys):
    with pytest.raises(SystemExit):
        gpu.arguments(words)
    assert why in capsys.readouterr().err


def test_study_and_tuner_start_with_torch_numpy_pandas_and_matplotlib_alone():
    blocked = "rich scipy numba llvmlite psutil pyarrow yaml recbole fbgemm_gpu triton"
    code = (
        "import sys\nclass Blocked:\n"
        "    def find_spec(self, name, *_):\n        if name.split('.')[0] in "
        f"{blocked.split()!r}:\n            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Blocked())\n"
        "import importlib.util\nfind = importlib.util.find_spec\n"
        f"importlib.util.find_spec = lambda name: None if name in {blocked.split()!r} else "
        "find(name)\nimport torch\nfrom experiments.embedding import gpu, gpu_ablations\nfrom "
        "models.embedding import tuner\nproblem, inputs = gpu.work_of('B', [1, 2], None, 0.01, "
        "torch.device('cpu'))\nprint(len(problem.layout.specs), sorted(inputs), [len(own) for own "
        "in inputs.values()])\nsource = tuner.source_of('wnd', ['--table_scale', '0.001'])\n"
        "print(len(tuner.problem_of(source, [1, 2], 1, 'cpu').batches[2][0].offsets))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    n_tables = len(tuner.source_of("wnd", []).table_rows)
    assert done.stdout == f"12 [1, 2] [4, 4]\n{2 * n_tables + 1}\n", done.stderr


def test_the_bound_counts_every_row_once_or_every_look_up():
    # of three tables 1, 2 and 2 rows
    ids = [7, 7, 0, 8, 5, 5, 5, 5, 6, 5]
    offsets = [0, 2, 2, 3, 4, 7, 10]
    own = Input.of(np.array(ids, np.int32), np.array(offsets, np.int32), 3, CPU)
    other = 4 * (10 + 7) + 2 * 20 * 4
    once = 4 * (1 * 4 + 2 * 8 + 2 * 8)
    often = 4 * (2 * 4 + 2 * 8 + 6 * 8)
    assert gpu.floors(Layout.apart(SPECS), [own]) == (once + other, often + other)


@torch.no_grad()  # FBGEMM knows no inference mode
@pytest.mark.parametrize("peer", [PerTable, Fbgemm, TorchRec])
def test_peers_give_the_sums_from_either_side(peer):
    layout = Layout.apart(SPECS)
    weight_E = weights(layout)
    method = built(lambda: peer(layout, weight_E, INPUTS))
    if isinstance(method, str):
        assert peer is not PerTable
        pytest.skip(f"{peer.__name__}: {method}")
    for i, own in enumerate(INPUTS):
        assert torch.equal(method.call(i), sums(weight_E, own))
        assert torch.equal(method.from_host(i), sums(weight_E, own))


def test_a_method_with_other_sums_is_not_timed():
    layout = Layout.apart(SPECS)
    weight_E = weights(layout)
    right, wrong = (PerTable(layout, w, INPUTS) for w in (weight_E, weight_E + 1))
    gpu.check({"per table": right, "own": right}, 2)
    with pytest.raises(ValueError, match="own: other sums than the per-table look-up, input 0"):
        gpu.check({"per table": right, "own": wrong}, 2)


def test_what_cannot_be_built_is_a_line():
    def fail():
        raise RuntimeError("no such thing\nand more")

    assert built(fail) == "RuntimeError: no such thing"
    layout = Layout.apart([TableSpec(5, 6)])
    for peer in (Fbgemm, TorchRec):
        assert "multiples of 4" in built(
            lambda peer=peer: peer(layout, torch.zeros(layout.n_elements), [])
        )


def test_what_fails_on_its_first_input_is_a_line_too():
    class Failing(PerTable):
        def call(self, i):
            raise NotImplementedError(f"no kernel for input {i}")

    layout = Layout.apart(SPECS)
    assert (
        built(lambda: Failing(layout, weights(layout), INPUTS))
        == "NotImplementedError: no kernel for input 0"
    )


def test_what_is_tuned_on_is_not_what_is_measured_on():
    problem, inputs = gpu.work_of("B", [4, 2], None, 0.005, CPU)
    assert sorted(problem.batches) == sorted(inputs) == [2, 4]
    tuned = {bags.ids_L.numpy().tobytes() for own in problem.batches.values() for bags in own}
    measured = {own.ids_L.numpy().tobytes() for every in inputs.values() for own in every}
    assert len(measured) == 2 * gpu.N_INPUTS
    assert not tuned & measured
    assert {own.n_items for own in inputs[4]} == {4}


def test_one_launch_and_several_are_searched_apart():
    found = gpu.families(cuda.KNOBS)
    assert [*found] == ["ours, fused", "ours, grouped"]
    assert {dict(own)["launch"] for own in found["ours, fused"]} == {"fused"}
    assert {dict(own)["launch"] for own in found["ours, grouped"]} == {"by_schedule", "grouped"}
    assert sum(map(len, found.values())) == len(cuda.KNOBS)
    assert {dict(own).get("max_registers", 0) for own in found["ours, fused"]} == {0, 40}
    assert all(gpu.families(gpu.QUICK.knobs).values())


def test_the_saved_bucket_is_that_of_the_faster_search():
    def plan(n, **ms):
        rows = [{"batch": int(batch[1:]), "ms": own} for batch, own in ms.items()]
        return gpu.plan_of(
            SPECS[:1],
            {8: Bucket(None, (Group("bags", params(tile_bags=n), (0,)),))},
            {"sizes": rows},
        )

    plans = {"one": plan(1, b1=2.0, b8=1.0), "other": plan(2, b1=1.0, b8=3.0)}
    assert [dict(gpu.fastest(plans, n).groups[0].params)["tile_bags"] for n in (1, 8)] == [2, 1]


def row(model, batch, method, us, what=COLD):
    return {"model": model, "batch": batch, "method": method, "time": what, "us": us}


TIMES = pd.DataFrame(
    [
        row("A", 512, "ours, fused", 100.0),
        row("A", 512, "ours, grouped", 80.0),
        row("A", 512, GRAPHED, 200.0),
        row("A", 512, "FBGEMM", 88.0),
        row("A", 512, ONCE, 40.0, BOUND),
        row("A", 512, GRAPHED, 1.0, WALL),
        row("B", 512, "ours, fused", 10.0),
        row("B", 512, GRAPHED, 15.0),
        row("B", 512, ONCE, 9.0, BOUND),
    ]
)


def test_targets_stand_beside_what_was_measured():
    found = gpu.targets(TIMES, {"A": 599.0, "B": 601.0})
    assert found[["model", "wanted", "measured", "met"]].to_numpy().tolist() == [
        ["A", 2.0, 2.5, "yes"],
        ["A", 0.6, 0.5, "no"],
        ["B", 2.0, 1.5, "no"],
        ["A", 600.0, 599.0, "yes"],
        ["B", 600.0, 601.0, "no"],
    ]


def test_speedups_are_over_our_faster_one_with_the_published_ones_dashed():
    found = speedups(TIMES)
    assert found.loc[("A", 512)].to_dict() == {GRAPHED: 2.5, "FBGEMM": 1.1}
    assert found.loc[("B", 512)][GRAPHED] == 1.5
    figure = draw_speedups(TIMES)
    for axes in figure.axes:
        assert {line.get_ydata()[0] for line in axes.lines if line.get_linestyle() == "--"} == {
            1.95,
            11.57,
            7.92,
        }
    assert "What differs" in figure.get_suptitle()


def test_measured_batches_become_buckets_up_to_their_size():
    buckets = {
        size: Bucket(None, (Group("bags", params(tile_bags=n), (0,)),))
        for size, n in ((8, 1), (1, 2), (64, 4))
    }
    plan = gpu.plan_of(SPECS[:1], buckets, {"gpu": "x"})
    tiles = {n: dict(plan.bucket(n).groups[0].params)["tile_bags"] for n in (1, 2, 8, 9, 1000)}
    assert tiles == {1: 2, 2: 1, 8: 1, 9: 4, 1000: 4}
    assert plan.provenance["gpu"] == "x"


STUDY = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from experiments.embedding import gpu
from models.embedding import cuda
from models.embedding.gpu.timing import wall_seconds
from models.embedding.plan.plan import params
class Quick(cuda.CudaBackend):
    def clock(self, calls, n_rounds):
        return wall_seconds(calls, 1)
gpu.N_INPUTS = gpu.WARM_UPS = 1
cuda.UNIFORM_TILES = (4,)
cuda._FULL_ELEMENTS = 0
knobs = params(launch="fused", warps=1), params(launch="grouped")
gpu.QUICK = gpu.Effort(1, 2.0, knobs)
words = ["--models", "B", "--batches", "1,2", "--quick", "--tables_frac", "0.002", "--out", sys.argv[1]]
clocks = gpu.Clocks(lambda calls, n, cold: wall_seconds(calls, n), lambda calls, n: wall_seconds(calls, n))
cpu = torch.device("cpu")
with torch.no_grad():
    gpu.run(gpu.arguments(words), lambda own: Quick(own, 2), clocks, cpu)
"""


@NEEDS_TRITON
def test_the_whole_study_runs_in_the_interpreter(tmp_path):
    (tmp_path / "gpu.csv").write_text(
        "model,batch,method,time,us\nA,1,old,bound,1\nB,7,old,bound,1\n"
    )
    environment = os.environ | {
        "TRITON_INTERPRET": "1",
        "DEEPRECSYS_CACHE": str(tmp_path / "cache"),
    }
    done = subprocess.run(
        [sys.executable, "-c", STUDY, str(tmp_path)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = pd.read_csv(tmp_path / "gpu.csv")
    assert set(rows["batch"]) == {1, 2}
    assert {"ours, fused", "ours, grouped", "ours, one schedule", "per table"} <= set(
        rows["method"]
    )
    assert rows[rows["model"] == "B"].groupby("time")["method"].nunique()[BOUND] == 2
    assert "A" in set(rows["model"])  # measured before
    plan = json.loads((tmp_path / "gpu_plans" / "B.json").read_text())
    assert [bucket["max_batch"] for bucket in plan["buckets"]] == [1, None]
    assert plan["provenance"]["gpu"] == "none"
    searches = plan["provenance"]["search"]
    assert {"ours, fused", "ours, grouped"} == {*searches}
    for own in searches.values():
        assert {one["batch"] for one in own["sizes"]} == {1, 2}
        assert own["refused"] == []
    tuning = pd.read_csv(tmp_path / "gpu_targets.csv").iloc[0]
    assert (tuning["model"], tuning["wanted"]) == ("B", 600)
    assert tuning["measured"] == pytest.approx(
        sum(own["seconds"] for own in searches.values()), rel=1e-3
    )


def test_the_figure_has_a_panel_for_each_time_and_model():
    rows = [
        {
            "model": model,
            "batch": batch,
            "method": method,
            "time": what,
            "us": (10 if model == "A" else 20) * batch,
            "low_us": 9,
            "high_us": 2000,
        }
        for model in "AB"
        for batch in (1, 64)
        for method in ("ours, fused", "per table")
        for what in (COLD, WALL)
    ]
    rows += [{"model": "A", "batch": 1, "method": ONCE, "time": BOUND, "us": 3.0}]
    figure = draw_figure(pd.DataFrame(rows))
    assert len(figure.axes) == 4
    assert {axes.get_yscale() for axes in figure.axes} == {"log"}
    heights = [[patch.get_height() for patch in axes.patches] for axes in figure.axes[:2]]
    assert heights == [[10, 640, 10, 640], [20, 1280, 20, 1280]]
