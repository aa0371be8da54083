"""Many servers in virtual time: queries are routed in order of arrival, each server serves its own,
all compiled.

A server is what `backends.virtual.simulated` makes of a ServiceTable and a policy; a fleet of one
gives that session's times.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from accelerator.service import ServiceTable, drawn_index
from backends.virtual.fifo_kernel import Engines, FloatArray, Int64Array, compiled, serve_query
from infra.clock import NS_PER_MS
from loadGenerator import Schedule
from scheduler import Policy

ROUTES = ("random", "round_robin", "size_aware", "power_of_two", "shortest_queue")
_ROUTED, _SHORTEST, _OF_TWO = 0, 1, 2
# between servers with equally short queues the one that has not changed for longest is next
_LATER = 1e-9
_MOST_OPEN = 1 << 16  # queries in the fleet at first; as many more as it takes


@dataclass(frozen=True)
class ServerKind:
    """Equal servers: engines, service times, the policy they run, and their share of the load
    beside other kinds.

    `weight`: what one of them carries, in any unit; routing gives it so much of the load.
    """

    name: str
    n_cpu: int
    table: ServiceTable
    policy: Policy
    n_accel: int = 0
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.policy.offload_items is not None and self.n_accel == 0:
            raise ValueError(
                f"{self.name} offloads from {self.policy.offload_items} items on, without an "
                "accelerator"
            )
        if (
            self.n_cpu < 1
            or not self.weight > 0
            or self.table.recording is not None
            or self.table.stolen_ns
        ):
            raise ValueError(
                f"{self.name}: expected an engine, a weight above 0, service times by size and "
                "nothing else"
            )


@dataclass(frozen=True)
class FleetRun:
    """For every query of the schedule: its server, and its latency in ms."""

    server: npt.NDArray[np.int32]
    latency_ms: FloatArray


class Fleet:
    """`servers`: (kind, how many of it), in this order."""

    def __init__(self, servers: Sequence[tuple[ServerKind, int]]) -> None:
        self.kinds = [kind for kind, _ in servers]
        self.kind = np.repeat(np.arange(len(servers)), [n for _, n in servers]).astype(np.int64)
        if not len(self.kind):
            raise ValueError("a fleet needs a server")
        self.weight = np.array([kind.weight for kind in self.kinds])[self.kind]

    def __len__(self) -> int:
        return len(self.kind)

    def run(
        self, schedule: Schedule, route: str, seed: int = 0, large_items: int = 256
    ) -> FleetRun:
        """Walk the schedule.

        random: by weight. size_aware: queries of at least `large_items` to the servers that
        offload, others to all. round_robin: in turn, by weight. power_of_two: of two random
        servers, the one with fewer open queries by weight. shortest_queue: of all. Raises
        ValueError.
        """
        if route not in ROUTES:
            raise ValueError(f"unknown route {route!r}; expected {', '.join(ROUTES)}")
        sizes = schedule.n_items.astype(np.int64)
        largest = min(kind.table.max_items for kind in self.kinds)
        if len(sizes) and int(sizes.max()) > largest:
            raise ValueError(
                f"a query has {sizes.max()} items, but the service times end at {largest}"
            )
        mode = {"shortest_queue": _SHORTEST, "power_of_two": _OF_TWO}.get(route, _ROUTED)
        server = (
            np.zeros(len(schedule), np.int64)
            if mode
            else self._routed(sizes, route, seed, large_items)
        )
        engines = Engines.idle(
            [n for k in self.kind for n in (self.kinds[k].n_cpu, self.kinds[k].n_accel)]
        )
        done_ns = np.zeros(len(schedule), np.int64)
        leaves = 1 << (len(self) - 1).bit_length()
        keys = np.full(leaves, np.inf)
        keys[: len(self)] = 1 / self.weight
        tree = _tournament(keys)
        n_open = np.zeros(1, np.int64)
        outstanding = np.zeros(len(self), np.int64)
        ends_ns = np.zeros(_MOST_OPEN, np.int64)
        ends_server = np.zeros(_MOST_OPEN, np.int64)
        served = 0
        policies = np.array(
            [(k.policy.batch_items, k.policy.offload_items or 0) for k in self.kinds], np.int64
        )
        tables = _stacked([kind.table for kind in self.kinds])
        while True:
            served = serve_fleet(  # type: ignore[call-arg]
                schedule.arrival_ns,
                sizes,
                served,
                mode,
                seed,
                server,
                self.kind,
                self.weight,
                policies,
                *tables,
                engines.free_ns,
                engines.latest,
                engines.index,
                engines.bounds,
                outstanding,
                keys,
                tree,
                ends_ns,
                ends_server,
                n_open,
                done_ns,
                np.zeros(0, np.int64),
                np.zeros((0, 7), np.int64),
            )
            if served == len(schedule):
                return FleetRun(
                    server.astype(np.int32), (done_ns - schedule.arrival_ns) / NS_PER_MS
                )
            ends_ns, ends_server = (
                np.concatenate([ends, np.zeros_like(ends)]) for ends in (ends_ns, ends_server)
            )

    def _routed(self, sizes: Int64Array, route: str, seed: int, large_items: int) -> Int64Array:
        """A server for every query by a rule that looks at no queue."""
        if route == "round_robin":
            return _in_turn(self.weight, len(sizes))
        rng = np.random.default_rng([seed, 77])
        if route == "random":
            return _by_weight(self.weight, rng.random(len(sizes)))
        offloads = np.array([kind.policy.offload_items is not None for kind in self.kinds])[
            self.kind
        ]
        if not offloads.any() or offloads.all():
            raise ValueError("size_aware needs servers that offload and servers that do not")
        server = _by_weight(self.weight, rng.random(len(sizes)))
        large = sizes >= large_items
        server[large] = np.flatnonzero(offloads)[
            _by_weight(self.weight[offloads], rng.random(int(large.sum())))
        ]
        return server


def _by_weight(weight: FloatArray, u: FloatArray) -> Int64Array:
    bounds = np.cumsum(weight) / weight.sum()
    return np.minimum(np.searchsorted(bounds, u, side="right"), len(weight) - 1).astype(np.int64)


def _in_turn(weight: FloatArray, n: int) -> Int64Array:
    """Server s has its turns at even steps of 1 / weight; equal weights: 0, 1, 2, ..., 0, 1, ..."""
    share = weight / weight.sum()
    turns = np.ceil(share * n).astype(np.int64) + 1
    server = np.repeat(np.arange(len(weight)), turns)
    nth = np.arange(len(server)) - np.repeat(np.cumsum(turns) - turns, turns)
    return server[np.argsort((nth + 0.5) / share[server], kind="stable")][:n].astype(np.int64)


def _stacked(tables: Sequence[ServiceTable]) -> tuple[Any, ...]:
    """cpu_ns [kind, level, items], accel_ns [kind, accelerator, items], factors [kind, row, k],
    cpu_row, accel_row [kind, items], overhead [kind, (CPU wake, gap, accelerator wake, gap)], seed
    [kind]; padded to the largest.
    """
    times = [table.times() for table in tables]
    items = min(table.max_items for table in tables) + 1
    if len({t.factors.shape[1] for t in times if t.factors.size}) > 1:
        raise ValueError("the kinds of servers have spreads of different lengths")

    def padded(arrays: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
        """With the last row again, or ones where there is none."""
        rows = max(1, *(len(a) for a in arrays))
        filled = [a if len(a) else np.ones((1, a.shape[1]), a.dtype) for a in arrays]
        return np.stack(
            [np.concatenate([a, np.repeat(a[-1:], rows - len(a), axis=0)]) for a in filled]
        )

    width = max(t.factors.shape[1] for t in times)
    factors = [t.factors if t.factors.size else np.ones((1, width)) for t in times]
    return (
        padded([t.cpu_ns[:, :items] for t in times]),
        padded([t.accel_ns[:, :items] for t in times]),
        padded(factors),
        np.stack([t.cpu_row[:items] for t in times]),
        np.stack([t.accel_row[:items] for t in times]),
        np.array([(*t.cpu_overhead, *t.accel_overhead) for t in times], np.int64),
        np.array([t.seed for t in times], np.int64),
    )


def _tournament(keys: FloatArray) -> Int64Array:
    """tree[1] is the place of the smallest key, tree[i] the smaller of its children 2i and 2i + 1."""
    leaves = len(keys)
    tree = np.concatenate([np.zeros(leaves, np.int64), np.arange(leaves)])
    for node in range(leaves - 1, 0, -1):
        left = tree[2 * node]
        right = tree[2 * node + 1]
        tree[node] = left if keys[left] <= keys[right] else right
    return tree


@numba.njit(inline="always")
def _set_key(keys: FloatArray, tree: Int64Array, place: int, key: float) -> None:
    """A leaf's new key, and who wins above it."""
    keys[place] = key
    node = (len(keys) + place) >> 1
    while node >= 1:
        left = tree[2 * node]
        right = tree[2 * node + 1]
        tree[node] = left if keys[left] <= keys[right] else right
        node >>= 1


@numba.njit(inline="always")
def _push(ends_ns: Int64Array, ends_server: Int64Array, n: int, end_ns: int, server: int) -> None:
    """Onto the heap of the open queries' ends."""
    at = n
    while at > 0:
        parent = (at - 1) >> 1
        if ends_ns[parent] <= end_ns:
            break
        ends_ns[at], ends_server[at] = ends_ns[parent], ends_server[parent]
        at = parent
    ends_ns[at], ends_server[at] = end_ns, server


@numba.njit(inline="always")
def _pop(ends_ns: Int64Array, ends_server: Int64Array, n: int) -> None:
    """Take the earliest of n ends from the heap."""
    end_ns = ends_ns[n - 1]
    server = ends_server[n - 1]
    at = 0
    while True:
        child = 2 * at + 1
        if child >= n - 1:
            break
        child += child + 1 < n - 1 and ends_ns[child + 1] < ends_ns[child]
        if ends_ns[child] >= end_ns:
            break
        ends_ns[at], ends_server[at] = ends_ns[child], ends_server[child]
        at = child
    ends_ns[at], ends_server[at] = end_ns, server


@numba.njit(inline="always")
def _choose(
    mode: int, query: int, seed: int, outstanding: Int64Array, weight: FloatArray, tree: Int64Array
) -> int:
    """The server with the shortest queue of all, or of two drawn ones."""
    if mode == _SHORTEST:
        return tree[1]  # type: ignore[no-any-return]
    first = drawn_index(query, 1, 0, seed, len(outstanding))
    second = drawn_index(query, 1, 1, seed, len(outstanding))
    shorter = (outstanding[first] + 1) / weight[first] <= (outstanding[second] + 1) / weight[second]
    return first if shorter else second


@compiled
def serve_fleet(
    arrival_ns: Int64Array,
    n_items: Int64Array,
    begin: int,
    mode: int,
    seed: int,
    server: Int64Array,
    kind: Int64Array,
    weight: FloatArray,
    policies: Int64Array,
    cpu_ns: Int64Array,
    accel_ns: Int64Array,
    factors: FloatArray,
    cpu_row: Int64Array,
    accel_row: Int64Array,
    overheads: Int64Array,
    seeds: Int64Array,
    free_ns: Int64Array,
    latest: Int64Array,
    index: Int64Array,
    bounds: Int64Array,
    outstanding: Int64Array,
    keys: FloatArray,
    tree: Int64Array,
    ends_ns: Int64Array,
    ends_server: Int64Array,
    n_open: Int64Array,
    done_ns: Int64Array,
    nothing: Int64Array,
    no_tasks: Int64Array,
) -> int:
    """Route (unless `mode` is 0) and serve queries from `begin` on; returns the first that is not
    served.

    That is the number of queries, or one that finds the heap of the open ones full. The key of a
    server is its open queries and one more, by weight. `nothing`: an array [0], `no_tasks`: one [0,
    7].
    """
    for i in range(begin, len(arrival_ns)):
        now = arrival_ns[i]
        place = server[i]
        if mode != _ROUTED:
            while n_open[0] > 0 and ends_ns[0] <= now:
                gone = ends_server[0]
                _pop(ends_ns, ends_server, n_open[0])
                n_open[0] -= 1
                outstanding[gone] -= 1
                _set_key(keys, tree, gone, (outstanding[gone] + 1 + _LATER * i) / weight[gone])
            if n_open[0] == len(ends_ns):
                return i
            place = server[i] = _choose(mode, i, seed, outstanding, weight, tree)
        own = kind[place]
        on_accel = policies[own, 1] > 0 and n_items[i] >= policies[own, 1]
        pool = 2 * place + (1 if on_accel else 0)
        overhead = (overheads[own, 2 * on_accel], overheads[own, 2 * on_accel + 1])
        _, done_ns[i], _, _ = serve_query(
            i,
            now,
            n_items[i],
            policies[own, 0],
            on_accel,
            overhead,
            seeds[own],
            cpu_ns[own],
            accel_ns[own],
            factors[own],
            cpu_row[own],
            accel_row[own],
            nothing,
            nothing,
            nothing,
            0,
            nothing,
            free_ns,
            latest,
            index,
            bounds[pool],
            bounds[pool + 1] - bounds[pool],
            no_tasks,
            0,
        )
        if mode != _ROUTED:
            _push(ends_ns, ends_server, n_open[0], done_ns[i], place)
            n_open[0] += 1
            outstanding[place] += 1
            _set_key(keys, tree, place, (outstanding[place] + 1 + _LATER * i) / weight[place])
    return len(arrival_ns)
