"""How compiled tables are shared out to threads."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.embedding.cpu.jobs import split
from models.embedding.jagged import Bags
from models.embedding.plan.spec import TableSpec
from tests.models.drawn import jagged


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 999),
    n_threads=st.integers(2, 5),
    n_items=st.integers(1, 12),
    n_tables=st.integers(1, 8),
)
def test_threads_share_every_bag_once_and_the_cost_evenly(seed, n_threads, n_items, n_tables):
    rng = np.random.default_rng(seed)
    specs = [TableSpec(50, 8)] * n_tables
    _, offsets = jagged(specs, n_items, rng, longest=int(rng.integers(1, 60)))
    bags = Bags(torch.zeros(int(offsets[-1]), dtype=torch.int32), offsets, n_tables)
    order = rng.permutation(n_tables)
    cut = int(rng.integers(0, n_tables))
    tables = [np.sort(order[:cut]), np.sort(order[cut:])]
    parts = np.array(
        [
            [k, 0, 0, 0, len(part), 0, n_items, n_items, len(part), 32]
            for k, part in enumerate(tables)
        ]
    )
    bag_costs = 64 + 32 * np.diff(offsets.numpy()).reshape(n_tables, n_items)
    seen = np.zeros((n_tables, n_items), int)
    costs = []
    for share in split(parts, tables, [8, 8], bags, n_threads):
        costs.append(0)
        for k, _, _, first, end, first_item, end_item, run_bags, n_runs, _ in share:
            assert run_bags * n_runs == (end - first) * (end_item - first_item)
            place = np.ix_(tables[k][first:end], range(first_item, end_item))
            seen[place] += 1
            costs[-1] += bag_costs[place].sum()
    assert (seen == 1).all()
    assert max(costs) <= bag_costs.sum() / n_threads + 2 * bag_costs.max()
