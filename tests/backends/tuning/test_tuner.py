"""The tuner: every search on every backend; theory knows the answer; a killed search goes on where
it was.
"""

import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from accelerator.service import ServiceTable, law_factors
from backends.processes.engine import NullEngine, PoolSpec
from backends.processes.process import ProcessSession
from backends.tuning import policy_tuner
from backends.tuning.guided import Guided
from backends.tuning.policy_tuner import PolicyTuner, distinct_batches, distinct_thresholds
from backends.tuning.probe import Sla, capacity_qps, max_rate_qps, probe
from backends.tuning.search_log import LOG_NAME, QUERIES_NAME, SearchLog, table
from backends.tuning.told_limits import ByRun, ByTest, ByWalks, confirmations
from backends.virtual.simulated import SimulatedSession
from infra.deployment import resolve
from infra.messages import ACCEL, CPU
from infra.progress import Progress
from infra.results.quantiles import Estimate
from infra.settings.cli import parse
from loadGenerator import CommonLoad
from scheduler import Goal, HillClimb, Limit, Outcome, Policy, Trial

BASE = (
    "--queue --num_batches 16 --nepochs 500 --max_mini_batch_size 8 --avg_mini_batch_size 8 "
    "--tune_batch_qps --batch_configs 8-4-2 --target_latency 20 --req_granularity 400 "
    "--max_arr_range 10 --min_arr_range 0.1 --arr_steps 120 --rate_width 0.02 "
    "--model_accel --tune_accel_qps --accel_configs 4-8"
).split()
ALL = ["hill", "exhaustive", "released", "static"]


def simulated(engines=1, cpu_ms=1.0, accel_ms=0.4, noise=True):
    """Exponential service times proportional to the items on the CPU, the same for all on the
    accelerator.
    """
    items = np.arange(9)
    cpu_ns = np.maximum(items * cpu_ms / 8 * 1e6, 1).astype(np.int64)[None]
    accel_ns = np.full((1, 9), int(accel_ms * 1e6))
    row = np.zeros(9, np.int64) if noise else None
    service = ServiceTable(cpu_ns, accel_ns, law_factors("exponential"), row, row)
    return SimulatedSession({CPU: engines, ACCEL: 1}, service)


def tune(*words, session=None, engines=1, log=None, watts=None):
    deployment = resolve(parse([*BASE, "--inference_engines", str(engines), *words]))
    return PolicyTuner(
        deployment, session or simulated(engines), Progress("none"), log, watts
    ).run()


def test_on_an_mm1_queue_the_highest_rate_is_the_closed_form():
    for sla_ms, seed in ((20.0, 1), (5.0, 2)):
        config = parse([*BASE, "--numpy_rand_seed", str(seed)])
        sla = Sla(sla_ms, max_queries=400_000)
        estimate = max_rate_qps(
            simulated(), CommonLoad(config, sla.max_queries), Policy(8), sla, 300.0, 0.02
        )
        best_qps = 1000 * (1 - math.log(20) / sla_ms)  # p95 of M/M/1 is ln(20) / (mu - lambda)
        assert estimate.value == pytest.approx(best_qps, rel=0.02)
        assert estimate.low <= best_qps <= estimate.high


@pytest.mark.parametrize("scheduler", ALL)
def test_every_phase_ends_with_a_limit_a_confirmed_rate_and_its_cost(scheduler):
    result = tune("--scheduler", scheduler, engines=2, session=simulated(2))
    names = (
        ["static"] if scheduler == "static" else ["static", "tuned CPU", "tuned CPU + accelerator"]
    )
    assert [phase.name for phase in result.phases] == names
    assert result.phases[0].policy.batch_items == 4  # 8 items over 2 engines
    for phase in result.phases:
        if scheduler == "released":
            assert phase.summary.meets_sla
        else:
            low, high = phase.limit.foreseen_ms
            assert low <= phase.summary.p_sla_ms.value <= high
            assert phase.rate_qps == phase.limit.qps.value
        assert phase.summary.n_queries == 8000 - 200
        assert phase.rate_qps <= phase.limit.carried_qps
        trials = [trial for trial in result.trials if trial["phase"] == phase.name]
        assert phase.n_trials == len(trials)
        assert phase.n_queries == sum(trial["n_queries"] for trial in trials)
    if scheduler in ("hill", "exhaustive"):
        static, _, accel = result.phases
        assert accel.policy.offload_items in (4, 8)  # all queries have 8 items
        assert accel.rate_qps > static.rate_qps


def test_the_hill_climb_is_as_good_as_the_oracle():
    hill, oracle = (
        tune("--scheduler", name, session=simulated(2), engines=2)
        for name in ("hill", "exhaustive")
    )
    for ours, best in zip(hill.phases, oracle.phases, strict=True):
        assert ours.limit.qps.value >= 0.97 * best.limit.qps.value


@pytest.mark.alone
@pytest.mark.parametrize("scheduler", ALL)
def test_every_search_runs_on_real_processes(scheduler):
    words = (
        "--nepochs 8 --target_latency 8 --rate_width 0.5 --req_granularity 32 --arr_steps 8 "
        "--batch_configs 8-4"
    )
    specs = [PoolSpec(pool, 1, lambda _: NullEngine(200_000)) for pool in (CPU, ACCEL)]
    with ProcessSession(specs) as session:
        result = tune(
            *words.split(), "--scheduler", scheduler, "--max_arr_range", "4", session=session
        )
    assert len(result.phases) == (1 if scheduler == "static" else 3)
    assert all(trial["n_queries"] > 0 for trial in result.trials)


@pytest.mark.alone
def test_an_overloaded_trial_ends_after_a_small_part_of_its_queries():
    sla = Sla(20.0, max_queries=50_000)
    config = parse(BASE)
    probed = probe(simulated(), CommonLoad(config, sla.max_queries), sla, Trial(Policy(8), 1500.0))
    assert probed.outcome.verdict == "missed"
    assert probed.decision.saturated
    assert probed.outcome.n_queries < 3000
    with ProcessSession([PoolSpec(CPU, 1, lambda _: NullEngine(500_000))]) as session:
        probed = probe(
            session,
            CommonLoad(config, 20_000),
            Sla(20.0, max_queries=20_000),
            Trial(Policy(8), 4000.0),
        )
        assert probed.decision.saturated
        assert probed.outcome.n_queries < 2000
        again = probe(
            session,
            CommonLoad(config, 20_000),
            Sla(20.0, max_queries=20_000),
            Trial(Policy(8), 200.0),
        )
        assert again.outcome.verdict != "missed"  # nothing of the overload is left


def test_common_random_numbers_scale_the_same_load():
    load = CommonLoad(parse(BASE), 1000)
    slow = load.at(10.0)
    fast = load.at(20.0)
    assert slow.arrival_ns == pytest.approx(2 * fast.arrival_ns, abs=2)
    assert (slow.n_items == fast.n_items).all()
    legacy = CommonLoad(parse([*BASE, "--arrival_process", "legacy"]), 1000)
    assert set(np.diff(legacy.at(100.0).arrival_ns) % 1_000_000) == {0}


def test_released_updates_have_loads_of_their_own_and_a_search_repeats_with_its_seed():
    first = tune("--scheduler", "released")
    again = tune("--scheduler", "released")
    assert first.trials == again.trials
    same_rate = pd.DataFrame(first.trials).groupby(["batch_items", "rate_qps"])["p_sla_ms"]
    assert (same_rate.nunique() == same_rate.size()).all()


def test_where_no_rate_meets_the_sla_the_phase_says_so():
    result = tune("--target_latency", "0.01", "--max_arr_range", "1000")
    assert all(phase.summary is None and phase.rate_qps == 0 for phase in result.phases)


class Interrupted(SimulatedSession):
    left = 10_000

    def _count(self):
        self.left -= 1
        self.interrupted = self.left <= 0

    def run(self, *arguments, **named):
        self._count()
        return super().run(*arguments, **named)

    def answers(self, *arguments, **named):
        self._count()
        return super().answers(*arguments, **named)


def interruptible():
    plain = simulated()
    return Interrupted(plain._engines, plain._service)


@pytest.mark.parametrize("scheduler", ["hill", "released"])
def test_an_interrupted_search_keeps_what_it_has_and_goes_on_as_if_nothing_had_been(
    tmp_path, scheduler
):
    session = interruptible()
    whole = tune("--scheduler", scheduler, session=session)
    half = interruptible()
    half.left = (Interrupted.left - session.left) // 2
    log = SearchLog(tmp_path)
    part = tune("--scheduler", scheduler, session=half, log=log)
    assert 0 < len(part.trials) < len(whole.trials)
    lines = (tmp_path / LOG_NAME).read_text().splitlines()
    assert len(lines) == 1 + len(part.trials)  # and the starting rate
    (tmp_path / LOG_NAME).write_text("\n".join(lines) + '\n{"phase": "stat')  # killed while writing
    session = simulated()
    trials_run = []
    original = session.run

    def counted(*arguments, **named):
        trials_run.append(1)
        return original(*arguments, **named)

    session.run = counted
    resumed = tune("--scheduler", scheduler, session=session, log=SearchLog(tmp_path))
    assert [(t["batch_items"], t["rate_qps"], t["verdict"]) for t in resumed.trials] == [
        (t["batch_items"], t["rate_qps"], t["verdict"]) for t in whole.trials
    ]
    assert [phase.limit for phase in resumed.phases] == [phase.limit for phase in whole.phases]
    assert len(trials_run) < len(whole.trials) - len(part.trials) + 3 * 9
    if scheduler == "released":  # walks in virtual time leave no rows
        queries = pd.read_parquet(tmp_path / QUERIES_NAME)
        assert len(queries) == sum(trial["n_queries"] for trial in whole.trials)


def test_the_log_of_another_search_is_refused(tmp_path):
    tune("--batch_configs", "8", log=SearchLog(tmp_path))
    with pytest.raises(ValueError, match="another search"):
        tune("--scheduler", "released", log=SearchLog(tmp_path))
    (tmp_path / LOG_NAME).write_text("[1]\n")
    with pytest.raises(ValueError, match="not a search"):
        SearchLog(tmp_path)
    (tmp_path / LOG_NAME).write_text("so\n")
    with pytest.raises(ValueError, match="not a search"):
        SearchLog(tmp_path)


def test_every_line_of_the_log_is_json(tmp_path):
    tune("--target_latency", "0.01", log=SearchLog(tmp_path))  # a tail can be infinite, JSON cannot
    lines = (tmp_path / LOG_NAME).read_text().splitlines()
    assert len(lines) > 3
    for line in lines:
        assert isinstance(json.loads(line, parse_constant=pytest.fail), dict)


def test_qps_per_watt_leaves_an_accelerator_that_costs_more_than_it_brings():
    brings = tune("--scheduler", "hill", watts=lambda _: 100.0)
    costs = tune(
        "--scheduler",
        "hill",
        watts=lambda policy: 100.0 if policy.offload_items is None else 1000.0,
    )
    assert brings.phases[-1].policy.offload_items is not None
    assert costs.phases[-1].policy.offload_items is None
    assert brings.phases[-1].qps_per_watt == pytest.approx(brings.phases[-1].rate_qps / 100)


def test_policies_that_no_query_can_tell_apart_are_one():
    assert distinct_batches([512, 256, 128, 64], 200) == [128, 64, 256]
    assert distinct_thresholds([10, 50, 96, 128, 384], 90, 200) == [50, 96, 128]


def test_the_capacity_is_what_busy_engines_answer():
    config = replace(parse(BASE))
    assert capacity_qps(simulated(noise=False), config, Policy(8)) == pytest.approx(1000, rel=0.01)
    assert capacity_qps(simulated(4, noise=False), config, Policy(8)) == pytest.approx(
        4000, rel=0.01
    )


def guided(*words, session, folder=None, **more):
    return tune("--scheduler", "guided", *words, session=session, log=SearchLog(folder), **more)


def test_guided_finds_the_oracles_policy_in_three_trials():
    oracle = tune("--scheduler", "exhaustive", session=simulated(2, noise=False), engines=2)
    result = guided(session=simulated(2, noise=False), engines=2)
    assert [phase.name for phase in result.phases] == ["static", "tuned CPU + accelerator"]
    best = result.phases[-1]
    expected = max(oracle.phases, key=lambda phase: phase.rate_qps)
    assert best.n_trials <= 3
    assert best.rate_qps > 0.9 * expected.rate_qps
    truth = max_rate_qps(
        simulated(2, noise=False), CommonLoad(parse(BASE), 8000, 5), best.policy, Sla(20.0), 500.0
    )
    assert truth.value > 0.98 * max(limit for limit in true_limits(oracle))
    assert "agrees" in result.notes[-1]


def true_limits(result):
    session = simulated(2, noise=False)
    load = CommonLoad(parse(BASE), 8000, 5)
    return [
        max_rate_qps(session, load, phase.policy, Sla(20.0), 500.0).value for phase in result.phases
    ]


class SlowerThanItSeems(SimulatedSession):
    """Measured at leisure it is quick; in a run with a watch, as a trial's, every task takes
    longer.
    """

    def run(self, schedule, policy, on_progress=None, watch=None):
        factor = 1.5 if watch is not None else 1.0
        (times,) = self._service.tables
        slow = replace(
            times,
            cpu_ns=(times.cpu_ns * factor).astype(np.int64),
            accel_ns=(times.accel_ns * factor).astype(np.int64),
        )
        return SimulatedSession(self._engines, slow).run(schedule, policy, on_progress, watch)


def test_guided_says_that_reality_disagrees_and_climbs():
    honest = simulated(2, noise=False)
    result = guided(session=SlowerThanItSeems(honest._engines, honest._service), engines=2)
    assert "reality disagrees" in result.notes[-1]
    assert "less than" in result.notes[-1]
    assert result.phases[-1].n_trials > 3
    oracle = max(
        limit for limit in true_limits(tune("--scheduler", "exhaustive", session=honest, engines=2))
    )
    assert result.phases[-1].limit.qps.value == pytest.approx(oracle / 1.5, rel=0.1)


def test_a_guided_search_goes_on_with_the_service_times_that_it_measured(tmp_path):
    whole = guided(session=simulated(2), engines=2, folder=tmp_path)
    assert (tmp_path / "service_cpu.csv").is_file()
    assert (tmp_path / "service_accel0.csv").is_file()
    log = tmp_path / LOG_NAME
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:-2]))
    (tmp_path / "service_cpu.csv").touch()
    again = guided(session=simulated(2), engines=2, folder=tmp_path)
    assert [t["rate_qps"] for t in again.trials] == [t["rate_qps"] for t in whole.trials]
    assert [p.policy for p in again.phases] == [p.policy for p in whole.phases]


def test_without_an_accelerator_guided_tunes_the_batch_alone():
    words = [w for w in BASE if w not in ("--model_accel", "--tune_accel_qps")]
    config = parse([*words, "--scheduler", "guided"])
    result = PolicyTuner(resolve(config), simulated(2), Progress("none")).run()
    assert [phase.name for phase in result.phases] == ["static", "tuned CPU"]
    assert result.phases[-1].policy.offload_items is None


def test_guided_keeps_a_known_limit_where_there_is_nothing_left_to_climb():
    policy = Policy(8)
    goal = Goal(100.0)
    known = Limit(policy, Estimate(100.0, 0.0, 200.0), 100.0)
    search = Guided(
        [known], goal, lambda start, limit: HillClimb({"batch_items": [8]}, start, goal, limit)
    )
    while search.propose() is not None:  # it carries more than was foretold
        search.observe(Outcome("met", 0.0, 1.0, 100, leans_met=True))
    assert "reality disagrees" in search.verdict
    assert search.best is not None
    assert search.best.policy == policy


def test_in_virtual_time_a_rate_is_within_one_percent_of_the_truth():
    for sla_ms in ("20", "5"):
        result = tune("--scheduler", "static", "--target_latency", sla_ms)
        qps = result.phases[0].limit.qps
        truth = 1000 * (1 - math.log(20) / float(sla_ms))
        assert qps.value == pytest.approx(truth, rel=0.01)
        assert qps.low <= truth <= qps.high
        assert qps.low < qps.value < qps.high < 1.05 * qps.low


def test_a_tuned_policy_that_is_not_better_is_the_baseline():
    result = tune("--batch_configs", "8-16")  # the baseline's, and another name for it
    static, tuned, _ = result.phases
    assert tuned.policy == static.policy
    assert tuned.limit == static.limit
    assert tuned.summary is static.summary
    assert tuned.limit.told.over(static.limit.told) == Estimate(1.0, 1.0, 1.0)


class SlowerWhenItCounts(SimulatedSession):
    """Tasks of a run with rows take longer than those of the walks that told the limit."""

    factor = 1.3

    def run(self, schedule, policy, on_progress=None, watch=None):
        (times,) = self._service.tables
        slow = replace(times, cpu_ns=(times.cpu_ns * self.factor).astype(np.int64))
        return SimulatedSession(self._engines, slow).run(schedule, policy, on_progress, watch)


def test_a_confirmation_outside_of_what_was_foreseen_is_said_and_the_rate_is_bisected():
    honest = simulated()
    words = ("--scheduler", "static", "--target_latency", "10")
    phase = tune(*words).phases[0]
    session = SlowerWhenItCounts(honest._engines, honest._service)
    result = tune(*words, session=session)
    (slower,) = result.phases
    assert "foreseen" in result.notes[0]
    assert not slower.is_told
    assert phase.is_told
    truth = (1000 / 1.3) * (1 - 1.3 * math.log(20) / 10)
    assert slower.rate_qps == pytest.approx(truth, rel=0.12)
    assert slower.summary.meets_sla
    assert slower.n_trials == len(result.trials) > 1


def test_one_real_run_tells_the_limit_and_the_load_of_the_confirmation_is_fresh():
    deployment = resolve(parse([*BASE, "--numpy_rand_seed", "3", "--target_latency", "10"]))
    load = CommonLoad(deployment.config, 8000, 2)
    asked = []

    class Asked(SimulatedSession):
        def run(self, schedule, policy, on_progress=None, watch=None):
            asked.append(schedule)
            return super().run(schedule, policy, on_progress, watch)

    plain = simulated()
    probed = ByRun(
        ByTest(Asked(plain._engines, plain._service), load, Sla(10.0)), deployment
    ).probe(Trial(Policy(8), 500.0))
    (schedule,) = asked
    limit = probed.outcome.limit.qps
    assert limit.low <= 1000 * (1 - math.log(20) / 10) <= limit.high
    assert limit.high < 1.2 * limit.low
    assert probed.outcome.verdict == "met"
    low, high = probed.outcome.foreseen_ms
    assert low < 10.0 < high
    assert not any(
        np.array_equal(np.diff(schedule.arrival_ns[:50]), np.diff(coming.arrival_ns[:50]))
        for coming in confirmations(deployment.config, 500.0, Sla(10.0))
    )


def test_a_run_that_nothing_can_be_walked_of_is_judged_by_its_latencies():
    deployment = resolve(parse([*BASE, "--model_accel"]))
    load = CommonLoad(deployment.config, 8000, 2)
    by_run = ByRun(ByTest(simulated(), load, Sla(20.0)), deployment)
    probed = by_run.probe(Trial(Policy(8, 1000), 500.0))  # which offloads nothing
    assert probed.outcome.limit is None
    assert probed.outcome.verdict == "met"


def test_the_log_keeps_limits_that_were_told(tmp_path):
    whole = tune(log=SearchLog(tmp_path))
    again = tune(log=SearchLog(tmp_path))
    assert [x.limit for x in again.phases] == [x.limit for x in whole.phases]
    rows = table(whole.trials)
    told = rows[rows["limit_qps"].notna()]
    assert (told["limit_low_qps"] <= told["limit_high_qps"]).all()
    assert "foreseen_ms" not in rows


class Watched:
    """A session that notes its schedules, and takes longer where nobody watches: confirmations."""

    deaths = ()
    interrupted = False

    def __init__(self, unwatched_ms=1.0):
        self.of_trials = simulated()
        self.of_others = simulated(cpu_ms=unwatched_ms)
        self.tried = []
        self.confirmed = []

    def run(self, schedule, policy, on_progress=None, watch=None):
        if watch is None:
            self.confirmed.append(schedule)
            return self.of_others.run(schedule, policy, on_progress)
        self.tried.append(schedule)
        return self.of_trials.run(schedule, policy, on_progress, watch)


@pytest.fixture
def by_test(monkeypatch):
    """Limits are searched for by verdicts, as where no run can tell them."""
    monkeypatch.setattr(
        policy_tuner, "prober_of", lambda session, _, *load: ByTest(session, *load[:2])
    )


@pytest.mark.usefixtures("by_test")
def test_a_confirmation_that_misses_the_sla_is_followed_by_slower_ones():
    (phase,) = tune("--scheduler", "static", session=Watched(unwatched_ms=1.15)).phases
    assert phase.summary.meets_sla
    assert 0.5 * phase.limit.carried_qps < phase.rate_qps < 0.95 * phase.limit.carried_qps


@pytest.mark.usefixtures("by_test")
def test_a_confirmation_draws_a_load_that_no_trial_has_seen():
    session = Watched(unwatched_ms=1.1)
    tune("--scheduler", "static", session=session)
    loads = [session.tried[0], *session.confirmed[1:]]  # the first measures the capacity
    assert len(loads) > 2
    gaps = [np.diff(load.arrival_ns[:200]) / np.mean(np.diff(load.arrival_ns)) for load in loads]
    for i, first in enumerate(gaps):
        for second in gaps[i + 1 :]:
            assert abs(np.corrcoef(first, second)[0, 1]) < 0.3


def test_a_trial_is_long_enough_to_show_an_overload_however_few_queries_are_asked_for():
    sla = Sla(200.0, max_queries=100)
    load = CommonLoad(parse(BASE), sla.max_queries)
    probed = probe(simulated(noise=False), load, sla, Trial(Policy(8), 1100.0))  # of 1,000 a second
    assert probed.outcome.n_queries == 4_400  # 20 SLAs of 0.2 s
    assert probed.outcome.late_share > 0.3
    assert not probed.outcome.leans_met


def test_an_accelerator_without_a_steady_state_ends_the_rates_though_few_queries_see_it():
    words = "--batch_size_distribution normal --avg_mini_batch_size 4 --var_mini_batch_size 1.5"
    config = parse([*BASE, *words.split()])
    session = simulated(accel_ms=500.0, noise=False)
    by_test = ByTest(session, CommonLoad(config, 8000), Sla(20.0))
    probed = ByWalks(session, config, by_test).probe(Trial(Policy(8, 8), 50.0))
    share = float((CommonLoad(config, 200_000, 3).at(1.0).n_items >= 8).mean())
    assert share < 0.03  # p95 does not see them
    assert probed.outcome.limit.qps.value == pytest.approx(1 / (share * 0.5), rel=0.03)
