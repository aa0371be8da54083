"""Look-ups that studies measure against: nn.EmbeddingBag for each table, and FBGEMM's operator.

Both read bags that lie table after table, ids from each table's first row on.
"""

# T tables, L ids, R rows of a table, D embedding width

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from models.embedding.jagged import Bags
from models.embedding.offsets import Int64Array


def quiet_import(name: str) -> Any:
    """A module whose import warns of what concerns nobody here; raises ImportError, OSError."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return import_module(name)


def cycled(function: Callable[..., Any], *inputs: Sequence[Any]) -> Callable[[int], Any]:
    """call(i): the function of one element of each of the inputs, which take turns."""
    arguments = list(zip(*inputs, strict=True))
    return lambda i: function(*arguments[i % len(arguments)])


def feature_major(bags: Bags, first_rows_T: Int64Array) -> Bags:
    """Item-major bags, whose ids count from these rows on, as rivals read them."""
    ids_L, offsets = bags.of(range(bags.n_tables))
    first_T = torch.from_numpy(first_rows_T).to(ids_L.dtype)
    first_L = first_T.repeat_interleave(torch.diff(offsets[:: bags.n_items]))
    return Bags(ids_L - first_L, offsets, bags.n_tables)


def by_table(bags: Bags) -> list[tuple[Tensor, Tensor]]:
    """Ids and offsets of each table."""
    return [bags.of((t,)) for t in range(bags.n_tables)]


def embedding_bags(tables_RD: Iterable[Tensor]) -> nn.ModuleList:
    """nn.EmbeddingBag of each table, on the table's own memory; offsets come with their end."""
    return nn.ModuleList(
        nn.EmbeddingBag.from_pretrained(table_RD, mode="sum", include_last_offset=True)
        for table_RD in tables_RD
    )


def fbgemm_inference(shapes: Sequence[tuple[int, int]], **options: Any) -> Any:
    """FBGEMM's table-batched inference operator for tables of (rows, width), float32 on the CPU.

    Its weights are not set. Raises ImportError, OSError, and ValueError for widths it refuses.
    """
    sparse = quiet_import("fbgemm_gpu.split_embedding_configs").SparseType
    host = quiet_import(
        "fbgemm_gpu.split_table_batched_embeddings_ops_common"
    ).EmbeddingLocation.HOST
    module = quiet_import("fbgemm_gpu.split_table_batched_embeddings_ops_inference")
    specs = [(f"t{t}", rows, dim, sparse.FP32, host) for t, (rows, dim) in enumerate(shapes)]
    operator = module.IntNBitTableBatchedEmbeddingBagsCodegen(
        specs, device="cpu", output_dtype=sparse.FP32, **options
    )
    operator.initialize_weights()
    return operator
