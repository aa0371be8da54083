"""What one core can do at best: products, rows gathered at random, weights read."""

# R rows of all tables, D embedding width

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from models.base import RecModel
from models.costs import costs
from models.inputs.synthetic import InputPool
from models.layers import FC, PackedFC

_REPEATS = 9
_PURE_BAG_IDS = 80  # long bags: nothing but rows is read


def times_s(call: Callable[[int], object], repeats: int = _REPEATS) -> list[float]:
    """Seconds of call(0), call(1), ..."""
    times = []
    for i in range(repeats):
        start = time.perf_counter()
        call(i)
        times.append(time.perf_counter() - start)
    return times


def least_s(call: Callable[[int], object], repeats: int = _REPEATS) -> float:
    """Least seconds of call(i): what is possible is what was seen once."""
    return min(times_s(call, repeats))


def median_s(call: Callable[[int], object], repeats: int = _REPEATS) -> float:
    """Median seconds of call(i)."""
    return statistics.median(times_s(call, repeats))


def gemm_flops_per_s(width: int = 1024) -> float:
    """The faster of PyTorch's product and a prepacked one, square, float32."""
    layer = FC("gemm", width, width)
    x = torch.randn(width, width)
    layer.weight_OI.normal_()
    layer.bias_O.normal_()
    packed = PackedFC(layer)
    return 2 * width**3 / min(least_s(lambda _: packed(x)), least_s(lambda _: layer(x)))


def gather_bytes_per_s(model: RecModel, inputs: InputPool) -> float:
    """Rate of rows of the model's own tables, chosen by its own ids, summed in long bags.

    The faster of two look-ups: PyTorch's goes through the ids as they lie, ours (of the packed
    model) table after table.
    """
    weight_RD = model.tables.weight_RD
    n_tables = len(model.tables.table_rows)
    batches = [inputs.batch(i, 0, inputs.max_items) for i in range(inputs.n_inputs)]
    n_ids = len(batches[0].ids_L)

    def as_they_lie(i: int) -> Tensor:
        offsets = torch.arange(0, n_ids, _PURE_BAG_IDS, dtype=torch.int32)
        return F.embedding_bag(batches[i % len(batches)].ids_L, weight_RD, offsets, mode="sum")

    times = [least_s(as_they_lie)]
    bags_are_long = n_ids >= _PURE_BAG_IDS * n_tables * inputs.max_items // 4
    if bags_are_long:  # so the look-up is a gather and nothing else
        times.append(least_s(lambda i: model.tables(batches[i % len(batches)])))
    return n_ids * weight_RD.shape[1] * weight_RD.element_size() / min(times)


def read_bytes_per_s(n_bytes: float) -> float:
    """Rate at which a matrix-vector product reads weights of this size, from where they live."""
    n_rows = max(int(n_bytes) // 4 // 512, 1)
    weight = torch.randn(n_rows, 512)
    x = torch.randn(512)
    return weight.nbytes / least_s(lambda _: torch.mv(weight, x), 31)


@dataclass(frozen=True)
class CoreLimit:
    """Rates of this core for one model."""

    gemm_flops_per_s: float
    gather_bytes_per_s: float
    weights_s: float  # all weights read once

    def seconds(self, model: RecModel, n_items: int) -> float:
        """The largest of: products at the GEMM rate, rows at the gather rate, weights once."""
        cost = costs(model.config, n_items)
        products_s = cost.flops / self.gemm_flops_per_s
        rows_s = cost.gather_bytes / self.gather_bytes_per_s
        return max(products_s, rows_s, self.weights_s)


def measure_limit(model: RecModel, inputs: InputPool) -> CoreLimit:
    """The limit of one model on this core, now."""
    weight_bytes = costs(model.config, 1).weight_bytes
    return CoreLimit(
        gemm_flops_per_s(),
        gather_bytes_per_s(model, inputs),
        weight_bytes / read_bytes_per_s(weight_bytes),
    )


def best(limits: Sequence[CoreLimit]) -> CoreLimit:
    """The best rate of each kind: a shared machine is slow for a while, never too fast."""
    return CoreLimit(
        max(limit.gemm_flops_per_s for limit in limits),
        max(limit.gather_bytes_per_s for limit in limits),
        min(limit.weights_s for limit in limits),
    )
