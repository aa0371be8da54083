"""The Dispatcher by properties, the release's hill climbing on latencies that are known."""

import math
from collections import deque

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.messages import ACCEL, CPU, Answer, Enqueue, Fail, Query, Task, TaskDone, TaskFailed
from infra.results.quantiles import Estimate
from infra.search.rate_search import log_grid_qps
from scheduler import (
    Dispatcher,
    Exhaustive,
    Goal,
    HillClimb,
    Limit,
    Outcome,
    Policy,
    ReleasedClimb,
    Stage,
    Trial,
    split,
    static_policy,
    with_offload,
)

policies = st.builds(Policy, st.integers(1, 1100), st.none() | st.integers(1, 1100))


@given(st.integers(1, 1100), policies)
def test_split_is_a_partition_in_order(n_items, policy):
    parts = split(n_items, policy)
    ends = [first + n for _, first, n in parts]
    assert [first for _, first, _ in parts] == [0, *ends[:-1]]
    assert ends[-1] == n_items
    if policy.offload_items is not None and n_items >= policy.offload_items:
        assert parts == [(ACCEL, 0, n_items)]
    else:
        assert {pool for pool, _, _ in parts} == {CPU}
        assert all(n == policy.batch_items for _, _, n in parts[:-1])
        assert 1 <= parts[-1][2] <= policy.batch_items


@settings(max_examples=200, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 200), min_size=1, max_size=30),
    policy=st.builds(Policy, st.integers(1, 64), st.none() | st.integers(1, 200)),
    keep=st.none() | st.integers(1, 50),
    data=st.data(),
)
def test_every_item_is_scored_exactly_once_and_every_query_answered_by_its_last_part(
    sizes, policy, keep, data
):
    stages = (
        [Stage()]
        if keep is None
        else [Stage(keep_items=keep), Stage(batch_items=16, offloads=False)]
    )
    dispatcher = Dispatcher(policy, stages)
    waiting: deque[Task] = deque()
    scored: dict[tuple[int, int], list[int]] = {}
    answers: dict[int, int] = {}
    now = 0

    def carry_out(commands):
        for command in commands:
            if isinstance(command, Enqueue):
                waiting.append(command.task)
            else:
                assert isinstance(command, Answer)
                assert command.query.query_id not in answers
                answers[command.query.query_id] = command.done_ns

    queries = [Query(i, 0, n, 0) for i, n in enumerate(sizes)]
    last_end: dict[int, int] = {}
    while queries or waiting:
        if queries and (not waiting or data.draw(st.booleans())):
            carry_out(dispatcher.on_query(queries.pop()))
            continue
        position = data.draw(st.integers(0, len(waiting) - 1))  # parts end in any order
        task = waiting[position]
        del waiting[position]
        now += 1
        last_end[task.query_id] = now
        scored.setdefault((task.query_id, task.stage), []).extend(
            range(task.first_item, task.first_item + task.n_items)
        )
        carry_out(dispatcher.on_done(TaskDone(task, 0, now - 1, now)))
    for i, n_items in enumerate(sizes):
        assert sorted(scored[i, 0]) == list(range(n_items))
        if keep is not None:
            assert sorted(scored[i, 1]) == list(range(min(keep, n_items)))
        assert answers[i] == last_end[i]
    assert dispatcher.n_open == 0


def test_tasks_of_a_query_are_enqueued_in_order_of_arrival():
    dispatcher = Dispatcher(Policy(10))
    tasks = [c.task for i in range(3) for c in dispatcher.on_query(Query(i, i, 25, 0))]
    assert [(t.query_id, t.part, t.n_items) for t in tasks] == [
        (i, part, n) for i in range(3) for part, n in enumerate((10, 10, 5))
    ]


def test_a_task_is_redone_once_and_then_its_query_fails_with_the_reason():
    dispatcher = Dispatcher(Policy(10))
    first, second = (c.task for c in dispatcher.on_query(Query(7, 0, 20, 0)))
    assert dispatcher.on_failed(TaskFailed(first, 0, "killed")) == [Enqueue(first)]
    (fail,) = dispatcher.on_failed(TaskFailed(first, 1, "killed again"))
    assert isinstance(fail, Fail)
    assert fail.query.query_id == 7
    assert "killed again" in fail.reason
    assert dispatcher.n_open == 0
    assert dispatcher.on_done(TaskDone(second, 0, 0, 1)) == []  # too late to count
    assert dispatcher.on_failed(TaskFailed(second, 0, "x")) == []


def test_a_part_that_is_done_twice_counts_once():
    dispatcher = Dispatcher(Policy(10))
    first, second = (c.task for c in dispatcher.on_query(Query(0, 0, 20, 0)))
    assert dispatcher.on_done(TaskDone(first, 0, 0, 1)) == []
    assert dispatcher.on_done(TaskDone(first, 1, 0, 2)) == []
    (answer,) = dispatcher.on_done(TaskDone(second, 0, 0, 3))
    assert answer == Answer(Query(0, 0, 20, 0), 3)


def test_a_query_ends_with_its_latest_part_in_whatever_order_the_answers_come():
    dispatcher = Dispatcher(Policy(10))
    first, second = (c.task for c in dispatcher.on_query(Query(0, 0, 20, 0)))
    assert dispatcher.on_done(TaskDone(first, 0, 0, 9)) == []
    (answer,) = dispatcher.on_done(TaskDone(second, 1, 0, 7))
    assert answer.done_ns == 9


def test_failures_of_different_parts_do_not_add_up():
    dispatcher = Dispatcher(Policy(10))
    for command in dispatcher.on_query(Query(0, 0, 30, 0)):
        assert dispatcher.on_failed(TaskFailed(command.task, 0, "killed")) == [
            Enqueue(command.task)
        ]


@pytest.mark.parametrize("bad", [{"batch_items": 0}, {"batch_items": 4, "offload_items": 0}])
def test_a_policy_is_checked_where_it_is_built(bad):
    with pytest.raises(ValueError, match="at least 1"):
        Policy(**bad)


def test_the_static_baseline_splits_the_largest_query_over_all_cores():
    assert static_policy(1000, 40).batch_items == 25
    assert static_policy(1024, 3).batch_items == 342  # rounded up: no fourth task


CAPACITY = {
    1: 100.0,
    2: 180.0,
    4: 260.0,
    8: 240.0,
    16: 300.0,
    32: 420.0,
    64: 400.0,
    128: 350.0,
    256: 200.0,
}
BONUS = {
    512: 1.0,
    256: 1.1,
    128: 1.5,
    64: 1.3,
    32: 0.8,
}  # of an offload threshold; a dip lies before the best batch
BATCHES = list(CAPACITY)
THRESHOLDS = list(BONUS)
GOAL = Goal(start_qps=90.0, rel_width=0.02)
GRID = log_grid_qps(1.0, 100.0, 120)


def limit_qps(policy):
    return CAPACITY[policy.batch_items] * (
        BONUS[policy.offload_items] if policy.offload_items else 1.0
    )


def shown(trial, limit=limit_qps):
    """A p95 as of an M/M/1 queue that meets an SLA of 25 ms at the limit; undecided within 1 % of
    it.
    """
    limit_now = limit(trial.policy)
    gap = limit_now + math.log(20) / 0.025 - trial.rate_qps
    tail_ms = 1000 * math.log(20) / gap if gap > 0 else math.inf
    met = trial.rate_qps <= limit_now
    sure = abs(trial.rate_qps / limit_now - 1) > 0.01
    verdict = "undecided" if not sure else "met" if met else "missed"
    return Outcome(verdict, 0.01 if met else 0.3, tail_ms, trial.n_queries or 500, met)


SEARCHES = {
    "static": lambda goal=GOAL: Exhaustive([static_policy(256, 4)], goal),
    "exhaustive": lambda goal=GOAL: Exhaustive([Policy(n) for n in BATCHES], goal),
    "exhaustive, two knobs": lambda goal=GOAL: Exhaustive(
        [Policy(n, k) for n in BATCHES for k in (*THRESHOLDS, None)], goal
    ),
    "hill": lambda goal=GOAL: HillClimb({"batch_items": BATCHES}, Policy(64), goal),
    "hill, two knobs": lambda goal=GOAL: HillClimb(
        {"offload_items": [*THRESHOLDS, None], "batch_items": BATCHES}, Policy(4), goal
    ),
    "released": lambda goal=GOAL: ReleasedClimb(
        [Policy(n) for n in (128, 64, 32, 16)], GRID, 25.0, 0.1, 200, 64, 0, goal
    ),
}


def drive(search, show=shown):
    trials = []
    while (trial := search.propose()) is not None:
        assert len(trials) < 2000, "it does not end"
        trials.append(trial)
        search.observe(show(trial))
    return trials


@pytest.fixture(params=SEARCHES)
def kind(request):
    return request.param


def test_a_search_proposes_the_same_until_it_is_observed_and_nothing_after_its_end(kind):
    search = SEARCHES[kind]()
    assert search.propose() == search.propose()
    trials = drive(search)
    assert trials
    assert search.propose() is None
    assert search.n_policies >= len({trial.policy for trial in trials})


def test_a_search_is_deterministic_in_what_it_observes(kind):
    first = SEARCHES[kind]()
    again = SEARCHES[kind]()
    assert drive(first) == drive(again)
    assert first.limits == again.limits


def test_the_best_is_the_highest_limit_that_was_found_and_true(kind):
    search = SEARCHES[kind]()
    drive(search)
    best = search.best
    assert best in search.limits
    assert best.qps.value == max(limit.qps.value for limit in search.limits)
    assert best.qps.value == pytest.approx(
        limit_qps(best.policy), rel=0.12 if kind == "released" else 0.02
    )
    assert best.carried_qps <= limit_qps(best.policy)


def test_where_nothing_meets_the_sla_the_best_carries_nothing(kind):
    search = SEARCHES[kind]()
    drive(search, lambda _: Outcome("missed", 1.0, math.inf, 32, leans_met=False))
    assert search.best.carried_qps == 0


def test_a_search_without_policies_is_refused():
    for build in (lambda: Exhaustive([], GOAL), lambda: ReleasedClimb([], GRID, 25.0, 0.1, 10, 64)):
        with pytest.raises(ValueError, match="no policy"):
            build()


@pytest.mark.parametrize("start", BATCHES)
def test_the_hill_climb_finds_the_top_from_anywhere_over_a_dip_and_a_plateau(start):
    climb = HillClimb({"batch_items": BATCHES}, Policy(start), GOAL)
    trials = drive(climb)
    assert climb.best.policy.batch_items in (32, 64)
    assert climb.best.qps.value >= 0.95 * 420
    oracle = Exhaustive([Policy(n) for n in BATCHES], GOAL)
    assert len(trials) < 0.5 * len(drive(oracle))
    flat = HillClimb({"offload_items": [*range(300, 400, 10), 100, None]}, Policy(32), GOAL)
    drive(
        flat,
        lambda trial: shown(trial, lambda policy: 900.0 if policy.offload_items == 100 else 400.0),
    )
    assert flat.best.policy.offload_items == 100  # every threshold from 300 on offloads nothing


def test_two_knobs_are_climbed_to_within_two_percent_of_the_oracle_at_a_fraction_of_its_trials():
    oracle = SEARCHES["exhaustive, two knobs"]()
    climb = SEARCHES["hill, two knobs"]()
    cost = len(drive(oracle))
    assert len(drive(climb)) < 0.15 * cost
    assert climb.best.qps.value >= 0.98 * oracle.best.qps.value


def test_a_worse_neighbour_costs_one_trial_and_leaves_an_upper_bound():
    known = Limit(Policy(32), Estimate(420.0, 400.0, 430.0), 418.0)
    climb = HillClimb({"batch_items": [32, 256]}, Policy(32), GOAL, known)
    (trial,) = drive(climb)
    assert trial == Trial(Policy(256), pytest.approx(420 * 1.01), asks_limit=False)
    assert climb.best == known
    assert climb.limits[1].qps == Estimate(0.0, 0.0, trial.rate_qps)


def test_qps_per_watt_can_prefer_the_policy_without_the_accelerator():
    goal = Goal(90.0, 0.02, watts=lambda policy: 100.0 if policy.offload_items is None else 180.0)
    for kind in ("exhaustive, two knobs", "hill, two knobs"):
        search = SEARCHES[kind](goal)
        drive(search)
        assert search.best.policy.offload_items is None
        assert search.best.policy.batch_items in (32, 64)


def test_the_released_climb_stops_at_the_first_configuration_that_is_worse():
    capacity = {512: 200.0, 256: 300.0, 128: 250.0, 64: 900.0}
    climb = ReleasedClimb([Policy(n) for n in capacity], GRID, 25.0, 0.1, 200, 64)
    trials = drive(climb, lambda trial: shown(trial, lambda policy: capacity[policy.batch_items]))
    assert climb.best.policy.batch_items == 256
    assert [limit.policy.batch_items for limit in climb.limits] == [512, 256, 128]
    assert {trial.n_queries for trial in trials} == {64}


def test_the_released_climb_goes_on_over_equal_configurations_and_keeps_the_earlier():
    climb = ReleasedClimb([Policy(512), Policy(256)], GRID, 25.0, 0.1, 200, 64)
    drive(climb, lambda trial: shown(trial, lambda _: 300.0))
    assert climb.best.policy.batch_items == 512
    assert len(climb.limits) == 2


def test_offload_thresholds_are_added_to_the_policy():
    assert with_offload(Policy(64), [128, 256]) == [Policy(64, 128), Policy(64, 256)]


def test_a_failure_of_a_stage_that_is_over_counts_for_nothing():
    dispatcher = Dispatcher(Policy(10), [Stage(keep_items=5), Stage()])
    (first,) = dispatcher.on_query(Query(0, 0, 10, 0))
    assert dispatcher.on_failed(TaskFailed(first.task, 0, "died")) == [first]
    (second,) = dispatcher.on_done(TaskDone(first.task, 0, 1, 2))
    assert dispatcher.on_failed(TaskFailed(first.task, 0, "died, said late")) == []
    assert dispatcher.on_failed(TaskFailed(second.task, 0, "died")) == [
        second
    ]  # the first of this stage
    assert dispatcher.on_done(TaskDone(second.task, 0, 3, 4)) == [Answer(Query(0, 0, 10, 0), 4)]


def test_without_scores_the_first_of_a_ranked_list_go_on():
    dispatcher = Dispatcher(Policy(10), [Stage(keep_items=4), Stage(keep_items=2), Stage()])
    (first,) = dispatcher.on_query(Query(0, 0, 5, 0))
    scores = np.array([1, 5, 3, 4, 2], np.float32).tobytes()
    (second,) = dispatcher.on_done(TaskDone(first.task, 0, 0, 1, scores))
    assert np.frombuffer(second.task.items, np.int32).tolist() == [1, 3, 2, 4]
    (third,) = dispatcher.on_done(TaskDone(second.task, 0, 1, 2))
    assert np.frombuffer(third.task.items, np.int32).tolist() == [1, 3]
    assert dispatcher.on_done(TaskDone(third.task, 0, 2, 3)) == [
        Answer(Query(0, 0, 5, 0), 3)
    ]  # unranked: no list


def test_the_hill_climb_steps_over_a_single_dip_beyond_a_rung_that_won():
    ladder = list(range(1, 21))  # asked first: 1, 5, 9, 13, 17, 20; then 2 rungs apart from 9 on
    capacity = {9: 100.0, 11: 110.0, 13: 90.0, 15: 130.0}
    climb = HillClimb({"batch_items": ladder}, Policy(1), GOAL)
    drive(climb, lambda trial: shown(trial, lambda x: capacity.get(x.batch_items, 70.0)))
    assert climb.best.policy.batch_items == 15


def test_a_neighbour_that_draws_more_power_is_asked_to_carry_as_much_more():
    known = Limit(Policy(32), Estimate(100.0, 99.0, 101.0), 99.0)
    goal = Goal(90.0, 0.02, watts=lambda policy: 100.0 if policy.offload_items is None else 180.0)
    climb = HillClimb({"offload_items": [64, None]}, Policy(32), goal, known)
    (trial,) = drive(climb, lambda trial: shown(trial, lambda _: 150.0))
    assert trial == Trial(Policy(32, 64), pytest.approx(180 * 1.01), asks_limit=False)
