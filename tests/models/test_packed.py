"""Models packed for one core: the scores that they have operator by operator."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from infra.settings.config import ConfigError, ModelConfig
from models import build
from models.batch import Batch
from models.inputs.synthetic import InputPool
from models.layers import PackedFC, Relu, SmallStack, mlp
from models.mtwnd import TaskTowers
from tests.models.drawn import normal

HAS_BFLOAT16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
NO_BFLOAT16 = "this CPU has no AVX-512, by which oneDNN multiplies bfloat16"


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("n_items", [1, 3, 4, 5, 9])
@pytest.mark.parametrize("widths", [(5, 3), (7, 64, 1), (33, 80, 200, 2), (16, 15, 17)])
def test_a_small_stack_computes_what_its_layers_compute(widths, n_items):
    packed, plain = (mlp("a", widths, last=Relu()) for _ in range(2))
    for layer, twin in zip(plain, packed, strict=True):
        if hasattr(layer, "weight_OI"):
            layer.weight_OI.copy_(normal(*layer.weight_OI.shape, seed=1))
            layer.bias_O.copy_(normal(*layer.bias_O.shape, seed=2))
            twin.weight_OI.copy_(layer.weight_OI)
            twin.bias_O.copy_(layer.bias_O)
    packed.pack(torch.float32)
    assert isinstance(packed.small, SmallStack)
    whole = normal(n_items, widths[0] + 3)
    x = whole[:, 1:-2]  # a part of a wider buffer
    torch.testing.assert_close(packed(x), plain(x), rtol=1e-5, atol=1e-4)


def test_a_stack_too_large_for_the_cache_goes_through_onednn():
    large = mlp("a", (800, 700, 3))
    for layer in large:
        if hasattr(layer, "weight_OI"):
            layer.initialise(np.random.default_rng(3))
    x = normal(6, 800)
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
    if dtype == torch.bfloat16 and not HAS_BFLOAT16:
        pytest.skip(NO_BFLOAT16)
    stack = mlp("a", widths)
    stack.pack(dtype)
    assert stack.small.most_items == most


def test_task_towers_are_the_same_packed():
    towers = TaskTowers(3, (6, 5, 2))
    x = normal(4, 6)
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


def test_bfloat16_is_refused_in_one_line_where_the_cpu_has_none(monkeypatch):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    with pytest.raises(ConfigError, match="dtype is bfloat16, which needs a CPU with AVX-512"):
        scores(dtype="bfloat16")


@pytest.mark.skipif(not HAS_BFLOAT16, reason=NO_BFLOAT16)
def test_bfloat16_changes_the_scores_by_its_rounding_only():
    _, exact = scores()
    model, rounded = scores(dtype="bfloat16")
    assert rounded.dtype == torch.float32
    assert all(layer.dtype == torch.bfloat16 for layer in model.top)
    error = (rounded - exact).abs().max() / exact.abs().max()
    assert 1e-5 < error < 2e-2


def test_fused_off_is_operator_by_operator_and_gives_the_same_scores():
    _, fused = scores()
    model, eager = scores(fused="off")
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
    owner = build(WND, seed=1)
    taker = build(replace(WND, fused="off"), seed=1, tables_of=owner)
    assert taker.tables.weight_RD.data_ptr() == owner.tables.weight_RD.data_ptr()
    batch = InputPool(WND, 1, 4, seed=1).batch(0, 0, 4)
    torch.testing.assert_close(taker(batch), owner(batch), rtol=1e-5, atol=1e-6)


def test_a_model_for_no_device_stays_portable():
    model = build(WND, seed=1)
    assert not model.tables.is_packed
    batch = InputPool(WND, 1, 4, seed=1).batch(0, 0, 4)
    assert isinstance(batch, Batch)
    assert model(batch).shape == (4, 4)
