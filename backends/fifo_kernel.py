"""The common case compiled: one stage, FIFO pools, split and join, offload. Same decisions as the Dispatcher.

A later arrival never changes what an earlier query meets (first in, first out), so a schedule can be served in pieces:
the state is when each engine becomes free.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numba
import numpy as np
import numpy.typing as npt

Int64Array = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

PARTS_APART = 64  # tasks of neighbouring queries read different stretches of the noise
MOST_PARTS = 1 << 20  # of a query


@dataclass(frozen=True)
class ServiceTable:
    """Service times in ns by number of items, index 0 unused.

    `cpu_ns` [busy neighbours, items]: a row for 0, 1, ... other busy CPU engines, the last for all beyond.
    `accel_ns` [accelerator, items]: a row each. `noise`: factors that tasks draw in a fixed order by query and part,
    the same for every policy and rate (common random numbers); empty: none.
    """

    cpu_ns: Int64Array
    accel_ns: Int64Array = field(default_factory=lambda: np.zeros((0, 1), np.int64))
    noise: FloatArray = field(default_factory=lambda: np.zeros(0))

    def __post_init__(self) -> None:
        if self.cpu_ns.ndim != 2 or self.accel_ns.ndim != 2 or not len(self.cpu_ns):
            raise ValueError("a service table needs cpu_ns [busy neighbours, items] and accel_ns [accelerator, items]")
        if (self.cpu_ns[:, 1:] <= 0).any() or (self.accel_ns[:, 1:] <= 0).any() or (self.noise <= 0).any():
            raise ValueError("service times and noise must be above 0")

    @property
    def max_items(self) -> int:
        """Largest task with a time."""
        widths = [self.cpu_ns.shape[1] - 1, *([self.accel_ns.shape[1] - 1] if len(self.accel_ns) else [])]
        return int(min(widths))

    def task_ns(self, query_id: int, part: int, n_items: int, accelerator: int | None, n_busy: int) -> int:
        """Time of one task on a CPU engine beside `n_busy` others, or on an accelerator."""
        if accelerator is None:
            took = int(self.cpu_ns[min(n_busy, len(self.cpu_ns) - 1), n_items])
        else:
            took = int(self.accel_ns[accelerator, n_items])
        if not len(self.noise):
            return took
        factor = float(self.noise[(query_id * PARTS_APART + part) % len(self.noise)])
        return max(1, int(took * factor))


@numba.njit(cache=True)
def serve(
    arrival_ns: Int64Array, n_items: Int64Array, first: int, batch_items: int, offload_items: int,
    cpu_ns: Int64Array, accel_ns: Int64Array, noise: FloatArray, cpu_free: Int64Array, accel_free: Int64Array,
    cpu_latest: Int64Array, accel_latest: Int64Array,
    busy_ns: Int64Array, first_start_ns: Int64Array, done_ns: Int64Array, tasks: Int64Array,
) -> int:  # fmt: skip
    """Serve queries first, first + 1, ...; returns the number of tasks.

    `offload_items` 0: none. In place: `cpu_free`, `accel_free` (when each engine is free), `cpu_latest`,
    `accel_latest` (number of its latest task: among engines that end at once the one that began first is first),
    `busy_ns` [cpu, accel],
    `first_start_ns`, `done_ns` [query], `tasks` [task, (query, part, is_accel, engine, items, start, end)] unless it
    has no rows.
    """
    n_tasks = 0
    for i in range(len(arrival_ns)):
        now, left, part = arrival_ns[i], n_items[i], 0
        offloaded = offload_items > 0 and left >= offload_items
        free, latest = (accel_free, accel_latest) if offloaded else (cpu_free, cpu_latest)
        first_start_ns[i], done_ns[i] = np.iinfo(np.int64).max, 0
        while left > 0:
            size = left if offloaded else min(batch_items, left)
            engine, n_busy = 0, 0
            for k in range(1, len(free)):
                if free[k] < free[engine] or (free[k] == free[engine] and latest[k] < latest[engine]):
                    engine = k
            start = max(now, free[engine])
            if offloaded:
                took = accel_ns[engine, size]
            else:
                if len(cpu_ns) > 1:
                    for k in range(len(free)):
                        n_busy += free[k] > start
                took = cpu_ns[min(n_busy, len(cpu_ns) - 1), size]
            if len(noise):
                took = max(np.int64(1), np.int64(took * noise[((first + i) * PARTS_APART + part) % len(noise)]))
            end = start + took
            free[engine] = end
            latest[engine] = (first + i + 1) * MOST_PARTS + part
            busy_ns[1 if offloaded else 0] += took
            first_start_ns[i] = min(first_start_ns[i], start)
            done_ns[i] = max(done_ns[i], end)
            if len(tasks):
                tasks[n_tasks, 0], tasks[n_tasks, 1], tasks[n_tasks, 2] = first + i, part, offloaded
                tasks[n_tasks, 3], tasks[n_tasks, 4] = engine, size
                tasks[n_tasks, 5], tasks[n_tasks, 6] = start, end
            n_tasks += 1
            part += 1
            left -= size
    return n_tasks
