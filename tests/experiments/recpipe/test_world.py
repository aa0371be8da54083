"""Designs of pipelines in virtual time: rates, power, engines, service times."""

from dataclasses import replace

import pytest
from drawn_rankers import ONE, TWO, K

from experiments.recpipe.chains import Chain
from experiments.recpipe.world import ARRAYS, CORE_WATTS, GPU, MOST_QPS, RATE_WIDTH, SystemDesign
from infra.messages import CPU

ON_CHIP = SystemDesign(TWO.chain, (ARRAYS, ARRAYS), sub_arrays=(16, 4))


@pytest.mark.parametrize("design", [ONE, TWO, SystemDesign(TWO.chain, (GPU, CPU), 10), ON_CHIP])
def test_the_highest_rate_meets_the_sla_and_a_little_more_does_not(world, design):
    sla_ms = 4 * world.run(design, 1.0).p95_ms
    most_qps = world.max_qps(design, sla_ms)
    lasts_s = 20 * sla_ms / 1e3
    assert world.run(design, most_qps, lasts_s).p95_ms <= sla_ms
    above = world.run(design, most_qps * (1 + RATE_WIDTH), lasts_s)
    assert above.p95_ms > sla_ms or not above.carried or most_qps >= MOST_QPS
    assert world.max_qps(design, 0.001) == 0


def test_fewer_items_cost_less_and_find_less(world):
    few = replace(ONE, share=0.25)
    assert world.run(few, 10.0).p95_ms < world.run(ONE, 10.0).p95_ms
    assert world.quality(few.chain, 0.25).ndcg < world.quality(ONE.chain).ndcg


def test_what_is_beyond_the_capacity_is_not_carried(world):
    assert world.run(ONE, 10.0).carried
    assert not world.run(ONE, 5000.0).carried
    capacity = 1 / (4 * world.cpu["large"].ms(10) / 1e3) * 8  # four tasks of 10 items, 8 cores
    assert world.run(ONE, 0.9 * capacity).carried
    assert not world.run(ONE, 1.03 * capacity).carried


def test_the_warm_up_is_not_counted(world):
    """The first tenth of the queries as one burst: what they wait is nobody's p95."""
    unit_s = world.unit_s.copy()
    few = replace(world, n_queries=400)
    unit_s[:40] = unit_s[40] - 1.0
    few.__dict__["unit_s"] = unit_s
    assert few.run(ONE, 10.0, 0.0).p95_ms < 2 * world.run(ONE, 10.0, 0.0).p95_ms


def test_a_design_gives_the_same_whoever_ran_before(world):
    first = replace(world).run(TWO, 30.0)
    for before in ("medium", "large"):  # the same rankers at other stages
        used = replace(world)
        assert used.run(replace(TWO, chain=Chain((before, "small"), (8, K))), 30.0)
        assert used.run(TWO, 30.0) == first


def test_only_the_hosts_filter_takes_the_hosts_time(world):
    assert world.built(TWO)[2].filter_ns > 0
    assert world.built(ON_CHIP)[2].filter_ns == 0


def test_power_is_that_of_the_devices_used(world):
    assert world.watts(ONE) == 8 * CORE_WATTS
    assert world.watts(SystemDesign(TWO.chain, (GPU, CPU))) == 8 * CORE_WATTS + 70
    assert world.watts(SystemDesign(ONE.chain, (GPU,))) == 70
    on_chip = SystemDesign(ONE.chain, (ARRAYS,), sub_arrays=(4,))
    assert world.watts(on_chip) == pytest.approx(4.655232, rel=1e-3)


def test_stages_share_cores_or_have_their_own_and_arrays_are_split(world):
    assert world.built(TWO)[1] == {CPU: 8}
    assert world.built(replace(TWO, cores=(2, 6)))[1] == {"cpu0": 2, "cpu1": 6}
    assert world.built(SystemDesign(TWO.chain, (GPU, GPU)))[1] == {GPU: 1}
    assert world.built(ON_CHIP)[1] == {"rpaccel0": 8, "rpaccel1": 2}
