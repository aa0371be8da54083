"""The look-up of tables of one width against embedding_bag."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from models.embedding.cpu.one_width import LONG_BAG_IDS, pooling
from tests.models.drawn import normal


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
    weight = normal(50, 8)
    wider = torch.full((n_items, 3 + n_tables * 8 + 2), 7.0)
    expected = F.embedding_bag(
        torch.from_numpy(ids),
        weight,
        torch.from_numpy(offsets),
        mode="sum",
        include_last_offset=True,
    )
    out = wider[:, 3:-2]
    pooling(8)(weight.numpy(), ids, offsets, out.view(n_items, n_tables, 8).numpy())
    # The order of summation is the same, and so are the bits.
    assert torch.equal(out, expected.view(n_items, n_tables * 8))
    assert (wider[:, :3] == 7).all()
    assert (wider[:, -2:] == 7).all()


@pytest.mark.parametrize("width", [4, 12, 32, 64, 100])
def test_the_look_up_knows_every_width(width):
    weight = normal(9, width)
    offsets = np.array([0, 3, 3, 4], np.int32)
    ids = np.array([8, 0, 8, 5], np.int32)
    out = torch.empty(1, 3, width)
    pooling(width)(weight.numpy(), ids, offsets, out.numpy())
    expected = torch.stack([weight[8] + weight[0] + weight[8], torch.zeros(width), weight[5]])
    assert torch.equal(out[0], expected)
