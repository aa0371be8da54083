"""Numbers and jagged ids that several tests of models draw."""

import numpy as np
import torch
from hypothesis import strategies as st

from models.embedding.plan.spec import TableSpec

SPECS = st.builds(
    TableSpec,
    st.integers(1, 10_000),
    st.sampled_from([1, 3, 4, 6, 8, 32, 48, 128, 200]),
    st.sampled_from([None, 1, 7, 50]),
)


def normal(*shape, seed=0):
    """N(0, 1), float32."""
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape, dtype=np.float32))


def jagged(specs, n_items, rng, dtype=np.int32, longest=9):
    """Feature-major ids and offsets: some bags are empty, where the table allows it."""
    lengths = [
        np.full(n_items, spec.bag_ids)
        if spec.bag_ids
        else rng.integers(0, longest + 1, n_items) * (rng.random(n_items) < 0.8)
        for spec in specs
    ]
    ids = [rng.integers(0, spec.rows, n.sum()) for spec, n in zip(specs, lengths, strict=True)]
    offsets = np.concatenate(([0], np.cumsum(np.concatenate(lengths))))
    values = np.concatenate(ids).astype(dtype)
    return torch.from_numpy(values), torch.from_numpy(offsets.astype(dtype))
