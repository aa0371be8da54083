"""The search with a clock of its own: it finds what is truly cheaper, and never what is wrong."""

import numpy as np
import pytest
import torch

from models.embedding.backend import Choice, Refused
from models.embedding.cpu.backend import CpuBackend
from models.embedding.plan.plan import Bucket, Group, Plan, params
from models.embedding.tuning.problem import of_recorded
from models.embedding.tuning.search import PlanSearch, clearly_faster, merged, paired, replaced
from tests.models.embedding.searched import SPECS, recorded


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
        tables = tuple(range(len(specs)))
        return [(Group(name, (), tables),) for name in self._names if name != "copy"]

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


def search(
    cost, sizes=(2, 32), names=("compiled", "fused", "copy", "dedup"), broken=None, budget_s=1e9
):
    backend = FakeBackend(cost, names, broken)
    plan_search = search_on(backend, sizes, budget_s)
    with torch.inference_mode():
        return plan_search.run(), plan_search, backend


def search_on(backend, sizes=(32,), budget_s=1e9):
    problem = of_recorded(recorded(), sizes)
    return PlanSearch(problem, backend, budget_s, clock=lambda: backend.now_s)


def plan_on(backend):
    with torch.inference_mode():
        return search_on(backend).run()


def chosen(plan, n_items):
    return {
        table: group.schedule for group in plan.bucket(n_items).groups for table in group.tables
    }


def test_each_kind_of_table_gets_its_cheapest_schedule():
    cheap = {4: "copy", 8: "fused", 3: "dedup"}
    plan, done, backend = search(lambda name, spec, _: 1.0 if cheap[spec.dim] == name else 2.0)
    for n_items in (1, 32, 500):
        assert chosen(plan, n_items) == {0: "copy", 1: "copy", 2: "fused", 3: "fused", 4: "dedup"}
    assert len(plan.buckets) == 1  # one plan serves all sizes
    assert [row["single_over_tuned"] for row in plan.provenance["sizes"]] == pytest.approx(
        [1.6, 1.6]
    )
    assert done.refused == []
    assert backend.contended_with == [params(threads=1)] * 2


def test_the_winners_of_all_kinds_are_what_the_search_begins_with_and_are_not_tried_together():
    cheap = {4: "copy", 8: "fused", 3: "dedup"}
    backend = FakeBackend(
        lambda name, spec, _: 1.0 if cheap[spec.dim] == name else 2.0, [*cheap.values(), "compiled"]
    )
    with torch.inference_mode():
        groups = search_on(backend).winners(32, params(threads=1))
    assert {group.schedule: group.tables for group in groups} == {
        "copy": (0, 1),
        "fused": (2, 3),
        "dedup": (4,),
    }
    assert backend.contended_with == [params(threads=1)]


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
            # the cheapest of the calls, but not in two rounds of five
            mixed = times.min(1) < times.min(1).max()
            times[np.ix_(mixed, np.arange(n_rounds) % 5 < 2)] *= 9.0
            return times

    def cost(name, spec, _):
        return 1.0 if name == ("fused" if spec.dim == 8 else "compiled") else 1.4

    plan = plan_on(Noisy(cost, ("compiled", "fused")))
    assert len({*chosen(plan, 32).values()}) == 1
    without_noise, _, _ = search(cost, (32,), ("compiled", "fused"))
    assert len({*chosen(without_noise, 32).values()}) == 2


def test_what_runs_without_a_plan_stays_where_nothing_is_clearly_faster():
    for ms, schedule in ((0.96, "compiled"), (0.9, "fused")):
        plan, done, _ = search(
            lambda name, *_, ms=ms: ms if name == "fused" else 1.0, names=("compiled", "fused")
        )
        assert {*chosen(plan, 32).values()} == {schedule}
        row = plan.provenance["sizes"][0]
        assert row["default_over_tuned"] == pytest.approx(1.0 if schedule == "compiled" else 1 / ms)
        assert row["single_over_tuned"] == pytest.approx(ms if schedule == "compiled" else 1.0)
        assert done.refused == []


def test_a_candidate_that_leaves_empty_bags_is_refused_however_fast():
    free = {"dedup": 0.001}
    plan, done, _ = search(lambda name, *_: free.get(name, 1.0), broken="dedup")
    with_empty_bags = (2, 3, 4)
    assert "dedup" not in {chosen(plan, 2)[table] for table in with_empty_bags}
    assert done.refused
    assert all(line.startswith("dedup: table ") for line in done.refused)
    assert plan.provenance["refused"] == done.refused


def test_a_candidate_that_the_device_does_not_take_is_refused_and_the_search_goes_on():
    class Small(FakeBackend):
        def build(self, layout, weight_E, bucket, *, checked):
            run = super().build(layout, weight_E, bucket, checked=checked)

            def limited(bags, out):
                if "dedup" in run.schedules:
                    raise Refused("out of shared memory")
                run(bags, out)

            return limited

    def cost(name, *_):
        return 0.001 if name == "dedup" else 1.0

    plan = plan_on(Small(cost, ("compiled", "dedup")))
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

    def cost(name, spec, _):
        return 1.0 if name == ("fused" if spec.dim == 8 else "compiled") else 2.0

    plan = plan_on(Coupled(cost, ("compiled", "fused")))
    # 7, against 5 + 5 for the local winners and 8 for all fused
    assert {*chosen(plan, 32).values()} == {"compiled"}


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
        if spec.dim == 8:
            return {"compiled": 3.0, "fused": 1.0, "dedup": 1.5}[name]
        return 1.0 if name == "compiled" else 5.0

    plan = plan_on(Coupled(cost, ("compiled", "fused", "dedup")))
    assert chosen(plan, 32) == {0: "compiled", 1: "compiled", 2: "dedup", 3: "dedup", 4: "compiled"}


def test_the_climb_leaves_a_schedule_for_all_tables_at_once_whole():
    class Matrix(FakeBackend):
        def uniform(self, specs, *_, **__):
            return [(Group("one_width", (), tuple(range(len(specs)))),)]

        def build(self, layout, weight_E, bucket, *, checked):
            if len(bucket.groups) > 1:
                Plan("cpu", layout.specs, (bucket,))  # each table is in a group once
            compiled = tuple(Group("compiled", (), group.tables) for group in bucket.groups)
            run = super().build(layout, weight_E, Bucket(None, compiled), checked=checked)
            whole = bucket.groups[0].schedule == "one_width"

            def priced(bags, out):
                before = self.now_s
                run(bags, out)
                self.now_s = before + (0.5 if whole else self.now_s - before)

            return priced

    plan = plan_on(Matrix(lambda *_: 1.0, ("compiled", "fused")))
    assert chosen(plan, 32) == dict.fromkeys(range(len(SPECS)), "one_width")


def test_the_search_ends_with_its_budget():
    _, _, short = search(lambda *_: 1.0, budget_s=1.0)
    _, _, long = search(lambda *_: 1.0)
    assert short.now_s < long.now_s


def test_when_the_time_is_up_each_kind_of_table_keeps_its_first_guess():
    _, hasty, _ = search(lambda *_: 1.0, sizes=(2,), budget_s=1e-9)
    assert all(row["candidates"] == 1 for row in hasty.spread)
    assert {row["best"] for row in hasty.spread} == {"compiled"}
    _, patient, _ = search(lambda *_: 1.0, sizes=(2,))
    assert {row["candidates"] for row in patient.spread} == {3, 4}


def test_all_that_is_to_be_timed_is_compiled_together_first_guesses_first():
    seen = []

    class Compiling(FakeBackend):
        def prepare(self, layout, _weight, buckets, bags, seconds):
            names = [[group.schedule for group in bucket.groups] for bucket in buckets]
            seen.append((names, seconds))
            assert (layout.specs, bags.n_items) == (SPECS, 2)
            assert all(bucket.settings == params(threads=1) for bucket in buckets)

    backend = Compiling(lambda *_: 1.0, ("compiled", "fused", "copy"))
    with torch.inference_mode():
        search_on(backend, (2,), 100.0).run()
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


@pytest.mark.parametrize(
    ("fast", "clear"),
    [
        ([0.9, 0.9, 0.9, 0.9], True),
        ([0.9, 0.5, 0.9, 0.8], True),
        ([0.97, 0.97, 0.97, 0.97], False),  # too little
        ([0.5, 0.5, 1.4, 1.6], False),  # fast in the median, but who knows
    ],
)
def test_faster_is_what_gains_enough_for_sure(fast, clear):
    times = np.array([[1.0, 1.0, 1.0, 1.0], fast])
    assert clearly_faster(times, 0, 1) == clear


@pytest.mark.parametrize("n", [7, 14, 28, 70])
def test_the_interval_of_the_paired_median_covers_it(n):
    rng = np.random.default_rng(n)
    covered = []
    for _ in range(2000):
        _, low, high = paired(np.stack((rng.exponential(size=n) + 1.0, np.ones(n))), 0, 1)
        covered.append(low <= 1 + np.log(2) <= high)
    assert 0.93 < np.mean(covered) < 0.995
