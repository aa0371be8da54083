"""The highest rate that meets an SLA, rate by rate: bisection, and the release's walk.

Both propose a rate and observe what it showed; neither does I/O.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from infra.results.quantiles import Estimate
from infra.search.sla_test import Verdict

# Factors away from the starting rate: each step is the square of that before it.
FIRST_STEP = 1.25
LARGEST_STEP = 16.0


class RateBisection:
    """Brackets the limit from `start_qps`, then halves the bracket's logarithm down to `rel_width`.

    An undecided rate moves the bracket by the side that its late share leans to, but not the
    interval: `estimate` is the limit to `rel_width` on the load that was drawn, between the highest
    rate that was shown to meet the SLA and the lowest that was shown to miss it. No rate below
    `floor_qps` is tried.
    """

    def __init__(
        self,
        start_qps: float,
        rel_width: float,
        floor_qps: float = 0.0,
        first_step: float = FIRST_STEP,
    ) -> None:
        if not (start_qps > 0 and rel_width > 0 and math.isfinite(start_qps)):
            raise ValueError(
                f"start_qps {start_qps:g}, rel_width {rel_width:g}: expected finite numbers above 0"
            )
        self._start_qps = start_qps
        self._rel_width = rel_width
        self._floor_qps = floor_qps or start_qps / 64
        self._factor = first_step
        self._met_qps = 0.0  # the bracket, by leaning where undecided
        self._missed_qps = math.inf
        self._sure_met_qps = 0.0  # the interval, by verdicts alone
        self._sure_missed_qps = math.inf
        self._next_qps: float | None = start_qps

    def propose(self) -> float | None:
        """The next rate to try; None when the bracket is as narrow as asked."""
        return self._next_qps

    def observe(self, verdict: Verdict, *, leans_met: bool) -> None:
        """Take in what the proposed rate showed.

        `leans_met`: its share of late queries is inside the SLA.
        """
        rate_qps = self._next_qps
        if rate_qps is None:
            raise ValueError("nothing was proposed")
        if verdict == "met":
            self._sure_met_qps = max(self._sure_met_qps, rate_qps)
        elif verdict == "missed":
            self._sure_missed_qps = min(self._sure_missed_qps, rate_qps)
        if verdict == "met" or (verdict == "undecided" and leans_met):
            self._met_qps = rate_qps
        else:
            self._missed_qps = rate_qps
        self._next_qps = self._following()

    def _following(self) -> float | None:
        low = self._met_qps
        high = self._missed_qps
        if low > 0 and high < math.inf:
            return math.sqrt(low * high) if high / low > 1 + self._rel_width else None
        rate_qps = high / self._factor if low == 0 else low * self._factor
        self._factor = min(self._factor**2, LARGEST_STEP)
        return rate_qps if rate_qps >= self._floor_qps else None

    @property
    def carried_qps(self) -> float:
        """The highest rate tried that met the SLA, by leaning where undecided; 0: none."""
        return self._met_qps

    @property
    def estimate(self) -> Estimate:
        """The limit; 0 where no rate met the SLA."""
        low = self._met_qps
        high = self._missed_qps
        value = 0.0 if low == 0 else low if high == math.inf else math.sqrt(low * high)
        return Estimate(value, min(self._sure_met_qps, value), max(self._sure_missed_qps, value))


def log_grid_qps(min_gap_ms: float, max_gap_ms: float, steps: int) -> tuple[float, ...]:
    """`steps` rates from 1000 / max_gap_ms up to 1000 / min_gap_ms, evenly spaced in the log."""
    ratio = (max_gap_ms / min_gap_ms) ** (1 / (steps - 1))
    return tuple(1000 / max_gap_ms * ratio**i for i in range(steps))


class RateWalk:
    """Walks a log grid of rates, a step an update, as the release does.

    Below the dead band one step up, over the SLA one step down, inside it no move. It ends when
    held for `HOLDS` updates in all, when it has turned `TURNS` times, when it stands at an end of
    the grid, or after `max_updates`.
    """

    HOLDS = 3
    TURNS = 4

    def __init__(
        self,
        grid_qps: Sequence[float],
        sla_ms: float,
        stable_region: float,
        max_updates: int,
        start_step: int = 0,
    ) -> None:
        self._grid = tuple(grid_qps)
        self._sla_ms = sla_ms
        self._band_ms = sla_ms * (1 - stable_region)
        self._max_updates = max_updates
        self._step = min(max(start_step, 0), len(self._grid) - 1)
        self._holds = self._turns = self._direction = 0
        self._met: dict[int, list[bool]] = {}
        self._ended = False
        self.steps: list[int] = []  # of the updates so far

    def propose(self) -> float | None:
        """The rate of the next update, or None when the walk has ended."""
        return None if self._ended else self._grid[self._step]

    def observe(self, p_sla_ms: float) -> None:
        """Take in the latency percentile that the proposed update saw."""
        move = -1 if p_sla_ms > self._sla_ms else 1 if p_sla_ms < self._band_ms else 0
        self.steps.append(self._step)
        self._met.setdefault(self._step, []).append(move >= 0)
        self._holds += move == 0
        if move and move == -self._direction:
            self._turns += 1
        self._direction = move or self._direction
        blocked = not 0 <= self._step + move < len(self._grid)
        self._ended = (
            blocked
            or self._holds >= self.HOLDS
            or self._turns >= self.TURNS
            or len(self.steps) >= self._max_updates
        )
        if not blocked:
            self._step += move

    @property
    def limit_step(self) -> int:
        """The fastest step at which at least half of the updates met the SLA; -1: none."""
        return max(
            (step for step, met in self._met.items() if 2 * sum(met) >= len(met)), default=-1
        )
