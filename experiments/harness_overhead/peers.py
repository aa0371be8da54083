"""The same null work through multiprocessing.Queue, and through LoadGen over our sockets."""

# a task is (id, sent_ns); a reply (id, sent_ns, start_ns)

from __future__ import annotations

import multiprocessing
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from backends.processes.engine import IDLE, NullEngine, PoolSpec, Slots, precise_timers, run_engine
from backends.processes.pool import Pool
from experiments.harness_overhead import loadgen
from infra.clock import monotonic_ns, wait_until_ns
from infra.messages import CPU, MESSAGE_BYTES, READY, WireReply, pack_task
from loadGenerator import Schedule

SPIN_NS = 100_000
N_WARM_UP = 50  # tasks
Measured = dict[str, npt.NDArray[np.float64] | float]


def _queue_engine(tasks: Any, replies: Any) -> None:
    while (task := tasks.get()) is not None:
        replies.put((*task, monotonic_ns()))


@contextmanager
def _queue_engines(n_engines: int) -> Iterator[tuple[Any, Any]]:
    """Warm processes between two queues: (tasks, replies)."""
    context = multiprocessing.get_context("fork")
    tasks = context.Queue()
    replies = context.Queue()
    ends = (tasks, replies)
    engines = [
        context.Process(target=_queue_engine, args=ends, daemon=True) for _ in range(n_engines)
    ]
    for engine in engines:
        engine.start()
    for _ in range(N_WARM_UP):
        tasks.put((0, 0))
    for _ in range(N_WARM_UP):
        replies.get()
    yield ends
    for _ in engines:
        tasks.put(None)
    for engine in engines:
        engine.join()


def through_queues(n_engines: int, schedule: Schedule) -> Measured:
    """Added latency (start minus intended arrival), lateness, the driver's CPU a task: us."""
    added_us = np.zeros(len(schedule))
    late_us = np.zeros(len(schedule))
    with _queue_engines(n_engines) as (tasks, replies):

        def collect() -> None:
            for _ in range(len(schedule)):
                i, arrival_ns, start_ns = replies.get()
                added_us[i] = (start_ns - arrival_ns) / 1e3

        precise_timers()
        begin_ns = monotonic_ns() + 5_000_000
        cpu_s = time.process_time()
        reader = threading.Thread(target=collect)
        reader.start()
        for i, arrival_ns in enumerate(schedule.arrival_ns.tolist()):
            due_ns = begin_ns + arrival_ns
            late_us[i] = (wait_until_ns(due_ns, SPIN_NS) - due_ns) / 1e3
            tasks.put((i, due_ns))
        reader.join()
        cpu_us = (time.process_time() - cpu_s) / len(schedule) * 1e6
    return {"added_us": added_us, "late_us": late_us, "cpu_us": cpu_us}


@contextmanager
def null_pool(n_engines: int) -> Iterator[tuple[Pool, Any]]:
    """The product's engine processes and sockets, without its driver: (pool, reply socket)."""
    spec = PoolSpec(CPU, n_engines, lambda _: NullEngine(), yields=True)
    pool = Pool(spec)
    slots = Slots(n_engines)
    replies, reply_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    context = multiprocessing.get_context("fork")
    ends = (pool.engine_end, reply_end)
    shared = (spec, ends, slots, os.getpid(), (pool.driver_end, replies))
    engines = [context.Process(target=run_engine, args=(i, i, *shared)) for i in range(n_engines)]
    for engine in engines:
        engine.start()
    for _ in engines:
        assert WireReply.unpack(replies.recv(MESSAGE_BYTES)).kind == READY
    pool.driver_end.setblocking(True)
    try:
        yield pool, replies
    finally:
        for end in (pool.driver_end, pool.engine_end):
            end.close()
        for engine in engines:
            engine.join()
        for end in (replies, reply_end):
            end.close()
        slots.close()


def through_loadgen(n_engines: int, rate_qps: float, n_queries: int) -> Measured:
    """LoadGen's Server scenario over the same engines: sent gaps, latency percentiles in us."""
    with null_pool(n_engines) as (pool, replies):
        waiting: dict[int, tuple[int, loadgen.Complete]] = {}
        stop = threading.Event()

        def collect() -> None:
            replies.settimeout(0.1)
            while not stop.is_set():
                try:
                    reply = WireReply.unpack(replies.recv(MESSAGE_BYTES))
                except TimeoutError:
                    continue
                sample_id, complete = waiting.pop(reply.ticket)
                complete(sample_id)

        def issue(sample_id: int, complete: loadgen.Complete) -> None:
            ticket = IDLE + 1 + len(issued)
            issued.append(ticket)
            waiting[ticket] = (sample_id, complete)
            pool.driver_end.send(pack_task(ticket, 0, 0, 0, 16))

        issued: list[int] = []
        reader = threading.Thread(target=collect)
        reader.start()
        cpu_s = time.process_time()
        try:
            sent_ns, percentiles_ns = loadgen.serve(rate_qps, n_queries, issue)
        finally:
            stop.set()
            reader.join()
        cpu_us = (time.process_time() - cpu_s) / n_queries * 1e6
    return {"sent_ns": sent_ns.astype(float), "latency_us": percentiles_ns / 1e3, "cpu_us": cpu_us}
