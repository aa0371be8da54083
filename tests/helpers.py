"""What several tests need."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from infra.rows import Rows
from loadGenerator import Schedule

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "tests" / "data"
MS = 1_000_000

TINY = [
    "--queue", "--config_file", str(ROOT / "models/configs/wide_and_deep.json"), "--table_scale", "0.001",
    "--num_batches", "4", "--nepochs", "30", "--max_mini_batch_size", "64",
    "--batch_size_distribution", "normal", "--avg_mini_batch_size", "24", "--var_mini_batch_size", "8",
    "--sub_task_batch_size", "16", "--inference_engines", "2", "--arrival_qps", "150", "--target_latency", "500",
]  # fmt: skip


def run_script(*words: str, cwd: Path, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """A Python program of the tree, as a user would start it."""
    return subprocess.run(
        [sys.executable, str(ROOT / words[0]), *words[1:]], cwd=cwd, capture_output=True, text=True, timeout=timeout,
        check=False,
    )  # fmt: skip


def poisson_schedule(rate_qps: float, n: int, n_items: int = 1, seed: int = 0, n_warmup: int = 0) -> Schedule:
    """Exponential gaps, one size."""
    gaps_ns = np.random.default_rng(seed).exponential(1e9 / rate_qps, n)
    return Schedule(np.cumsum(gaps_ns).astype(np.int64), np.full(n, n_items, np.int32), np.zeros(n, np.int32), n_warmup)


def latencies_ms(rows: Rows) -> np.ndarray:
    """Latency of every query in order of query_id; each must have been answered."""
    assert rows.queries["done_ns"].notna().all()
    return (rows.queries["done_ns"] - rows.queries["arrival_ns"]).to_numpy(np.int64) / MS


def close(samples: np.ndarray, statistic: Callable[[np.ndarray], float], expected: float, k: float = 4) -> None:
    """`expected` lies within k standard errors, from 20 batch means (so dependence counts), warm-up cut."""
    parts = [statistic(batch) for batch in np.array_split(samples[len(samples) // 10 :], 20)]
    stderr = np.std(parts, ddof=1) / math.sqrt(len(parts))
    assert abs(np.mean(parts) - expected) < k * stderr, f"{np.mean(parts):.4f} +- {stderr:.4f}, expected {expected:.4f}"


def erlang_c(n_servers: int, load: float) -> float:
    """Probability that an arrival waits in M/M/c; `load` = rate x mean service, below n_servers."""
    inverse_b = 1.0
    for k in range(1, n_servers + 1):
        inverse_b = 1 + inverse_b * k / load
    b = 1 / inverse_b
    return b / (1 - (load / n_servers) * (1 - b))
