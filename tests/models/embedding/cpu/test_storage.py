"""Rows in fewer bytes: within the error that is promised, and no better."""

import numpy as np
import pytest
import torch

from models.embedding.bags import FusedEmbeddingBags
from models.embedding.cpu.storage import ERRORS, decoded, encoded
from models.embedding.jagged import Bags
from models.embedding.plan.plan import Bucket, Group, Plan, params
from models.embedding.plan.spec import TableSpec
from models.embedding.tuning.problem import exact_sums


def fill_normal(weight_E):
    weight_E.copy_(torch.from_numpy(np.random.default_rng(1).normal(size=len(weight_E))))


@pytest.mark.parametrize(
    ("storage", "part"), [("float16", 2.0**-11), ("bfloat16", 2.0**-8), ("int8", 1 / 255)]
)
@pytest.mark.parametrize("schedule", ["compiled", "copy"])
@pytest.mark.parametrize("width", [1, 3, 48, 200])
def test_narrow_storage_stays_within_its_error(storage, part, schedule, width):
    specs = [TableSpec(40, width, 1 if schedule == "copy" else None)]
    module = FusedEmbeddingBags(specs)
    n_items = 30
    fill_normal(module.weight_E)
    rng = np.random.default_rng(2)
    lengths = np.ones(n_items, int) if schedule == "copy" else rng.integers(0, 9, n_items)
    values = torch.from_numpy(rng.integers(0, 40, lengths.sum()))
    offsets = torch.from_numpy(np.concatenate(([0], np.cumsum(lengths))))
    expected = exact_sums(module.layout, module.weight_E, Bags(values, offsets, 1))
    group = Group(schedule, params(storage=storage), (0,))
    module.use(Plan("cpu", tuple(specs), (Bucket(None, (group,)),)))
    largest = module.table(0).abs().max()
    bound = part * largest * torch.diff(offsets).clamp_min(1)[:, None] * 1.001 + 1e-5
    error = (module(values, offsets).double() - expected).abs()
    assert (error <= bound).all()
    assert error.max() > 0 or (storage, width) == ("int8", 1)  # one element is its own scale
    assert ERRORS[storage] == part


@pytest.mark.parametrize("storage", ["float16", "bfloat16", "int8"])
def test_the_kernel_reads_what_was_stored(storage):
    specs = (TableSpec(20, 17),)

    def plan(**knobs):
        group = Group("compiled", params(**knobs), (0,))
        return Plan("cpu", specs, (Bucket(None, (group,)),))

    module = FusedEmbeddingBags(specs, plan())
    fill_normal(module.weight_E)
    module.table(0)[3] = 0.5  # a row without a range
    module.use(plan(storage=storage))
    rows = module(torch.arange(20), torch.arange(21))
    stored = decoded(encoded(module.table(0), storage), 17, storage)
    # one rounding less where it is fused
    torch.testing.assert_close(rows, stored, rtol=1e-6, atol=1e-6)
    assert torch.equal(rows[3], module.table(0)[3])
