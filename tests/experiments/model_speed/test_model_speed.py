"""The peers of a model compute what it computes, and the table says what the rows say."""

import pandas as pd
import pytest
import torch

from accelerator.devices import model_configs
from experiments.common.look_up_peers import by_table
from experiments.common.released import config_of
from experiments.model_speed import peers, plot
from models import build
from models.inputs.synthetic import InputPool


@pytest.mark.parametrize("jagged", [False, True])
@pytest.mark.parametrize("name", sorted(model_configs()))
def test_the_plain_port_gives_the_scores_of_the_packed_model(name, jagged):
    words = "--table_scale 0.0001 --num_batches 1 --max_mini_batch_size 32"
    config = config_of(name, f"{words} --num_indices_per_lookup_fixed {not jagged}").model
    with torch.inference_mode():
        model = build(config, seed=4)
        plain = peers.PlainPort(model)
        model.pack()
        batch = InputPool(config, 1, 32, seed=2).batch(0, 3, 20)
        expected = model(batch)
        assert expected.abs().max() > 0
        scores = plain(batch.dense_BF, by_table(peers.rival_bags(model, batch)))
        torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-5)


def test_the_table_of_ratios_pairs_the_rounds():
    times = {
        "ours": (1, 2, 4),
        "plain": (2, 6, 8),
        "ours look-up": (1, 1, 1),
        "plain look-up": (5, 6, 7),
    }
    rows = [
        {"model": "rm1", "batch": 64, "contender": name, "round": i, "ms": ms}
        for name, rounds in times.items()
        for i, ms in enumerate(rounds)
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
