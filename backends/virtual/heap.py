"""A heap of events in two arrays, for compiled code.

The earliest is on top, among equally early ones that with the smallest number.
"""

from __future__ import annotations

import numba

from infra.arrays import Int64Array


@numba.njit(inline="always")
def push(times_ns: Int64Array, numbers: Int64Array, n: int, time_ns: int, number: int) -> None:
    """Put an event on the heap of n."""
    at = n
    while at > 0:
        up = (at - 1) >> 1
        if times_ns[up] < time_ns or (times_ns[up] == time_ns and numbers[up] <= number):
            break
        times_ns[at], numbers[at] = times_ns[up], numbers[up]
        at = up
    times_ns[at], numbers[at] = time_ns, number


@numba.njit(inline="always")
def pop(times_ns: Int64Array, numbers: Int64Array, n: int) -> None:
    """Take the top off the heap of n; what it was is to be read before."""
    last = n - 1
    time_ns = times_ns[last]
    number = numbers[last]
    at = 0
    while 2 * at + 1 < last:
        child = 2 * at + 1
        if child + 1 < last and (
            times_ns[child + 1] < times_ns[child]
            or (times_ns[child + 1] == times_ns[child] and numbers[child + 1] < numbers[child])
        ):
            child += 1
        if time_ns < times_ns[child] or (time_ns == times_ns[child] and number < numbers[child]):
            break
        times_ns[at], numbers[at] = times_ns[child], numbers[child]
        at = child
    times_ns[at], numbers[at] = time_ns, number
