"""Costs against what the forward pass does: FLOPs, operators and bytes that PyTorch counts."""

from collections import Counter

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from accelerator.devices import model_configs
from infra.settings.cli import parse
from models import build
from models.costs import PARTS, costs
from models.inputs.synthetic import InputPool

# FlopCounterMode has no formula for these. The look-up's sums are counted as bytes; the others
# touch each element once.
LOOK_UP = {"_embedding_bag_forward_only"}
ELEMENT_WISE = {
    *"add add_ sub rsub mul rsqrt sigmoid sigmoid_ tanh tanh_ relu_ sum".split(),
    *"_softmax cat stack clone new_zeros index_select".split(),
}
PRODUCTS = {"addmm", "mm", "bmm", "baddbmm"}
DOT = (
    "--model_type dlrm --arch_mlp_bot 8-4 --arch_sparse_feature_size 4 --arch_embedding_size "
    "90-90-90 --num_batches 1"
)
CASES = [(name, variant) for name in sorted(model_configs()) for variant in ("caffe2", "paper")]


class Operators(TorchDispatchMode):
    """Counts the operators that compute or copy; a view does neither."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if not func.is_view and name != "_unsafe_view":
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


def config_of(name, variant="caffe2", *more):
    flags = f"--table_scale 0.0001 --arch_variant {variant} --num_batches 1"
    words = f"{flags} --max_mini_batch_size 64".split()
    return parse(["--config_file", str(model_configs()[name]), *words, *more]).model


def unseen_flops(config, n_items):
    """DIN as released has one hidden unit: its product with a behaviour is no operator's FLOPs."""
    if config.model_type == "din" and config.arch_variant == "caffe2" and config.bot_widths[0] == 1:
        return 2 * n_items * (len(config.table_rows) - 3) * config.arch_sparse_feature_size
    return 0


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_flops_and_bytes_are_those_of_the_forward_pass(name, variant):
    config = config_of(name, variant)
    model = build(config, 1)
    pool = InputPool(config, 1, 64, 1)
    for n_items in (1, 7, 64):
        batch = pool.batch(0, 0, n_items)
        expected = costs(config, n_items)
        # Inference mode hides operators from the counter.
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            scores = model(batch)
        assert expected.flops == counter.get_total_flops() + unseen_flops(config, n_items)
        shipped = batch.ids_L.nbytes + batch.offsets.nbytes
        shipped += 0 if batch.dense_BF is None else batch.dense_BF.nbytes
        assert expected.input_bytes == shipped
        assert expected.output_bytes == scores.nbytes
        assert expected.gather_bytes == model.tables.weight_RD[batch.ids_L].nbytes
    assert expected.weight_bytes == sum(parameter.nbytes for parameter in model.parameters())
    assert expected.table_bytes == model.tables.weight_RD.nbytes


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_launches_are_the_operators_that_are_no_views(name, variant):
    config = config_of(name, variant)
    model = build(config, 1)
    batch = InputPool(config, 1, 64, 1).batch(0, 0, 8)
    with torch.no_grad(), Operators() as operators:
        model(batch)
    assert costs(config, 8).n_launches == operators.counts.total()
    # So nothing with many FLOPs is left out.
    assert operators.counts.keys() <= LOOK_UP | ELEMENT_WISE | PRODUCTS
    assert sum(operators.counts[name] for name in LOOK_UP) == 1


@pytest.mark.parametrize(
    "words", [DOT, f"{DOT} --arch_interaction_itself true", f"{DOT} --arch_mlp_top 5-1"]
)
def test_a_dot_interaction_is_a_product_of_all_pairs(words):
    config = parse([*words.split(), "--num_indices_per_lookup_fixed", "true"]).model
    model = build(config, 1)
    batch = InputPool(config, 1, 2, 1).batch(0, 0, 2)
    with torch.no_grad(), FlopCounterMode(display=False) as counter, Operators() as operators:
        model(batch)
    cost = costs(config, 2)
    assert cost.flops == counter.get_total_flops()
    assert cost.n_launches == operators.counts.total()
    assert cost.flops_by_part["interaction"] == 2 * 2 * 4 * 4 * 4  # 2 items, 4 vectors of width 4
    assert cost.weight_bytes == sum(parameter.nbytes for parameter in model.parameters())


def test_a_wider_attention_unit_is_a_product_that_pytorch_sees():
    config = config_of("din", "caffe2", "--arch_mlp_bot", "3-2", "--user_behavior_tables", "5")
    model = build(config, 1)
    batch = InputPool(config, 1, 8, 1).batch(0, 0, 8)
    with torch.no_grad(), FlopCounterMode(display=False) as counter, Operators() as operators:
        model(batch)
    cost = costs(config, 8)
    assert cost.flops == counter.get_total_flops()
    assert cost.n_launches == operators.counts.total()
    assert cost.weight_bytes == sum(parameter.nbytes for parameter in model.parameters())


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_the_parts_add_up_and_are_the_architectures(name, variant):
    cost = costs(config_of(name, variant), 16)
    assert set(cost.flops_by_part) == set(PARTS)
    assert sum(cost.flops_by_part.values()) == cost.flops
    expected = {"din": {"mlp", "attention"}, "dien": {"mlp", "recurrent"}}.get(name, {"mlp"})
    if (name, variant) == ("dien", "paper"):
        expected = {"mlp", "recurrent", "attention"}
    assert {part for part, flops in cost.flops_by_part.items() if flops} == expected


def test_bags_of_one_to_k_ids_are_counted_by_their_mean():
    config = config_of("rm1", "caffe2", "--num_indices_per_lookup_fixed", "false")
    bags = np.diff(InputPool(config, 1, 4096, 1).batch(0, 0, 4096).offsets.numpy())
    stderr = bags.std(ddof=1) / np.sqrt(len(bags))
    lookups_per_bag = costs(config, 1).lookups_per_item / len(config.table_rows)
    assert abs(lookups_per_bag - bags.mean()) < 4 * stderr


def test_no_items_cost_nothing_that_could_be_said():
    with pytest.raises(ValueError, match="at least 1"):
        costs(config_of("wnd"), 0)
