"""A confirmation on engines that were robbed is INVALID."""

from dataclasses import replace

import numpy as np
import pandas as pd

from accelerator.service import ServiceTable, law_factors
from backends.tuning.policy_tuner import PolicyTuner
from backends.virtual.simulated import SimulatedSession
from infra.deployment import resolve
from infra.messages import CPU
from infra.progress import Progress
from infra.results.disturbance import Disturbance
from infra.settings.cli import parse

TAKEN_MS = {"robbed_ms": 300.0, "foreign_ms": 900.0, "steal_ms": 0.0, "throttled_ms": 0.0}
ROBBED = Disturbance(pd.DataFrame([{"second": 0, "span_ms": 1000.0, **TAKEN_MS}]))


class RobbedSession(SimulatedSession):
    """Its runs say that others took 30 % of the engines' time."""

    def run(self, *args, **kwargs):
        return replace(super().run(*args, **kwargs), disturbance=ROBBED)


def test_the_confirmation_of_a_robbed_search_is_invalid():
    words = (
        "--queue --num_batches 16 --nepochs 50 --max_mini_batch_size 8 --avg_mini_batch_size 8 "
        "--tune_batch_qps --batch_configs 8 --target_latency 20 --scheduler static"
    )
    items = np.arange(9)
    cpu_ns = np.maximum(items * 1e6 / 8, 1).astype(np.int64)[None]
    table = ServiceTable(cpu_ns, np.full((1, 9), 1), law_factors("deterministic"))
    session = RobbedSession({CPU: 1}, table)
    result = PolicyTuner(resolve(parse(words.split())), session, Progress("none")).run()
    (phase,) = result.phases
    assert not phase.summary.valid
    assert "other programs took 30.0%" in phase.summary.invalid_reasons[0]


class RobbedTwice(RobbedSession):
    """Is robbed in its first runs only."""

    n_runs = 0

    def run(self, *args, **kwargs):
        self.n_runs += 1
        rows = super().run(*args, **kwargs)
        return replace(rows, disturbance=ROBBED if self.n_runs <= 2 else None)


def probed_by_runs(session):
    words = (
        "--queue --num_batches 16 --nepochs 50 --max_mini_batch_size 8 --avg_mini_batch_size 8 "
        "--tune_batch_qps --batch_configs 8 --target_latency 20 --scheduler released "
        "--req_granularity 100 --sched_timeout 4"
    )
    return PolicyTuner(resolve(parse(words.split())), session, Progress("none")).run()


def test_a_disturbed_trial_is_repeated_and_not_believed():
    items = np.arange(9)
    cpu_ns = np.maximum(items * 1e6 / 8, 1).astype(np.int64)[None]
    service = ServiceTable(cpu_ns, np.full((1, 9), 1), law_factors("deterministic"))
    robbed = RobbedTwice({CPU: 1}, service)
    quiet = SimulatedSession({CPU: 1}, service)
    assert probed_by_runs(robbed).trials == probed_by_runs(quiet).trials
    never_quiet = probed_by_runs(RobbedSession({CPU: 1}, service))
    for phase in never_quiet.phases:
        assert any("no trial" in reason for reason in phase.summary.invalid_reasons)
