"""The GPU study as far as it runs without a GPU; in Triton's interpreter that is all of it."""

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

from experiments.common.case_log import digest_of
from experiments.embedding import gpu, gpu_setup
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
KNOBS = (params(launch="fused", warps=1), params(launch="grouped"))
NEEDS_TRITON = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="needs triton (pip install -r build/bench_requirements.txt)",
)


def python(code, *words, **environment):
    """What a program of a process of its own did."""
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
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


def sums(weight_E, batch):
    layout = Layout.apart(SPECS)
    out = np.zeros((batch.n_items, 20))
    offsets = batch.host_offsets.numpy()
    ids = batch.host_ids_L.numpy()
    for table, spec in enumerate(SPECS):
        first = layout.elements_T[table]
        column = layout.columns[table]
        rows = weight_E.numpy()[first : first + spec.rows * spec.dim].reshape(spec.rows, spec.dim)
        for item in range(batch.n_items):
            m = table * batch.n_items + item
            bag = ids[offsets[m] : offsets[m + 1]]
            out[item, column : column + spec.dim] = rows[bag].sum(axis=0)
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
        (["--models", "A,Z"], "--models Z: not among A, B, C, D, E"),
        (["--batches", "1,x"], "--batches: '1,x'; expected whole numbers"),
    ],
)
def test_wrong_arguments_are_refused(words, why, capsys):
    with pytest.raises(SystemExit):
        gpu.STUDY.command(words)
    assert why in capsys.readouterr().err


LIGHT = """
import sys
blocked = "rich scipy numba llvmlite psutil pyarrow yaml recbole fbgemm_gpu triton".split()
class Blocked:
    def find_spec(self, name, *_):
        if name.split(".")[0] in blocked:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocked())
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name: None if name in blocked else find(name)
import torch
from experiments.embedding import gpu, gpu_ablations, gpu_setup
from models.embedding import tuner
problem, inputs = gpu_setup.work_of("B", [1, 2], 0.01, device=torch.device("cpu"))
print(len(problem.layout.specs), sorted(inputs), [len(batches) for batches in inputs.values()])
source = tuner.source_of("wnd", ["--table_scale", "0.001"])
print(len(tuner.problem_of(source, [1, 2], 1, "cpu").batches[2][0].offsets))
"""


def test_study_and_tuner_start_with_torch_numpy_pandas_and_matplotlib_alone():
    done = python(LIGHT)
    n_tables = len(tuner.source_of("wnd", []).table_rows)
    assert done.stdout == f"12 [1, 2] [4, 4]\n{2 * n_tables + 1}\n", done.stderr


def test_the_bound_counts_every_row_once_or_every_look_up():
    # of three tables 1, 2 and 2 rows
    ids = [7, 7, 0, 8, 5, 5, 5, 5, 6, 5]
    offsets = [0, 2, 2, 3, 4, 7, 10]
    batch = Input.of(np.array(ids, np.int32), np.array(offsets, np.int32), 3, CPU)
    other = 4 * (10 + 7) + 2 * 20 * 4
    once = 4 * (1 * 4 + 2 * 8 + 2 * 8)
    often = 4 * (2 * 4 + 2 * 8 + 6 * 8)
    assert gpu.floors(Layout.apart(SPECS), [batch]) == (once + other, often + other)


@torch.no_grad()  # FBGEMM knows no inference mode
@pytest.mark.parametrize("peer", [PerTable, Fbgemm, TorchRec])
def test_peers_give_the_sums_from_either_side(peer):
    layout = Layout.apart(SPECS)
    weight_E = weights(layout)
    method = built(lambda: peer(layout, weight_E, INPUTS))
    if isinstance(method, str):
        assert peer is not PerTable
        pytest.skip(f"{peer.__name__}: {method}")
    for i, batch in enumerate(INPUTS):
        assert torch.equal(method.call(i), sums(weight_E, batch))
        assert torch.equal(method.from_host(i), sums(weight_E, batch))


def test_a_method_with_other_sums_is_not_timed():
    layout = Layout.apart(SPECS)
    weight_E = weights(layout)
    right, wrong = (PerTable(layout, w, INPUTS) for w in (weight_E, weight_E + 1))
    gpu_setup.check({"per table": right, "fused": right}, 2)
    with pytest.raises(ValueError, match="fused: other sums than the per-table look-up, input 0"):
        gpu_setup.check({"per table": right, "fused": wrong}, 2)


def test_what_cannot_be_built_is_a_line():
    def fail():
        raise RuntimeError("no such thing\nand more")

    assert built(fail) == "RuntimeError: no such thing"
    layout = Layout.apart([TableSpec(5, 6)])
    for peer in (Fbgemm, TorchRec):
        made = built(lambda peer=peer: peer(layout, torch.zeros(layout.n_elements), []))
        assert "multiples of 4" in made


def test_what_fails_on_its_first_input_is_a_line_too():
    class Failing(PerTable):
        def call(self, i):
            raise NotImplementedError(f"no kernel for input {i}")

    layout = Layout.apart(SPECS)
    made = built(lambda: Failing(layout, weights(layout), INPUTS))
    assert made == "NotImplementedError: no kernel for input 0"


def test_what_is_tuned_on_is_not_what_is_measured_on():
    problem, inputs = gpu_setup.work_of("B", [4, 2], 0.005, device=CPU)
    assert sorted(problem.batches) == sorted(inputs) == [2, 4]
    tuned, measured = (
        {batch.ids_L.numpy().tobytes() for batches in by_size.values() for batch in batches}
        for by_size in (problem.batches, inputs)
    )
    assert len(measured) == 2 * gpu_setup.N_INPUTS
    assert not tuned & measured
    assert {batch.n_items for batch in inputs[4]} == {4}


def test_one_launch_and_several_are_searched_apart():
    families = gpu.families(cuda.KNOBS)
    assert [*families] == ["ours, fused", "ours, grouped"]
    fused, grouped = ([dict(knobs) for knobs in family] for family in families.values())
    assert {knobs["launch"] for knobs in fused} == {"fused"}
    assert {knobs["launch"] for knobs in grouped} == {"by_schedule", "grouped"}
    assert sum(map(len, families.values())) == len(cuda.KNOBS)
    assert {knobs.get("max_registers", 0) for knobs in fused} == {0, 40}
    assert all(gpu.families(gpu.QUICK[0].knobs).values())


def bucket(n):
    return Bucket(None, (Group("bags", params(tile_bags=n), (0,)),))


def test_the_saved_bucket_is_that_of_the_faster_search():
    def plan(n, **ms_by_batch):
        rows = [{"batch": int(batch[1:]), "ms": ms} for batch, ms in ms_by_batch.items()]
        return gpu.plan_of(SPECS[:1], {8: bucket(n)}, {"sizes": rows})

    plans = {"fused": plan(1, b1=2.0, b8=1.0), "grouped": plan(2, b1=1.0, b8=3.0)}
    assert [dict(gpu.fastest(plans, n).groups[0].params)["tile_bags"] for n in (1, 8)] == [2, 1]


def test_measured_batches_become_buckets_up_to_their_size():
    buckets = {size: bucket(n) for size, n in ((8, 1), (1, 2), (64, 4))}
    plan = gpu.plan_of(SPECS[:1], buckets, {"gpu": "x"})
    tiles = {n: dict(plan.bucket(n).groups[0].params)["tile_bags"] for n in (1, 2, 8, 9, 1000)}
    assert tiles == {1: 2, 2: 1, 8: 1, 9: 4, 1000: 4}
    assert plan.provenance["gpu"] == "x"


def row(model, batch, method, us, time=COLD):
    return {"model": model, "batch": batch, "method": method, "time": time, "us": us}


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
    tuning = pd.DataFrame({"model": ["A", "B"], "seconds": [599.0, 601.0]})
    targets = gpu.targets(TIMES, tuning)
    assert targets[["model", "wanted", "measured", "met"]].to_numpy().tolist() == [
        ["A", 2.0, 2.5, "yes"],
        ["A", 0.6, 0.5, "no"],
        ["B", 2.0, 1.5, "no"],
        ["A", 600.0, 599.0, "yes"],
        ["B", 600.0, 601.0, "no"],
    ]


def test_speedups_are_over_our_faster_one_with_the_published_ones_dashed():
    ratios = speedups(TIMES)
    assert ratios.loc[("A", 512)].to_dict() == {GRAPHED: 2.5, "FBGEMM": 1.1}
    assert ratios.loc[("B", 512)][GRAPHED] == 1.5
    figure = draw_speedups(TIMES)
    for axes in figure.axes:
        dashed = {line.get_ydata()[0] for line in axes.lines if line.get_linestyle() == "--"}
        assert dashed == {1.95, 11.57, 7.92}
    assert "What differs" in figure.get_suptitle()


def test_the_figure_has_a_panel_for_each_time_and_model():
    rows = [
        row(model, batch, method, (10 if model == "A" else 20) * batch, time)
        | {"low_us": 9, "high_us": 2000}
        for model in "AB"
        for batch in (1, 64)
        for method in ("ours, fused", "per table")
        for time in (COLD, WALL)
    ]
    rows += [row("A", 1, ONCE, 3.0, BOUND)]
    figure = draw_figure(pd.DataFrame(rows))
    assert len(figure.axes) == 4
    assert {axes.get_yscale() for axes in figure.axes} == {"log"}
    heights = [[patch.get_height() for patch in axes.patches] for axes in figure.axes[:2]]
    assert heights == [[10, 640, 10, 640], [20, 1280, 20, 1280]]


STUDY = """
import sys
import torch
torch.set_num_threads(1)
from experiments.embedding import gpu, gpu_setup
from models.embedding.gpu import backend as cuda
from models.embedding.gpu.timing import wall_seconds
from models.embedding.plan.plan import params
class Quick(cuda.CudaBackend):
    def clock(self, calls, n_rounds):
        return wall_seconds(calls, 1)
gpu_setup.N_INPUTS = gpu_setup.WARM_UPS = 1
cuda.UNIFORM_TILES = (4,)
cuda._FULL_ELEMENTS = 0
knobs = params(launch="fused", warps=1), params(launch="grouped")
gpu.FULL[:] = [
    gpu.GpuCase("B", (1, 2), tables_frac=0.002, n_rounds=1, tune_s=2.0, knobs=knobs)
]
wall = lambda calls, n_rounds, cold=True: wall_seconds(calls, n_rounds)
cpu = torch.device("cpu")
gpu_setup.BENCH = gpu_setup.GpuBench(cpu, lambda knobs: Quick(knobs, 2), wall, wall)
sys.exit(gpu.STUDY.command(sys.argv[1:]))
"""


@NEEDS_TRITON
def test_the_whole_study_runs_in_the_interpreter(tmp_path):
    measured = gpu.GpuCase("A", (1, 2), tables_frac=0.002, n_rounds=1, tune_s=2.0, knobs=KNOBS)
    line = {
        "case": digest_of("embedding_gpu", 1, measured),
        "tables": {"gpu": [row("A", 1, "old", 1.0, BOUND)], "gpu_tuning": []},
    }
    (tmp_path / "embedding_gpu.cases.jsonl").write_text(json.dumps(line) + "\n")
    words = ["--models", "A,B", "--out", str(tmp_path)]
    cache = str(tmp_path / "cache")
    done = python(STUDY, *words, TRITON_INTERPRET="1", DEEPRECSYS_CACHE=cache)
    assert done.returncode == 0, done.stderr
    rows = pd.read_csv(tmp_path / "gpu.csv")
    of_b = rows[rows["model"] == "B"]
    assert set(of_b["batch"]) == {1, 2}
    assert {"ours, fused", "ours, grouped", "ours, one schedule", "per table"} <= set(
        of_b["method"]
    )
    assert of_b.groupby("time")["method"].nunique()[BOUND] == 2
    assert rows[rows["model"] == "A"]["method"].tolist() == ["old"]  # measured before
    plan = json.loads((tmp_path / "gpu_plans" / "B.json").read_text())
    assert [bucket["max_batch"] for bucket in plan["buckets"]] == [1, None]
    assert plan["provenance"]["gpu"] == "none"
    searches = plan["provenance"]["search"]
    assert {"ours, fused", "ours, grouped"} == {*searches}
    for search in searches.values():
        assert {size["batch"] for size in search["sizes"]} == {1, 2}
        assert search["refused"] == []
    tuning = pd.read_csv(tmp_path / "gpu_targets.csv").iloc[0]
    assert (tuning["model"], tuning["wanted"]) == ("B", 600)
    seconds = sum(search["seconds"] for search in searches.values())
    assert tuning["measured"] == pytest.approx(seconds, rel=1e-3)
