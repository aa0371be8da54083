"""Costs against what the forward pass really does: PyTorch's own count of FLOPs, the bytes that the inputs hold."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from accelerator.devices import model_configs
from infra.cli import parse
from models import build
from models.costs import costs
from models.inputs.synthetic import InputPool


def config_of(name, variant):
    words = ["--table_scale", "0.0001", "--arch_variant", variant, "--num_batches", "1", "--max_mini_batch_size", "64"]
    return parse(["--config_file", str(model_configs()[name]), *words]).model


@pytest.mark.parametrize("variant", ["caffe2", "paper"])
@pytest.mark.parametrize("name", sorted(model_configs()))
def test_flops_and_bytes_are_those_of_the_forward_pass(name, variant):
    config = config_of(name, variant)
    model, pool = build(config, 1), InputPool(config, 1, 64, 1)
    for n_items in (1, 64):
        batch, expected = pool.batch(0, 0, n_items), costs(config, n_items)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:  # inference mode hides operators from it
            scores = model(batch)
        assert counter.get_total_flops() == expected.flops
        shipped = batch.ids_L.nbytes + batch.offsets.nbytes
        shipped += 0 if batch.dense_BF is None else batch.dense_BF.nbytes
        assert expected.input_bytes == shipped
        assert expected.output_bytes == scores.nbytes
        assert expected.gather_bytes == len(batch.ids_L) * config.arch_sparse_feature_size * 4
    layers = [p for p in model.parameters() if p.data_ptr() != model.tables.weight_RD.data_ptr()]
    assert expected.weight_bytes <= sum(p.nbytes for p in layers) * 1.01 + 4096


def test_a_dot_interaction_is_a_product_of_all_pairs():
    words = "--model_type dlrm --arch_mlp_bot 8-4 --arch_sparse_feature_size 4 --arch_embedding_size 9-9-9"
    config = parse([*words.split(), "--num_batches", "1"]).model
    interaction = costs(config, 2).gemms[1]
    assert interaction.flops(2) == 2 * 2 * 4 * 4 * 4  # 4 vectors of width 4, 2 items
    assert interaction.weight_bytes == 0


def test_nothing_costs_nothing():
    with pytest.raises(ValueError, match="at least 1"):
        costs(config_of("wnd", "caffe2"), 0)
