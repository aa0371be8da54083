"""Models on their own: the lines that scripts cut, time by operator, tables shared by engines."""

import os
import re

import numpy as np
import psutil
import pytest
import torch
from helpers import ROOT, run_script

from infra.settings.config import ModelConfig
from models import build
from models.embedding.tables import allocate
from models.inputs.synthetic import InputPool
from models.operator_times import operator_times

CONFIGS = {  # those of files with other names than their configuration
    "dlrm": ["dlrm_rm1", "dlrm_rm2", "dlrm_rm3"],
}
FILES = ["dlrm", "ncf", "wide_and_deep", "mtwnd", "din", "dien"]
SMALL = (
    "--inference_only --num_batches 2 --nepochs 2 --mini_batch_size 8 --max_mini_batch_size 8 "
    "--table_scale 0.0005"
).split()
LINE = re.compile(r"^Total (data loading|computation|execution) time: \*\*\*  (\S+)  (ms|ms/iter)$")


def run_model(file, config, *flags, cwd):
    path = str(ROOT / f"models/configs/{config}.json")
    return run_script(f"models/{file}.py", "--config_file", path, *SMALL, *flags, cwd=cwd)


@pytest.mark.parametrize("file", FILES)
def test_a_model_file_runs_directly_and_prints_the_six_lines(file, tmp_path):
    for config in CONFIGS.get(file, [file]):
        done = run_model(file, config, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        parts = [LINE.match(line).groups() for line in done.stdout.splitlines()]
        assert [(name, unit) for name, _, unit in parts] == [
            (name, unit)
            for name in ("data loading", "computation", "execution")
            for unit in ("ms", "ms/iter")
        ]
        numbers = [float(number) for _, number, _ in parts]
        for total, each in zip(numbers[::2], numbers[1::2], strict=True):
            assert total == pytest.approx(4 * each, rel=1e-4)
        assert numbers[4] == pytest.approx(numbers[0] + numbers[2], rel=1e-4)


RELEASED_OPERATORS = {*"FC SparseLengthsSum Concat Relu RecurrentNetwork Softmax Other".split()}


@pytest.mark.parametrize(
    ("fused", "operators"),
    [("off", RELEASED_OPERATORS), ("on", RELEASED_OPERATORS - {"Relu", "Softmax"})],
)
def test_profiling_names_the_operators_of_the_release(tmp_path, fused, operators):
    done = run_model("dien", "dien", "--enable_profiling", "--fused", fused, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = {
        line.split()[0]: float(line.split()[2].rstrip("%"))
        for line in done.stdout.splitlines()[1:-6]
    }
    assert operators == set(rows)
    assert sum(rows.values()) == pytest.approx(100, abs=1)


def test_operator_times_are_own_times_and_the_hooks_go_away(monkeypatch):
    clock_ns = [0]

    class Takes(torch.nn.Module):
        def __init__(self, operator, ms, *inside):
            super().__init__()
            self.operator = operator
            self.ms = ms
            self.inside = torch.nn.ModuleList(inside)

        def forward(self, x):
            clock_ns[0] += self.ms * 1_000_000
            for module in self.inside:
                x = module(x)
            return x

    model = torch.nn.Sequential(
        Takes("RecurrentNetwork", 5, Takes("FC", 2), Takes("FC", 3)), Takes("Relu", 1)
    )
    monkeypatch.setattr("models.operator_times.time.perf_counter_ns", lambda: clock_ns[0])
    with operator_times(model) as self_ms:
        model(torch.zeros(1))
        model(torch.zeros(1))
    model(torch.zeros(1))
    assert self_ms == {"RecurrentNetwork": 10.0, "FC": 10.0, "Relu": 2.0}
    # Each look at the clock takes 1 ms: those of hooks are in nobody's time.
    now = iter(range(0, 10**12, 1_000_000))
    monkeypatch.setattr("models.operator_times.time.perf_counter_ns", lambda: next(now))
    with operator_times(
        torch.nn.Sequential(Takes("Concat", 0, *[Takes("FC", 0) for _ in range(5)]))
    ) as self_ms:
        pass
    outer = Takes("Concat", 0, *[Takes("FC", 0) for _ in range(5)])
    with operator_times(outer) as self_ms:
        outer(torch.zeros(1))
    assert self_ms["FC"] == 5.0  # one look each between its two
    assert self_ms["Concat"] == 6.0  # between the children and around them
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_use_accel_without_a_device_is_one_line(tmp_path):
    done = run_model("ncf", "ncf", "--use_accel", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "no CUDA device" in done.stderr


def test_a_configuration_of_another_architecture_is_refused(tmp_path):
    done = run_model("ncf", "din", cwd=tmp_path)
    assert done.returncode == 2
    assert "model_type is 'din'" in done.stderr


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("model_type", ["dlrm", "wnd", "ncf"])
def test_a_cuda_device_gives_the_scores_of_the_cpu(model_type):
    tables = "50-60-70-80"
    config = ModelConfig(
        model_type=model_type,
        arch_embedding_size=tables,
        arch_mlp_bot="5-8",
        arch_mlp_top="9-2",
        arch_sparse_feature_size=8,
        num_indices_per_lookup=3,
    )
    model = build(config, 1)
    batch = InputPool(config, 1, 50, 1).batch(0, 0, 50)
    expected = model(batch)
    cuda = torch.device("cuda")
    torch.testing.assert_close(model.to(cuda)(batch.to(cuda)).cpu(), expected, rtol=1e-4, atol=1e-5)


def test_forked_processes_share_the_tables():
    weight = allocate(400_000, 32)  # 51 MB
    weight.numpy()[:] = 1.0
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        total = float(np.add.reduce(weight.numpy()[::50, 0]))
        unshared = psutil.Process().memory_full_info().uss
        os.write(write, f"{total} {unshared}".encode())
        os._exit(0)
    os.waitpid(child, 0)
    total, unshared = map(float, os.read(read, 100).split())
    os.close(read)
    os.close(write)
    assert total == 8000
    assert unshared < 30e6
