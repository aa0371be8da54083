"""Every schedule against a slow and obvious sum in float64: weights are small whole numbers."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.embedding.backend import Planned
from models.embedding.bags import FusedEmbeddingBags
from models.embedding.jagged import Bags
from models.embedding.plan.catalogue import FIXED_IDS, ONE_ID, SCHEDULES
from models.embedding.plan.plan import Bucket, Group, Plan, params
from models.embedding.plan.spec import Layout, TableSpec
from tests.models.drawn import jagged

WIDTHS = (1, 3, 4, 6, 8, 48, 128, 200)
ROWS = 37


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)
    with torch.inference_mode():
        yield


def whole_weights(module, seed=0):
    weight = np.random.default_rng(seed).integers(-8, 9, len(module.weight_E))
    module.weight_E.copy_(torch.from_numpy(weight.astype(np.float32)))


def oracle(module, values, offsets):
    """index_add in float64, table by table."""
    specs = module.layout.specs
    n_items = (len(offsets) - 1) // len(specs)
    columns = []
    for t, spec in enumerate(specs):
        ends = offsets[t * n_items : (t + 1) * n_items + 1].long()
        bag = torch.repeat_interleave(torch.arange(n_items), torch.diff(ends))
        sums = torch.zeros(n_items, spec.dim, dtype=torch.float64)
        sums.index_add_(0, bag, module.table(t).double()[values[ends[0] : ends[-1]].long()])
        columns.append(sums)
    return torch.cat(columns, dim=1)


def plan_of(specs, schedule, threads=1, **knobs):
    group = Group(schedule, params(**knobs), tuple(range(len(specs))))
    return Plan("cpu", tuple(specs), (Bucket(None, (group,), params(threads=threads)),))


def check(module, values, offsets):
    out = torch.full(((len(offsets) - 1) // len(module.layout.specs), module.width + 2), torch.nan)
    module(values, offsets, out=out[:, 1:-1])
    assert torch.equal(out[:, 1:-1].double(), oracle(module, values, offsets))
    assert out[:, [0, -1]].isnan().all()  # nothing beside the columns is written


VARIANTS = [
    *((name, {}) for name in SCHEDULES["cpu"] if name != "one_width"),
    *(
        ("compiled", {"ahead": ahead, "unroll": unroll, "order": order})
        for ahead, unroll, order in (
            ("none", 2, "table"),
            ("table", 8, "table"),
            ("ids", 4, "item"),
            ("none", 1, "item"),
        )
    ),
    ("compiled", {"distance": 128}),
    ("copy", {"ahead": "table"}),
    ("copy", {"ahead": "none"}),
]


@pytest.mark.parametrize("n_items", [0, 1, 7, 16, 512])
@pytest.mark.parametrize(("schedule", "knobs"), VARIANTS)
def test_every_schedule_gives_the_exact_sum(schedule, knobs, n_items):
    bag_ids = 1 if schedule in ONE_ID else 3 if schedule in FIXED_IDS else None
    for dtype, widths in ((np.int32, (*WIDTHS, *WIDTHS[::-3])), (np.int64, WIDTHS[::3])):
        specs = [TableSpec(ROWS + i, width, bag_ids) for i, width in enumerate(widths)]
        module = FusedEmbeddingBags(specs, plan_of(specs, schedule, **knobs))
        whole_weights(module)
        check(module, *jagged(specs, n_items, np.random.default_rng(n_items), dtype))


@pytest.mark.parametrize(
    ("schedule", "knobs"), [v for v in VARIANTS if v[0] not in ONE_ID | FIXED_IDS]
)
def test_empty_single_and_very_long_bags(schedule, knobs):
    specs = [TableSpec(ROWS, 8), TableSpec(5, 3), TableSpec(1, 8), TableSpec(ROWS, 8)]
    module = FusedEmbeddingBags(specs, plan_of(specs, schedule, **knobs))
    whole_weights(module)
    rng = np.random.default_rng(0)
    lengths = np.array([[0, 10_000, 1, 0], [0, 0, 0, 0], [1, 0, 0, 33], [2, 0, 10_000, 17]])
    offsets = torch.from_numpy(np.concatenate(([0], np.cumsum(lengths))))
    parts = (rng.integers(0, s.rows, n.sum()) for s, n in zip(specs, lengths, strict=True))
    values = torch.from_numpy(np.concatenate([*parts]))
    check(module, values, offsets)


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_any_mix_of_schedules_gives_what_no_plan_gives(data):
    n = data.draw(st.integers(1, 8))
    specs = [
        TableSpec(
            data.draw(st.integers(1, 50)),
            data.draw(st.sampled_from((1, 3, 4, 6, 8))),
            data.draw(st.sampled_from((None, 1, 2))),
        )
        for _ in range(n)
    ]
    groups = {}
    for t, spec in enumerate(specs):
        usable = [
            v
            for v in VARIANTS
            if (v[0] not in ONE_ID or spec.bag_ids == 1) and (v[0] not in FIXED_IDS or spec.bag_ids)
        ]
        schedule, knobs = data.draw(st.sampled_from(usable))
        groups.setdefault((schedule, params(**knobs)), []).append(t)
    parts = tuple(
        Group(schedule, knobs, tuple(tables)) for (schedule, knobs), tables in groups.items()
    )
    threads = params(threads=data.draw(st.integers(1, 3)))
    plan = Plan(
        "cpu", tuple(specs), (Bucket(2, parts, threads), Bucket(None, parts[::-1], threads))
    )
    planned = FusedEmbeddingBags(specs, plan)
    default = FusedEmbeddingBags(specs)
    for module in (planned, default):
        whole_weights(module)
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    values, offsets = jagged(specs, data.draw(st.integers(0, 6)), rng)
    assert torch.equal(planned(values, offsets), default(values, offsets))
    check(planned, values, offsets)


@settings(deadline=None, max_examples=40)
@given(
    n_tables=st.integers(1, 6),
    n_items=st.integers(1, 9),
    seed=st.integers(0, 99),
    threads=st.integers(1, 4),
    variant=st.sampled_from([v for v in VARIANTS if v[0] not in ONE_ID | FIXED_IDS]),
)
def test_item_major_bags_with_ids_through_all_tables_give_the_same(
    n_tables, n_items, seed, threads, variant
):
    rng = np.random.default_rng(seed)
    specs = [TableSpec(int(rows), 8) for rows in rng.integers(1, 40, n_tables)]
    module = FusedEmbeddingBags(specs)
    whole_weights(module)
    values, offsets = jagged(specs, n_items, rng, longest=40)
    joined = Layout.joined(specs)
    dense = torch.cat([module.table(t) for t in range(n_tables)]).view(-1)
    lengths = torch.diff(offsets).view(n_tables, n_items)
    tables = torch.arange(n_tables).repeat_interleave(lengths.sum(1).long())
    bags = (values + torch.from_numpy(joined.first_ids_T.astype(np.int32))[tables]).split(
        lengths.reshape(-1).tolist()
    )
    turned = [bags[t * n_items + b] for b, t in itertools.product(range(n_items), range(n_tables))]
    turned_offsets = torch.cat((offsets[:1], lengths.T.reshape(-1).cumsum(0, dtype=torch.int32)))
    plan = plan_of(specs, variant[0], threads=threads, **variant[1])
    out = torch.full((n_items, 8 * n_tables), torch.nan)
    Planned(joined, dense, plan, checked=True)(
        Bags(torch.cat(turned), turned_offsets, n_tables, True), out
    )
    assert torch.equal(out.double(), oracle(module, values, offsets))


@pytest.mark.parametrize("schedule", ["compiled", "fused", "per_table"])
@pytest.mark.parametrize("wrong", [37, -1, 2**31 - 1])
def test_an_id_that_is_no_row_is_named(schedule, wrong):
    specs = [TableSpec(90, 4), TableSpec(37, 4), TableSpec(90, 8)]
    module = FusedEmbeddingBags(specs, plan_of(specs, schedule))
    values = torch.tensor([88, 3, wrong, 5, 89], dtype=torch.int32)
    with pytest.raises(ValueError, match=rf"table 1: id {wrong}; the table has 37 rows$"):
        module(values, torch.tensor([0, 1, 1, 2, 3, 3, 5], dtype=torch.int32))


@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        ([0, 3, 2, 3, 4], r"table 0, item 1: offsets 3 to 2"),
        ([-1, 1, 2, 3, 4], r"table 0, item 0: offsets -1 to 1"),
        ([0, 1, 2, 3, 5], r"table 1, item 1: offsets 3 to 5 of 4 ids"),
        ([0, 1, 2, 3, 4, 4, 5], r"table 2, item 1: offsets 4 to 5 of 4 ids"),
        ([0, 1, 2, 2, 4], r"table 1, item 0: 0 ids; every bag of this table has 1"),
        ([0, 1, 1, 3, 4], r"table 1, item 0: 2 ids; every bag of this table has 1"),
    ],
)
def test_offsets_that_cannot_be_are_named(offsets, message):
    specs = [TableSpec(9, 4), TableSpec(9, 4, 1), TableSpec(9, 4)]
    module = FusedEmbeddingBags(specs[: len(offsets) // 2])
    with pytest.raises(ValueError, match=message):
        module(torch.tensor([1, 2, 3, 4]), torch.tensor(offsets))


def test_the_buckets_meet_at_their_border():
    specs = (TableSpec(9, 4),)
    narrow = Group("compiled", params(storage="int8"), (0,))
    plan = Plan("cpu", specs, (Bucket(4, (narrow,)), Bucket(None, (Group("compiled", (), (0,)),))))
    module = FusedEmbeddingBags(specs)
    module.weight_E.copy_(torch.linspace(0.1, 0.9, len(module.weight_E)))
    module.use(plan)
    exact = [
        torch.equal(
            module(torch.ones(n, dtype=torch.int32), torch.arange(n + 1, dtype=torch.int32)),
            module.table(0)[1].expand(n, 4),
        )
        for n in (4, 5)
    ]
    assert exact == [False, True]


@pytest.mark.parametrize(
    "values", [torch.zeros(4), torch.zeros(4, dtype=torch.int32), torch.zeros(8, dtype=int)[::2]]
)
def test_ids_of_another_kind_than_the_offsets_are_refused(values):
    with pytest.raises(ValueError, match=r"expected both int32 or both int64|gaps"):
        FusedEmbeddingBags([TableSpec(9, 4)])(values, torch.arange(5))


@pytest.mark.parametrize(
    "out",
    [torch.empty(4, 5), torch.empty(3, 4), torch.empty(4, 4).double(), torch.empty(4, 8)[:, ::2]],
)
def test_an_output_of_another_shape_is_refused(out):
    with pytest.raises(ValueError, match=r"expected float32 \(4, 4\) with dense rows"):
        FusedEmbeddingBags([TableSpec(9, 4)])(torch.zeros(4, dtype=int), torch.arange(5), out=out)
