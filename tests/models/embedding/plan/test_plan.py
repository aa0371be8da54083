"""Plans on disk: round trips, and every refusal in one line."""

import json
from dataclasses import replace

import pytest
from helpers import ROOT, run_script
from hypothesis import given
from hypothesis import strategies as st

from infra.settings.config import ConfigError, ModelConfig
from models.embedding.plan.catalogue import SCHEDULES
from models.embedding.plan.plan import Bucket, Group, Plan, explain, from_json, load_plan, params
from models.embedding.plan.spec import (
    LINE_ELEMENTS,
    TableSpec,
    column_offsets,
    element_offsets,
    from_ranges,
    model_specs,
    ranges,
    specs_hash,
)

SPECS = (TableSpec(10, 6, 1), TableSpec(100, 4), TableSpec(10, 6, 3))
PLAN = Plan(
    "cpu",
    SPECS,
    (
        Bucket(
            8,
            (
                Group("copy", params(ahead="none"), (0,)),
                Group("compiled", params(order="item"), (1, 2)),
            ),
        ),
        Bucket(None, (Group("compiled", (), (0, 1, 2)),), params(threads=2)),
    ),
    {"date": "today"},
)
TINY = "--table_scale 0.0005 --num_batches 2 --max_mini_batch_size 8 --mini_batch_size 8".split()

specs = st.lists(
    st.builds(TableSpec, st.integers(1, 9999), st.integers(1, 300), st.none() | st.integers(1, 9)),
    max_size=9,
)


@given(tables=specs)
def test_tables_do_not_overlap_and_are_rows_of_one_matrix(tables):
    starts = element_offsets(tables)
    for t, spec in enumerate(tables):
        assert starts[t] % LINE_ELEMENTS == 0
        assert starts[t] % spec.dim == 0
        assert starts[t] + spec.rows * spec.dim <= starts[t + 1]
    columns = [sum(spec.dim for spec in tables[:t]) for t in range(len(tables) + 1)]
    assert column_offsets(tables).tolist() == columns


@given(tables=st.sets(st.integers(0, 60)))
def test_ranges_are_read_as_they_are_written(tables):
    assert from_ranges(ranges(sorted(tables))) == tuple(sorted(tables))


@given(left=specs, right=specs)
def test_equal_tables_have_equal_hashes_and_others_have_others(left, right):
    assert (specs_hash(left) == specs_hash(right)) == (left == right)


@given(tables=specs.filter(len), data=st.data())
def test_a_plan_is_read_as_it_was_written(tables, data):
    limits = sorted(data.draw(st.sets(st.integers(1, 999), max_size=3)))
    buckets = []
    for limit in (*limits, None):
        n = len(tables)
        names = st.lists(st.sampled_from(("fused", "compiled", "dedup")), min_size=n, max_size=n)
        schedules = data.draw(names)
        knobs = {"compiled": params(unroll=2)}
        groups = tuple(
            Group(name, knobs.get(name, ()), tuple(t for t in range(n) if schedules[t] == name))
            for name in sorted({*schedules})
        )
        buckets.append(Bucket(limit, groups))
    plan = Plan("cpu", tuple(tables), tuple(buckets))
    assert from_json(plan.to_json()) == plan
    for n_items in range(1, 1001, 37):
        expected = next(b for b in buckets if b.max_batch is None or n_items <= b.max_batch)
        assert plan.bucket(n_items) == expected


def test_a_saved_plan_keeps_where_it_comes_from(tmp_path):
    PLAN.save(tmp_path / "new" / "plan.json")
    plan = load_plan(str(tmp_path / "new" / "plan.json"), SPECS, ["cpu"])
    assert plan == PLAN
    assert plan.provenance == {"date": "today"}
    table = explain(plan)
    assert table["tables"].tolist() == [1, 2, 3]
    assert table["batch"].tolist() == ["1-8", "1-8", "9-"]


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ((("compiled", (), (0, 1)),), "table 2 is in 0 groups; expected exactly one"),
        ((("compiled", (), (0, 1, 2)), ("dedup", (), (1,))), "table 1 is in 2 groups"),
        ((("compiled", (), (0, 1, 2, 3)),), "table 3 is in a group, but the plan has 3 tables"),
        ((("compiled", (), (1, 0, 2)),), "not ascending"),
        (
            (("compield", (), (0, 1, 2)),),
            ("unknown schedule 'compield'; expected one of per_table, fused"),
        ),
        (
            (("compiled", params(unrol=2), (0, 1, 2)),),
            ("compiled: unknown parameter 'unrol'; it knows ahead, distance"),
        ),
        ((("fused", params(x=2), (0, 1, 2)),), "fused: unknown parameter 'x'; it has none"),
        (
            (("compiled", params(unroll=3), (0, 1, 2)),),
            ("compiled: unroll is 3; expected one of 1, 2, 4, 8"),
        ),
        ((("compiled", params(unroll=True), (0, 1, 2)),), "compiled: unroll is True"),
        (
            (("one_width", (), (0, 2)), ("fused", (), (1,))),
            ("one_width: for 2 of 3 tables; it looks up all at once"),
        ),
        (
            (("copy", (), (0, 1)), ("fused", (), (2,))),
            ("table 1: copy needs bags of exactly one id; the table is 100 x 4"),
        ),
        ((("fixed_length", (), (0, 1, 2)),), "table 1: fixed_length needs bags of so many ids"),
    ],
)
def test_groups_that_cannot_be_are_refused(groups, message):
    with pytest.raises(ValueError, match=message):
        Plan("cpu", SPECS, (Bucket(None, tuple(Group(*group) for group in groups)),))


@pytest.mark.parametrize("limits", [(), (8,), (None, None), (8, 4, None), (4, 4, None), (0, None)])
def test_buckets_ascend_and_the_last_is_unbounded(limits):
    with pytest.raises(ValueError, match="max_batch"):
        Plan("cpu", SPECS, tuple(Bucket(limit, PLAN.buckets[1].groups) for limit in limits))


def test_settings_are_checked_too():
    with pytest.raises(ValueError, match="settings: threads is 0; expected 1 to 1024"):
        Plan("cpu", SPECS, (Bucket(None, PLAN.buckets[1].groups, params(threads=0)),))
    with pytest.raises(ValueError, match="device 'tpu'; expected one of cpu, cuda"):
        replace(PLAN, device="tpu")


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        (
            (*SPECS[:2], TableSpec(10, 32, 3)),
            "table 2: plan has 10 x 6, 3 ids a bag, model has 10 x 32, 3 ids a bag",
        ),
        ((SPECS[0], TableSpec(99, 4), SPECS[2]), "table 1: plan has 100 x 4, model has 99 x 4"),
        ((TableSpec(10, 6), *SPECS[1:]), "table 0: plan has 10 x 6, 1 id a bag, model has 10 x 6$"),
        (SPECS[:2], "plan has 3 tables, model has 2"),
    ],
)
def test_a_plan_for_other_tables_names_the_first_difference(specs, message):
    with pytest.raises(ValueError, match=message):
        PLAN.check_specs(specs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("buckets"), "is no plan: KeyError 'buckets'"),
        (lambda d: d.update(version=99), "plan of version 99"),
        (lambda d: d.update(specs_hash="0"), "specs_hash is 0, but that of its tables is"),
        (lambda d: d["tables"][0].update(tables="0-"), "expected numbers and ranges"),
        (
            lambda d: d["tables"][0].update(rows=0),
            "rows is 0; expected a whole number of at least 1",
        ),
        (lambda d: d["buckets"][0]["groups"][0].update(tables=[0]), "is no plan"),
        (lambda d: d.update(buckets=3), "is no plan"),
    ],
)
def test_a_file_that_is_no_plan_is_refused_in_one_line(change, message, tmp_path):
    document = json.loads(PLAN.to_json())
    change(document)
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(document))
    with pytest.raises(ConfigError, match=message) as caught:
        load_plan(str(file), SPECS, ["cpu"])
    assert str(caught.value).startswith(f"embedding_plan {file}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[1]", "{", '"x"', "null"])
def test_what_is_no_json_object_is_refused(text):
    with pytest.raises(ValueError, match="is no"):
        from_json(text)


def test_a_plan_beside_another_choice_of_operators_is_refused():
    for choice in ({"fused": "off"}, {"embedding_operator": "per_table"}):
        with pytest.raises(ConfigError, match="a plan chooses the operators itself"):
            ModelConfig(embedding_plan="x.json", **choice)


def test_every_schedule_is_told_apart_by_its_first_values():
    for knobs in (knobs for schedules in SCHEDULES.values() for knobs in schedules.values()):
        for values in knobs.values():
            assert len({*values}) == len(values)


@pytest.mark.parametrize(
    "mode", [["DeepRecSys.py", "--queue"], ["DeepRecSys.py"], ["models/wide_and_deep.py"]]
)
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "No such file or directory"),
        ("{", "is no JSON"),
        (PLAN.to_json(), "table 0: plan has 10 x 6, 1 id a bag"),
        (
            replace(PLAN, device="cuda", buckets=(Bucket(None, ()),), specs=()).to_json(),
            "is a plan for cuda",
        ),
    ],
)
def test_an_unusable_plan_ends_with_one_line_and_code_2(mode, text, message, tmp_path):
    file = tmp_path / "plan.json"
    if text is not None:
        file.write_text(text)
    script, *flags = mode
    config = str(ROOT / "models/configs/wide_and_deep.json")
    words = ["--config_file", config, *flags, *TINY, "--embedding_plan", str(file)]
    done = run_script(script, *words, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "results").exists()


def test_models_say_how_many_ids_their_bags_have():
    config = ModelConfig(arch_embedding_size="40-30", num_indices_per_lookup=3)
    assert model_specs(config) == (TableSpec(40, 2), TableSpec(30, 2))
    fixed = replace(config, num_indices_per_lookup_fixed=True)
    assert model_specs(fixed) == (TableSpec(40, 2, 3), TableSpec(30, 2, 3))
