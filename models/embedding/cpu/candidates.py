"""What the tuner may try on a CPU: candidates with a cost model before them, busy neighbours, a
clock.
"""

# B items, T tables

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from infra.provenance import usable_cores
from models.embedding.backend import Choice, Cluster, FloatArray
from models.embedding.cpu.storage import ERRORS
from models.embedding.plan.plan import params

_BUFFER_BYTES = 256 << 20  # of a neighbour: larger than the cache
_ROW_FLOATS = 32
_ROWS_A_TURN = 4096
_START_S = 0.3
_PR_SET_PDEATHSIG = 1
_LINE_BYTES = 64
_L2_BYTES = 512 << 10
_L3_BYTES = 16 << 20
_BAG_S = 4e-9
_ID_S = 0.7e-9
_NEAR_S = 0.4e-9
_FAR_S = 2e-9
_MEMORY_S = 6e-9
_STREAMED_LINE_S, _TORCH_CALL_S, _WORST = 2.5e-9, 5e-6, 3.0
_LEAST_ROUND_S, _MOST_CALLS = 1e-3, 64
_CHEAP_S, _MOST_ROUNDS = 0.1, 5


def choices(cluster: Cluster, max_error: float) -> list[Choice]:
    """Every candidate within a factor of the best estimate, best first."""
    found = sorted(_all(cluster, max_error), key=lambda pair: pair[1])
    return [choice for choice, cost_s in found if cost_s <= _WORST * found[0][1]]


def _all(cluster: Cluster, max_error: float) -> Iterator[tuple[Choice, float]]:
    n_tables = len(cluster.tables)
    spec = cluster.spec
    n_bags = n_tables * cluster.n_items
    n_ids = n_bags * cluster.mean_ids
    table_bytes = spec.rows * spec.dim * 4
    lines = max(spec.dim * 4 / _LINE_BYTES, 1.0)
    n_touched = min(n_ids, n_tables * spec.rows) * lines
    again_s = _NEAR_S if table_bytes <= _L2_BYTES else _FAR_S
    rows_s = n_touched * _MEMORY_S + max(n_ids * lines - n_touched, 0) * again_s
    plain_s = n_bags * _BAG_S + n_ids * _ID_S + rows_s
    streamed_s = (
        plain_s
        - n_touched * _MEMORY_S
        + n_touched * again_s
        + n_tables * table_bytes / _LINE_BYTES * _STREAMED_LINE_S
    )
    for storage, error in ERRORS.items():
        if error > max_error:
            continue
        narrow = {} if storage == "float32" else {"storage": storage}
        for unroll in (1, 4):
            if unroll == 1 or (cluster.mean_ids >= 4 and spec.dim <= 64):
                yield Choice("compiled", params(ahead="none", unroll=unroll, **narrow)), plain_s
                yield Choice("compiled", params(ahead="table", unroll=unroll, **narrow)), streamed_s
        for distance in (16, 64):
            yield (
                Choice("compiled", params(ahead="ids", distance=distance, **narrow)),
                plain_s * 1.05,
            )
        if cluster.item_major:
            yield Choice("compiled", params(ahead="none", order="item", **narrow)), plain_s * 1.02
        if spec.bag_ids == 1:
            yield Choice("copy", params(ahead="none", **narrow)), plain_s * 0.9
            yield Choice("copy", params(ahead="ids", distance=16, **narrow)), plain_s
            yield Choice("copy", params(ahead="table", **narrow)), streamed_s * 0.9
    again = n_ids * _ID_S + rows_s
    yield Choice("fused", ()), 4 * _TORCH_CALL_S + n_bags * 20e-9 + 3 * again
    yield Choice("per_table", ()), n_tables * _TORCH_CALL_S + n_bags * 8e-9 + again
    if spec.bag_ids == 1:
        yield Choice("gather", ()), 4 * _TORCH_CALL_S + n_bags * 15e-9 + 2 * again
    if spec.bag_ids is not None:
        yield Choice("fixed_length", ()), 4 * _TORCH_CALL_S + n_bags * 20e-9 + 2 * again
    cells = cluster.n_items * spec.rows * n_tables
    yield (
        Choice("histogram", ()),
        4 * n_tables * _TORCH_CALL_S + n_ids * 4e-9 + cells * (1e-9 + spec.dim * 3e-11),
    )
    yield (
        Choice("dedup", ()),
        8 * _TORCH_CALL_S + n_ids * 60e-9 + n_bags * 20e-9 + cluster.distinct_frac * rows_s,
    )


@contextlib.contextmanager
def neighbours(n_threads: int) -> Iterator[None]:
    """All cores but the first `n_threads` gather from buffers larger than the cache; this process
    keeps to those.
    """
    cores = usable_cores()
    others = cores[n_threads:]
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(target=_gather, args=(core, os.getpid(), seed), daemon=True)
        for seed, core in enumerate(others)
    ]
    try:
        for process in processes:
            process.start()
        os.sched_setaffinity(0, cores[:n_threads] or cores)
        if processes:
            time.sleep(_START_S)
        yield
    finally:
        os.sched_setaffinity(0, cores)
        for process in processes:
            process.kill()
            process.join()


def _gather(core: int, parent: int, seed: int) -> None:
    """Sum random rows until the parent is gone."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    os.sched_setaffinity(0, {core})
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    rows = np.ones((_BUFFER_BYTES // 4 // _ROW_FLOATS, _ROW_FLOATS), np.float32)
    rng = np.random.default_rng(seed)
    target = np.empty((_ROWS_A_TURN, _ROW_FLOATS), np.float32)
    ids = rng.integers(0, len(rows), (64, _ROWS_A_TURN))
    while os.getppid() == parent:
        for own in ids:
            np.take(rows, own, axis=0, out=target, mode="clip")


def seconds(calls: Sequence[Callable[[int], object]], n_rounds: int) -> FloatArray:
    """(calls, rounds) seconds a call; in every round each call in turn, in another order.

    At least `n_rounds`; of short calls more, for as long as that is cheap. Every call goes on with
    the batches behind those of the call before it, so that nobody finds rows in the cache which
    somebody else has just read.
    """
    n_calls = []
    turn = 0
    round_s = 0.0
    for k, call in enumerate(calls):
        call(turn)
        once_s = _timed(call, turn + 1, 1)
        n_calls.append(int(min(max(_LEAST_ROUND_S / max(once_s, 1e-9), 1), _MOST_CALLS)))
        round_s += n_calls[k] * once_s
        turn += 2
    n_rounds = int(min(max(_CHEAP_S / max(round_s, 1e-9), n_rounds), _MOST_ROUNDS * n_rounds))
    times = np.empty((len(calls), n_rounds))
    rng = np.random.default_rng(len(calls))
    for round_id in range(n_rounds):
        for k in rng.permutation(len(calls)):
            times[k, round_id] = _timed(calls[k], turn, n_calls[k])
            turn += n_calls[k]
    return times


def _timed(call: Callable[[int], object], first: int, n: int) -> float:
    start = time.perf_counter()
    for i in range(first, first + n):
        call(i)
    return (time.perf_counter() - start) / n
