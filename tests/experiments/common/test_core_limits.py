"""The limit of a core."""

import pytest
import torch

from experiments.common import core_limits
from experiments.common.released import net_of
from models import build
from models.inputs.synthetic import InputPool


def test_the_limit_is_the_slowest_of_its_three_parts():
    config = net_of("rm1", 0.0001)
    model = build(config, seed=1)
    cost_at = core_limits.costs(config, 10)
    products = core_limits.CoreLimit(1e3, 1e18, 0).seconds(model, 10)
    rows = core_limits.CoreLimit(1e18, 1e3, 0).seconds(model, 10)
    assert products == pytest.approx(cost_at.flops / 1e3)
    assert rows == pytest.approx(cost_at.gather_bytes / 1e3)
    assert core_limits.CoreLimit(1e18, 1e18, 7.5).seconds(model, 10) == 7.5


def test_the_best_of_several_limits_is_the_best_of_each_rate():
    limits = [core_limits.CoreLimit(1, 20, 0.3), core_limits.CoreLimit(2, 10, 0.4)]
    assert core_limits.best(limits) == core_limits.CoreLimit(2, 20, 0.3)


@pytest.mark.parametrize("name", ["rm1", "ncf"])
def test_measured_limits_are_rates_of_this_core(name):
    config = net_of(name, 0.0001)
    with torch.inference_mode():
        model = build(config, seed=1, device=torch.device("cpu"))
        limit = core_limits.measure_limit(model, InputPool(config, 1, 32, seed=1))
    assert 1e8 < limit.gemm_flops_per_s < 1e14
    assert 1e6 < limit.gather_bytes_per_s < 1e13
    assert 0 < limit.weights_s < 1
