"""Ids of a model's tables split by table, and the sums of their bags."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.embedding.jagged import sum_bags
from models.embedding.tables import split_by_table


def test_bags_of_equal_length_are_split_by_table_without_copying():
    ids = torch.arange(24, dtype=torch.int32)
    offsets = torch.arange(0, 25, 3, dtype=torch.int32)
    views = split_by_table(ids, offsets, 2, 3)
    copies = split_by_table(ids, offsets, 2)
    for (view, view_ends), (copied, copied_ends) in zip(views, copies, strict=True):
        assert view.untyped_storage().data_ptr() == ids.untyped_storage().data_ptr()
        assert torch.equal(view.reshape(-1), copied)
        assert torch.equal(view_ends, copied_ends)


def one_by_one(weight, ids, offsets, n_tables):
    parts = split_by_table(ids, offsets, n_tables)
    return torch.stack([sum_bags(weight, *part) for part in parts], dim=1)


def together(weight, ids, offsets, n_tables):
    return sum_bags(weight, ids, offsets).view(-1, n_tables, weight.shape[1])


@pytest.mark.parametrize("operator", [together, one_by_one])
@settings(max_examples=25, deadline=None)
@given(n_items=st.integers(1, 8), n_tables=st.integers(1, 5), seed=st.integers(0, 1000))
def test_every_embedding_operator_gathers_and_sums(operator, n_items, n_tables, seed):
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((100, 4)).astype(np.float32)
    lengths = rng.integers(1, 5, n_items * n_tables)
    ids = rng.integers(0, 100, lengths.sum()).astype(np.int32)
    offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
    expected = np.stack([weight[ids[a:b]].sum(0) for a, b in itertools.pairwise(offsets)])
    pooled = operator(*map(torch.from_numpy, (weight, ids, offsets)), n_tables)
    assert pooled.shape == (n_items, n_tables, 4)
    np.testing.assert_allclose(
        pooled.numpy(), expected.reshape(n_items, n_tables, 4), rtol=1e-5, atol=1e-5
    )
