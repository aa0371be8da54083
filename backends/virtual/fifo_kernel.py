"""The common case compiled: a stage of FIFO pools that splits, joins and offloads queries.

It decides as the Dispatcher does. A later arrival never changes which engine serves an earlier
query (first in, first out), and the schedule is known: so are a task's start and end when it is
enqueued, and a schedule can be served in pieces. The state is when each engine becomes free.

Counting references to arrays costs five times the work itself: what is compiled here counts none
(`_nrt=False`, so it makes no array and no view) and is one function after inlining.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import numba
import numpy as np

from accelerator.service import MOST_PARTS, Times, drawn_index
from infra.arrays import Int64Array

_Function = TypeVar("_Function", bound=Callable[..., Any])
LAST = np.iinfo(np.int64).max
_njit: Callable[..., Any] = numba.njit  # numba's own types do not know `_nrt`
compiled: Callable[[_Function], _Function] = _njit(cache=True, _nrt=False)


class Engines(NamedTuple):
    """The state of the engines, pool after pool; each pool is a heap: who is idle first is on top.

    Among engines that end at once the one that began first is first; before their first task, the
    one named first. `free_ns`, `latest` (number of the engine's latest task), `slot` (which engine
    of its pool) int64[engines]; `bounds` int64[pools + 1].
    """

    free_ns: Int64Array
    latest: Int64Array
    slot: Int64Array
    bounds: Int64Array

    @staticmethod
    def idle(pools: Sequence[int]) -> Engines:
        """So many idle engines in each pool."""
        bounds = np.concatenate([[0], np.cumsum(pools)]).astype(np.int64)
        slot = np.concatenate([np.arange(n) for n in pools]).astype(np.int64)
        return Engines(np.zeros(len(slot), np.int64), slot - len(slot), slot, bounds)


@numba.njit(inline="always")
def replace_top(engines: Engines, low: int, n: int, end_ns: int, task: int) -> None:
    """The engine on top of the heap at [low, low + n) serves task number `task` until `end_ns`."""
    free_ns = engines.free_ns
    latest = engines.latest
    slot = engines.slot
    at = 0
    who = slot[low]
    while True:
        child = 2 * at + 1
        if child >= n:
            break
        left = low + child
        right = low + child + 1
        if child + 1 < n:
            first = free_ns[right] < free_ns[left]
            if free_ns[right] == free_ns[left]:
                first = latest[right] < latest[left]
            child += first
            left += first
        if free_ns[left] > end_ns or (free_ns[left] == end_ns and latest[left] > task):
            break
        here = low + at
        free_ns[here], latest[here], slot[here] = free_ns[left], latest[left], slot[left]
        at = child
    here = low + at
    free_ns[here], latest[here], slot[here] = end_ns, task, who


@numba.njit(inline="always")
def drawn_ns(times: Times, ns: int, row: int, query_id: int, stage: int, part: int) -> int:
    """`ns` times the task's factor: its own, or drawn from a row of the factors (-1: none)."""
    if len(times.task_factors):
        factor = times.task_factors[times.first[query_id] + part]
        return max(np.int64(1), np.int64(ns * factor))  # type: ignore[return-value]
    if row < 0:
        return ns
    at = drawn_index(query_id, stage, part, times.seed, times.factors.shape[1])
    return max(np.int64(1), np.int64(ns * times.factors[row, at]))  # type: ignore[return-value]


@numba.njit(inline="always")
def core_ns(times: Times, query_id: int, stage: int, part: int, n_items: int, n_busy: int) -> int:
    """What a task takes on an engine of its stage's own pool, beside `n_busy` others."""
    ns = times.cpu_ns[min(n_busy, len(times.cpu_ns) - 1), n_items]
    return drawn_ns(times, ns, times.cpu_row[n_items], query_id, stage, part)


@numba.njit(inline="always")
def accel_ns(times: Times, query_id: int, part: int, n_items: int, engine: int) -> int:
    """What a task of the first stage takes on an accelerator."""
    ns = times.accel_ns[engine, n_items]
    return drawn_ns(times, ns, times.accel_row[n_items], query_id, 0, part)


@numba.njit(inline="always")
def n_later(free_ns: Int64Array, low: int, n: int, time_ns: int) -> int:
    """Engines of a pool, the one on top left out, that are busy at `time_ns`."""
    busy = 0
    for k in range(low + 1, low + n):
        busy += free_ns[k] > time_ns
    return busy


@numba.njit(inline="always")
def n_between(arrival_ns: Int64Array, begin: int, after_ns: int, until_ns: int) -> int:
    """Arrivals from `begin` on later than `after_ns` and not later than `until_ns`."""
    low = begin
    high = len(arrival_ns)
    while low < high:
        middle = (low + high) >> 1
        if arrival_ns[middle] <= after_ns:
            low = middle + 1
        else:
            high = middle
    high = low
    while high < len(arrival_ns) and arrival_ns[high] <= until_ns:
        high += 1
    return high - low


@numba.njit(inline="always")
def serve_query(
    query_id: int,
    arrival_ns: Int64Array,
    n_items: Int64Array,
    batch_items: int,
    on_accel: bool,
    times: Times,
    engines: Engines,
    pool: int,
    tasks: Int64Array,
    n_tasks: int,
) -> tuple[np.int64, np.int64, np.int64, int]:
    """Serve a query on a pool; returns (first start, end, busy ns, number of tasks so far).

    A row of `tasks`, unless it has none: query, part, is_accel, engine, items, start, end.
    """
    low = engines.bounds[pool]
    n = engines.bounds[pool + 1] - low
    free_ns = engines.free_ns
    due_ns = arrival_ns[query_id]
    overhead = times.accel_overhead if on_accel else times.cpu_overhead
    first_start = np.int64(LAST)
    done = np.int64(0)
    busy = np.int64(0)
    left = n_items[query_id]
    part = 0
    while left > 0:
        size = left if on_accel else min(batch_items, left)
        start = max(due_ns, free_ns[low])
        engine = engines.slot[low]
        if len(times.recorded_ns):
            number = times.first[query_id] + part
            start += times.delays_ns[number]
            took = times.recorded_ns[number]
        else:
            start += overhead[1] if free_ns[low] > due_ns else overhead[0]
            if on_accel:
                took = accel_ns(times, query_id, part, size, engine)
            else:
                n_busy = n_later(free_ns, low, n, start) if len(times.cpu_ns) > 1 else 0
                took = core_ns(times, query_id, 0, part, size, n_busy)
                if times.stolen_ns > 0:
                    took += times.stolen_ns * n_between(arrival_ns, query_id, start, start + took)
        end = start + took
        busy += took
        first_start = min(first_start, np.int64(start))
        done = max(done, end)
        if len(tasks):
            tasks[n_tasks, 0], tasks[n_tasks, 1], tasks[n_tasks, 2] = query_id, part, on_accel
            tasks[n_tasks, 3], tasks[n_tasks, 4] = engine, size
            tasks[n_tasks, 5], tasks[n_tasks, 6] = start, end
        replace_top(engines, low, n, end, (query_id + 1) * MOST_PARTS + part)
        n_tasks += 1
        part += 1
        left -= size
    return first_start, done, busy, n_tasks


@compiled
def serve(
    arrival_ns: Int64Array,
    n_items: Int64Array,
    begin: int,
    end: int,
    batch_items: int,
    offload_items: int,
    times: Times,
    engines: Engines,
    busy_ns: Int64Array,
    first_start_ns: Int64Array,
    done_ns: Int64Array,
    tasks: Int64Array,
) -> int:
    """Serve queries begin, ..., end - 1 of a run on pools 0 (CPU) and 1 (accelerators).

    Returns the number of tasks. `offload_items` 0: none. It changes the engines, `busy_ns`
    [cpu, accel], `first_start_ns` and `done_ns` [query], and `tasks` as `serve_query` has them.
    """
    n_tasks = 0
    for i in range(begin, end):
        on_accel = offload_items > 0 and n_items[i] >= offload_items
        pool = 1 if on_accel else 0
        first_start_ns[i], done_ns[i], busy, n_tasks = serve_query(
            i, arrival_ns, n_items, batch_items, on_accel, times, engines, pool, tasks, n_tasks
        )
        busy_ns[pool] += busy
    return n_tasks
