"""What TritonBags must do: in Triton's interpreter, and on a GPU where there is one.

test_look_up.py runs it. Weights are small whole numbers, so float32 sums are exact in any order and
results are compared bit for bit.
"""

import numpy as np
import pytest
import torch

from experiments.embedding.length_map import LengthOrderedBags
from models.embedding.gpu.look_up import TritonBags
from models.embedding.plan.plan import Bucket, Group, params
from models.embedding.plan.spec import Layout, TableSpec
from tests.models.embedding.gpu.triton_cases import DEVICE, INTERPRETED, LookUpCase, make_case

torch.set_num_threads(1)
ON_GPU = pytest.mark.skipif(
    INTERPRETED, reason="says nothing in the interpreter, where programs run in turn"
)
WIDTHS = (1, 3, 4, 6, 8, 48, 128, 200)
FREE = [
    TableSpec(rows, dim) for rows, dim in zip((1, 2, 17, 50, 33, 9, 40, 21), WIDTHS, strict=True)
]
ONE_HOT = [TableSpec(spec.rows, spec.dim, 1) for spec in FREE]
FIVE = [TableSpec(spec.rows, spec.dim, 5) for spec in FREE]
SCHEDULES = {
    "bags": (FREE, ("bags", params(tile_bags=4, tile_ids=2))),
    "bags, one a tile": (FREE[1::3], ("bags", params(tile_bags=1, tile_ids=8, warps=2))),
    "bags, narrow tiles": (FREE, ("bags", params(tile_bags=8, tile_ids=1, tile_lanes=32))),
    "gather": (ONE_HOT, ("gather", params(tile_bags=4))),
    "gather, narrow tiles": (ONE_HOT, ("gather", params(tile_bags=16, tile_lanes=64))),
    "fixed_length": (FIVE, ("fixed_length", params(tile_bags=4, tile_ids=4))),
    "fixed_length, narrow tiles": (
        FIVE,
        ("fixed_length", params(tile_bags=8, tile_ids=8, tile_lanes=64)),
    ),
    "split": (FREE, ("split", params(tile_ids=4, parts=2, tile_bags=4))),
    "split, narrow tiles": (
        FREE[5:],
        ("split", params(tile_ids=8, parts=4, tile_lanes=128, tile_bags=8)),
    ),
    "split, bag by bag": (ONE_HOT[:2], ("split", params(parts=2))),
}


def bags_of(case, groups, tmp_path, launch="fused", **more):
    bucket = Bucket(None, tuple(groups), params(launch=launch))
    return TritonBags(case.layout, bucket, case.weight_E, cache=tmp_path, **more)


def everything(specs, schedule, knobs):
    return [Group(schedule, knobs, tuple(range(len(specs))))]


def nan_out(n_items, width):
    return torch.full((n_items, width), torch.nan, device=DEVICE)


MIXED = [FREE[0], ONE_HOT[1], FREE[3], FIVE[2], ONE_HOT[4], FREE[5], FIVE[6], FREE[7]]
MIXED_GROUPS = [
    Group("gather", params(tile_bags=4), (1, 4)),
    Group("fixed_length", params(tile_bags=2, tile_lanes=64), (3, 6)),
    Group("bags", params(tile_bags=2, tile_ids=2), (0, 2, 5)),
    Group("split", params(parts=4, tile_lanes=128), (7,)),
]


@pytest.mark.parametrize("n_items", [0, 1, 7, 16])
@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_sums_every_bag_of_every_width(name, n_items, tmp_path):
    specs, (schedule, knobs) = SCHEDULES[name]
    case = make_case(specs, n_items, seed=n_items)
    out = nan_out(n_items, int(case.layout.columns[-1]))
    sums = bags_of(case, everything(specs, schedule, knobs), tmp_path)(
        case.values, case.offsets, out
    )
    assert sums is out
    assert torch.equal(sums.cpu(), case.expected())


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_element_is_written_exactly_once(name, tmp_path):
    specs, (schedule, knobs) = SCHEDULES[name]
    case = make_case(specs, 3)
    counts = bags_of(case, everything(specs, schedule, knobs), tmp_path).count_writes(
        case.values, case.offsets
    )
    assert (counts == 1).all()


@pytest.mark.parametrize("index", [torch.int32, torch.int64])
def test_however_it_is_launched_it_gives_the_same_bits_and_the_sums(index, tmp_path):
    case = make_case(MIXED, 3, index=index)
    fused = bags_of(case, MIXED_GROUPS, tmp_path)
    grouped = bags_of(case, MIXED_GROUPS, tmp_path, "grouped")
    cut = [Group("bags", MIXED_GROUPS[2].params, tables) for tables in ((0,), (2, 5))]
    by_schedule = bags_of(case, [*MIXED_GROUPS[:2], *cut, MIXED_GROUPS[3]], tmp_path, "by_schedule")
    # one of them combines parts
    assert [len(bags.launches) for bags in (fused, grouped, by_schedule)] == [2, 5, 5]
    sums = fused(case.values, case.offsets)
    assert torch.equal(sums.cpu(), case.expected())
    for apart in (grouped, by_schedule):
        assert torch.equal(apart(case.values, case.offsets), sums)
    assert (fused.count_writes(case.values, case.offsets) == 1).all()


def test_groups_of_other_warps_are_launched_apart(tmp_path):
    case = make_case(MIXED, 3)
    groups = [
        Group(g.schedule, tuple(sorted((*g.params, ("warps", 1 + i % 2)))), g.tables)
        for i, g in enumerate(MIXED_GROUPS)
    ]
    fused = bags_of(case, groups, tmp_path)
    assert [launch.warps for launch in fused.launches[:2]] == [1, 2]
    assert torch.equal(fused(case.values, case.offsets).cpu(), case.expected())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["bags", "gather", "fixed_length", "split"])
def test_narrow_rows_are_summed_in_float32(name, dtype, tmp_path):
    specs, (schedule, knobs) = SCHEDULES[name]
    case = make_case(specs[2:7], 3, dtype=dtype)
    sums = bags_of(case, everything(specs[2:7], schedule, knobs), tmp_path)(
        case.values, case.offsets
    )
    assert sums.dtype == torch.float32
    assert torch.equal(sums.cpu(), case.expected())


def test_a_sum_of_narrow_rows_is_not_rounded_to_them(tmp_path):
    specs = [TableSpec(1, 4)]
    case = make_case(specs, 1, lengths=[[300]], dtype=torch.bfloat16)
    case.weight_E.fill_(1)
    sums = bags_of(case, everything(specs, "bags", ()), tmp_path)(case.values, case.offsets)
    assert (sums == 300).all()  # bfloat16 has no 300


@pytest.mark.parametrize("name", ["bags", "bags, one a tile", "split"])
def test_one_long_bag_among_short_and_empty_ones(name, tmp_path):
    schedule, knobs = SCHEDULES[name][1]
    specs = [TableSpec(30, 3), TableSpec(25, 8)]
    knobs = tuple(sorted({**dict(knobs), "tile_ids": 64}.items()))
    case = make_case(specs, 3, lengths=[[0, 2500, 1], [1999, 0, 0]])
    sums = bags_of(case, everything(specs, schedule, knobs), tmp_path)(case.values, case.offsets)
    assert torch.equal(sums.cpu(), case.expected())


@pytest.mark.parametrize("name", ["bags", "split", "bags, narrow tiles"])
def test_empty_bags_give_zeros_also_where_there_are_no_ids_at_all(name, tmp_path):
    schedule, knobs = SCHEDULES[name][1]
    for lengths in ([np.zeros(3, np.int64)] * 3, [None, np.zeros(3, np.int64), None]):
        case = make_case(FREE[4:7], 3, lengths=lengths)
        out = nan_out(3, int(case.layout.columns[-1]))
        sums = bags_of(case, everything(FREE[4:7], schedule, knobs), tmp_path)(
            case.values, case.offsets, out
        )
        assert torch.equal(sums.cpu(), case.expected())


@pytest.mark.parametrize("name", ["bags", "gather", "fixed_length", "split"])
def test_one_table(name, tmp_path):
    specs, (schedule, knobs) = SCHEDULES[name]
    case = make_case(specs[3:4], 16)
    sums = bags_of(case, everything(specs[3:4], schedule, knobs), tmp_path)(
        case.values, case.offsets
    )
    assert torch.equal(sums.cpu(), case.expected())


def test_ids_may_begin_anywhere_in_their_memory(tmp_path):
    case = make_case(MIXED, 2)
    longer = torch.cat((case.values.new_full((5,), -1), case.values))
    mixed = bags_of(case, MIXED_GROUPS, tmp_path)
    assert torch.equal(mixed(longer[5:], case.offsets).cpu(), case.expected())
    assert torch.equal(mixed(longer, case.offsets + 5).cpu(), case.expected())


def test_bags_may_lie_item_after_item(tmp_path):
    case = make_case(MIXED, 3)
    sums = bags_of(case, MIXED_GROUPS, tmp_path, check=True)(*case.item_major(), item_major=True)
    assert torch.equal(sums.cpu(), case.expected())


def test_ids_may_count_through_all_tables(tmp_path):
    specs = [TableSpec(9, 16), TableSpec(5, 16, 1), TableSpec(7, 16)]
    case = make_case(specs, 5, layout=Layout.joined(specs))
    groups = [Group("bags", (), (0, 2)), Group("gather", (), (1,))]
    sums = bags_of(case, groups, tmp_path, check=True)(*case.item_major(), item_major=True)
    assert torch.equal(sums.cpu(), case.expected())


def test_columns_of_tables_in_no_group_and_beyond_the_rows_stay_as_they_are(tmp_path):
    case = make_case(MIXED, 4)
    columns = case.layout.columns
    wider = torch.full((4, int(columns[-1]) + 6), 77.0, device=DEVICE)
    out = wider[:, 4 : 4 + int(columns[-1])]
    bags_of(case, [g for g in MIXED_GROUPS if 2 not in g.tables], tmp_path)(
        case.values, case.offsets, out
    )
    left = {0, 2, 5}
    for table in range(len(MIXED)):
        of_table = slice(*columns[table : table + 2].tolist())
        written = out[:, of_table].cpu()
        expected = case.expected()[:, of_table]
        assert torch.equal(written, torch.full_like(written, 77) if table in left else expected)
    assert (wider[:, :4] == 77).all()
    assert (wider[:, 4 + int(columns[-1]) :] == 77).all()


def test_some_tables_are_looked_up_until_they_load_a_device_as_all_do(tmp_path):
    case = make_case([FREE[2], FREE[3], FREE[2]], 3)
    # of 2 and 2 ids of 4 columns, beside 6 ids of 6: 16 of 52 elements
    groups = [Group("bags", (), (0, 2))]
    for most, times in ((1000, 3), (3 * 32, 2), (5, 1), (0, 1)):
        filled = bags_of(case, groups, tmp_path, mean_bag_ids=[2, 6, 2], fill_elements=most)
        counts = filled.count_writes(case.values, case.offsets).cpu()
        assert filled.repeats(3) == times
        assert (counts[:, :4] == times).all()
        assert (counts[:, 4:10] == 0).all()
        sums = filled(case.values, case.offsets, nan_out(3, 14)).cpu()
        assert torch.equal(sums[:, 10:], case.expected()[:, 10:])


def test_the_first_batch_of_a_size_says_how_often_few_tables_are_looked_up(tmp_path):
    lengths = [[2] * 4, [6] * 4, [2] * 4]
    case = make_case([FREE[2], FREE[3], FREE[2]], 4, lengths=lengths)
    for item_major, (values, offsets) in (
        (False, (case.values, case.offsets)),
        (True, case.item_major()),
    ):
        filled = bags_of(case, [Group("bags", (), (0, 2))], tmp_path, fill_elements=1000)
        assert filled.repeats(4) == 1  # not known yet
        assert (filled.count_writes(values, offsets, item_major=item_major)[:, :4] == 3).all()
        assert filled.repeats(4) == 3


@pytest.mark.parametrize("launch", ["fused", "grouped"])
def test_programs_in_the_order_of_actual_lengths_give_the_same_bits(launch, tmp_path):
    case, second = (make_case(MIXED, 7, seed=seed, most=30) for seed in (0, 1))
    bucket = Bucket(None, tuple(MIXED_GROUPS), params(launch=launch))
    ordered = LengthOrderedBags(case.layout, bucket, case.weight_E, cache=tmp_path)
    usual = bags_of(case, MIXED_GROUPS, tmp_path, launch)
    assert (ordered.count_writes(case.values, case.offsets) == 1).all()
    for batch in (case, second):  # another batch of the same size has an order of its ordered
        out = nan_out(7, int(case.layout.columns[-1]))
        assert torch.equal(
            ordered(batch.values, batch.offsets, out), usual(batch.values, batch.offsets)
        )
    orders = [torch.cat(ordered.maps_of(batch.offsets)) for batch in (case, second)]
    assert not torch.equal(*orders)
    made = ordered.maps_of(second.offsets)
    assert torch.equal(
        ordered.with_maps(second.values, second.offsets, made), usual(second.values, second.offsets)
    )
    out = nan_out(7, int(case.layout.columns[-1]))
    ordered.with_maps(second.values, second.offsets, [tasks[:1] for tasks in made], out)
    assert 0 < out.isnan().sum() < out.numel()
    with pytest.raises(ValueError, match="table after table"):
        ordered(*case.item_major(), item_major=True)


def test_the_order_of_programs_changes_no_bit(tmp_path):
    case = make_case(MIXED, 2)
    case.weight_E = torch.randn(case.weight_E.shape, generator=torch.Generator().manual_seed(1)).to(
        DEVICE
    )
    sums = [
        bags_of(case, MIXED_GROUPS, tmp_path, mean_bag_ids=mean)(case.values, case.offsets)
        for mean in (list(range(8)), list(range(8, 0, -1)))
    ]
    assert torch.equal(*sums)


def test_sums_of_any_floats_are_as_exact_as_float32_allows(tmp_path):
    case = make_case(MIXED, 2, most=40)
    case.weight_E = torch.randn(case.weight_E.shape, generator=torch.Generator().manual_seed(2)).to(
        DEVICE
    )
    sums = bags_of(case, MIXED_GROUPS, tmp_path)(case.values, case.offsets).cpu()
    # n ids: n roundings of half an ulp
    bound = torch.finfo(torch.float32).eps * 40 * float(case.weight_E.abs().max())
    assert float((sums - case.expected()).abs().max()) <= bound


@pytest.mark.parametrize("seed", range(4))
def test_plans_drawn_at_random(seed, tmp_path):
    rng = np.random.default_rng(100 + seed)
    specs = [
        TableSpec(int(rng.integers(1, 60)), int(rng.choice(WIDTHS)), [None, 1, 3][rng.integers(3)])
        for _ in range(6)
    ]
    groups = []
    for table, spec in enumerate(specs):
        allowed = [
            "bags",
            "split",
            *(["gather"] if spec.bag_ids == 1 else []),
            *(["fixed_length"] if spec.bag_ids else []),
        ]
        schedule = str(rng.choice(allowed))
        knobs = {
            "tile_bags": 1 << int(rng.integers(2, 5)),
            "tile_lanes": int(rng.choice([0, 32, 128])),
        }
        if schedule != "gather":
            knobs["tile_ids"] = 1 << int(rng.integers(0, 4))
        if schedule == "split":
            knobs["parts"] = 1 << int(rng.integers(1, 3))
        groups.append(Group(schedule, params(**knobs), (table,)))
    case = make_case(
        specs, int(rng.integers(1, 12)), seed=seed, index=[torch.int32, torch.int64][seed % 2]
    )
    bags = bags_of(case, groups, tmp_path, ["fused", "grouped"][seed // 2 % 2])
    assert torch.equal(bags(case.values, case.offsets).cpu(), case.expected())


def test_checking_names_the_table_the_id_and_its_rows(tmp_path):
    case = make_case(MIXED, 3)
    mixed = bags_of(case, MIXED_GROUPS, tmp_path, check=True)
    assert torch.equal(mixed(case.values, case.offsets).cpu(), case.expected())
    at = int(case.offsets[2 * 3])  # the first id of table 2, which has 50 rows
    for wrong in (50, -1):
        values = case.values.clone()
        values[at] = wrong
        with pytest.raises(ValueError, match=f"table 2: id {wrong} at {at}; it has 50 rows"):
            mixed(values, case.offsets)


def test_checking_names_bags_of_a_wrong_length_and_offsets_that_do_not_ascend(tmp_path):
    specs = [TableSpec(9, 4), TableSpec(9, 4, 1)]
    case = make_case(specs, 3, lengths=[[2, 0, 1], [1, 2, 0]])
    checked = bags_of(case, everything(specs, "bags", ()), tmp_path, check=True)
    with pytest.raises(ValueError, match=r"table 1 \(9 x 4, 1 id a bag\): bag 4 has 2 ids"):
        checked(case.values, case.offsets)
    for offsets in ([0, 2, 1, 3, 4, 5, 6], [0, 2, 2, 3, 4, 5, 7], [-1, 2, 2, 3, 4, 5, 6]):
        with pytest.raises(ValueError, match="offsets do not ascend within 0 to 6"):
            checked(case.values, torch.tensor(offsets, device=DEVICE))


def test_tensors_that_do_not_fit_are_refused(tmp_path):
    case = make_case(MIXED, 3)
    mixed = bags_of(case, MIXED_GROUPS, tmp_path)
    with pytest.raises(ValueError, match="24 offsets; expected 8 tables x items"):
        mixed(case.values, case.offsets[:-1])
    with pytest.raises(ValueError, match=r"values are torch\.float32"):
        mixed(case.values.float(), case.offsets)
    with pytest.raises(ValueError, match=r"offsets are torch\.int64"):
        mixed(case.values, case.offsets.repeat_interleave(2)[::2])
    for out in (nan_out(2, mixed.width), nan_out(3, mixed.width).half(), nan_out(mixed.width, 3).T):
        with pytest.raises(ValueError, match="out is"):
            mixed(case.values, case.offsets, out)
    with pytest.raises(ValueError, match=r"weights are torch\.float32"):
        TritonBags(case.layout, Bucket(None, tuple(MIXED_GROUPS)), case.weight_E[:-1])


def test_rows_apart_by_a_width_that_breaks_wide_stores_are_refused(tmp_path):
    specs = [TableSpec(5, 8)]
    case = make_case(specs, 3)
    bags = bags_of(case, everything(specs, "bags", ()), tmp_path)
    with pytest.raises(ValueError, match="multiple of 4 apart"):
        bags(case.values, case.offsets, nan_out(3, 9)[:, :8])


def test_maps_of_few_batch_sizes_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr("models.embedding.gpu.look_up._MAPS", 2)
    case = make_case([TableSpec(5, 4)], 1)
    bags = bags_of(case, everything(case.layout.specs, "bags", ()), tmp_path)
    for n_items in (1, 2, 1, 3):
        bags(case.values, torch.zeros(n_items + 1, dtype=torch.int64, device=DEVICE))
    assert list(bags._maps) == [1, 3]


@ON_GPU
@pytest.mark.parametrize("launch", ["fused", "grouped"])
def test_twenty_runs_give_the_same_bits(launch, tmp_path):
    case = make_case(MIXED, 64, most=200)
    case.weight_E = torch.randn(case.weight_E.shape, generator=torch.Generator().manual_seed(3)).to(
        DEVICE
    )
    bags = bags_of(case, MIXED_GROUPS, tmp_path, launch)
    first = bags(case.values, case.offsets)
    for _ in range(19):
        assert torch.equal(bags(case.values, case.offsets, nan_out(64, bags.width)), first)


@ON_GPU
def test_rows_beyond_two_to_the_31_elements_are_found(tmp_path):
    specs = [TableSpec((1 << 31) // 128 + 1000, 128), TableSpec(50, 128)]
    layout = Layout.apart(specs)
    weight = torch.zeros(layout.n_elements, dtype=torch.float16, device=DEVICE)
    weight.view(-1, 128)[-1050:] = torch.arange(1050, device=DEVICE)[:, None] % 8
    values = torch.tensor([specs[0].rows - 1, specs[0].rows - 3, 49, 0], device=DEVICE)
    case = LookUpCase(layout, weight, values, torch.tensor([0, 2, 4], device=DEVICE), 1)
    sums = bags_of(case, everything(specs, "bags", ()), tmp_path)(case.values, case.offsets).cpu()
    assert torch.equal(
        sums[0, ::128], torch.tensor([(999 % 8) + (997 % 8), (1049 % 8) + (1000 % 8)]).float()
    )


@ON_GPU
def test_a_large_batch(tmp_path):
    case = make_case(MIXED, 512, most=100)
    sums = bags_of(case, MIXED_GROUPS, tmp_path)(case.values, case.offsets)
    assert torch.equal(sums.cpu(), case.expected())
