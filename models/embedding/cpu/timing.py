"""Times on a CPU: calls in turn, beside neighbours that keep the other cores' memory busy."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator, Sequence

import numpy as np

from infra.provenance import usable_cores
from models.embedding.backend import Call, FloatArray

_BUFFER_BYTES = 256 << 20  # of a neighbour: larger than the cache
_ROW_FLOATS = 32
_ROWS_A_TURN = 4096
_START_S = 0.3
_PR_SET_PDEATHSIG = 1
_LEAST_ROUND_S = 1e-3
_MOST_CALLS = 64
_CHEAP_S = 0.1
_MOST_ROUNDS = 5


@contextlib.contextmanager
def neighbours(n_threads: int) -> Iterator[None]:
    """All cores but the first `n_threads` gather from large buffers; this process keeps to them."""
    cores = usable_cores()
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(target=_gather, args=(core, os.getpid(), seed), daemon=True)
        for seed, core in enumerate(cores[n_threads:])
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
    turns = rng.integers(0, len(rows), (64, _ROWS_A_TURN))
    while os.getppid() == parent:
        for ids in turns:
            np.take(rows, ids, axis=0, out=target, mode="clip")


def seconds(calls: Sequence[Call], n_rounds: int) -> FloatArray:
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


def _timed(call: Call, first: int, n: int) -> float:
    start = time.perf_counter()
    for i in range(first, first + n):
        call(i)
    return (time.perf_counter() - start) / n
