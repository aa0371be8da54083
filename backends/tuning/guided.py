"""Tuning with foresight: the grid in virtual time, then at most 3 trials on the real engines."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from accelerator.service import ServiceTimes
from backends.tuning.probe import Sla, probe
from backends.virtual.simulated import SimulatedSession
from infra.deployment import Deployment
from infra.progress import OnFraction
from infra.results.quantiles import Estimate
from loadGenerator import CommonLoad
from scheduler import (
    Exhaustive,
    Goal,
    HillClimb,
    Limit,
    Outcome,
    Policy,
    Script,
    Scripted,
    Trial,
    stages_of,
)

FORETOLD = 1.08  # a rate foretold holds to this factor either way, or reality disagrees
_REL_WIDTH = 0.01  # of a limit in virtual time


def foretell(
    deployment: Deployment,
    times: ServiceTimes,
    load: CommonLoad,
    sla: Sla,
    policies: Sequence[Policy],
    goal: Goal,
    on_fraction: OnFraction | None = None,
) -> list[Limit]:
    """What each policy carries in virtual time on the load of the real trials, the best first."""
    session = SimulatedSession(
        {pool.name: pool.engines for pool in deployment.pools},
        times,
        stages_of(deployment),
        candidates=deployment.candidates,
        keep_tasks=False,
    )
    search = Exhaustive(policies, Goal(goal.start_qps, _REL_WIDTH, goal.watts))
    while (trial := search.propose()) is not None:
        probed = probe(session, load, sla, trial)
        if probed is None:
            raise KeyboardInterrupt
        search.observe(probed.outcome)
        if on_fraction is not None:
            on_fraction(len(search.limits) / search.n_policies)
    return sorted(search.limits, key=goal.value, reverse=True)


class Guided(Scripted):
    """Two trials on the policy foretold to be the best, one on the runner-up; hill climbing if
    reality disagrees.

    The first trial is at the rate foretold, the second at the end of the forecast's interval that
    the first points to. Reality disagrees if the SLA is missed at the low end or met at the high
    end, each decided or leaning so.
    """

    def __init__(
        self,
        foretold: Sequence[Limit],
        goal: Goal,
        hill: Callable[[Policy, Limit | None], HillClimb],
    ) -> None:
        self._foretold = foretold
        self._hill = hill
        self.verdict = ""  # what reality says of the forecast
        super().__init__(goal, len(foretold))

    def _search(self) -> Script:
        best = self._foretold[0]
        qps = best.qps.value
        if qps == 0:
            self.verdict = "no policy was foretold to meet the SLA; climbing"
            yield from self._climb(best.policy, None)
            return
        first = yield Trial(best.policy, qps)
        further = qps * FORETOLD if first.leans_met else qps / FORETOLD
        second = yield Trial(best.policy, further)
        seen = [(qps, first), (further, second)]
        limit = _limit(best.policy, seen)
        if first.leans_met == second.leans_met:
            low = qps / FORETOLD
            high = qps * FORETOLD
            carries = f"more than {high:.4g}" if second.leans_met else f"less than {low:.4g}"
            self.verdict = (
                f"reality disagrees: it carries {carries} QPS, {qps:.4g} were foretold; climbing"
            )
            yield from self._climb(best.policy, limit if limit.carried_qps > 0 else None)
            return
        self.verdict = "reality agrees"
        self.limits.append(limit)
        runner_up = next(
            (x.policy for x in self._foretold[1:] if _differs(x.policy, best.policy)), None
        )
        if runner_up is not None:
            to_beat = (
                self._goal.value(limit)
                * self._goal.watts(runner_up)
                * (1 + self._goal.rel_width / 2)
            )
            third = yield Trial(runner_up, to_beat)
            self.limits.append(_limit(runner_up, [(to_beat, third)]))

    def _climb(self, start: Policy, start_limit: Limit | None) -> Script:
        hill = self._hill(start, start_limit)
        while (trial := hill.propose()) is not None:
            hill.observe((yield trial))
            self.limits[:] = hill.limits
        self.limits[:] = hill.limits


def _limit(policy: Policy, seen: Sequence[tuple[float, Outcome]]) -> Limit:
    """Between the highest rate that met the SLA and the lowest that missed it.

    The interval is that of the rates that were decided.
    """
    met = max((qps for qps, outcome in seen if outcome.leans_met), default=0.0)
    missed = min((qps for qps, outcome in seen if not outcome.leans_met), default=float("inf"))
    value = 0.0 if met == 0 else met if missed == float("inf") else (met * missed) ** 0.5
    low = max((qps for qps, outcome in seen if outcome.verdict == "met"), default=0.0)
    high = min((qps for qps, outcome in seen if outcome.verdict == "missed"), default=float("inf"))
    return Limit(policy, Estimate(value, min(low, value), max(high, value)), met)


def _differs(a: Policy, b: Policy) -> bool:
    """Whether two policies are so far apart that asking is worth it: a factor of 1.4 in a knob."""
    pairs = [(a.batch_items, b.batch_items)]
    if (a.offload_items is None) != (b.offload_items is None):
        return True
    if a.offload_items is not None and b.offload_items is not None:
        pairs.append((a.offload_items, b.offload_items))
    return any(max(pair) > 1.4 * min(pair) for pair in pairs)
