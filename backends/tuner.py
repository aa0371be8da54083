"""Drives a search over a session: what the scheduler proposes is measured, what was measured is observed.

Every update is a run of its own (schedule, warm-up, seed); engines stay warm, no query is thrown away, nothing sleeps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pandas as pd

from backends.session import Session
from infra.config import RunConfig
from infra.progress import OnFraction, Progress
from infra.rows import Rows
from infra.stats import Summary, quantile, summarize
from loadGenerator import draw_schedule
from scheduler import Limit, Policy, ReleasedClimb, Stage, log_grid_qps, static_policy, with_offload

WARMUP_SHARE = 0.25  # of an update's queries, sent before those that count
MAX_CONFIRMATIONS = 8
_TYPICAL_UPDATES = 12  # of a configuration; for the estimate of what remains only


@dataclass(frozen=True)
class Phase:
    """One line of the result: a policy, the rate it carries under the SLA, and the run that confirms it."""

    name: str
    policy: Policy
    rate_qps: float
    summary: Summary | None  # None: no rate of the grid meets the SLA
    rows: Rows | None
    n_confirmations: int


@dataclass
class Search:
    """All that a search leaves: one line per phase, one row per update, and every query that was sent."""

    phases: list[Phase] = field(default_factory=list)
    updates: list[dict[str, object]] = field(default_factory=list)
    query_rows: list[pd.DataFrame] = field(default_factory=list)

    def updates_table(self) -> pd.DataFrame:
        """phase, update, batch_items, offload_items, rate_qps, p_sla_ms, verdict, n_queries."""
        return pd.DataFrame(self.updates)

    def queries_table(self) -> pd.DataFrame:
        """The rows of every query of every update, with its number."""
        return pd.concat(self.query_rows, ignore_index=True) if self.query_rows else pd.DataFrame()


class Tuner:
    """Runs the phases that the settings ask for; after an interruption what it has so far stands."""

    def __init__(self, config: RunConfig, session: Session, n_engines: int, progress: Progress) -> None:
        self._config, self._session, self._progress = config, session, progress
        self._n_engines = n_engines
        tune = config.tune
        self._grid = log_grid_qps(tune.min_arr_range, tune.max_arr_range, tune.arr_steps)
        self._n_runs = 0
        self.search = Search()

    def run(self) -> Search:
        """Static baseline, then the per-core batch, then the offload threshold."""
        tune, max_items = self._config.tune, self._config.inputs.max_mini_batch_size
        self._phase("static", [static_policy(max_items, self._n_engines)])
        best = Policy(self._config.engines.sub_task_batch_size)
        if tune.tune_batch_qps:
            best = self._phase("tuned CPU", [Policy(n) for n in _numbers(tune.batch_configs)])
        if tune.tune_accel_qps:
            self._phase("tuned CPU + accelerator", with_offload(best, _numbers(tune.accel_configs)))
        return self.search

    def _phase(self, name: str, policies: Sequence[Policy]) -> Policy:
        """Climb, confirm, note; returns the best policy."""
        if self._session.interrupted:
            return policies[0]
        tune = self._config.tune
        start = self._last_step()
        climb = ReleasedClimb(policies, self._grid, tune.target_latency, tune.stable_region, tune.sched_timeout, start)
        n_phases = 1 + tune.tune_batch_qps + tune.tune_accel_qps
        with self._progress.step(f"[{len(self.search.phases) + 1}/{n_phases}] {name}:") as on_fraction:
            while (trial := climb.propose()) is not None:
                rows, p_sla_ms = self._update(trial.policy, trial.rate_qps)
                if self._session.interrupted:
                    return policies[0]
                climb.observe(p_sla_ms)
                self._note_update(name, rows, climb)
                _tell(on_fraction, climb)
        best = climb.best
        self.search.phases.append(self._confirm(name, best))
        return best.policy

    def _last_step(self) -> int:
        """Where to begin on the grid: at what the phase before it carried, the slowest rate at first."""
        carried = [phase.rate_qps for phase in self.search.phases if phase.rate_qps > 0]
        return min(range(len(self._grid)), key=lambda i: abs(self._grid[i] - carried[-1])) if carried else 0

    def _update(self, policy: Policy, rate_qps: float) -> tuple[Rows, float]:
        n_warmup = math.ceil(self._config.tune.req_granularity * WARMUP_SHARE)
        rows = self._measure(policy, rate_qps, n_warmup + self._config.tune.req_granularity, n_warmup)
        measured = rows.queries[~rows.queries["is_warmup"]]
        latency_ms = (measured["done_ns"] - measured["arrival_ns"]).astype("Float64").to_numpy(
            float, na_value=math.inf
        ) / 1e6
        return rows, quantile(latency_ms, self._config.tune.sla_percentile / 100).value

    def _measure(
        self, policy: Policy, rate_qps: float, n_queries: int, n_warmup: int,
        on_progress: Callable[[int], None] | None = None,
    ) -> Rows:  # fmt: skip
        self._n_runs += 1
        schedule = draw_schedule(self._config, n_queries, n_warmup, rate_qps, self._n_runs)
        return self._session.run(schedule, [Stage(policy)], on_progress)

    def _note_update(self, phase: str, rows: Rows, climb: ReleasedClimb) -> None:
        seen = climb.history[-1]
        number = len(self.search.updates)
        self.search.updates.append(
            {
                "phase": phase,
                "update": number,
                "batch_items": seen.trial.policy.batch_items,
                "offload_items": seen.trial.policy.offload_items,
                "rate_qps": seen.trial.rate_qps,
                "p_sla_ms": seen.p_sla_ms,
                "verdict": seen.verdict,
                "n_queries": len(rows.queries),
            }
        )
        self.search.query_rows.append(rows.queries.assign(update=number))

    def _confirm(self, name: str, limit: Limit) -> Phase:
        """Longer runs with fresh seeds: up the grid while the SLA is met, or down it until it is."""
        best = Phase(name, limit.policy, 0.0, None, None, 0)
        step, direction = limit.step, 0
        for tries in range(1, MAX_CONFIRMATIONS + 1):
            if not 0 <= step < len(self._grid):
                break
            rows, summary = self._confirmation(name, limit.policy, self._grid[step])
            if self._session.interrupted and best.summary is not None:
                break
            met = summary.meets_sla
            if met or self._session.interrupted:
                best = Phase(name, limit.policy, self._grid[step], summary, rows, tries)
            turned = (met and direction < 0) or (not met and direction > 0)
            if self._session.interrupted or turned:
                break
            direction = 1 if met else -1
            step += direction
        return best

    def _confirmation(self, name: str, policy: Policy, rate_qps: float) -> tuple[Rows, Summary]:
        tune, n_queries = self._config.tune, self._config.n_queries
        with self._progress.step(f"{name}: confirming {rate_qps:.0f} QPS") as on_fraction:
            rows = self._measure(
                policy, rate_qps, n_queries, self._config.n_warmup, lambda n_done: on_fraction(n_done / n_queries)
            )
        return rows, summarize(rows.queries, rows.tasks, tune.target_latency, tune.sla_percentile, rows.notes)


def _numbers(dashed: str) -> list[int]:
    return [int(part) for part in dashed.split("-")]


def _tell(on_fraction: OnFraction, climb: ReleasedClimb) -> None:
    seen = climb.history[-1]
    updates = len(climb.history) - sum(limit.updates for limit in climb.limits)
    within = 1 - math.exp(-updates / _TYPICAL_UPDATES)
    policy = seen.trial.policy
    offload = "" if policy.offload_items is None else f", threshold {policy.offload_items}"
    on_fraction(
        min((len(climb.limits) + within) / climb.n_configurations, 1.0),
        f"batch {policy.batch_items}{offload}, update {len(climb.history)}, "
        f"{seen.trial.rate_qps:.0f} QPS, tail {seen.p_sla_ms:.1f} ms",
    )
