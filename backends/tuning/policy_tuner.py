"""Drives searches over a session: what the scheduler proposes is measured and observed.

Every trial is a run of its own; engines stay warm, nothing sleeps. A search is deterministic in
what it observes, so its log is its state: to go on after a kill, the log is observed again and the
search asks for what is missing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from backends.session import Session
from backends.tuning.calibration import calibrate, calibrated_times
from backends.tuning.guided import Guided, foretell
from backends.tuning.probe import Probed, Sla, capacity_qps
from backends.tuning.search_log import SearchLog, outcome_of
from backends.tuning.told_limits import ByTest, Prober, confirmation, prober_of
from backends.virtual.simulated import SimulatedSession
from infra.deployment import Deployment
from infra.messages import ACCEL
from infra.progress import OnFraction, Progress
from infra.results.disturbance import MOST_TRIES, repeat_disturbed
from infra.results.rows import Rows
from infra.results.stats import Summary, summarize
from infra.search.rate_search import log_grid_qps
from loadGenerator import CommonLoad
from scheduler import (
    Exhaustive,
    Goal,
    HillClimb,
    Limit,
    Policy,
    ReleasedClimb,
    Search,
    Trial,
    static_policy,
    with_offload,
)

START_LOAD = 0.5  # of the capacity: where the first limit is looked for
MAX_CONFIRMATIONS = 8
TOLD_CONFIRMATIONS = 2  # of a limit that was told at once; then it is bisected
WALKED_WIDTH = 0.01  # of a rate in virtual time, at most
BY_TEST = ("released", "guided")  # searches that ask for verdicts
# trials of a policy, for the estimate of progress only
_TYPICAL_TRIALS = {"released": 12, "hill": 2, "guided": 0.1, "exhaustive": 7, "static": 7}
# numbers of runs, for their random streams: the load common to all trials, the first of a trial's
# alone, the first confirmation
_COMMON_LOAD = 2
_TRIAL_LOAD = 1_000
_CONFIRMATION = 1_000_000


@dataclass(frozen=True)
class Phase:
    """One line of the result: a policy, its limit, the run that confirms it, and what that cost."""

    name: str
    limit: Limit
    rate_qps: float  # confirmed
    summary: Summary | None  # None: no rate meets the SLA
    rows: Rows | None
    n_trials: int
    n_queries: int
    seconds: float
    watts: float | None = None

    @property
    def is_told(self) -> bool:
        """Whether the rate is the limit itself, confirmed inside what was foreseen."""
        told = self.limit.told is not None and self.summary is not None
        return told and self.rate_qps == self.limit.qps.value

    @property
    def policy(self) -> Policy:
        """The best of the phase."""
        return self.limit.policy

    @property
    def qps_per_watt(self) -> float | None:
        """At the confirmed rate."""
        return None if self.watts is None else self.rate_qps / self.watts


@dataclass
class TuningResult:
    """All that tuning leaves: a line per phase, and per trial as `search_log` writes it."""

    phases: list[Phase] = field(default_factory=list)
    trials: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # sentences for the report


class PolicyTuner:
    """Runs the phases that the settings ask for; after an interruption its result so far stands."""

    def __init__(
        self,
        deployment: Deployment,
        session: Session,
        progress: Progress,
        log: SearchLog | None = None,
        watts: Callable[[Policy], float] | None = None,
    ) -> None:
        self._deployment = deployment
        self._config = config = deployment.config
        self._session = session
        self._progress = progress
        self._log = log or SearchLog(None)
        self._watts = watts
        tune = config.tune
        self._sla = Sla(
            tune.target_latency,
            tune.sla_percentile,
            tune.confidence,
            tune.probe_queries or config.n_queries,
        )
        self._load = CommonLoad(config, self._sla.max_queries, _COMMON_LOAD)
        self._grid = log_grid_qps(tune.min_arr_range, tune.max_arr_range, tune.arr_steps)
        self._by_test = ByTest(session, self._load, self._sla)
        self._by_limit = prober_of(session, deployment, self._load, self._sla)
        self._n_tried = self._n_confirmations = 0
        self._goal = Goal(1.0)
        self._disturbed = ""  # why the search's trials cannot be believed
        self._is_virtual = isinstance(session, SimulatedSession)
        self.result = TuningResult()

    def run(self) -> TuningResult:
        """Static baseline, then the per-core batch, then the offload threshold.

        Guided: both knobs together.
        """
        tune = self._config.tune
        inputs = self._config.inputs
        n_engines = self._deployment.n_engines
        static = static_policy(inputs.max_mini_batch_size, n_engines)
        start_qps = START_LOAD * self._log.once(
            "capacity_qps", lambda: capacity_qps(self._session, self._config, static, n_engines)
        )
        width = min(tune.rate_width, WALKED_WIDTH) if self._is_virtual else tune.rate_width
        goal = self._goal = Goal(start_qps, width, self._watts or (lambda _: 1.0))
        if tune.scheduler == "guided":
            self._guided(static, goal)
            return self.result
        best = self._phase("static", self._plain_search([static], goal))
        if tune.scheduler == "static" or best is None:
            return self.result
        if tune.tune_batch_qps:
            batches = [
                n for n in _numbers(tune.batch_configs) if n <= inputs.max_mini_batch_size
            ] or [static.batch_items]
            tuned = self._phase("tuned CPU", self._batch_search(batches, goal, best))
            best = tuned or best
        else:
            batches = [self._config.engines.sub_task_batch_size]
            best = (
                Limit(Policy(batches[0]), best.qps, best.carried_qps)
                if batches[0] == static.batch_items
                else None
            )
        if tune.tune_accel_qps and not self._session.interrupted:
            self._phase("tuned CPU + accelerator", self._offload_search(batches, goal, best))
        return self.result

    def _guided(self, static: Policy, goal: Goal) -> None:
        """Measure service times, search the grid in virtual time, ask reality about the best."""
        tune = self._config.tune
        engines = self._config.engines
        batches = [engines.sub_task_batch_size]
        offload = list[int | None]([None])
        if tune.tune_batch_qps:
            batches = self._distinct_batches(_numbers(tune.batch_configs))
        if tune.tune_accel_qps:
            offload += distinct_thresholds(_numbers(tune.accel_configs), *self._load.size_range)
        policies = [Policy(batch, threshold) for batch in batches for threshold in offload]
        try:
            foretold, shown = self._foretell([static, *policies], goal)
        except KeyboardInterrupt:
            return
        knobs: dict[str, Sequence[int | None]] = {"batch_items": batches, "offload_items": offload}
        phases = {
            "static": [static],
            "tuned CPU + accelerator" if tune.tune_accel_qps else "tuned CPU": policies,
        }
        for name, candidates in phases.items():
            best_first = [limit for limit in foretold if limit.policy in candidates]
            to_climb = knobs if name != "static" else {"batch_items": [static.batch_items]}
            search = Guided(best_first, goal, partial(_hill, to_climb, goal))
            if self._phase(name, search) is None:
                return
            best = best_first[0]
            self.result.notes.append(
                f"{name}: batch {best.policy.batch_items}, threshold "
                f"{best.policy.offload_items or 'none'} was foretold to carry "
                f"{best.qps.value:.4g} QPS {shown}; {search.verdict}"
            )

    def _foretell(self, policies: Sequence[Policy], goal: Goal) -> tuple[list[Limit], str]:
        """What virtual time says of them, the best first, and by which service times."""
        deployment = self._deployment
        offloads = self._config.tune.tune_accel_qps
        with self._progress.step("measuring service times") as on_fraction:
            measured = self._log.calibrations(
                len(deployment.stages),
                lambda: calibrate(
                    self._session, deployment, offloads=offloads, on_fraction=on_fraction
                ),
            )
        if not offloads:
            on_cores = tuple(pool for pool in deployment.pools if pool.name != ACCEL)
            deployment = replace(deployment, pools=on_cores)
        times = calibrated_times(deployment, measured)
        with self._progress.step(f"{len(policies)} policies in virtual time") as on_fraction:
            limits = foretell(deployment, times, self._load, self._sla, policies, goal, on_fraction)
        return limits, "; ".join(map(str, measured))

    def _plain_search(self, policies: Sequence[Policy], goal: Goal) -> Search:
        if self._config.tune.scheduler != "released":
            return Exhaustive(policies, goal)
        tune = self._config.tune
        carried = [phase.limit.carried_qps for phase in self.result.phases]
        latest = next((qps for qps in reversed(carried) if qps > 0), self._grid[0])
        start = min(range(len(self._grid)), key=lambda i: abs(self._grid[i] - latest))
        return ReleasedClimb(
            policies,
            self._grid,
            tune.target_latency,
            tune.stable_region,
            tune.sched_timeout,
            tune.req_granularity,
            start,
            goal,
        )

    def _batch_search(self, batches: Sequence[int], goal: Goal, static: Limit) -> Search:
        if self._config.tune.scheduler != "hill":
            return self._plain_search([Policy(n) for n in batches], goal)
        ladder = self._distinct_batches(batches)
        largest = self._load.size_range[1]
        start = static.policy.batch_items
        if start >= largest and ladder[-1] >= largest:  # another name for the same policy
            start = ladder[-1]
        start_limit = replace(static, policy=Policy(start))
        knobs: dict[str, Sequence[int | None]] = {"batch_items": ladder}
        return self._climb(knobs, start_limit.policy, goal, start_limit)

    def _offload_search(self, batches: Sequence[int], goal: Goal, best: Limit | None) -> Search:
        thresholds = _numbers(self._config.tune.accel_configs)
        start = best.policy if best is not None else Policy(batches[0])
        if self._config.tune.scheduler == "hill":
            offload: list[int | None] = [
                *distinct_thresholds(thresholds, *self._load.size_range),
                None,
            ]
            knobs: dict[str, Sequence[int | None]] = {
                "offload_items": offload,
                "batch_items": self._distinct_batches(batches),
            }
            return self._climb(knobs, start, goal, best)
        if self._config.tune.scheduler == "exhaustive":
            return Exhaustive(
                [p for n in batches for p in with_offload(Policy(n), thresholds)], goal
            )
        return self._plain_search(with_offload(start, thresholds), goal)

    def _climb(
        self,
        knobs: Mapping[str, Sequence[int | None]],
        start: Policy,
        goal: Goal,
        start_limit: Limit | None,
    ) -> HillClimb:
        if self._is_virtual:  # a question costs next to nothing
            return HillClimb(knobs, start, goal, start_limit, scouts=None)
        return HillClimb(knobs, start, goal, start_limit)

    def _distinct_batches(self, batches: Sequence[int]) -> list[int]:
        return [*distinct_batches(batches, self._load.size_range[1])]

    def _phase(self, name: str, search: Search) -> Limit | None:
        """Search, confirm, note; returns the best policy's limit, None if interrupted first."""
        tune = self._config.tune
        trials = list[dict[str, Any]]()
        n_phases = {"static": 1, "guided": 2}.get(
            tune.scheduler, 1 + tune.tune_batch_qps + tune.tune_accel_qps
        )
        with self._progress.step(
            f"[{len(self.result.phases) + 1}/{n_phases}] {name}:"
        ) as on_fraction:
            while (trial := search.propose()) is not None:
                _tell(on_fraction, search, trial, len(trials), _TYPICAL_TRIALS[tune.scheduler])
                line = self._try(name, trial, self._prober(trial))
                if line is None:
                    break
                trials.append(line)
                search.observe(outcome_of(line))
        self.result.trials += trials
        best = search.best
        if best is None:
            return None
        if best.told is not None:  # a policy that is not better than one before is that one
            before = [x.limit for x in self.result.phases if x.limit.told is not None]
            best = max([*before, best], key=self._goal.value)
        phase = self._confirm(name, best, trials)
        self.result.phases.append(phase)
        return None if self._session.interrupted else phase.limit

    def _prober(self, trial: Trial) -> Prober:
        if trial.n_queries is not None:  # the release draws every update anew
            n_drawn = _TRIAL_LOAD + self._n_tried + 1
            load = CommonLoad(self._config, 2 * trial.n_queries, n_drawn)
            return replace(self._by_test, load=load)
        return self._by_test if self._config.tune.scheduler in BY_TEST else self._by_limit

    def _try(self, phase: str, trial: Trial, prober: Prober) -> dict[str, Any] | None:
        self._n_tried += 1
        line = self._log.recorded(phase, trial)
        if line is not None:
            return line
        probed, reason = repeat_disturbed(lambda: prober.probe(trial), self._disturbance)
        if reason:
            self._disturbed = f"no trial of the search was quiet: {reason}"
        return None if probed is None else self._log.note(phase, trial, probed)

    def _disturbance(self, probed: Probed | None) -> str:
        """Why a trial is repeated, not believed."""
        if probed is None or probed.rows is None or self._session.interrupted:
            return ""
        return "; ".join(probed.rows.disturbed_by(self._sla.latency_ms, self._sla.percentile))

    def _confirm(self, name: str, limit: Limit, trials: list[dict[str, Any]]) -> Phase:
        """A run with a fresh seed at what the policy carries."""
        phase = self._confirmed_before(limit)
        if phase is None and limit.told is not None and limit.foreseen_ms is not None:
            phase = self._confirm_told(name, limit, limit.foreseen_ms)
            if phase is None:
                limit = self._bisected(name, limit, trials)
        if phase is None:
            phase = self._confirm_stepwise(name, limit)
        summary = phase.summary
        if summary is not None and self._disturbed:
            reasons = (*summary.invalid_reasons, self._disturbed)
            summary = replace(summary, invalid_reasons=reasons)
        return replace(
            phase,
            name=name,
            summary=summary,
            n_trials=len(trials),
            n_queries=sum(t["n_queries"] for t in trials),
            seconds=sum(t["seconds"] for t in trials),
        )

    def _confirmed_before(self, limit: Limit) -> Phase | None:
        """The same limit in an earlier phase: the same policy has the same numbers."""
        if limit.told is None:
            return None
        return next((x for x in self.result.phases if x.limit.told == limit.told), None)

    def _confirm_told(
        self, name: str, limit: Limit, foreseen_ms: tuple[float, float]
    ) -> Phase | None:
        """At the limit itself; None where it ends outside of what was foreseen."""
        low, high = foreseen_ms
        seen = list[str]()
        last = None
        for _ in range(MOST_TRIES):
            rows, summary = self._confirmation(name, limit.policy, limit.qps.value)
            last = self._phase_of(name, limit, limit.qps.value, rows, summary)
            is_quiet = not rows.disturbed_by(self._sla.latency_ms, self._sla.percentile)
            is_inside = low <= summary.p_sla_ms.value <= high
            if self._session.interrupted or (is_quiet and is_inside):
                return last
            if is_quiet:
                seen.append(f"{summary.p_sla_ms.value:.4g}")
            if len(seen) == TOLD_CONFIRMATIONS:
                break
        if len(seen) < TOLD_CONFIRMATIONS:
            return last  # INVALID, as it was disturbed
        self.result.notes.append(
            f"{name}: p{self._sla.percentile:g} of {low:.4g} to {high:.4g} ms was foreseen at "
            f"{limit.qps.value:.4g} QPS, but {' and '.join(seen)} came: the rate was bisected"
        )
        return None

    def _bisected(self, name: str, limit: Limit, trials: list[dict[str, Any]]) -> Limit:
        """The policy's limit rate by rate, by verdicts."""
        search = Exhaustive([limit.policy], replace(self._goal, start_qps=limit.qps.value))
        while (trial := search.propose()) is not None:
            line = self._try(name, trial, self._by_test)
            if line is None:
                break
            trials.append(line)
            self.result.trials.append(line)
            search.observe(outcome_of(line))
        return search.best or replace(limit, told=None, carried_qps=0.0)

    def _phase_of(
        self, name: str, limit: Limit, rate_qps: float, rows: Rows | None, summary: Summary | None
    ) -> Phase:
        watts = self._watts(limit.policy) if self._watts else None
        return Phase(name, limit, rate_qps, summary, rows, 0, 0, 0.0, watts)

    def _confirm_stepwise(self, name: str, limit: Limit) -> Phase:
        """At what the policy carried, then slower and slower until the SLA is met."""
        rate_qps = limit.carried_qps
        for tries in range(MAX_CONFIRMATIONS if rate_qps > 0 else 0):
            if self._session.interrupted:
                break
            rows, summary = self._confirmation(name, limit.policy, rate_qps)
            if summary.meets_sla or self._session.interrupted:
                return self._phase_of(name, limit, rate_qps, rows, summary)
            rate_qps /= 1 + self._config.tune.rate_width * 2**tries
        return self._phase_of(name, limit, 0.0, None, None)

    def _confirmation(self, name: str, policy: Policy, rate_qps: float) -> tuple[Rows, Summary]:
        self._n_confirmations += 1
        tune = self._config.tune
        number = _CONFIRMATION + self._n_confirmations
        schedule = confirmation(self._config, rate_qps, self._sla, number)
        n = len(schedule)
        with self._progress.step(f"{name}: confirming {rate_qps:.0f} QPS") as on_fraction:
            rows = self._session.run(schedule, policy, lambda n_done: on_fraction(n_done / n))
        sla = (tune.target_latency, tune.sla_percentile)
        return rows, summarize(rows.queries, rows.tasks, *sla, rows.faults(*sla))


def _hill(
    knobs: Mapping[str, Sequence[int | None]], goal: Goal, start: Policy, start_limit: Limit | None
) -> HillClimb:
    return HillClimb(knobs, start, goal, start_limit)


def distinct_batches(batches: Sequence[int], largest_query: int) -> list[int]:
    """The batches that some query of the load fills, and one that none does."""
    splitting = [n for n in batches if n < largest_query]
    return [*splitting, *sorted(n for n in batches if n >= largest_query)[:1]]


def distinct_thresholds(
    thresholds: Sequence[int], smallest_query: int, largest_query: int
) -> list[int]:
    """The thresholds that offload some queries of the load, and at most one that offloads all."""
    everything = sorted((n for n in thresholds if n <= smallest_query), reverse=True)[:1]
    return [*everything, *(n for n in thresholds if smallest_query < n <= largest_query)]


def _numbers(dashed: str) -> list[int]:
    return [int(part) for part in dashed.split("-")]


def _tell(
    on_fraction: OnFraction, search: Search, trial: Trial, n_trials: int, typical: float
) -> None:
    """A search ends when it ends: the fraction nears 1 with the trials that such a search takes."""
    expected = max(3.0, typical * search.n_policies)
    offload = (
        "" if trial.policy.offload_items is None else f", threshold {trial.policy.offload_items}"
    )
    on_fraction(
        1 - math.exp(-2 * n_trials / expected),
        f"trial {n_trials + 1}: batch {trial.policy.batch_items}{offload}, {trial.rate_qps:.0f} "
        "QPS",
    )
