"""Many servers in virtual time: queries are routed in order of arrival, each server serves its own.

All of it is compiled. A server is what `backends.virtual.simulated` makes of a ServiceTable and a
policy; a fleet of a single server gives that session's times.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from accelerator.service import ServiceTable, Times, drawn_index
from backends.virtual.fifo_kernel import Engines, compiled, serve_query
from backends.virtual.heap import pop, push
from infra.arrays import FloatArray, Int64Array
from infra.clock import NS_PER_MS
from loadGenerator import Schedule
from scheduler import Policy

ROUTES = ("random", "round_robin", "size_aware", "power_of_two", "shortest_queue")
_ROUTED, _SHORTEST, _OF_TWO = 0, 1, 2  # modes of the kernel
# Between servers with equally short queues the one that has not changed for longest is next.
_LATER = 1e-9
_MOST_OPEN = 1 << 16  # queries in the fleet at first; as many more as it takes


@dataclass(frozen=True)
class ServerKind:
    """Equal servers: engines, service times and the policy that they run.

    `weight`: what a server of the kind carries, in any unit; routing gives it so much of the load.
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
        by_size = self.table.recording is None and not self.table.stolen_ns
        if not (self.n_cpu >= 1 and self.weight > 0 and by_size):
            raise ValueError(
                f"{self.name}: expected an engine, a weight above 0, service times by size and "
                "nothing else"
            )


@dataclass(frozen=True)
class FleetRun:
    """Server and latency in ms of each query of the schedule."""

    server: npt.NDArray[np.int32]
    latency_ms: FloatArray


class _Servers(NamedTuple):
    """`kind` and `weight` [server]; `policies` [kind, (batch, offload)] and `tables` by kind."""

    kind: Int64Array
    weight: FloatArray
    policies: Int64Array
    tables: tuple[Times, ...]


class _Queues(NamedTuple):
    """The open queries of each server, and a heap of their ends.

    The key of a server is its open queries and the next, by weight. tree[1] is the server of the
    smallest key, tree[i] the smaller of its children 2i and 2i + 1.
    """

    n_open: Int64Array  # [server]
    keys: FloatArray
    tree: Int64Array
    ends_ns: Int64Array
    ends_server: Int64Array
    n_ends: Int64Array  # [1]


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
        server = np.zeros(len(sizes), np.int64)
        if mode == _ROUTED:
            server = self._routed(sizes, route, seed, large_items)
        policies = [(k.policy.batch_items, k.policy.offload_items or 0) for k in self.kinds]
        tables = tuple(kind.table.times() for kind in self.kinds)
        servers = _Servers(self.kind, self.weight, np.array(policies, np.int64), tables)
        pools = [n for k in self.kind for n in (self.kinds[k].n_cpu, self.kinds[k].n_accel)]
        engines = Engines.idle(pools)
        queues = self._queues()
        done_ns = np.zeros(len(sizes), np.int64)
        no_tasks = np.zeros((0, 7), np.int64)
        served = 0
        while True:
            load = (schedule.arrival_ns, sizes, served)
            served = serve_fleet(
                *load, mode, seed, server, servers, engines, queues, done_ns, no_tasks
            )
            if served == len(schedule):
                latency_ms = (done_ns - schedule.arrival_ns) / NS_PER_MS
                return FleetRun(server.astype(np.int32), latency_ms)
            queues = queues._replace(
                ends_ns=np.repeat(queues.ends_ns, 2), ends_server=np.repeat(queues.ends_server, 2)
            )

    def _queues(self) -> _Queues:
        """Nothing is open; a tree of all servers, filled up to a power of two."""
        leaves = 1 << (len(self) - 1).bit_length()
        keys = np.full(leaves, np.inf)
        keys[: len(self)] = 1 / self.weight
        tree = np.concatenate([np.zeros(leaves, np.int64), np.arange(leaves)])
        for node in range(leaves - 1, 0, -1):
            left, right = tree[2 * node : 2 * node + 2]
            tree[node] = left if keys[left] <= keys[right] else right
        none = np.zeros(_MOST_OPEN, np.int64)
        n_ends = np.zeros(1, np.int64)
        return _Queues(np.zeros(len(self), np.int64), keys, tree, none, none.copy(), n_ends)

    def _routed(self, sizes: Int64Array, route: str, seed: int, large_items: int) -> Int64Array:
        """A server for every query by a rule that looks at no queue."""
        if route == "round_robin":
            return _in_turn(self.weight, len(sizes))
        rng = np.random.default_rng([seed, 77])
        server = _by_weight(self.weight, rng.random(len(sizes)))
        if route == "random":
            return server
        offloads = np.array([kind.policy.offload_items is not None for kind in self.kinds])
        with_accel = np.flatnonzero(offloads[self.kind])
        if len(with_accel) in (0, len(self)):
            raise ValueError("size_aware needs servers that offload and servers that do not")
        large = sizes >= large_items
        u = rng.random(int(large.sum()))
        server[large] = with_accel[_by_weight(self.weight[with_accel], u)]
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


@numba.njit(inline="always")
def _count(queues: _Queues, server: int, change: int, i: int, weight: FloatArray) -> None:
    """A server has a query more or less at arrival i: its new key, and who wins above it."""
    queues.n_open[server] += change
    keys = queues.keys
    tree = queues.tree
    keys[server] = (queues.n_open[server] + 1 + _LATER * i) / weight[server]
    node = (len(keys) + server) >> 1
    while node >= 1:
        left = tree[2 * node]
        right = tree[2 * node + 1]
        tree[node] = left if keys[left] <= keys[right] else right
        node >>= 1


@numba.njit(inline="always")
def _choose(mode: int, query: int, seed: int, queues: _Queues, weight: FloatArray) -> int:
    """The server with the shortest queue of all, or of two drawn ones."""
    if mode == _SHORTEST:
        return queues.tree[1]  # type: ignore[no-any-return]
    n_open = queues.n_open
    first = drawn_index(query, 1, 0, seed, len(n_open))
    second = drawn_index(query, 1, 1, seed, len(n_open))
    shorter = (n_open[first] + 1) / weight[first] <= (n_open[second] + 1) / weight[second]
    return first if shorter else second


@compiled
def serve_fleet(
    arrival_ns: Int64Array,
    n_items: Int64Array,
    begin: int,
    mode: int,
    seed: int,
    server: Int64Array,
    servers: _Servers,
    engines: Engines,
    queues: _Queues,
    done_ns: Int64Array,
    no_tasks: Int64Array,
) -> int:
    """Route (unless `mode` says that it is done) and serve queries from `begin` on.

    Returns the first query that is not served: the number of queries, or one that finds the heap of
    ends full. `no_tasks`: an array [0, 7].
    """
    weight = servers.weight
    for i in range(begin, len(arrival_ns)):
        now = arrival_ns[i]
        at = server[i]
        if mode != _ROUTED:
            while queues.n_ends[0] > 0 and queues.ends_ns[0] <= now:
                gone = queues.ends_server[0]
                pop(queues.ends_ns, queues.ends_server, queues.n_ends[0])
                queues.n_ends[0] -= 1
                _count(queues, gone, -1, i, weight)
            if queues.n_ends[0] == len(queues.ends_ns):
                return i
            at = server[i] = _choose(mode, i, seed, queues, weight)
        kind = servers.kind[at]
        batch_items = servers.policies[kind, 0]
        offload_items = servers.policies[kind, 1]
        on_accel = offload_items > 0 and n_items[i] >= offload_items
        pool = 2 * at + on_accel
        times = servers.tables[kind]
        _, done_ns[i], _, _ = serve_query(
            i, arrival_ns, n_items, batch_items, on_accel, times, engines, pool, no_tasks, 0
        )
        if mode != _ROUTED:
            push(queues.ends_ns, queues.ends_server, queues.n_ends[0], done_ns[i], at)
            queues.n_ends[0] += 1
            _count(queues, at, 1, i, weight)
    return len(arrival_ns)
