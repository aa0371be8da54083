"""What the tuner is given to time on a GPU, and the backend's plans; all without a GPU."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.embedding.backend import Cluster, backend
from models.embedding.gpu import backend as cuda
from models.embedding.gpu.candidates import (
    MOST_WASTE,
    Load,
    _every,
    clocks,
    gpu_candidates,
    idle,
    steps,
    wasted,
)
from models.embedding.gpu.schedules import CUDA_SCHEDULES, branch_of, branches
from models.embedding.gpu.timing import device_seconds, wall_seconds
from models.embedding.jagged import Bags
from models.embedding.plan.plan import Group, params
from models.embedding.plan.spec import TableSpec

SPECS = st.builds(
    TableSpec,
    st.integers(1, 10_000),
    st.sampled_from([1, 3, 4, 6, 8, 32, 48, 128, 200]),
    st.sampled_from([None, 1, 7, 50]),
)
BATCHES = st.sampled_from([1, 8, 64, 512])


def load_of(spec, n_items, mean=12.0, most=40):
    return Load(n_items, spec.bag_ids or mean, spec.bag_ids or most)


@settings(deadline=None)
@given(spec=SPECS, n_items=BATCHES, warps=st.sampled_from([(1,), (4,), (8,), (1, 2, 4, 8)]))
def test_every_candidate_can_be_built_and_wastes_little(spec, n_items, warps):
    load = load_of(spec, n_items)
    found = gpu_candidates(spec, load, warps)
    assert 1 <= len(found) <= 12
    assert len({*found}) == len(found)
    own = [branches([spec], [Group(*one, (0,))])[0] for one in found]
    assert {one.warps for one in own} <= {*warps}

    def fits(one):
        return 32 * one.warps <= one.elements <= 512 * one.warps and wasted(one, load) <= MOST_WASTE

    every = [branch_of(spec, *one) for one in _every(spec, load, warps)]
    if any(map(fits, every)):
        assert all(map(fits, own))
    else:
        assert max(idle(one, load) for one in own) <= 1.5 * min(idle(one, load) for one in every)


@given(spec=SPECS, n_items=BATCHES)
@settings(deadline=None)
def test_the_cheapest_guess_comes_first(spec, n_items):
    load = load_of(spec, n_items)
    guesses = [clocks(branch_of(spec, *own), load) for own in gpu_candidates(spec, load)]
    assert guesses == sorted(guesses)


def test_one_hot_tables_are_gathered_and_fixed_ones_read_no_offsets():
    for n_items in (1, 512):
        assert {s for s, _ in gpu_candidates(TableSpec(9, 8, 1), Load(n_items, 1, 1))} == {"gather"}
    assert {s for s, _ in gpu_candidates(TableSpec(9, 8, 20), Load(512, 20, 20))} == {
        "fixed_length"
    }


def test_long_bags_of_few_items_are_offered_in_parts():
    spec = TableSpec(9, 64)
    assert "split" in {s for s, _ in gpu_candidates(spec, Load(1, 2000, 2000))}
    assert "split" not in {s for s, _ in gpu_candidates(spec, Load(512, 5, 10))}


@given(most=st.integers(1, 3000))
@settings(deadline=None, max_examples=20)
def test_no_part_of_the_longest_bag_has_less_than_two_steps(most):
    for schedule, knobs in _every(TableSpec(9, 8), Load(8, most, most), (1,)):
        own = dict(knobs)
        assert schedule == "bags" or most >= 2 * own["parts"] * own["tile_ids"]


def test_a_tile_loops_until_its_longest_bag_is_done():
    # mean 4 ids, longest 16: one bag loops 4 times on average, many bags 16 times
    def steps_of(n):
        return steps(
            branch_of(TableSpec(9, 8), "bags", params(tile_bags=n, tile_ids=1)), Load(512, 4, 16)
        )

    assert steps_of(1) == 4
    assert 14 < steps_of(16) < 16
    assert (
        steps(branch_of(TableSpec(9, 8, 10), "fixed_length", params(tile_ids=4)), Load(512, 10, 10))
        == 3
    )


def test_waste_counts_columns_bags_and_ids_that_are_not_there():
    def wasted_by(dim, n_items, **knobs):
        return wasted(
            branch_of(TableSpec(9, dim, 1), "gather", params(**knobs)), Load(n_items, 1, 1)
        )

    assert wasted_by(8, 64, tile_bags=64) == 1
    assert wasted_by(6, 64, tile_bags=64) == pytest.approx(8 / 6)
    assert wasted_by(200, 64, tile_bags=64, tile_lanes=32) == pytest.approx(224 / 200)
    assert wasted_by(8, 1, tile_bags=64) == 64
    fixed = branch_of(TableSpec(9, 8, 10), "fixed_length", params(tile_bags=64, tile_ids=4))
    assert wasted(fixed, Load(64, 10, 10)) == pytest.approx(12 / 10)
    assert (
        idle(branch_of(TableSpec(9, 4, 1), "gather", params(tile_bags=1, warps=8)), Load(1, 1, 1))
        == 64
    )


@settings(deadline=None, max_examples=30)
@given(specs=st.lists(SPECS, min_size=1, max_size=8))
def test_the_default_plan_is_a_plan_for_any_tables(specs):
    plan = backend("cuda").default_plan(specs)
    assert plan.device == "cuda"
    for n_items in (1, 8, 9, 65, 5000):
        assert sorted(branches(specs, plan.bucket(n_items).groups)) == list(range(len(specs)))


def test_the_backend_offers_the_warps_of_its_settings():
    own = backend("cuda")
    cluster = Cluster((0, 1), TableSpec(4096, 32), 40.0, 100, 0.2, 0.9, 512)
    for knobs in own.settings([cluster.spec]):
        warps = {dict(choice.params)["warps"] for choice in own.candidates(cluster, knobs, 0.0)}
        assert warps == {dict(knobs)["warps"]} if "warps" in dict(knobs) else len(warps) > 1
        assert all(
            choice.schedule in CUDA_SCHEDULES for choice in own.candidates(cluster, knobs, 0.0)
        )


def test_equal_kernels_are_compiled_once_and_none_when_time_is_up(monkeypatch):
    made = []

    class Kernels:
        def __init__(self, _layout, bucket, _weight):
            self.bucket = bucket

        def compiling(self, _ids, _offsets, *, item_major):
            assert item_major
            return {name: lambda name=name: made.append(name) for name in (self.bucket, "same")}

    monkeypatch.setattr(cuda, "TritonBags", Kernels)
    own = cuda.make_backend()
    bags = Bags(torch.zeros(0), torch.zeros(5), 2, item_major=True)
    own.prepare(None, None, ["a", "b"], bags, 0.0)
    assert made == []
    own.prepare(None, None, ["a", "b"], bags, 60.0)
    assert sorted(made) == ["a", "b", "same"]
    own.prepare(None, None, ["b", "c"], bags, 60.0)
    assert sorted(made) == ["a", "b", "c", "same"]


def test_a_kind_of_tables_has_so_many_candidates_at_most():
    cluster = Cluster((0, 1), TableSpec(4096, 32), 40.0, 100, 0.2, 0.9, 512)
    knobs = cuda.KNOBS[0]
    every = cuda.CudaBackend(most=99).candidates(cluster, knobs, 0.0)
    assert list(cuda.CudaBackend(most=3).candidates(cluster, knobs, 0.0)) == list(every[:3])
    assert (
        len(cuda.make_backend().candidates(cluster, knobs, 0.0))
        == cuda.MOST_CANDIDATES
        < len(every)
    )


def test_contention_ends_with_its_block():
    own = cuda.make_backend()
    with own.contended(()):
        assert own._fill_elements > 0
    assert own._fill_elements == 0


@pytest.mark.parametrize("cold", [True, False])
def test_a_call_is_queued_while_the_device_is_busy_and_timed_alone(cold, monkeypatch):
    log = []

    class Flush:
        def zero_(self):
            log.append("flush")

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            log.append("event")
            self.at = len(log)

        def elapsed_time(self, end):
            return float(end.at - self.at)

    monkeypatch.setattr(torch, "empty", lambda *_, **__: Flush())
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda _: log.append("busy"))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: log.append("wait"))
    calls = [lambda i: log.append(f"a{i}"), lambda i: log.extend([f"b{i}", "more", "more"])]
    found = device_seconds(calls, 2, cold=cold, first=5)
    before = ["flush"] if cold else ["a5"]
    assert log[:5] == [*before, "busy", "event", "a5", "event"]
    assert log.count("wait") == 2
    assert [log.count(name) for name in ("a5", "b5", "a6", "b6")] == [1 if cold else 2] * 4
    assert found.tolist() == [[0.002, 0.002], [0.004, 0.004]]


def test_a_run_tells_how_often_it_looked_up():
    class Thrice:
        def __call__(self, *_, item_major):
            assert item_major

        def repeats(self, n_items):
            return n_items + 1

    meter = cuda.Meter()
    bags = Bags(
        torch.zeros(0, dtype=torch.int32), torch.zeros(5, dtype=torch.int32), 2, item_major=True
    )
    cuda.CudaRun(Thrice(), meter)(bags, torch.empty(2, 4))
    assert meter.repeats == 3


def test_the_time_of_what_was_repeated_is_that_of_one_look_up(monkeypatch):
    own = cuda.make_backend()

    def call_of(repeats):
        def call(_):
            own._meter.repeats = repeats

        return call

    def plain(_):
        return None

    monkeypatch.setattr(cuda, "device_seconds", lambda calls, n: np.full((len(calls), n), 12.0))
    assert own.seconds([call_of(4), plain, call_of(3)], 2).tolist() == [[3, 3], [12, 12], [4, 4]]


def test_wall_times_are_of_every_call_and_round():
    seen = []
    found = wall_seconds(
        [lambda i: seen.append(("a", i)), lambda i: seen.append(("b", i))], 2, first=3
    )
    assert seen == [("a", 3), ("b", 3), ("a", 4), ("b", 4)]
    assert found.shape == (2, 2)
    assert (np.asarray(found) > 0).all()
