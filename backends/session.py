"""What measuring and tuning need of a backend."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from infra.rows import Rows
from loadGenerator import Schedule
from scheduler import Stage


class Session(Protocol):
    """Engines that stay warm over many runs."""

    interrupted: bool

    def run(
        self, schedule: Schedule, stages: Sequence[Stage], on_progress: Callable[[int], None] | None = None
    ) -> Rows:
        """Walk the schedule to its last answer; `on_progress` gets the number of queries answered so far."""
