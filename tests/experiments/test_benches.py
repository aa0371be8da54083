"""The benches' peers compute what the models compute, and their tables say what the rows say."""

import pandas as pd
import pytest
import torch

from accelerator.devices import model_configs
from experiments.common import core_limits
from experiments.model_speed import peers, plot
from infra.settings.cli import parse
from models import build
from models.inputs.synthetic import InputPool


def config_of(name, *more):
    words = ["--table_scale", "0.0001", "--num_batches", "1", "--max_mini_batch_size", "32", *more]
    return parse(["--config_file", str(model_configs()[name]), *words]).model


@pytest.mark.parametrize("jagged", [False, True])
@pytest.mark.parametrize("name", sorted(model_configs()))
def test_the_plain_port_gives_the_scores_of_the_packed_model(name, jagged):
    config = config_of(name, "--num_indices_per_lookup_fixed", str(not jagged))
    with torch.inference_mode():
        model = build(config, seed=4)
        plain = peers.PlainPort(model)
        model.pack()
        batch = InputPool(config, 1, 32, seed=2).batch(0, 3, 20)
        expected = model(batch)
        assert expected.abs().max() > 0
        torch.testing.assert_close(
            plain(batch.dense_BF, peers.by_table(model, batch)), expected, rtol=1e-4, atol=1e-5
        )


def test_the_limit_is_the_slowest_of_its_three_parts():
    config = config_of("rm1")
    model = build(config, seed=1)
    cost_at = core_limits.costs(config, 10)
    products = core_limits.Limit(1e3, 1e18, 0).seconds(model, 10)
    rows = core_limits.Limit(1e18, 1e3, 0).seconds(model, 10)
    assert products == pytest.approx(cost_at.flops / 1e3)
    assert rows == pytest.approx(cost_at.gather_bytes / 1e3)
    assert core_limits.Limit(1e18, 1e18, 7.5).seconds(model, 10) == 7.5


def test_the_best_of_several_limits_is_the_best_of_each_rate():
    assert core_limits.best(
        [core_limits.Limit(1, 20, 0.3), core_limits.Limit(2, 10, 0.4)]
    ) == core_limits.Limit(2, 20, 0.3)


@pytest.mark.parametrize("name", ["rm1", "ncf"])
def test_measured_limits_are_rates_of_this_core(name):
    config = config_of(name)
    with torch.inference_mode():
        model = build(config, seed=1, device=torch.device("cpu"))
        found = core_limits.measure_limit(model, InputPool(config, 1, 32, seed=1))
    assert 1e8 < found.gemm_flops_per_s < 1e14
    assert 1e6 < found.gather_bytes_per_s < 1e13
    assert 0 < found.weights_s < 1


def test_the_table_of_ratios_pairs_the_rounds():
    times = {
        "ours": (1, 2, 4),
        "plain": (2, 6, 8),
        "ours look-up": (1, 1, 1),
        "plain look-up": (5, 6, 7),
    }
    rows = [
        {"model": "rm1", "batch": 64, "contender": name, "round": i, "ms": ms}
        for name, own in times.items()
        for i, ms in enumerate(own)
    ]
    rows += [
        {"model": "rm1", "batch": 64, "contender": "bfloat16", "round": i, "ms": 0.5, "error": 0.01}
        for i in range(3)
    ]
    rows.append({"model": "rm1", "batch": 64, "contender": "limit", "round": 0, "ms": 1.5})
    (line,) = plot.summary(pd.DataFrame(rows)).to_dict("records")
    assert line["plain/ours"] == "2.00 [2.00, 3.00]"
    assert line["compiled/ours"] == "-"
    assert line["look-up, plain/ours"] == "6.00 [5.00, 7.00]"
    assert line["released/ours"] == f"{3.6809 / 2:.2f}"
    assert line["limit share"] == "75%"
    assert line["bfloat16 error"] == "1.0e-02"
