"""The search with a clock of our own: it must find what is truly cheaper, and never what is wrong."""

import json

import numpy as np
import pytest
import torch
from helpers import run_script

from models.embedding import tuner
from models.embedding.backend import Choice, Refused
from models.embedding.cpu.backend import CpuBackend
from models.embedding.cpu.candidates import choices
from models.embedding.plan.plan import Bucket, Group, Plan, from_json, params
from models.embedding.plan.spec import TableSpec
from models.embedding.synthesis import Recorded, draw
from models.embedding.tuning.clusters import clusters
from models.embedding.tuning.problem import enough, of_recorded, recut
from models.embedding.tuning.recorded import joined
from models.embedding.tuning.search import Search, merged, replaced


class FakeBackend(CpuBackend):
    """Right sums, but time passes as `cost(schedule, spec, n_items)` says; `broken` leaves empty
    bags as they are.
    """

    def __init__(self, cost, names, broken=None):
        self.now_s = 0.0
        self._cost = cost
        self._names = names
        self._broken = broken
        self.timed = set()
        self.contended_with = []

    def build(self, layout, weight_E, bucket, *, checked):
        right = super().build(layout, weight_E, bucket, checked=checked)

        def run(bags, out):
            before = out.clone()
            right(bags, out)
            for group in bucket.groups:
                for table in group.tables:
                    self.now_s += self._cost(group.schedule, layout.specs[table], bags.n_items)
                    if group.schedule == self._broken:
                        a, b = layout.columns[table : table + 2]
                        first = table * bags.n_items
                        empty = torch.diff(bags.offsets)[first : first + bags.n_items] == 0
                        out[empty, a:b] = before[empty, a:b]

        run.schedules = {group.schedule for group in bucket.groups}
        return run

    def settings(self, _specs):
        return [params(threads=1)]

    def default_plan(self, specs, *, joined=False):
        del joined
        return Plan(
            "cpu", specs, (Bucket(None, (Group("compiled", (), tuple(range(len(specs)))),)),)
        )

    def uniform(self, specs, *_, **__):
        every = tuple(range(len(specs)))
        return [(Group(name, (), every),) for name in self._names if name != "copy"]

    def candidates(self, cluster, *_):
        return [
            Choice(name, ()) for name in self._names if name != "copy" or cluster.spec.bag_ids == 1
        ]

    def contended(self, settings):
        self.contended_with.append(settings)
        return torch.no_grad()

    def seconds(self, calls, n_rounds):
        times = np.empty((len(calls), n_rounds))
        for r in range(n_rounds):
            for k, call in enumerate(calls):
                start = self.now_s
                call(r)
                times[k, r] = self.now_s - start
        return times


SPECS = (
    TableSpec(30, 4, 1),
    TableSpec(30, 4, 1),
    TableSpec(900, 8),
    TableSpec(900, 8),
    TableSpec(40, 3),
)


def recorded(n_items=64, n_batches=2):
    rng = np.random.default_rng(0)
    batches = []
    for _ in range(n_batches):
        lengths = np.stack(
            [np.ones(n_items, int) if s.bag_ids else rng.integers(0, 9, n_items) for s in SPECS]
        )
        ids = [rng.integers(0, s.rows, n.sum()) for s, n in zip(SPECS, lengths, strict=True)]
        batches.append(joined(np.concatenate(ids), lengths))
    return Recorded(SPECS, tuple(batches))


def search(
    cost, sizes=(2, 32), names=("compiled", "fused", "copy", "dedup"), broken=None, budget_s=1e9
):
    own = FakeBackend(cost, names, broken)
    found = Search(of_recorded(recorded(), sizes), own, budget_s, clock=lambda: own.now_s)
    with torch.inference_mode():
        return found.run(), found, own


def chosen(plan, n_items):
    return {
        table: group.schedule for group in plan.bucket(n_items).groups for table in group.tables
    }


def test_each_kind_of_table_gets_its_cheapest_schedule():
    cheap = {4: "copy", 8: "fused", 3: "dedup"}
    plan, found, own = search(lambda name, spec, _: 1.0 if cheap[spec.dim] == name else 2.0)
    for n_items in (1, 32, 500):
        assert chosen(plan, n_items) == {0: "copy", 1: "copy", 2: "fused", 3: "fused", 4: "dedup"}
    assert len(plan.buckets) == 1  # one plan serves all sizes
    assert [row["single_over_tuned"] for row in plan.provenance["sizes"]] == pytest.approx(
        [1.6, 1.6]
    )
    assert found.refused == []
    assert own.contended_with == [params(threads=1)] * 2


def test_the_winners_of_all_kinds_are_what_the_search_begins_with_and_are_not_tried_together():
    cheap = {4: "copy", 8: "fused", 3: "dedup"}
    own = FakeBackend(
        lambda name, spec, _: 1.0 if cheap[spec.dim] == name else 2.0, [*cheap.values(), "compiled"]
    )
    found = Search(of_recorded(recorded(), [32]), own, 1e9, clock=lambda: own.now_s)
    with torch.inference_mode():
        groups = found.winners(32, params(threads=1))
    assert {group.schedule: group.tables for group in groups} == {
        "copy": (0, 1),
        "fused": (2, 3),
        "dedup": (4,),
    }
    assert own.contended_with == [params(threads=1)]


def test_a_plan_by_batch_size_where_that_pays():
    def cost(name, _, n_items):
        return 1.0 if name == ("compiled" if n_items < 10 else "fused") else 3.0

    plan, _, _ = search(cost)
    assert {*chosen(plan, 2).values()} == {"compiled"}
    assert {*chosen(plan, 32).values()} == {"fused"}
    assert plan.buckets[0].max_batch == 8  # sqrt(2 * 32)


def test_what_gains_too_little_is_not_trusted():
    plan, _, _ = search(
        lambda name, spec, _: 1.0 if name == ("fused" if spec.dim == 8 else "compiled") else 1.04
    )
    assert len({*chosen(plan, 32).values()}) == 1


def test_a_mix_that_only_noise_favours_is_not_taken():
    class Noisy(FakeBackend):
        def seconds(self, calls, n_rounds):
            times = super().seconds(calls, n_rounds)
            mixed = (
                times.min(1) < times.min(1).max()
            )  # the cheapest of the calls, but in two rounds of five
            times[np.ix_(mixed, np.arange(n_rounds) % 5 < 2)] *= 9.0
            return times

    def cost(name, spec, _):
        return 1.0 if name == ("fused" if spec.dim == 8 else "compiled") else 1.4

    own = Noisy(cost, ("compiled", "fused"))
    with torch.inference_mode():
        plan = Search(of_recorded(recorded(), [32]), own, 1e9, clock=lambda: own.now_s).run()
    assert len({*chosen(plan, 32).values()}) == 1
    assert (
        len({*chosen(search(cost, (32,), ("compiled", "fused"))[0], 32).values()}) == 2
    )  # without the noise


def test_what_runs_without_a_plan_stays_where_nothing_is_clearly_faster():
    for ms, schedule in ((0.96, "compiled"), (0.9, "fused")):
        plan, found, _ = search(
            lambda name, *_, ms=ms: ms if name == "fused" else 1.0, names=("compiled", "fused")
        )
        assert {*chosen(plan, 32).values()} == {schedule}
        row = plan.provenance["sizes"][0]
        assert row["default_over_tuned"] == pytest.approx(1.0 if schedule == "compiled" else 1 / ms)
        assert row["single_over_tuned"] == pytest.approx(ms if schedule == "compiled" else 1.0)
        assert found.refused == []


def test_a_candidate_that_leaves_empty_bags_is_refused_however_fast():
    free = {"dedup": 0.001}
    plan, found, _ = search(lambda name, *_: free.get(name, 1.0), broken="dedup")
    assert "dedup" not in {
        chosen(plan, 2)[table] for table in (2, 3, 4)
    }  # tables 0 and 1 have no empty bags
    assert found.refused
    assert all(line.startswith("dedup: table ") for line in found.refused)
    assert plan.provenance["refused"] == found.refused


def test_a_candidate_that_the_device_does_not_take_is_refused_and_the_search_goes_on():
    class Small(FakeBackend):
        def build(self, layout, weight_E, bucket, *, checked):
            run = super().build(layout, weight_E, bucket, checked=checked)

            def limited(bags, out):
                if "dedup" in run.schedules:
                    raise Refused("out of shared memory")
                run(bags, out)

            return limited

    own = Small(lambda name, *_: 0.001 if name == "dedup" else 1.0, ("compiled", "dedup"))
    with torch.inference_mode():
        plan = Search(of_recorded(recorded(), [32]), own, 1e9, clock=lambda: own.now_s).run()
    assert {*chosen(plan, 32).values()} == {"compiled"}
    assert {*plan.provenance["refused"]} == {"dedup: out of shared memory"}


def test_no_right_candidate_is_an_error_and_not_a_plan():
    with pytest.raises(RuntimeError, match="no candidate looks up table 2"):
        search(lambda *_: 1.0, names=("dedup", "copy"), broken="dedup")


def test_the_climb_finds_what_is_cheaper_only_together():
    class Coupled(FakeBackend):
        def build(self, layout, weight_E, bucket, *, checked):
            run = super().build(layout, weight_E, bucket, checked=checked)
            mixed = len(bucket.groups) > 1

            def slower(bags, out):
                run(bags, out)
                self.now_s += 5.0 if mixed and "fused" in run.schedules else 0.0

            return slower

    own = Coupled(
        lambda name, spec, _: 1.0 if name == ("fused" if spec.dim == 8 else "compiled") else 2.0,
        ("compiled", "fused"),
    )
    with torch.inference_mode():
        plan = Search(of_recorded(recorded(), [32]), own, 1e9, clock=lambda: own.now_s).run()
    assert {*chosen(plan, 32).values()} == {
        "compiled"
    }  # 7, against 5 + 5 for the local winners and 8 for all fused


def test_the_climb_goes_on_from_a_second_best():
    class Coupled(FakeBackend):
        def build(self, layout, weight_E, bucket, *, checked):
            run = super().build(layout, weight_E, bucket, checked=checked)
            spoilt = run.schedules == {"compiled", "fused"}

            def slower(bags, out):
                run(bags, out)
                self.now_s += 9.0 if spoilt else 0.0

            return slower

    def cost(name, spec, _):
        return (
            {"compiled": 3.0, "fused": 1.0, "dedup": 1.5}[name]
            if spec.dim == 8
            else 5.0 - 4 * (name == "compiled")
        )

    own = Coupled(cost, ("compiled", "fused", "dedup"))
    with torch.inference_mode():
        plan = Search(of_recorded(recorded(), [32]), own, 1e9, clock=lambda: own.now_s).run()
    assert chosen(plan, 32) == {0: "compiled", 1: "compiled", 2: "dedup", 3: "dedup", 4: "compiled"}


def test_the_climb_leaves_a_schedule_for_all_tables_at_once_whole():
    class Matrix(FakeBackend):
        def uniform(self, specs, *_, **__):
            return [(Group("one_width", (), tuple(range(len(specs)))),)]

        def build(self, layout, weight_E, bucket, *, checked):
            Plan("cpu", layout.specs, (bucket,)) if len(
                bucket.groups
            ) > 1 else None  # a group of each table once
            own = Bucket(None, tuple(Group("compiled", (), g.tables) for g in bucket.groups))
            run = super().build(layout, weight_E, own, checked=checked)
            whole = bucket.groups[0].schedule == "one_width"

            def priced(bags, out):
                before = self.now_s
                run(bags, out)
                self.now_s = before + (0.5 if whole else self.now_s - before)

            return priced

    own = Matrix(lambda *_: 1.0, ("compiled", "fused"))
    with torch.inference_mode():
        plan = Search(of_recorded(recorded(), [32]), own, 1e9, clock=lambda: own.now_s).run()
    assert chosen(plan, 32) == dict.fromkeys(range(len(SPECS)), "one_width")


def test_the_search_ends_with_its_budget():
    _, _, short = search(lambda *_: 1.0, budget_s=1.0)
    _, _, long = search(lambda *_: 1.0)
    assert short.now_s < long.now_s


def test_when_the_time_is_up_each_kind_of_table_keeps_its_first_guess():
    _, found, _ = search(lambda *_: 1.0, sizes=(2,), budget_s=1e-9)
    assert all(row["candidates"] == 1 for row in found.spread)
    assert {row["best"] for row in found.spread} == {"compiled"}
    _, found, _ = search(lambda *_: 1.0, sizes=(2,))
    assert {row["candidates"] for row in found.spread} == {3, 4}


def test_all_that_is_to_be_timed_is_compiled_together_first_guesses_first():
    seen = []

    class Compiling(FakeBackend):
        def prepare(self, layout, _weight, buckets, bags, seconds):
            seen.append(([[group.schedule for group in own.groups] for own in buckets], seconds))
            assert (layout.specs, bags.n_items) == (SPECS, 2)
            assert all(own.settings == params(threads=1) for own in buckets)

    own = Compiling(lambda *_: 1.0, ("compiled", "fused", "copy"))
    with torch.inference_mode():
        Search(of_recorded(recorded(), [2]), own, 100.0, clock=lambda: own.now_s).run()
    local, uniform, rivals = seen
    assert local[0] == [["compiled"]] * 3 + [["fused"]] * 3 + [["copy"]]
    assert local[1] == pytest.approx(100 * 0.6 / 2)
    assert uniform[0][:2] == [["compiled"], ["fused"]]
    assert len(uniform[0]) == 3  # and what is run without a plan
    assert len(rivals[0]) >= 3


def test_the_search_is_repeatable():
    cost = {name: 1 + i / 3 for i, name in enumerate(("dedup", "compiled", "copy", "fused"))}
    plans = [search(lambda name, spec, _: cost[name] * spec.dim)[0] for _ in range(2)]
    assert plans[0] == plans[1]


def test_the_cost_model_keeps_the_best_guess_and_drops_the_hopeless():
    problem = of_recorded(draw("A", [64], seed=1, tables_frac=0.02), [64])
    found = clusters(problem.layout, problem.batches[64])
    assert sorted(t for cluster in found for t in cluster.tables) == [
        *range(len(problem.layout.specs))
    ]
    for cluster in found:
        names = [choice.schedule for choice in choices(cluster, 0.0)]
        assert names
        assert {"compiled", "copy"} & {*names}
        assert ("copy" in names) <= (cluster.spec.bag_ids == 1)
        assert all(dict(choice.params).get("storage") is None for choice in choices(cluster, 0.0))
        assert any(
            dict(choice.params).get("storage") == "int8" for choice in choices(cluster, 0.01)
        )


def test_few_clusters_where_many_tables_differ():
    problem = of_recorded(draw("A", [16], seed=1, tables_frac=0.1), [16])
    exact, coarse = (clusters(problem.layout, problem.batches[16], most) for most in (1000, 20))
    assert len(coarse) <= 20 < len(exact)
    for cluster in coarse:
        assert (
            len(
                {
                    (problem.layout.specs[t].dim, problem.layout.specs[t].bag_ids)
                    for t in cluster.tables
                }
            )
            == 1
        )


def test_a_round_of_batches_reads_more_than_a_cache_holds():
    for item_bytes in (40, 1e3, 3e5, 1e9):
        for n_items in (1, 8, 512):
            n = enough(item_bytes, n_items)
            assert 64 <= n <= 16_384
            assert n * n_items * item_bytes > 100 << 20 or n == 16_384


def test_small_batches_are_cut_of_all_samples():
    source = recorded(n_items=300)
    assert len(of_recorded(source, [1, 4]).batches[1]) == 600
    assert len(of_recorded(source, [1, 4]).batches[4]) == 150


def test_samples_are_cut_anew_and_none_is_lost():
    source = recorded(n_items=10, n_batches=3)
    parts = recut(source.batches, len(SPECS), 4)
    assert [part.n_items for part in parts] == [4] * 7
    for table in range(len(SPECS)):
        whole = np.concatenate([batch.ids_of(table) for batch in source.batches])
        again = np.concatenate([part.ids_of(table) for part in parts])
        assert np.array_equal(again, whole[: len(again)])
        lengths = np.concatenate([batch.lengths_of(table) for batch in source.batches])[:28]
        assert np.array_equal(np.concatenate([part.lengths_of(table) for part in parts]), lengths)


def test_wrong_sums_are_told_apart_from_right_ones():
    problem = of_recorded(recorded(), [8])
    own = CpuBackend()
    bucket = Bucket(None, (Group("compiled", (), tuple(range(len(SPECS)))),))
    right = own.build(problem.layout, problem.weight_E, bucket, checked=True)
    assert problem.wrong(right, range(len(SPECS)), 0.0) is None

    def off_by_one(bags, out):
        right(bags, out)
        out[-1, -1] += 1

    assert problem.wrong(off_by_one, range(len(SPECS)), 0.0) == "table 4 is off by 1"
    assert problem.wrong(off_by_one, [0, 1, 2, 3], 0.0) is None
    narrow = Bucket(None, (Group("compiled", params(storage="int8"), (2,)),))
    run = own.build(problem.layout, problem.weight_E, narrow, checked=False)
    assert problem.wrong(run, [2], 0.0) is not None
    assert problem.wrong(run, [2], 1 / 255) is None


def test_the_command_writes_a_plan_that_the_model_runs_on_and_remembers_it(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    words = [
        "--model",
        "ncf",
        "--table_scale",
        "0.001",
        "--budget_s",
        "2",
        "--batch",
        "1,16",
        "--out",
        "p.json",
    ]
    assert tuner.main(words) == 0
    plan = from_json((tmp_path / "p.json").read_text())
    assert plan.provenance["model"] == "ncf"
    assert [row["batch"] for row in plan.provenance["sizes"]] == [1, 16]
    assert "--again" not in capsys.readouterr().err
    assert tuner.main(words) == 0
    assert "--again searches anew" in capsys.readouterr().err
    assert json.loads((tmp_path / "p.json").read_text()) == json.loads(plan.to_json())
    done = run_script(
        "models/ncf.py",
        "--config_file",
        str(tuner.CONFIGS / "ncf.json"),
        "--table_scale",
        "0.001",
        "--num_batches",
        "1",
        "--embedding_plan",
        "p.json",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("words", "message"), [
    (["--model", "rm9"], "'rm9' is neither a folder nor one of"), (["--model", "ncf", "--batch", "0"], "--batch needs"),
    (["--model", "."], "neither table_config.txt nor batches.parquet"),
    (["--model", "ncf", "--budget_s", "0"], "--budget_s more than 0"), (["--model", ".", "--x"], "unknown flags --x"),
])  # fmt: skip
def test_what_cannot_be_tuned_is_said_in_one_line(words, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert tuner.main(words) == 2
    text = capsys.readouterr().err
    assert message in text
    assert text.count("\n") == 1


def test_tables_change_their_schedule_and_no_table_is_lost():
    groups = merged(
        [(Choice("fused", ()), [3, 0]), (Choice("dedup", ()), [1]), (Choice("fused", ()), [2])]
    )
    assert groups == (Group("fused", (), (0, 2, 3)), Group("dedup", (), (1,)))
    assert replaced(groups, Choice("dedup", ()), [0, 3]) == (
        Group("fused", (), (2,)),
        Group("dedup", (), (0, 1, 3)),
    )
    assert replaced(groups, Choice("fused", ()), [0, 3]) == (
        Group("fused", (), (0, 2, 3)),
        Group("dedup", (), (1,)),
    )
