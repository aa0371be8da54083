"""A plan made runnable on the weights that it is for."""

# B items, C columns of the output, E elements of all tables

from __future__ import annotations

from torch import Tensor

from models.embedding.backend import Run, backend
from models.embedding.jagged import Bags
from models.embedding.plan.plan import Plan
from models.embedding.plan.spec import Layout


class Planned:
    """A plan made runnable on some weights: each batch goes to the bucket for its size."""

    def __init__(self, layout: Layout, weight_E: Tensor, plan: Plan, *, checked: bool) -> None:
        plan.check_specs(layout.specs)
        own = backend(plan.device)
        self._runs: list[tuple[int | None, Run]] = []
        built: dict[tuple[object, ...], Run] = {}
        for bucket in plan.buckets:
            key = (bucket.groups, bucket.settings)
            if key not in built:
                built[key] = own.build(layout, weight_E, bucket, checked=checked)
            self._runs.append((bucket.max_batch, built[key]))

    def __call__(self, bags: Bags, out_BC: Tensor) -> None:
        """Write all columns of (B, C)."""
        n_items = bags.n_items
        for max_batch, run in self._runs:
            if max_batch is None or n_items <= max_batch:
                run(bags, out_BC)
                return
