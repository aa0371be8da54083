"""Pipelines compiled: the event loop of backends.virtual.simulated around the Dispatcher, with the
same decisions, no rows of tasks, and some twenty times as fast. Stages share pools as they like;
which items survive is none of its concern.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from accelerator.service import ServiceTimes, drawn_index
from loadGenerator import Schedule
from scheduler import Policy, Stage

Int64Array = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
NONE = -1
EVENTS, ORDER, TASKS = 0, 1, 2  # of counts
LAST = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Served:
    """ns by query: `first_start_ns`, `done_ns`; `n_tasks` by query; `busy_ns` by pool."""

    first_start_ns: Int64Array
    done_ns: Int64Array
    n_tasks: Int64Array
    busy_ns: dict[str, int]


class _Load(NamedTuple):
    """What is known before: `parts`, `n_items` [stage, query]; `bounds` of the pools' engines;
    `group` [engine] of neighbours; `filters` [stage]: ns to choose, and for each item. The rest as
    `_tables` has it.
    """

    arrival_ns: Int64Array
    n_items: Int64Array
    parts: Int64Array
    batch: Int64Array
    pool_of: Int64Array
    bounds: Int64Array
    group: Int64Array
    filters: FloatArray
    times: Int64Array
    levels: Int64Array
    factors: FloatArray
    n_factors: Int64Array
    rows: Int64Array
    fixed: Int64Array


class _State(NamedTuple):
    """Tasks are numbered as their stages begin; a pool's FIFO is a list through `following`; idle
    engines of a pool are a ring. Events, in a heap by time and order: engine e ends (e), or the
    best items of a query are found (n_engines + query). `counts`: events in the heap, their order
    so far, tasks so far.
    """

    query_of: Int64Array
    stage_of: Int64Array
    following: Int64Array
    enqueued_ns: Int64Array
    first_task: Int64Array  # [query], of its stage
    stage: Int64Array  # [query]
    left: Int64Array  # [query], parts of its stage
    head: Int64Array
    tail: Int64Array
    idle: Int64Array
    idle_from: Int64Array
    idle_n: Int64Array
    running: Int64Array
    end_ns: Int64Array
    heap_ns: Int64Array
    heap_order: Int64Array
    heap_what: Int64Array
    counts: Int64Array
    first_start_ns: Int64Array
    done_ns: Int64Array
    busy_ns: Int64Array


def serve_pipeline(
    schedule: Schedule,
    policy: Policy,
    stages: Sequence[Stage],
    engines: Mapping[str, int],
    service: ServiceTimes,
) -> Served:
    """All queries through a pipeline; raises ValueError if a stage's times end before its largest
    task.
    """
    policies = [stage.under(policy) for stage in stages]
    if any(under.offload_items is not None for under in policies):
        raise ValueError("the compiled pipeline knows no offload; the event loop does")
    names = [*engines]
    pool_of = np.array([names.index(stage.pool) for stage in stages], np.int64)
    n_items = _items_by_stage(schedule, stages)
    batch = np.array(
        [min(under.batch_items, int(n_items.max(initial=1))) for under in policies], np.int64
    )
    for i, table in enumerate(service.tables):
        largest = int(np.minimum(n_items[i], batch[i]).max(initial=0))
        if largest > table.max_items:
            raise ValueError(
                f"stage {i} has tasks of {largest} items, but its times end at {table.max_items}"
            )
    bounds = np.concatenate([[0], np.cumsum([engines[name] for name in names])]).astype(np.int64)
    group = np.repeat(
        [len(names) if name in service.on_cores else i for i, name in enumerate(names)],
        np.diff(bounds),
    ).astype(np.int64)
    parts = -(-n_items // batch[:, None])
    filters = np.array(
        [
            (service.filter_ns, service.filter_item_ns)
            if stage.keep_items is not None
            else (0, 0.0)
            for stage in stages
        ]
    )
    load = _Load(
        schedule.arrival_ns,
        n_items,
        parts,
        batch,
        pool_of,
        bounds,
        group,
        filters,
        *_tables(service),
    )
    state = _state(load)
    _serve(load, state)
    busy = {name: int(state.busy_ns[i]) for i, name in enumerate(names)}
    return Served(state.first_start_ns, state.done_ns, parts.sum(axis=0), busy)


def _items_by_stage(schedule: Schedule, stages: Sequence[Stage]) -> Int64Array:
    """int64[stage, query]."""
    coming = schedule.n_items.astype(np.int64)
    rows = []
    for stage in stages:
        rows.append(coming)
        coming = np.minimum(coming, stage.keep_items) if stage.keep_items is not None else coming
    return np.array(rows)


def _tables(
    service: ServiceTimes,
) -> tuple[Int64Array, Int64Array, FloatArray, Int64Array, Int64Array, Int64Array]:
    """Times [stage, neighbours, items], levels [stage], factors [stage, row, k] with their number,
    rows [stage, items], and wake, gap, stolen, seed [stage, 4].
    """
    tables = service.tables
    levels = np.array([len(table.cpu_ns) for table in tables], np.int64)
    n_items = max(table.cpu_ns.shape[1] for table in tables)
    times = np.ones((len(tables), levels.max(), n_items), np.int64)
    shape = np.array([table.factors.shape for table in tables]).max(axis=0)
    factors = np.ones((len(tables), *shape))
    n_factors = np.zeros(len(tables), np.int64)
    rows = np.full((len(tables), n_items), -1, np.int64)
    fixed = np.zeros((len(tables), 4), np.int64)
    for i, table in enumerate(tables):
        times[i, : levels[i], : table.cpu_ns.shape[1]] = table.cpu_ns
        factors[i, : table.factors.shape[0], : table.factors.shape[1]] = table.factors
        n_factors[i] = table.factors.shape[1]
        if table.cpu_row is not None:
            rows[i, : len(table.cpu_row)] = table.cpu_row
        fixed[i] = (
            table.cpu_overhead.wake_ns,
            table.cpu_overhead.gap_ns,
            table.stolen_ns,
            table.seed,
        )
    return times, levels, factors, n_factors, rows, fixed


def _state(load: _Load) -> _State:
    """Before the first arrival."""
    n = len(load.arrival_ns)
    n_pools = len(load.bounds) - 1
    n_engines = len(load.group)
    n_tasks = int(load.parts.sum())

    def none(size: int) -> Int64Array:
        return np.full(size, NONE, np.int64)

    def zeros(size: int) -> Int64Array:
        return np.zeros(size, np.int64)

    events = n_engines + n + 1
    return _State(
        none(n_tasks),
        none(n_tasks),
        none(n_tasks),
        zeros(n_tasks),
        zeros(n),
        zeros(n),
        zeros(n),
        none(n_pools),
        none(n_pools),
        np.arange(n_engines),
        zeros(n_pools),
        np.diff(load.bounds),
        none(n_engines),
        zeros(n_engines),
        zeros(events),
        zeros(events),
        zeros(events),
        zeros(3),
        np.full(n, LAST),
        zeros(n),
        zeros(n_pools),
    )


@numba.njit(cache=True)
def _push(state: _State, ns: int, what: int) -> None:
    times = state.heap_ns
    orders = state.heap_order
    whats = state.heap_what
    at = state.counts[EVENTS]
    state.counts[EVENTS] += 1
    state.counts[ORDER] += 1
    while at > 0 and times[(at - 1) >> 1] > ns:  # an earlier one of equal time is above already
        up = (at - 1) >> 1
        times[at], orders[at], whats[at] = times[up], orders[up], whats[up]
        at = up
    times[at], orders[at], whats[at] = ns, state.counts[ORDER], what


@numba.njit(cache=True)
def _pop(state: _State) -> None:
    """Take the top off; what it was is to be read before."""
    times = state.heap_ns
    orders = state.heap_order
    whats = state.heap_what
    state.counts[EVENTS] -= 1
    n = state.counts[EVENTS]
    ns = times[n]
    order = orders[n]
    what = whats[n]
    at = 0
    while 2 * at + 1 < n:
        child = 2 * at + 1
        right = child + 1
        if right < n and (
            times[right] < times[child]
            or (times[right] == times[child] and orders[right] < orders[child])
        ):
            child = right
        if ns < times[child] or (ns == times[child] and order < orders[child]):
            break
        times[at], orders[at], whats[at] = times[child], orders[child], whats[child]
        at = child
    times[at], orders[at], whats[at] = ns, order, what


@numba.njit(cache=True)
def _begin(load: _Load, state: _State, now: int, task: int, at: int) -> None:
    """The task begins on engine `at`."""
    query = state.query_of[task]
    stage = state.stage_of[task]
    part = task - state.first_task[query]
    items = min(load.batch[stage], load.n_items[stage, query] - part * load.batch[stage])
    wake_ns, gap_ns, stolen_ns, seed = load.fixed[stage]
    start = now + (gap_ns if state.end_ns[at] > state.enqueued_ns[task] else wake_ns)
    n_busy = 0
    if load.levels[stage] > 1:
        for other in range(len(state.end_ns)):
            n_busy += load.group[other] == load.group[at] and state.end_ns[other] > start
    took = load.times[stage, min(n_busy, load.levels[stage] - 1), items]
    row = load.rows[stage, items]
    if row >= 0:
        drawn = drawn_index(query, stage, part, seed, load.n_factors[stage])
        took = max(np.int64(1), np.int64(took * load.factors[stage, row, drawn]))
    if stolen_ns > 0:
        arrived = np.searchsorted(load.arrival_ns, np.array([start, start + took]), side="right")
        took += stolen_ns * (arrived[1] - arrived[0])
    state.end_ns[at] = start + took
    state.running[at] = task
    state.busy_ns[load.pool_of[stage]] += took
    state.first_start_ns[query] = min(state.first_start_ns[query], start)
    _push(state, start + took, at)


@numba.njit(cache=True)
def _enter(load: _Load, state: _State, now: int, query: int, stage: int) -> None:
    """A query's stage begins: its tasks go to idle engines or into the FIFO."""
    pool = load.pool_of[stage]
    low = load.bounds[pool]
    n = load.bounds[pool + 1] - load.bounds[pool]
    state.stage[query], state.left[query] = stage, load.parts[stage, query]
    state.first_task[query] = state.counts[TASKS]
    for _ in range(load.parts[stage, query]):
        task = state.counts[TASKS]
        state.counts[TASKS] += 1
        state.query_of[task], state.stage_of[task], state.enqueued_ns[task] = query, stage, now
        if state.idle_n[pool] > 0:
            at = state.idle[low + state.idle_from[pool]]
            state.idle_from[pool] = (state.idle_from[pool] + 1) % n
            state.idle_n[pool] -= 1
            _begin(load, state, now, task, at)
            continue
        if state.head[pool] == NONE:
            state.head[pool] = task
        else:
            state.following[state.tail[pool]] = task
        state.tail[pool] = task


@numba.njit(cache=True)
def _ended(load: _Load, state: _State, now: int, at: int) -> int:
    """Engine `at` is free; returns the query whose stage is over and needs no choosing, or NONE."""
    query = state.query_of[state.running[at]]
    stage = state.stage[query]
    pool = load.pool_of[stage]
    low = load.bounds[pool]
    n = load.bounds[pool + 1] - load.bounds[pool]
    task = state.head[pool]
    if task == NONE:
        state.idle[low + (state.idle_from[pool] + state.idle_n[pool]) % n] = at
        state.idle_n[pool] += 1
    else:
        state.head[pool] = state.following[task]
        _begin(load, state, now, task, at)
    state.left[query] -= 1
    if state.left[query] > 0:
        return NONE
    fixed_ns, item_ns = load.filters[stage]
    if fixed_ns == 0 and item_ns == 0:
        return int(query)
    then = now + np.int64(fixed_ns) + np.int64(item_ns * load.n_items[stage, query])
    _push(state, int(then), len(load.group) + int(query))
    return NONE


@numba.njit(cache=True)
def _serve(load: _Load, state: _State) -> None:
    """All arrivals and all events, in order; an arrival goes before an event at the same time."""
    n = len(load.arrival_ns)
    n_engines = len(load.group)
    n_stages = len(load.batch)
    coming = 0
    while coming < n or state.counts[EVENTS] > 0:
        if state.counts[EVENTS] == 0 or (
            coming < n and load.arrival_ns[coming] <= state.heap_ns[0]
        ):
            coming += 1
            _enter(load, state, int(load.arrival_ns[coming - 1]), coming - 1, 0)
            continue
        now = int(state.heap_ns[0])
        what = int(state.heap_what[0])
        _pop(state)
        query = what - n_engines if what >= n_engines else _ended(load, state, now, what)
        if query == NONE:
            continue
        if state.stage[query] + 1 == n_stages:
            state.done_ns[query] = now
        else:
            _enter(load, state, now, query, state.stage[query] + 1)
