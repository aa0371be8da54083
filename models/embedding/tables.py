"""All tables of a model in one buffer, built before engines are forked, who share it."""

# B items, T tables, D embedding width, L ids, K ids of every bag, R rows of all tables

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

import numpy as np
import torch
from torch import Tensor, nn

from infra.rng import stream
from models.batch import Batch, first_rows
from models.embedding.backend import Planned
from models.embedding.cpu.one_width import pooling
from models.embedding.huge_pages import allocate
from models.embedding.jagged import Bags, offsets_of, sum_bags
from models.embedding.plan.plan import Plan
from models.embedding.plan.spec import Layout

_CHUNK_ELEMENTS = 1 << 18  # 1 MiB of float32: stays in cache while it is scaled
OnProgress = Callable[[float], None]


def fill_uniform(
    weight_RD: Tensor, table_rows: Sequence[int], seed: int, on_progress: OnProgress | None = None
) -> None:
    """Each table ~ U(-sqrt(1 / rows), sqrt(1 / rows)), as the release initialises it.

    Chunks have streams of their own, so the result depends on `seed` alone and not on the number of
    threads. NumPy fills without the interpreter lock; torch's own threads would not survive the
    fork that follows.
    """
    flat = weight_RD.view(-1).numpy()
    edges = (first_rows(table_rows) * weight_RD.shape[1]).tolist()
    jobs = [
        (table, first, min(first + _CHUNK_ELEMENTS, edges[table + 1]))
        for table in range(len(table_rows))
        for first in range(edges[table], edges[table + 1], _CHUNK_ELEMENTS)
    ]

    def fill(table: int, first: int, end: int) -> int:
        chunk = flat[first:end]
        stream(seed, "tables", first).random(out=chunk, dtype=np.float32)
        bound = np.float32(table_rows[table] ** -0.5)
        chunk *= 2 * bound
        chunk -= bound
        return end - first

    done = 0
    threads = ThreadPoolExecutor(os.cpu_count())
    try:
        for job in as_completed([threads.submit(fill, *job) for job in jobs]):
            done += job.result()
            if on_progress is not None:
                on_progress(done / flat.size)
    finally:
        threads.shutdown(cancel_futures=True)  # after Ctrl-C the rest is not built


def split_by_table(
    ids_L: Tensor, offsets: Tensor, n_tables: int, bag_ids: int | None = None
) -> list[tuple[Tensor, Tensor]]:
    """(ids, offsets) of each table, of item-major bags.

    With bags of `bag_ids` ids each the ids are (B, K) views and nothing is copied.
    """
    if bag_ids is not None:
        ids_BTK = ids_L.view(-1, n_tables, bag_ids)
        n_ids = len(ids_BTK) * bag_ids
        ends = torch.arange(0, n_ids + 1, bag_ids, dtype=offsets.dtype, device=offsets.device)
        return [(ids_BTK[:, table], ends) for table in range(n_tables)]
    lengths_BT = torch.diff(offsets).view(-1, n_tables)
    tables = torch.arange(n_tables, device=ids_L.device).repeat(lengths_BT.shape[0])
    table_of_id = tables.repeat_interleave(lengths_BT.reshape(-1))
    return [
        (ids_L[table_of_id == table], offsets_of(lengths_BT[:, table])) for table in range(n_tables)
    ]


class OneTable(nn.Module):
    """The look-up of one table, by itself."""

    operator = "SparseLengthsSum"

    def forward(self, weight_RD: Tensor, ids: Tensor, offsets: Tensor) -> Tensor:
        """(B, D); `ids` may be (B, K), bags of K ids each; then `offsets` say so too."""
        return sum_bags(weight_RD, ids.reshape(-1), offsets)


class EmbeddingTables(nn.Module):
    """T tables of one width D: Batch -> (B, T, D), each bag's rows summed.

    `operator`: one look-up over all tables, or one a table; `bag_ids`: ids of every bag, where all
    have as many; `plan`: how they are looked up once `use_plan` was called on the plan's device.
    """

    operator: str
    weight_RD: Tensor

    def __init__(
        self,
        table_rows: Sequence[int],
        width: int,
        operator: str = "fused",
        bag_ids: int | None = None,
        plan: Plan | None = None,
    ) -> None:
        super().__init__()
        self.table_rows = tuple(table_rows)
        self.first_rows = first_rows(table_rows)
        n_rows = int(self.first_rows[-1])
        if n_rows >= 2**31:
            raise ValueError(
                f"arch_embedding_size: {n_rows} rows in all; ids are int32, at most 2^31 - 1"
            )
        self.register_buffer("weight_RD", allocate(n_rows, width), persistent=False)
        self.shape_TD = (len(self.table_rows), width)
        self._operator = operator
        self._bag_ids = bag_ids
        self._plan = plan
        self._planned: Planned | None = None
        self.one_by_one: nn.ModuleList | None = None
        if operator == "per_table":
            self.one_by_one = nn.ModuleList([OneTable() for _ in table_rows])
        else:
            self.operator = "SparseLengthsSum"
        self._pool: Callable[..., None] | None = None

    @property
    def is_packed(self) -> bool:
        """Whether the look-up is the compiled one, which can write into a part of a buffer."""
        return self._pool is not None or self._planned is not None

    def use_plan(self) -> bool:
        """Look up by the plan from now on, if there is one for the device where the rows are.

        Whether that is so.
        """
        if self._plan is None or self._plan.device != self.weight_RD.device.type:
            return False
        layout = Layout.joined(self._plan.specs)
        self._planned = Planned(layout, self.weight_RD.view(-1), self._plan, checked=False)
        return True

    def pack(self, dtype: torch.dtype) -> None:
        """Look up with the compiled kernel; the rows stay float32, whatever the layers' `dtype`."""
        del dtype
        if not self.use_plan() and self._operator == "fused":
            self._pool = pooling(self.shape_TD[1])
            self._weight = self.weight_RD.numpy()

    def forward(self, batch: Batch, out_BTD: Tensor | None = None) -> Tensor:
        """(B, T, D); `out_BTD` takes it where the tables are packed."""
        if self.one_by_one is not None:
            return torch.stack(self.pooled(batch), dim=1)
        if not self.is_packed:
            pooled_MD = sum_bags(self.weight_RD, batch.ids_L, batch.offsets)
            return pooled_MD.view(-1, *self.shape_TD)
        if out_BTD is None:
            out_BTD = self.weight_RD.new_empty(batch.n_items, *self.shape_TD)
        if self._planned is not None:
            bags = Bags(batch.ids_L, batch.offsets, self.shape_TD[0], item_major=True)
            self._planned(bags, out_BTD.view(batch.n_items, -1))
            return out_BTD
        assert self._pool is not None
        self._pool(self._weight, batch.ids_L.numpy(), batch.offsets.numpy(), out_BTD.numpy())
        return out_BTD

    def pooled(self, batch: Batch) -> list[Tensor]:
        """Every table's pooled rows by themselves, T times (B, D); for `operator` per_table."""
        assert self.one_by_one is not None
        parts = split_by_table(batch.ids_L, batch.offsets, len(self.table_rows), self._bag_ids)
        return [
            look_up(self.weight_RD, ids, offsets)
            for look_up, (ids, offsets) in zip(self.one_by_one, parts, strict=True)
        ]

    def table(self, t: int) -> Tensor:
        """The rows of table t (a view)."""
        return self.weight_RD[int(self.first_rows[t]) : int(self.first_rows[t + 1])]
