"""Generated inputs: ids that differ inside a bag and are uniform, slices of what was generated."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from infra.settings.config import ModelConfig
from models.inputs.synthetic import InputPool, draw_distinct


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.data())
def test_ids_of_a_bag_differ_and_lie_in_the_table(n_rows, data):
    bag_ids = data.draw(st.integers(1, n_rows))
    ids = draw_distinct(n_rows, bag_ids, 50, np.random.default_rng(0))
    assert ids.shape == (50, bag_ids)
    assert ids.dtype == np.int32
    assert ids.min() >= 0
    assert ids.max() < n_rows
    assert (np.diff(ids, axis=1) > 0).all()


@pytest.mark.parametrize(("n_rows", "bag_ids"), [(6, 2), (6, 3), (6, 4), (7, 6)])
def test_every_set_of_ids_is_equally_likely(n_rows, bag_ids):
    ids = draw_distinct(n_rows, bag_ids, 60_000, np.random.default_rng(1))
    codes = (1 << ids.astype(np.int64)).sum(axis=1)
    _, counts = np.unique(codes, return_counts=True)
    assert len(counts) == round(
        np.exp(sum(np.log(n_rows - i) - np.log(i + 1) for i in range(bag_ids)))
    )
    assert stats.chisquare(counts).pvalue > 1e-3


def test_a_bag_larger_than_its_table_is_refused():
    with pytest.raises(ValueError, match="does not fit"):
        draw_distinct(5, 6, 1, np.random.default_rng(0))


def config(fixed, **settings):
    return ModelConfig(
        model_type="wnd",
        arch_mlp_bot="5",
        arch_embedding_size="40-3000-40-40",
        arch_sparse_feature_size=4,
        num_indices_per_lookup=6,
        num_indices_per_lookup_fixed=fixed,
        **settings,
    )


@pytest.mark.parametrize("fixed", [True, False])
def test_ids_are_rows_of_their_own_table(fixed):
    batch = InputPool(config(fixed), 3, 200, seed=1).batch(2, 0, 200)
    starts = np.array([0, 40, 3040, 3080, 3120])
    offsets = batch.offsets.numpy()
    ids = batch.ids_L.numpy()
    assert batch.ids_L.dtype == batch.offsets.dtype == torch.int32
    lengths = np.diff(offsets)
    assert lengths.min() >= 1
    assert lengths.max() == 6
    assert (len(set(lengths)) == 1) == fixed
    table = np.repeat(np.tile(np.arange(4), 200), lengths)
    assert (ids >= starts[table]).all()
    assert (ids < starts[table + 1]).all()


def test_dense_features_are_uniform_in_zero_to_one():
    dense = InputPool(config(fixed=True), 1, 4000, seed=1).batch(0, 0, 4000).dense_BF.numpy()
    assert dense.shape == (4000, 5)
    assert dense.min() >= 0
    assert dense.max() < 1
    assert stats.kstest(dense.ravel(), stats.uniform.cdf).pvalue > 1e-3


@pytest.mark.parametrize("fixed", [True, False])
def test_a_slice_holds_the_items_that_it_names(fixed):
    pool = InputPool(config(fixed), 2, 30, seed=4)
    whole = pool.batch(1, 0, 30)
    part = pool.batch(1, 11, 7)
    assert torch.equal(part.dense_BF, whole.dense_BF[11:18])
    first_bag = 11 * 4
    for m in range(7 * 4):
        inside = part.ids_L[part.offsets[m] : part.offsets[m + 1]]
        start = whole.offsets[first_bag + m]
        end = whole.offsets[first_bag + m + 1]
        assert torch.equal(inside, whole.ids_L[start:end])
    assert int(part.offsets[0]) == 0
    assert int(part.offsets[-1]) == len(part.ids_L)


def test_slices_share_memory_with_the_input():
    pool = InputPool(config(fixed=True), 1, 30, seed=4)
    whole = pool.batch(0, 0, 30)
    part = pool.batch(0, 10, 5)
    assert part.ids_L.data_ptr() == whole.ids_L.data_ptr() + 10 * 4 * 6 * 4
    assert part.dense_BF.data_ptr() == whole.dense_BF.data_ptr() + 10 * 5 * 4


@pytest.mark.parametrize("bad", [(0, 0, 31), (0, 29, 2), (0, -1, 2), (2, 0, 1), (0, 0, 0)])
def test_a_slice_outside_of_the_input_is_refused(bad):
    with pytest.raises(IndexError, match="2 inputs of 30"):
        InputPool(config(fixed=True), 2, 30, seed=4).batch(*bad)


def test_inputs_differ_from_each_other_and_repeat_with_the_seed():
    a = InputPool(config(fixed=True), 2, 30, seed=4)
    b = InputPool(config(fixed=True), 2, 30, seed=4)
    assert torch.equal(a.batch(1, 0, 30).ids_L, b.batch(1, 0, 30).ids_L)
    assert not torch.equal(a.batch(0, 0, 30).ids_L, a.batch(1, 0, 30).ids_L)
