"""What several tests need."""

from __future__ import annotations

import functools
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from backends.processes.engine import NullEngine
from infra.results.rows import Rows
from loadGenerator import Schedule

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "tests" / "data"
MS = 1_000_000
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 (looked at, not written)

TINY = (
    f"--queue --config_file {ROOT}/models/configs/wide_and_deep.json --table_scale 0.001 "
    "--num_batches 4 --nepochs 30 --max_mini_batch_size 64 "
    "--batch_size_distribution normal --avg_mini_batch_size 24 --var_mini_batch_size 8 "
    "--sub_task_batch_size 16 --inference_engines 2 --arrival_qps 150 --target_latency 500 "
    "--quiet_check 0"
).split()


@dataclass(frozen=True)
class NullFactory:
    """Of engines that do nothing for some time; here, as a spawned engine imports it by name."""

    busy_ns: int = 0

    def __call__(self, _: int) -> NullEngine:
        return NullEngine(self.busy_ns)


@functools.cache
def script_server() -> subprocess.Popen[str]:
    """One for all tests of this process; it ends with its input."""
    words = [sys.executable, str(ROOT / "tests/script_server.py")]
    return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def run_script(*words: str, cwd: Path, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """A Python program of the tree in a process of its own, as a user would start it; the libraries
    are loaded.
    """
    argv = [str(ROOT / words[0]), *words[1:]]
    server = script_server()
    with tempfile.NamedTemporaryFile("r") as out, tempfile.NamedTemporaryFile("r") as err:
        program = {
            "argv": argv,
            "cwd": str(cwd),
            "environment": {**os.environ, "PYTHONPATH": str(ROOT)},
            "stdout": out.name,
            "stderr": err.name,
        }
        server.stdin.write(json.dumps(program) + "\n")
        server.stdin.flush()
        process = int(server.stdout.readline())
        overdue = threading.Timer(timeout, os.kill, (process, signal.SIGKILL))
        overdue.start()
        try:
            code = int(server.stdout.readline())
        except BaseException:  # the test has run out of its time: neither is of any use to the next
            os.kill(process, signal.SIGKILL)
            server.kill()
            script_server.cache_clear()
            raise
        finally:
            overdue.cancel()
        return subprocess.CompletedProcess(argv, code, out.read(), err.read())


def schedule_at(arrival_ns: object, n_items: object, n_warmup: int = 0) -> Schedule:
    """Queries of so many items (an array, or a number for all) of input 0 at these arrivals."""
    arrivals = np.asarray(arrival_ns, np.int64)
    sizes = np.broadcast_to(np.asarray(n_items, np.int32), arrivals.shape)
    return Schedule(arrivals, sizes.copy(), np.zeros(len(arrivals), np.int32), n_warmup)


def poisson_schedule(
    rate_qps: float, n: int, n_items: int = 1, seed: int = 0, n_warmup: int = 0
) -> Schedule:
    """Exponential gaps, one size."""
    gaps_ns = np.random.default_rng(seed).exponential(1e9 / rate_qps, n)
    return schedule_at(np.cumsum(gaps_ns).astype(np.int64), n_items, n_warmup)


def latencies_ms(rows: Rows) -> np.ndarray:
    """Latency of every query in order of query_id; each must have been answered."""
    assert rows.queries["done_ns"].notna().all()
    return (rows.queries["done_ns"] - rows.queries["arrival_ns"]).to_numpy(np.int64) / MS


def close(
    samples: np.ndarray, statistic: Callable[[np.ndarray], float], expected: float, k: float = 4
) -> None:
    """`expected` lies within k standard errors, from 20 batch means (so dependence counts), warm-up
    cut.
    """
    parts = [statistic(batch) for batch in np.array_split(samples[len(samples) // 10 :], 20)]
    stderr = np.std(parts, ddof=1) / math.sqrt(len(parts))
    assert abs(np.mean(parts) - expected) < k * stderr, (
        f"{np.mean(parts):.4f} +- {stderr:.4f}, expected {expected:.4f}"
    )


def erlang_c(n_servers: int, load: float) -> float:
    """Probability that an arrival waits in M/M/c; `load` = rate x mean service, below n_servers."""
    inverse_b = 1.0
    for k in range(1, n_servers + 1):
        inverse_b = 1 + inverse_b * k / load
    b = 1 / inverse_b
    return b / (1 - (load / n_servers) * (1 - b))
