"""The GPU's schedules as data: tiles, branches, what is refused."""

import importlib.util

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.embedding.gpu.backend import CudaBackend
from models.embedding.gpu.codegen import load_kernel
from models.embedding.gpu.schedules import (
    CUDA_SCHEDULES,
    CUDA_SETTINGS,
    MOST_ELEMENTS,
    Branch,
    branches,
    check_settings,
    combining,
    power_of_two,
)
from models.embedding.plan.plan import Bucket, Group, params
from models.embedding.plan.spec import TableSpec

POWERS = st.sampled_from([1, 2, 4, 8, 16, 32, 64, 128, 256])


@settings(deadline=None)
@given(
    n_items=st.integers(0, 60),
    dim=st.integers(1, 90),
    bags=POWERS,
    lanes=POWERS,
    parts=st.integers(1, 5),
)
def test_tiles_cover_every_bag_column_and_part(n_items, dim, bags, lanes, parts):
    branch = Branch("split", dim, 0, bags, 1, lanes, parts, 4, 1)
    tiles = np.arange(branch.tiles(n_items))
    n_blocks = -(-dim // lanes)  # as the kernel reads a tile's number
    first_bag = tiles // (n_blocks * parts) * bags
    part = tiles // n_blocks % parts
    first_lane = tiles % n_blocks * lanes
    covered = np.zeros((n_items + bags, parts, dim + lanes), int)
    for at in zip(first_bag, part, first_lane, strict=True):
        covered[at[0] : at[0] + bags, at[1], at[2] : at[2] + lanes] += 1
    assert (covered[:n_items, :, :dim] == 1).all()


@given(st.integers(1, 10_000))
def test_the_next_power_of_two(n):
    power = power_of_two(n)
    assert power // 2 < n <= power
    assert power & (power - 1) == 0


def test_a_group_of_several_widths_is_a_branch_for_each():
    specs = [TableSpec(10, dim) for dim in (8, 6, 8, 200)]
    knobs = params(tile_bags=2, tile_lanes=64, warps=2)
    by_table = branches(specs, [Group("bags", knobs, (0, 1, 2, 3))])
    lanes = [(by_table[t].dim, by_table[t].tile_lanes) for t in range(4)]
    assert lanes == [(8, 8), (6, 8), (8, 8), (200, 64)]
    assert by_table[0] == by_table[2]
    assert {by_table[t].warps for t in range(4)} == {2}
    assert by_table[3].tiles(5) == 3 * 4


def test_columns_are_aligned_as_far_as_all_tables_of_a_branch_are():
    # columns begin at 0, 8, 14, 22; 24 in all
    specs = [TableSpec(10, dim) for dim in (8, 6, 8, 2)]
    apart = branches(specs, [Group("bags", (), (0, 1)), Group("bags", params(tile_bags=2), (2, 3))])
    assert [apart[t].column_align for t in range(4)] == [4, 4, 2, 2]
    together = branches(specs, [Group("bags", (), (0, 1, 2, 3))])
    assert together[0] == together[2]
    assert together[0].column_align == 2
    odd = branches([*specs, TableSpec(9, 1)], [Group("bags", (), (0,))])
    assert odd[0].column_align == 1  # rows of 25 floats


def test_parts_are_combined_by_whole_rows_of_the_same_table():
    split = branches([TableSpec(10, 200)], [Group("split", params(parts=16), (0,))])[0]
    sums = combining(split)
    assert (sums.schedule, sums.dim, sums.parts) == ("combine", 200, 16)
    assert sums.column_align == split.column_align
    assert sums.tiles(5) == -(-5 // sums.tile_bags) * -(-200 // sums.tile_lanes)


def test_the_defaults_of_every_schedule_can_be_built():
    for schedule in CUDA_SCHEDULES:
        branch = branches([TableSpec(9, 200, 1)], [Group(schedule, (), (0,))])[0]
        assert branch.elements <= MOST_ELEMENTS


@pytest.mark.parametrize(
    ("group", "words"),
    [
        (Group("gather", (), (1,)), "table 1 (9 x 4): gather needs bags of exactly one id"),
        (Group("fixed_length", (), (1,)), "fixed_length needs bags of a fixed number of ids"),
        (Group("rows", (), (1,)), "unknown schedule 'rows'; expected one of bags, gather"),
        (Group("bags", params(tile_bags=3), (1,)), "bags: tile_bags is 3; expected one of"),
        (Group("gather", params(parts=2), (0,)), "gather: unknown parameter 'parts'"),
        (Group("bags", (), (2,)), "table 2 is in a group, but there are 2 tables"),
        (
            Group("bags", params(tile_bags=512, tile_ids=64), (0,)),
            "tiles of 131072 elements; at most 32768",
        ),
    ],
)
def test_groups_that_do_not_fit_are_refused_in_one_line(group, words):
    with pytest.raises(ValueError, match=r"table|expected|unknown") as caught:
        branches([TableSpec(9, 4, 1), TableSpec(9, 4)], [group])
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_table_in_two_groups_is_refused():
    with pytest.raises(ValueError, match="table 0 is in two groups"):
        branches([TableSpec(9, 4)], [Group("bags", (), (0,)), Group("split", (), (0,))])


def test_a_table_in_no_group_has_no_branch():
    specs = [TableSpec(4, 4), TableSpec(4, 8)]
    assert [*branches(specs, [Group("bags", (), (1,))])] == [1]


def test_without_triton_a_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert CudaBackend().versions()["triton"] == "not installed"
    words = r"needs Triton: pip install -r build/bench_requirements\.txt"
    with pytest.raises(ValueError, match=words):
        load_kernel([Branch("bags", 4, 0, 2, 2, 4, 1, 4, 1)])


def test_settings_have_defaults_and_are_checked():
    defaults = {name: values[0] for name, values in CUDA_SETTINGS.items()}
    assert check_settings(Bucket(None, ())) == defaults
    assert check_settings(Bucket(None, (), params(launch="grouped")))["launch"] == "grouped"
    with pytest.raises(ValueError, match="settings: launch is 'none'"):
        check_settings(Bucket(None, (), params(launch="none")))
