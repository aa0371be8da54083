"""A pool's FIFO between the driver and its engines: a shared socket pair, and a backlog for what it
cannot hold.
"""

from __future__ import annotations

import contextlib
import socket
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from backends.processes.engine import PoolSpec
from infra.messages import Task, WireTask


@dataclass(slots=True)
class Ticket:
    """One attempt at a task."""

    task: Task
    wire: bytes
    input_id: int
    enqueued_ns: int = 0


class Pool:
    """A pool's FIFO: what the kernel's buffer cannot hold waits in `backlog`."""

    def __init__(self, spec: PoolSpec) -> None:
        self.spec = spec
        self.driver_end, self.engine_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.driver_end.setblocking(False)
        self.backlog: deque[int] = deque()
        self.in_kernel: set[int] = set()  # tickets sent and not answered

    def flush(self, tickets: Mapping[int, Ticket]) -> None:
        """Send what the kernel takes."""
        while self.backlog:
            try:
                self.driver_end.send(tickets[self.backlog[0]].wire)
            except BlockingIOError:
                return
            self.in_kernel.add(self.backlog.popleft())

    def take_back(self) -> list[int]:
        """The tickets that no engine has taken yet, in order; the kernel's buffer is empty
        afterwards.
        """
        taken = []
        with contextlib.suppress(BlockingIOError):
            while True:
                taken.append(
                    WireTask.unpack(
                        self.engine_end.recv(self.spec.message_bytes, socket.MSG_DONTWAIT)
                    ).ticket
                )
        return taken
