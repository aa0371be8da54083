"""The common case compiled: one stage, FIFO pools, split and join, offload.

Same decisions as the Dispatcher.

A later arrival never changes which engine serves an earlier query (first in, first out), and the
schedule is known: so are a task's start and end when it is enqueued, and a schedule can be served
in pieces. The state is when each engine becomes free.

Counting references to arrays costs five times the work itself: what is compiled here counts none
(`_nrt=False`, so it makes no array and no view) and is one function after inlining.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numba
import numpy as np
import numpy.typing as npt

from accelerator.service import MOST_PARTS, Times, drawn_index

Int64Array = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
_Function = TypeVar("_Function", bound=Callable[..., Any])
LAST = np.iinfo(np.int64).max
compiled: Callable[[_Function], _Function] = numba.njit(cache=True, _nrt=False)  # type: ignore[call-overload]


@dataclass(frozen=True)
class Engines:
    """The state of the engines of all pools, pool after pool; each pool is a heap: who is idle
    first is on top.

    Among engines that end at once the one that began first is first; before their first task, the
    one named first. `free_ns`, `latest` (number of the engine's latest task), `index` (which engine
    of its pool) int64[engines]; `bounds` int64[pools + 1].
    """

    free_ns: Int64Array
    latest: Int64Array
    index: Int64Array
    bounds: Int64Array

    @staticmethod
    def idle(pools: Sequence[int]) -> Engines:
        """So many idle engines in each pool."""
        bounds = np.concatenate([[0], np.cumsum(pools)]).astype(np.int64)
        index = np.concatenate([np.arange(n) for n in pools]).astype(np.int64)
        return Engines(np.zeros(len(index), np.int64), index - len(index), index, bounds)


@numba.njit(inline="always")
def replace_top(
    free_ns: Int64Array,
    latest: Int64Array,
    index: Int64Array,
    low: int,
    n: int,
    end_ns: int,
    task: int,
) -> None:
    """The engine on top of the heap at [low, low + n) has begun task number `task` and is free at
    `end_ns`.
    """
    at = 0
    who = index[low]
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
        free_ns[here], latest[here], index[here] = free_ns[left], latest[left], index[left]
        at = child
    here = low + at
    free_ns[here], latest[here], index[here] = end_ns, task, who


@numba.njit(inline="always")
def took_ns(
    cpu_ns: Int64Array,
    accel_ns: Int64Array,
    factors: FloatArray,
    cpu_row: Int64Array,
    accel_row: Int64Array,
    seed: int,
    query_id: int,
    part: int,
    n_items: int,
    on_accel: bool,
    engine: int,
    n_busy: int,
) -> int:
    """Of the task on the engine `engine` of its pool, beside `n_busy` others."""
    if on_accel:
        took = accel_ns[engine, n_items]
        row = accel_row[n_items]
    else:
        took = cpu_ns[min(n_busy, len(cpu_ns) - 1), n_items]
        row = cpu_row[n_items]
    if row >= 0:
        at = drawn_index(query_id, 0, part, seed, factors.shape[1])
        took = max(np.int64(1), np.int64(took * factors[row, at]))
    return took  # type: ignore[no-any-return]


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
    now_ns: int,
    n_items: int,
    batch_items: int,
    on_accel: bool,
    overhead: tuple[int, int],
    seed: int,
    cpu_ns: Int64Array,
    accel_ns: Int64Array,
    factors: FloatArray,
    cpu_row: Int64Array,
    accel_row: Int64Array,
    first: Int64Array,
    recorded_ns: Int64Array,
    delays_ns: Int64Array,
    stolen_ns: int,
    arrival_ns: Int64Array,
    free_ns: Int64Array,
    latest: Int64Array,
    index: Int64Array,
    low: int,
    n: int,
    tasks: Int64Array,
    n_tasks: int,
) -> tuple[np.int64, np.int64, np.int64, int]:
    """Serve a query on the pool at [low, low + n); returns (first start, end, busy ns, number of
    tasks so far).

    A row of `tasks`, unless it has none: query, part, is_accel, engine, items, start, end.
    """
    interferes = not on_accel and len(cpu_ns) > 1
    first_start = np.int64(LAST)
    done = np.int64(0)
    busy = np.int64(0)
    left = n_items
    part = 0
    while left > 0:
        size = left if on_accel else min(batch_items, left)
        start = max(now_ns, free_ns[low])
        if len(recorded_ns):
            start += delays_ns[first[query_id] + part]
            took = recorded_ns[first[query_id] + part]
        else:
            start += overhead[1] if free_ns[low] > now_ns else overhead[0]
            n_busy = n_later(free_ns, low, n, start) if interferes else 0
            took = took_ns(
                cpu_ns,
                accel_ns,
                factors,
                cpu_row,
                accel_row,
                seed,
                query_id,
                part,
                size,
                on_accel,
                index[low],
                n_busy,
            )
            if stolen_ns > 0 and not on_accel:
                took += stolen_ns * n_between(arrival_ns, query_id, start, start + took)
        end = start + took
        busy += took
        first_start = min(first_start, np.int64(start))
        done = max(done, end)
        if len(tasks):
            tasks[n_tasks, 0], tasks[n_tasks, 1], tasks[n_tasks, 2] = query_id, part, on_accel
            tasks[n_tasks, 3], tasks[n_tasks, 4] = index[low], size
            tasks[n_tasks, 5], tasks[n_tasks, 6] = start, end
        replace_top(free_ns, latest, index, low, n, end, (query_id + 1) * MOST_PARTS + part)
        n_tasks += 1
        part += 1
        left -= size
    return first_start, done, busy, n_tasks


@compiled
def serve(
    arrival_ns: Int64Array,
    n_items: Int64Array,
    first: int,
    end: int,
    batch_items: int,
    offload_items: int,
    times: Times,
    free_ns: Int64Array,
    latest: Int64Array,
    index: Int64Array,
    bounds: Int64Array,
    busy_ns: Int64Array,
    first_start_ns: Int64Array,
    done_ns: Int64Array,
    tasks: Int64Array,
) -> int:
    """Serve queries first, ..., end - 1 of a run on pools 0 (CPU) and 1 (accelerators); returns the
    number of tasks.

    `offload_items` 0: none. In place: the engines, `busy_ns` [cpu, accel], `first_start_ns` and
    `done_ns` [query], `tasks` as `serve_query` has them.
    """
    cpu_ns, accel_ns, factors, cpu_row, accel_row, first_task, recorded_ns, delays_ns = times[:8]
    cpu_overhead, accel_overhead, stolen_ns, seed = times[8:]
    n_tasks = 0
    for i in range(first, end):
        on_accel = offload_items > 0 and n_items[i] >= offload_items
        pool = 1 if on_accel else 0
        low = bounds[pool]
        first_start_ns[i], done_ns[i], busy, n_tasks = serve_query(
            i,
            arrival_ns[i],
            n_items[i],
            batch_items,
            on_accel,
            accel_overhead if on_accel else cpu_overhead,
            seed,
            cpu_ns,
            accel_ns,
            factors,
            cpu_row,
            accel_row,
            first_task,
            recorded_ns,
            delays_ns,
            stolen_ns,
            arrival_ns,
            free_ns,
            latest,
            index,
            low,
            bounds[pool + 1] - low,
            tasks,
            n_tasks,
        )
        busy_ns[pool] += busy
    return n_tasks
