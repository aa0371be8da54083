"""The Dispatcher by properties, the release's hill climbing on latencies that are known."""

import itertools
import math
from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.messages import ACCEL, CPU, Answer, Enqueue, Fail, Query, Task, TaskDone, TaskFailed
from scheduler import (
    Dispatcher,
    Policy,
    RateWalk,
    ReleasedClimb,
    Stage,
    log_grid_qps,
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
def test_every_item_is_scored_exactly_once_and_every_query_answered_by_its_last_part(sizes, policy, keep, data):
    stages = [Stage(policy)] if keep is None else [Stage(policy, keep_items=keep), Stage(Policy(16))]
    dispatcher = Dispatcher(stages)
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
    dispatcher = Dispatcher([Stage(Policy(10))])
    tasks = [c.task for i in range(3) for c in dispatcher.on_query(Query(i, i, 25, 0))]
    assert [(t.query_id, t.part, t.n_items) for t in tasks] == [
        (i, part, n) for i in range(3) for part, n in enumerate((10, 10, 5))
    ]


def test_a_task_is_redone_once_and_then_its_query_fails_with_the_reason():
    dispatcher = Dispatcher([Stage(Policy(10))])
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
    dispatcher = Dispatcher([Stage(Policy(10))])
    first, second = (c.task for c in dispatcher.on_query(Query(0, 0, 20, 0)))
    assert dispatcher.on_done(TaskDone(first, 0, 0, 1)) == []
    assert dispatcher.on_done(TaskDone(first, 1, 0, 2)) == []
    (answer,) = dispatcher.on_done(TaskDone(second, 0, 0, 3))
    assert answer == Answer(Query(0, 0, 20, 0), 3)


def test_a_query_ends_with_its_latest_part_in_whatever_order_the_answers_come():
    dispatcher = Dispatcher([Stage(Policy(10))])
    first, second = (c.task for c in dispatcher.on_query(Query(0, 0, 20, 0)))
    assert dispatcher.on_done(TaskDone(first, 0, 0, 9)) == []
    (answer,) = dispatcher.on_done(TaskDone(second, 1, 0, 7))
    assert answer.done_ns == 9


def test_failures_of_different_parts_do_not_add_up():
    dispatcher = Dispatcher([Stage(Policy(10))])
    for command in dispatcher.on_query(Query(0, 0, 30, 0)):
        assert dispatcher.on_failed(TaskFailed(command.task, 0, "killed")) == [Enqueue(command.task)]


@pytest.mark.parametrize("bad", [{"batch_items": 0}, {"batch_items": 4, "offload_items": 0}])
def test_a_policy_is_checked_where_it_is_built(bad):
    with pytest.raises(ValueError, match="at least 1"):
        Policy(**bad)


def test_the_static_baseline_splits_the_largest_query_over_all_cores():
    assert static_policy(1000, 40).batch_items == 25
    assert static_policy(1024, 3).batch_items == 342  # rounded up: no fourth task


def test_the_rate_grid_is_logarithmic_between_the_two_gaps():
    grid = log_grid_qps(1.0, 20.0, 50)
    assert len(grid) == 50
    assert grid[0] == pytest.approx(50)
    assert grid[-1] == pytest.approx(1000)
    ratios = [b / a for a, b in itertools.pairwise(grid)]
    assert max(ratios) == pytest.approx(min(ratios))


def drive(search, tail_ms):
    while (trial := search.propose()) is not None:
        search.observe(tail_ms(trial))
    return search


def mm1_tail_ms(mu_qps):
    return lambda trial: 1000 * math.log(20) / (mu_qps - trial.rate_qps) if trial.rate_qps < mu_qps else math.inf


GRID = log_grid_qps(1.0, 20.0, 50)


def test_the_walk_finds_the_fastest_step_under_the_sla():
    walk = drive(RateWalk(Policy(32), GRID, 25.0, 0.1, 200), mm1_tail_ms(400))
    limit_qps = 400 - math.log(20) / 0.025
    assert walk.limit.rate_qps <= limit_qps
    # It holds inside the dead band, so it may stop below the limit by the band's width, and no more.
    assert walk.limit.rate_qps >= 400 - math.log(20) / (0.025 * 0.9) - (limit_qps * 0.07)


def test_the_walk_climbs_one_step_an_update_from_where_it_starts():
    walk = drive(RateWalk(Policy(32), GRID, 25.0, 0.1, 200, start_step=3), mm1_tail_ms(400))
    steps = [seen.trial.step for seen in walk.history]
    assert steps[0] == 3
    assert all(abs(b - a) <= 1 for a, b in itertools.pairwise(steps))


@pytest.mark.parametrize(("tail", "step"), [(1.0, len(GRID) - 1), (99.0, -1)])
def test_the_walk_ends_at_the_ends_of_the_grid(tail, step):
    walk = drive(RateWalk(Policy(32), GRID, 25.0, 0.1, 500), lambda _: tail)
    assert walk.limit.step == step
    assert walk.limit.updates <= len(GRID)


def test_a_step_that_met_the_sla_less_often_than_not_is_not_carried():
    tails = iter([1.0, 1.0, 99.0, 1.0, 99.0, 1.0, 99.0])  # step 2 is tried three times and fails three times
    walk = drive(RateWalk(Policy(32), GRID, 25.0, 0.1, 7), lambda _: next(tails))
    assert [seen.trial.step for seen in walk.history] == [0, 1, 2, 1, 2, 1]
    assert walk.limit.step == 1
    tails = iter([1.0, 1.0, 99.0, 1.0, 99.0, 99.0, 1.0])
    walk = RateWalk(Policy(32), GRID, 25.0, 0.1, 100)
    walk.TURNS = 99
    for _ in range(7):
        walk.observe(next(tails))
    assert [seen.trial.step for seen in walk.history] == [0, 1, 2, 1, 2, 1, 0]
    walk.observe(99.0)  # step 1: met twice, missed twice
    assert walk.limit.step == 1
    walk.observe(1.0)
    walk.observe(99.0)  # step 1: met twice, missed three times
    assert walk.limit.step == 0


def test_the_walk_is_bounded():
    walk = drive(RateWalk(Policy(32), GRID, 25.0, 0.1, 7), lambda _: 1.0)
    assert walk.limit.updates == 7


def test_the_climb_stops_at_the_first_configuration_that_is_worse():
    capacity = {512: 200.0, 256: 300.0, 128: 250.0, 64: 900.0}
    climb = ReleasedClimb([Policy(n) for n in capacity], GRID, 25.0, 0.1, 200)
    drive(climb, lambda trial: mm1_tail_ms(capacity[trial.policy.batch_items])(trial))
    assert climb.best.policy.batch_items == 256
    assert [limit.policy.batch_items for limit in climb.limits] == [512, 256, 128]


def test_the_climb_goes_on_over_equal_configurations_and_keeps_the_earlier():
    climb = drive(ReleasedClimb([Policy(512), Policy(256)], GRID, 25.0, 0.1, 200), mm1_tail_ms(300))
    assert climb.best.policy.batch_items == 512
    assert len(climb.limits) == 2


def test_a_climb_without_configurations_is_refused():
    with pytest.raises(ValueError, match="no configuration"):
        ReleasedClimb([], GRID, 25.0, 0.1, 10)


def test_offload_thresholds_are_added_to_the_policy():
    assert with_offload(Policy(64), [128, 256]) == [Policy(64, 128), Policy(64, 256)]
