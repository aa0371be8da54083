"""What the search is given to time on a GPU; all without a GPU."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.embedding.gpu.candidates import (
    MOST_WASTE,
    Load,
    _ways,
    clocks,
    gpu_candidates,
    idle,
    steps,
    wasted,
)
from models.embedding.gpu.schedules import branch_of, branches
from models.embedding.plan.plan import params
from models.embedding.plan.spec import TableSpec
from tests.models.drawn import SPECS

BATCHES = st.sampled_from([1, 8, 64, 512])


def load_of(spec, n_items, mean=12.0, most=40):
    return Load(n_items, spec.bag_ids or mean, spec.bag_ids or most)


@settings(deadline=None)
@given(spec=SPECS, n_items=BATCHES, warps=st.sampled_from([(1,), (4,), (8,), (1, 2, 4, 8)]))
def test_every_candidate_can_be_built_and_wastes_little(spec, n_items, warps):
    load = load_of(spec, n_items)
    candidates = gpu_candidates(spec, load, warps)
    assert 1 <= len(candidates) <= 12
    assert len({*candidates}) == len(candidates)
    offered = [branches([spec], [choice.group([0])])[0] for choice in candidates]
    assert {branch.warps for branch in offered} <= {*warps}

    def fits(branch):
        return (
            32 * branch.warps <= branch.elements <= 512 * branch.warps
            and wasted(branch, load) <= MOST_WASTE
        )

    possible = [branch_of(spec, way.schedule, way.params) for way in _ways(spec, load, warps)]
    if any(map(fits, possible)):
        assert all(map(fits, offered))
    else:
        least = min(idle(branch, load) for branch in possible)
        assert max(idle(branch, load) for branch in offered) <= 1.5 * least


@given(spec=SPECS, n_items=BATCHES)
@settings(deadline=None)
def test_the_cheapest_guess_comes_first(spec, n_items):
    load = load_of(spec, n_items)
    guesses = [
        clocks(branch_of(spec, choice.schedule, choice.params), load)
        for choice in gpu_candidates(spec, load)
    ]
    assert guesses == sorted(guesses)


def schedules_of(spec, load):
    return {choice.schedule for choice in gpu_candidates(spec, load)}


def test_one_hot_tables_are_gathered_and_fixed_ones_read_no_offsets():
    for n_items in (1, 512):
        assert schedules_of(TableSpec(9, 8, 1), Load(n_items, 1, 1)) == {"gather"}
    assert schedules_of(TableSpec(9, 8, 20), Load(512, 20, 20)) == {"fixed_length"}


def test_long_bags_of_few_items_are_offered_in_parts():
    spec = TableSpec(9, 64)
    assert "split" in schedules_of(spec, Load(1, 2000, 2000))
    assert "split" not in schedules_of(spec, Load(512, 5, 10))


@given(most=st.integers(1, 3000))
@settings(deadline=None, max_examples=20)
def test_no_part_of_the_longest_bag_has_less_than_two_steps(most):
    for way in _ways(TableSpec(9, 8), Load(8, most, most), (1,)):
        knobs = dict(way.params)
        assert way.schedule == "bags" or most >= 2 * knobs["parts"] * knobs["tile_ids"]


def test_a_tile_loops_until_its_longest_bag_is_done():
    # mean 4 ids, longest 16: one bag loops 4 times on average, many bags 16 times
    def steps_of(n):
        branch = branch_of(TableSpec(9, 8), "bags", params(tile_bags=n, tile_ids=1))
        return steps(branch, Load(512, 4, 16))

    assert steps_of(1) == 4
    assert 14 < steps_of(16) < 16
    fixed = branch_of(TableSpec(9, 8, 10), "fixed_length", params(tile_ids=4))
    assert steps(fixed, Load(512, 10, 10)) == 3


def test_waste_counts_columns_bags_and_ids_that_are_not_there():
    def wasted_by(dim, n_items, **knobs):
        branch = branch_of(TableSpec(9, dim, 1), "gather", params(**knobs))
        return wasted(branch, Load(n_items, 1, 1))

    assert wasted_by(8, 64, tile_bags=64) == 1
    assert wasted_by(6, 64, tile_bags=64) == pytest.approx(8 / 6)
    assert wasted_by(200, 64, tile_bags=64, tile_lanes=32) == pytest.approx(224 / 200)
    assert wasted_by(8, 1, tile_bags=64) == 64
    fixed = branch_of(TableSpec(9, 8, 10), "fixed_length", params(tile_bags=64, tile_ids=4))
    assert wasted(fixed, Load(64, 10, 10)) == pytest.approx(12 / 10)
    single = branch_of(TableSpec(9, 4, 1), "gather", params(tile_bags=1, warps=8))
    assert idle(single, Load(1, 1, 1)) == 64
