"""Pipelines compiled: the event loop of backends.virtual.event_loop with the same decisions.

It leaves no rows of tasks and is some twenty times as fast. Stages share pools as they like; which
items survive is none of its concern.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numba
import numpy as np

from accelerator.service import ServiceTimes, Times
from backends.virtual.fifo_kernel import LAST, compiled, core_ns, n_between
from backends.virtual.heap import pop, push
from infra.arrays import FloatArray, Int64Array
from loadGenerator import Schedule
from scheduler import Policy, Stage

NONE = -1
EVENTS, ORDER, TASKS = 0, 1, 2  # in `counts`
_WHAT_BITS = 32  # an event's number: its order above these bits, what it is in them


@dataclass(frozen=True)
class Served:
    """ns by query: `first_start_ns`, `done_ns`; `n_tasks` by query; `busy_ns` by pool."""

    first_start_ns: Int64Array
    done_ns: Int64Array
    n_tasks: Int64Array
    busy_ns: dict[str, int]


class _Load(NamedTuple):
    """What is known before the run."""

    arrival_ns: Int64Array
    n_items: Int64Array  # [stage, query]
    parts: Int64Array  # [stage, query]
    batch: Int64Array  # [stage]
    pool_of: Int64Array  # [stage]
    bounds: Int64Array  # of the pools' engines
    group: Int64Array  # [engine], of neighbours
    filters: FloatArray  # [stage, 2]: ns to choose, and for each item
    tables: tuple[Times, ...]  # [stage]


class _State(NamedTuple):
    """Where everything is: pools' FIFOs are lists through `following`, their idle engines rings.

    Tasks are numbered as their stages begin. Events: engine e ends (e), or the best items of a
    query are chosen (n_engines + query).
    """

    query_of: Int64Array  # [task]
    stage_of: Int64Array  # [task]
    enqueued_ns: Int64Array  # [task]
    following: Int64Array  # [task]
    first_task: Int64Array  # [query], of its stage
    stage: Int64Array  # [query]
    left: Int64Array  # [query], parts of its stage
    first_start_ns: Int64Array  # [query]
    done_ns: Int64Array  # [query]
    head: Int64Array  # [pool]
    tail: Int64Array  # [pool]
    idle_from: Int64Array  # [pool]
    n_idle: Int64Array  # [pool]
    busy_ns: Int64Array  # [pool]
    idle: Int64Array  # [engine]
    running: Int64Array  # [engine]
    end_ns: Int64Array  # [engine]
    heap_ns: Int64Array
    heap_numbers: Int64Array
    counts: Int64Array  # events in the heap, their order so far, tasks so far


def serve_pipeline(
    schedule: Schedule,
    policy: Policy,
    stages: Sequence[Stage],
    engines: Mapping[str, int],
    service: ServiceTimes,
) -> Served:
    """Serve all queries of a schedule by a pipeline.

    Raises ValueError if a stage offloads, or its times end before its largest task.
    """
    policies = [stage.under(policy) for stage in stages]
    if any(under.offload_items is not None for under in policies):
        raise ValueError("the compiled pipeline knows no offload; the event loop does")
    n_items = _items_by_stage(schedule, stages)
    largest = int(n_items.max(initial=1))
    batch = np.array([min(under.batch_items, largest) for under in policies], np.int64)
    for i, table in enumerate(service.tables):
        largest = int(np.minimum(n_items[i], batch[i]).max(initial=0))
        if largest > table.max_items:
            raise ValueError(
                f"stage {i} has tasks of {largest} items, but its times end at {table.max_items}"
            )
    names = [*engines]
    pool_of = [names.index(stage.pool) for stage in stages]
    group = [len(names) if name in service.on_cores else i for i, name in enumerate(names)]
    choosing = (service.filter_ns, service.filter_item_ns)
    load = _Load(
        schedule.arrival_ns,
        n_items,
        -(-n_items // batch[:, None]),
        batch,
        np.array(pool_of, np.int64),
        np.cumsum([0, *engines.values()]).astype(np.int64),
        np.repeat(group, [*engines.values()]).astype(np.int64),
        np.array([(0, 0.0) if stage.keep_items is None else choosing for stage in stages], float),
        tuple(table.times() for table in service.tables),
    )
    state = _state(load)
    _serve(load, state)
    busy_ns = dict(zip(names, state.busy_ns.tolist(), strict=True))
    return Served(state.first_start_ns, state.done_ns, load.parts.sum(axis=0), busy_ns)


def _items_by_stage(schedule: Schedule, stages: Sequence[Stage]) -> Int64Array:
    """int64[stage, query]."""
    coming = schedule.n_items.astype(np.int64)
    rows = []
    for stage in stages:
        rows.append(coming)
        coming = np.minimum(coming, stage.keep_items) if stage.keep_items is not None else coming
    return np.array(rows)


def _state(load: _Load) -> _State:
    """The state before the first arrival."""
    n = len(load.arrival_ns)
    n_pools = len(load.bounds) - 1
    n_engines = len(load.group)
    n_tasks = int(load.parts.sum())

    def zeros(rows: int, width: int) -> Int64Array:
        return np.zeros((rows, width), np.int64)

    return _State(  # type: ignore[call-arg]  # it counts each star as many
        *zeros(3, n_tasks),
        np.full(n_tasks, NONE),
        *zeros(3, n),
        np.full(n, LAST),
        np.zeros(n, np.int64),
        np.full(n_pools, NONE),
        *zeros(2, n_pools),
        np.diff(load.bounds),
        np.zeros(n_pools, np.int64),
        np.arange(n_engines),
        *zeros(2, n_engines),
        *zeros(2, n_engines + n + 1),
        np.zeros(3, np.int64),
    )


@numba.njit(inline="always")
def _schedule(state: _State, ns: int, what: int) -> None:
    """An event is to come."""
    counts = state.counts
    counts[ORDER] += 1
    number = (counts[ORDER] << _WHAT_BITS) + what
    push(state.heap_ns, state.heap_numbers, counts[EVENTS], ns, number)
    counts[EVENTS] += 1


@compiled
def _begin(load: _Load, state: _State, now: int, task: int, at: int) -> None:
    """The task begins on engine `at`."""
    query = state.query_of[task]
    stage = state.stage_of[task]
    times = load.tables[stage]
    part = task - state.first_task[query]
    n_items = min(load.batch[stage], load.n_items[stage, query] - part * load.batch[stage])
    wake_ns, gap_ns = times.cpu_overhead
    start = now + (gap_ns if state.end_ns[at] > state.enqueued_ns[task] else wake_ns)
    n_busy = 0
    if len(times.cpu_ns) > 1:
        for engine in range(len(state.end_ns)):
            n_busy += load.group[engine] == load.group[at] and state.end_ns[engine] > start
    took = core_ns(times, query, stage, part, n_items, n_busy)
    if times.stolen_ns > 0:
        took += times.stolen_ns * n_between(load.arrival_ns, 0, start, start + took)
    state.end_ns[at] = start + took
    state.running[at] = task
    state.busy_ns[load.pool_of[stage]] += took
    state.first_start_ns[query] = min(state.first_start_ns[query], start)
    _schedule(state, start + took, at)


@numba.njit(inline="always")
def _enter(load: _Load, state: _State, now: int, query: int, stage: int) -> None:
    """A query's stage begins: its tasks go to idle engines or into the FIFO."""
    pool = load.pool_of[stage]
    low = load.bounds[pool]
    n = load.bounds[pool + 1] - low
    state.stage[query], state.left[query] = stage, load.parts[stage, query]
    state.first_task[query] = state.counts[TASKS]
    for _ in range(load.parts[stage, query]):
        task = state.counts[TASKS]
        state.counts[TASKS] += 1
        state.query_of[task], state.stage_of[task], state.enqueued_ns[task] = query, stage, now
        if state.n_idle[pool] > 0:
            at = state.idle[low + state.idle_from[pool]]
            state.idle_from[pool] = (state.idle_from[pool] + 1) % n
            state.n_idle[pool] -= 1
            _begin(load, state, now, task, at)
            continue
        if state.head[pool] == NONE:
            state.head[pool] = task
        else:
            state.following[state.tail[pool]] = task
        state.tail[pool] = task


@numba.njit(inline="always")
def _ended(load: _Load, state: _State, now: int, at: int) -> int:
    """Engine `at` is free; returns the query whose stage is over and needs no choosing, or NONE."""
    query = state.query_of[state.running[at]]
    stage = state.stage[query]
    pool = load.pool_of[stage]
    low = load.bounds[pool]
    n = load.bounds[pool + 1] - low
    task = state.head[pool]
    if task == NONE:
        state.idle[low + (state.idle_from[pool] + state.n_idle[pool]) % n] = at
        state.n_idle[pool] += 1
    else:
        state.head[pool] = state.following[task]
        _begin(load, state, now, task, at)
    state.left[query] -= 1
    over = NONE
    if state.left[query] == 0:
        fixed_ns = load.filters[stage, 0]
        item_ns = load.filters[stage, 1]
        if fixed_ns == 0 and item_ns == 0:
            over = query
        else:
            choosing_ns = int(fixed_ns) + int(item_ns * load.n_items[stage, query])
            _schedule(state, now + choosing_ns, len(load.group) + query)
    return over


@compiled
def _serve(load: _Load, state: _State) -> None:
    """Take arrivals and events in order; an arrival goes before an event at the same time."""
    n = len(load.arrival_ns)
    n_engines = len(load.group)
    n_stages = len(load.batch)
    coming = 0
    while coming < n or state.counts[EVENTS] > 0:
        if state.counts[EVENTS] == 0 or (
            coming < n and load.arrival_ns[coming] <= state.heap_ns[0]
        ):
            now = int(load.arrival_ns[coming])
            query = coming
            stage = 0
            coming += 1
        else:
            now = int(state.heap_ns[0])
            what = int(state.heap_numbers[0] & ((1 << _WHAT_BITS) - 1))
            pop(state.heap_ns, state.heap_numbers, state.counts[EVENTS])
            state.counts[EVENTS] -= 1
            query = what - n_engines if what >= n_engines else _ended(load, state, now, what)
            if query == NONE:
                continue
            stage = state.stage[query] + 1
        if stage == n_stages:
            state.done_ns[query] = now
        else:
            _enter(load, state, now, query, stage)
