"""Embedding look-ups: the rows of every bag summed, all tables in one call or one table by itself."""

# B items, T tables, D embedding width, L ids, M = B * T bags, R rows of all tables

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def fused(weight_RD: Tensor, ids_L: Tensor, offsets: Tensor, n_tables: int) -> Tensor:
    """One call over all tables; (B, T, D), already laid out for the next layer."""
    pooled_MD = F.embedding_bag(ids_L, weight_RD, offsets, mode="sum", include_last_offset=True)
    return pooled_MD.view(-1, n_tables, weight_RD.shape[1])


def bag(weight_RD: Tensor, ids: Tensor, offsets: Tensor) -> Tensor:
    """The pooled rows of one table; (B, D).

    `ids` may be (B, K), bags of K ids each; then `offsets` say so too.
    """
    return F.embedding_bag(
        ids.reshape(-1), weight_RD, offsets, mode="sum", include_last_offset=True
    )


def split_by_table(
    ids_L: Tensor, offsets: Tensor, n_tables: int, bag_ids: int | None = None
) -> list[tuple[Tensor, Tensor]]:
    """(ids, offsets) of each table; with bags of `bag_ids` ids each the ids are (B, K) views and
    nothing is copied.
    """
    if bag_ids is not None:
        ids_BTK = ids_L.view(-1, n_tables, bag_ids)
        ends = torch.arange(
            0, len(ids_BTK) * bag_ids + 1, bag_ids, dtype=offsets.dtype, device=offsets.device
        )
        return [(ids_BTK[:, table], ends) for table in range(n_tables)]
    lengths_BT = torch.diff(offsets).view(-1, n_tables)
    tables = torch.arange(n_tables, device=ids_L.device).repeat(lengths_BT.shape[0])
    table_of_id = tables.repeat_interleave(lengths_BT.reshape(-1))
    parts = []
    for table in range(n_tables):
        ends = torch.cumsum(lengths_BT[:, table], 0, dtype=offsets.dtype)
        parts.append((ids_L[table_of_id == table], torch.cat((offsets.new_zeros(1), ends))))
    return parts
