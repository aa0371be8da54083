"""What plans are measured against, on the same weights and ids: each must give the same sums first."""

# B items, T tables, C columns = sum of D

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from models.embedding.backend import Backend
from models.embedding.jagged import Bags
from models.embedding.plan.plan import Bucket, Group, Plan, params
from models.embedding.plan.spec import Layout, TableSpec
from models.embedding.tuning.problem import Problem
from models.embedding.tuning.search import Groups

Call = Callable[[int], object]  # number of a batch -> whatever
_MOST_CUT = 100_000  # tables of batches cut in advance: objects of Python


def table_of(problem: Problem, t: int) -> Tensor:
    """Rows of one table, a view."""
    spec = problem.layout.specs[t]
    first = int(problem.layout.elements_T[t])
    return problem.weight_E[first : first + spec.rows * spec.dim].view(spec.rows, spec.dim)


def feature_major(problem: Problem, n_items: int) -> list[Bags]:
    """The batches table after table, ids from each table's first row: what the others read."""
    return [
        _turned(problem, bags) if bags.item_major else bags for bags in problem.batches[n_items]
    ]


def _turned(problem: Problem, bags: Bags) -> Bags:
    ids, offsets = bags.of(range(bags.n_tables))
    low_T = torch.from_numpy(problem.layout.first_ids_T).to(ids.dtype)
    return Bags(
        ids - low_T.repeat_interleave(torch.diff(offsets[:: bags.n_items])), offsets, bags.n_tables
    )


def planned(
    problem: Problem, own: Backend, groups: Groups, n_items: int, settings: Any = ()
) -> Call:
    """A plan's bucket; its output is new for every call, as those of the others are."""
    run = own.build(problem.layout, problem.weight_E, Bucket(None, groups, settings), checked=False)
    batches = problem.batches[n_items]
    width = int(problem.layout.columns[-1])

    def call(i: int) -> Tensor:
        out_BC = torch.empty(n_items, width)
        run(batches[i % len(batches)], out_BC)
        return out_BC

    return call


def bucket_of(problem: Problem, own: Backend, plan: Plan, n_items: int) -> Call:
    """What a plan does with batches of this size."""
    bucket = plan.bucket(n_items)
    return planned(problem, own, bucket.groups, n_items, bucket.settings)


class PerTable(nn.Module):
    """nn.EmbeddingBag a table, and cat: what one writes first."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.bags = nn.ModuleList(
            nn.EmbeddingBag.from_pretrained(
                table_of(problem, t), mode="sum", include_last_offset=True
            )
            for t in range(len(problem.layout.specs))
        )

    def forward(self, jagged: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """(B, C)."""
        return torch.cat([bag(*own) for bag, own in zip(self.bags, jagged, strict=True)], dim=1)


def by_table(bags: Bags) -> list[tuple[Tensor, Tensor]]:
    """Ids and offsets of each table, of a feature-major batch."""
    return [bags.of((t,)) for t in range(bags.n_tables)]


def per_table(problem: Problem, batches: Sequence[Bags], *, compiled: bool = False) -> Call:
    """One call a table; ids are cut by table before the clock runs.

    Compiled: for this size if bags are fixed.

    `batches` of this one, of FBGEMM and of the limit are those of `feature_major`.
    """
    module: Any = PerTable(problem)
    if compiled:
        torch._dynamo.reset()  # noqa: SLF001
        jagged = any(spec.bag_ids is None for spec in problem.layout.specs)
        module = torch.compile(module, dynamic=jagged)
    most = max(_MOST_CUT // len(problem.layout.specs), 64)
    inputs = [by_table(bags) for bags in batches[:most]]
    return lambda i: module(inputs[i % len(inputs)])


def fbgemm(problem: Problem, batches: Sequence[Bags]) -> Call:
    """FBGEMM's table-batched inference operator, float32; raises ImportError, and ValueError for
    widths it refuses.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from fbgemm_gpu.split_embedding_configs import SparseType  # noqa: PLC0415
        from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation  # noqa: PLC0415
        from fbgemm_gpu.split_table_batched_embeddings_ops_inference import (  # noqa: PLC0415
            IntNBitTableBatchedEmbeddingBagsCodegen,
        )
    key = id(problem)
    if key not in _FBGEMM:
        _FBGEMM.clear()
        specs = [
            (f"t{t}", spec.rows, spec.dim, SparseType.FP32, EmbeddingLocation.HOST)
            for t, spec in enumerate(problem.layout.specs)
        ]
        operator = IntNBitTableBatchedEmbeddingBagsCodegen(
            specs, device="cpu", output_dtype=SparseType.FP32, row_alignment=16
        )
        operator.initialize_weights()
        for t, (weight, _) in enumerate(operator.split_embedding_weights()):
            weight.copy_(table_of(problem, t).contiguous().view(torch.uint8).view(weight.shape))
        _FBGEMM[key] = operator
    operator = _FBGEMM[key]
    return lambda i: operator(batches[i % len(batches)].ids_L, batches[i % len(batches)].offsets)


_FBGEMM: dict[int, Any] = {}


def gathers(problem: Problem, own: Backend, batches: Sequence[Bags]) -> dict[str, Call]:
    """The limit: all rows of a table summed as one bag, in several ways: rows are read, hardly
    anything written.
    """
    merged = [
        Bags(bags.ids_L, bags.offsets[:: bags.n_items].contiguous(), bags.n_tables)
        for bags in batches
    ]
    specs = tuple(TableSpec(spec.rows, spec.dim) for spec in problem.layout.specs)
    layout = Layout(
        specs, problem.layout.elements_T, problem.layout.first_ids_T * 0, problem.layout.n_elements
    )
    out_BC = torch.empty(1, int(layout.columns[-1]))
    every = tuple(range(len(specs)))
    calls = {}
    for name, knobs in {
        "none": params(ahead="none", unroll=4),
        "table": params(ahead="table", unroll=4),
        "ids": params(ahead="ids", distance=64),
    }.items():
        group = Group("compiled", knobs, every)
        run = own.build(layout, problem.weight_E, Bucket(None, (group,)), checked=False)
        calls[f"gather {name}"] = lambda i, run=run: run(merged[i % len(merged)], out_BC)
    return calls  # type: ignore[return-value]
