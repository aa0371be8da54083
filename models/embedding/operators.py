"""Embedding operators: each sums the rows of every bag. They differ in speed, not in the result."""

# B items, T tables, D embedding width, L ids, M = B * T bags, R rows of all tables

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

LookUp = Callable[[Tensor, Tensor, Tensor, int], Tensor]


def fused(weight_RD: Tensor, ids_L: Tensor, offsets: Tensor, n_tables: int) -> Tensor:
    """One call over all tables; (B, T, D), already laid out for the next layer."""
    pooled_MD = F.embedding_bag(ids_L, weight_RD, offsets, mode="sum", include_last_offset=True)
    return pooled_MD.view(-1, n_tables, weight_RD.shape[1])


def per_table(weight_RD: Tensor, ids_L: Tensor, offsets: Tensor, n_tables: int) -> Tensor:
    """One call a table, as the release does (one SparseLengthsSum each); (B, T, D)."""
    lengths_BT = torch.diff(offsets).view(-1, n_tables)
    table_of_id = (
        torch.arange(n_tables, device=ids_L.device)
        .repeat(lengths_BT.shape[0])
        .repeat_interleave(lengths_BT.reshape(-1))
    )
    pooled = []
    for table in range(n_tables):
        ends = torch.cumsum(lengths_BT[:, table], 0, dtype=offsets.dtype)
        table_offsets = torch.cat((offsets.new_zeros(1), ends))
        ids = ids_L[table_of_id == table]
        pooled.append(F.embedding_bag(ids, weight_RD, table_offsets, mode="sum", include_last_offset=True))
    return torch.stack(pooled, dim=1)


OPERATORS: dict[str, LookUp] = {"fused": fused, "per_table": per_table}
