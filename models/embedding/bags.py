"""The module: sums of bags over tables of any widths, by a plan."""

# B items, T tables, C columns = sum of D, E elements of all tables, R rows, L ids

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.embedding.backend import Planned, backend
from models.embedding.huge_pages import zeros
from models.embedding.jagged import Bags
from models.embedding.plan.plan import Plan
from models.embedding.plan.spec import Layout, TableSpec


class FusedEmbeddingBags(nn.Module):
    """T tables -> (B, C): every bag's rows summed, table after table along the columns.

    Empty bags give zeros. `checked`: on the CPU, ids that are no rows and offsets that cannot be
    raise ValueError before memory is read. The weights are one flat float32 buffer, zero at first;
    `table(t)` is a view. Narrow copies of a plan with storage other than float32 are made by `use`:
    call it again after changing weights.
    """

    weight_E: Tensor

    def __init__(
        self,
        specs: Sequence[TableSpec],
        plan: Plan | None = None,
        *,
        device: str = "cpu",
        checked: bool = True,
    ) -> None:
        super().__init__()
        self.layout = Layout.apart(specs)
        self._checked = checked
        weight_E = zeros(max(self.layout.n_elements, 1), device)
        self.register_buffer("weight_E", weight_E, persistent=False)
        self.width = int(self.layout.columns[-1])
        self.use(plan or backend(self.device).default_plan(self.layout.specs))

    @property
    def device(self) -> str:
        """The kind of device where the weights are: "cpu" or "cuda"."""
        return self.weight_E.device.type

    def use(self, plan: Plan) -> None:
        """Run by this plan from now on.

        Raises ValueError if it is for other tables or another device.
        """
        if plan.device != self.device:
            raise ValueError(f"a plan for {plan.device}, but the tables are on {self.device}")
        self.plan = plan
        self._planned = Planned(self.layout, self.weight_E, plan, checked=self._checked)

    def table(self, t: int) -> Tensor:
        """(R, D): the rows of table t, a view."""
        return self.layout.rows_of(t, self.weight_E)

    def forward(self, values: Tensor, offsets: Tensor, out: Tensor | None = None) -> Tensor:
        """(B, C); bag t * B + b of `values`, counted by `offsets` (T * B + 1,), is item b's of t.

        Both int32 or int64. `out`: float32 (B, C), written in place; its columns must be dense.
        """
        return self.look_up(Bags(values, offsets, len(self.layout.specs)).check(), out)

    def look_up(self, bags: Bags, out: Tensor | None = None) -> Tensor:
        """(B, C) for bags in either order, checked by whoever made them."""
        shape = (bags.n_items, self.width)
        if out is None:
            out = torch.empty(shape, device=self.weight_E.device)
        dense = not out.numel() or out.stride(1) == 1
        if out.shape != shape or out.dtype != torch.float32 or not dense:
            raise ValueError(
                f"out is {tuple(out.shape)} {out.dtype}; expected float32 {shape} with dense rows"
            )
        self._planned(bags, out)
        return out
