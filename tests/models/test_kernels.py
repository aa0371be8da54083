"""The compiled kernels against PyTorch's own operators, at shapes that do not fit their blocks."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from infra.settings.config import ModelConfig
from models import build
from models.batch import Batch
from models.embedding.cpu.one_width import LONG_BAG_IDS, pooling
from models.inputs.synthetic import InputPool
from models.kernels.dien import add_softmax, recurrence
from models.kernels.din import attention
from models.layers import PackedFC, Relu, SmallStack, mlp
from models.mtwnd import TaskTowers


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def drawn(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape, dtype=np.float32))


@settings(deadline=None, max_examples=60)
@given(
    lengths_BT=arrays(
        np.int64,
        st.tuples(st.integers(1, 5), st.integers(1, 4)),
        elements=st.integers(0, 2 * LONG_BAG_IDS + 3),
    ),
    long=st.booleans(),
)
def test_the_look_up_sums_every_bag_and_writes_nothing_else(lengths_BT, long):
    lengths_BT = lengths_BT + (2 * LONG_BAG_IDS if long else 0)
    n_items, n_tables = lengths_BT.shape
    offsets = np.concatenate(([0], np.cumsum(lengths_BT.reshape(-1)))).astype(np.int32)
    ids = np.random.default_rng(1).integers(0, 50, offsets[-1]).astype(np.int32)
    weight = drawn(50, 8)
    wider = torch.full((n_items, 3 + n_tables * 8 + 2), 7.0)
    expected = F.embedding_bag(
        torch.from_numpy(ids),
        weight,
        torch.from_numpy(offsets),
        mode="sum",
        include_last_offset=True,
    ).view(n_items, n_tables * 8)
    pooling(8)(weight.numpy(), ids, offsets, wider[:, 3:-2].view(n_items, n_tables, 8).numpy())
    assert torch.equal(wider[:, 3:-2], expected)  # the same order of summation, so the same bits
    assert (wider[:, :3] == 7).all()
    assert (wider[:, -2:] == 7).all()


@pytest.mark.parametrize("width", [4, 12, 32, 64, 100])
def test_the_look_up_knows_every_width(width):
    weight = drawn(9, width)
    offsets = np.array([0, 3, 3, 4], np.int32)
    ids = np.array([8, 0, 8, 5], np.int32)
    out = torch.empty(1, 3, width)
    pooling(width)(weight.numpy(), ids, offsets, out.numpy())
    assert torch.equal(
        out[0], torch.stack([weight[8] + weight[0] + weight[8], torch.zeros(width), weight[5]])
    )


@pytest.mark.parametrize("n_items", [1, 3, 4, 5, 9])
@pytest.mark.parametrize("widths", [(5, 3), (7, 64, 1), (33, 80, 200, 2), (16, 15, 17)])
def test_a_small_stack_computes_what_its_layers_compute(widths, n_items):
    packed, plain = (mlp("a", widths, last=Relu()) for _ in range(2))
    for own, other in zip(plain, packed, strict=True):
        if hasattr(own, "weight_OI"):
            own.weight_OI.copy_(drawn(*own.weight_OI.shape, seed=1))
            own.bias_O.copy_(drawn(*own.bias_O.shape, seed=2))
            other.weight_OI.copy_(own.weight_OI)
            other.bias_O.copy_(own.bias_O)
    packed.pack(torch.float32)
    assert isinstance(packed.small, SmallStack)
    whole = drawn(n_items, widths[0] + 3)
    x = whole[:, 1:-2]  # a part of a wider buffer
    torch.testing.assert_close(packed(x), plain(x), rtol=1e-5, atol=1e-4)


def test_a_stack_too_large_for_the_cache_goes_through_onednn():
    large = mlp("a", (800, 700, 3))
    for layer in large:
        if hasattr(layer, "weight_OI"):
            layer.initialise(np.random.default_rng(3))
    x = drawn(6, 800)
    expected = large(x)
    large.pack(torch.float32)
    assert large.small is None
    assert all(isinstance(layer, PackedFC) for layer in large)
    torch.testing.assert_close(large(x), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(large(x[:1]), expected[:1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("widths", "dtype", "most"),
    [
        ((128, 256, 256, 64), torch.float32, float("inf")),
        ((128, 256, 256, 64), torch.bfloat16, 64),  # beyond, bfloat16 is the faster
        ((128, 64, 32), torch.bfloat16, float("inf")),
    ],
)
def test_a_small_stack_leaves_only_large_bfloat16_batches_to_onednn(widths, dtype, most):
    stack = mlp("a", widths)
    stack.pack(dtype)
    assert stack.small.most_items == most


@pytest.mark.parametrize(("width", "n_items"), [(8, 3), (12, 1), (32, 4)])
def test_attention_units_are_summed(width, n_items):
    n_units = 7
    rows = drawn(n_items, n_units + 3, width)
    of_ad = drawn(n_items, n_units)
    own, weight, bias = (drawn(n_units, width, seed=seed) for seed in (1, 2, 3))
    behaviours = rows[:, 1:-2]
    out = torch.empty(n_items, width)
    attention(width)(*(t.numpy() for t in (behaviours, of_ad, own, weight, bias, out)))
    hidden = torch.relu((behaviours * own).sum(2) + of_ad)
    torch.testing.assert_close(
        out, torch.relu(hidden[:, :, None] * weight + bias).sum(1), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("n_items", [1, 4, 7])
@pytest.mark.parametrize(("n_in", "width"), [(3, 9), (32, 64), (5, 100)])
def test_the_recurrence_is_that_of_torch_rnn(n_in, width, n_items):
    rnn = torch.nn.RNN(n_in, width)
    x = drawn(6, n_items, n_in)
    from_input, from_state, bias_x, bias_h = (p.detach() for p in rnn.parameters())
    expected = rnn(x)[0]
    weights = (
        from_input.T.contiguous().numpy(),
        (bias_x + bias_h).numpy(),
        from_state.T.contiguous().numpy(),
    )
    for n_kept in (6, 1):
        states = torch.empty(n_kept, n_items, width)
        recurrence(width)(x.numpy(), *weights, states.numpy())
        torch.testing.assert_close(states, expected[-n_kept:], rtol=1e-5, atol=2e-6)


def test_tanh_is_right_over_its_whole_range():
    x = torch.linspace(-30, 30, 60_001).view(1, -1, 1)
    states = torch.empty_like(x)
    one = np.ones((1, 1), np.float32)
    zero = np.zeros((1, 1), np.float32)
    recurrence(1)(x.numpy(), one, np.zeros(1, np.float32), zero, states.numpy())
    assert (states - torch.tanh(x.double())).abs().max() < 3e-7


def test_softmax_is_added():
    states = torch.tanh(drawn(5, 37))
    to = drawn(5, 37, seed=1)
    expected = to + torch.softmax(states, dim=1)
    add_softmax()(states.numpy(), to.numpy())
    torch.testing.assert_close(to, expected)


def test_task_towers_are_the_same_packed():
    towers = TaskTowers(3, (6, 5, 2))
    x = drawn(4, 6)
    for layer in towers.together:
        if hasattr(layer, "initialise"):
            layer.initialise(np.random.default_rng(0))
    expected = towers(x)
    towers.pack(torch.float32)
    assert expected.shape == (3, 4, 2)
    torch.testing.assert_close(towers(x), expected)


WND = ModelConfig(
    model_type="wnd",
    arch_embedding_size="50-60",
    arch_mlp_bot="600",
    arch_mlp_top="800-4",
    arch_sparse_feature_size=8,
    num_indices_per_lookup=2,
    num_indices_per_lookup_fixed=True,
)


def scores(**settings_):
    config = replace(WND, **settings_)
    model = build(config, seed=1, device=torch.device("cpu"))
    return model, model(InputPool(config, 1, 100, seed=1).batch(0, 0, 100))


def test_bfloat16_changes_the_scores_by_its_rounding_only():
    (_, exact), (model, rounded) = scores(), scores(dtype="bfloat16")
    assert rounded.dtype == torch.float32
    assert all(layer.dtype == torch.bfloat16 for layer in model.top)
    error = (rounded - exact).abs().max() / exact.abs().max()
    assert 1e-5 < error < 2e-2


def test_fused_off_is_operator_by_operator_and_gives_the_same_scores():
    (_, fused), (model, eager) = scores(), scores(fused="off")
    assert not model.tables.is_packed
    assert not any(isinstance(layer, PackedFC) for layer in model.modules())
    torch.testing.assert_close(fused, eager, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("n_behaviours", [1, 5])
def test_units_one_by_one_have_the_weights_of_the_fused_ones(n_behaviours):
    config = ModelConfig(
        model_type="din",
        arch_embedding_size="50-60-70-80",
        user_behavior_tables=n_behaviours,
        arch_mlp_bot="3-2",
        arch_mlp_top="9-2",
        arch_sparse_feature_size=8,
    )
    batch = InputPool(config, 1, 20, seed=1).batch(0, 0, 20)
    fused, one_by_one = (
        build(replace(config, fused=fused), seed=4)(batch) for fused in ("on", "off")
    )
    assert fused.abs().max() > 0
    torch.testing.assert_close(fused, one_by_one, rtol=1e-5, atol=1e-6)


def test_a_model_can_take_the_tables_of_another():
    one = build(WND, seed=1)
    other = build(replace(WND, fused="off"), seed=1, tables_of=one)
    assert other.tables.weight_RD.data_ptr() == one.tables.weight_RD.data_ptr()
    batch = InputPool(WND, 1, 4, seed=1).batch(0, 0, 4)
    torch.testing.assert_close(other(batch), one(batch), rtol=1e-5, atol=1e-6)


def test_a_model_for_no_device_stays_portable():
    model = build(WND, seed=1)
    assert not model.tables.is_packed
    batch = InputPool(WND, 1, 4, seed=1).batch(0, 0, 4)
    assert isinstance(batch, Batch)
    assert model(batch).shape == (4, 4)
