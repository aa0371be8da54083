"""Tables with samples that tests of the search tune on."""

import numpy as np

from models.embedding.plan.spec import TableSpec
from models.embedding.tuning.recorded import Jagged, Recorded

SPECS = (
    TableSpec(30, 4, 1),
    TableSpec(30, 4, 1),
    TableSpec(900, 8),
    TableSpec(900, 8),
    TableSpec(40, 3),
)


def recorded(n_items=64, n_batches=2):
    rng = np.random.default_rng(0)
    batches = []
    for _ in range(n_batches):
        lengths = np.stack(
            [np.ones(n_items, int) if s.bag_ids else rng.integers(0, 9, n_items) for s in SPECS]
        )
        ids = [rng.integers(0, s.rows, n.sum()) for s, n in zip(SPECS, lengths, strict=True)]
        batches.append(Jagged.of(np.concatenate(ids), lengths))
    return Recorded(SPECS, tuple(batches))
