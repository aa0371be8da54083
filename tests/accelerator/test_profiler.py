"""The profiler's neighbours end with it, whatever ends it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import ROOT

SCRIPT = """
import os, signal
from accelerator import profiler
from infra.settings.cli import parse
from models import build
from models.inputs.synthetic import InputPool

config = parse("--model_type wnd --arch_mlp_bot 4 --num_batches 1 --max_mini_batch_size 8".split())
with profiler.neighbours(build(config.model, 1), InputPool(config.model, 1, 8, 1), 1) as keep_busy:
    keep_busy({n_busy})
    print(*[p.pid for p in profiler.multiprocessing.active_children()], flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def ended(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except FileNotFoundError:
        return True


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("n_busy", [0, 1])
def test_a_neighbour_busy_or_stopped_ends_with_a_killed_profiler(n_busy, tmp_path):
    # Into a file: a pipe would stay open for as long as the neighbour lives.
    with (tmp_path / "pid").open("w") as out:
        words = [sys.executable, "-c", SCRIPT.replace("{n_busy}", str(n_busy))]
        done = subprocess.run(words, cwd=ROOT, stdout=out, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    (pid,) = map(int, (tmp_path / "pid").read_text().split())
    deadline = time.monotonic() + 20
    try:
        while not ended(pid):
            assert time.monotonic() < deadline, f"neighbour {pid} was left behind"
            time.sleep(0.05)
    finally:
        if not ended(pid):
            os.kill(pid, signal.SIGKILL)
