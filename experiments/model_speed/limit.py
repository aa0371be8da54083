"""What one core can do at best: its GEMM rate, its random-row gather rate, its weight-reading rate."""

# R rows of all tables, D embedding width

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
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


def median_s(call: Callable[[int], object], repeats: int = _REPEATS) -> float:
    """Median seconds of call(i)."""
    times = []
    for i in range(repeats):
        start = time.perf_counter()
        call(i)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def gemm_flops_per_s(width: int = 1024, dtype: torch.dtype = torch.float32) -> float:
    """The faster of PyTorch's product and a prepacked one, square."""
    layer, x = FC("gemm", width, width), torch.randn(width, width)
    layer.weight_OI.normal_()
    layer.bias_O.normal_()
    packed = PackedFC(layer, "none", dtype)
    own = x.to(dtype)
    best_s = median_s(lambda _: packed(own))
    if dtype == torch.float32:
        best_s = min(best_s, median_s(lambda _: layer(x)))
    return 2 * width**3 / best_s


def gather_bytes_per_s(model: RecModel, inputs: InputPool) -> float:
    """Rows of the model's own tables, chosen by its own ids, summed in long bags."""
    weight_RD = model.tables.weight_RD
    batches = [inputs.batch(i, 0, inputs.max_items).ids_L for i in range(inputs.n_inputs)]

    def gather(i: int) -> Tensor:
        ids_L = batches[i % len(batches)]
        offsets = torch.arange(0, len(ids_L), _PURE_BAG_IDS, dtype=torch.int32)
        return F.embedding_bag(ids_L, weight_RD, offsets, mode="sum")

    return len(batches[0]) * weight_RD.shape[1] * weight_RD.element_size() / median_s(gather)


def read_bytes_per_s(n_bytes: float) -> float:
    """Weights of this size, read once by a matrix-vector product, from the cache or memory that they live in."""
    n_rows = max(int(n_bytes) // 4 // 512, 1)
    weight, x = torch.randn(n_rows, 512), torch.randn(512)
    return weight.nbytes / median_s(lambda _: torch.mv(weight, x), 31)


@dataclass(frozen=True)
class Limit:
    """Rates of this core for one model."""

    gemm_flops_per_s: float
    gather_bytes_per_s: float
    weights_s: float  # all weights read once

    def seconds(self, model: RecModel, n_items: int) -> float:
        """The largest of: products at the GEMM rate, rows at the gather rate, weights once."""
        cost = costs(model.config, n_items)
        products_s, rows_s = cost.flops / self.gemm_flops_per_s, cost.gather_bytes / self.gather_bytes_per_s
        return max(products_s, rows_s, self.weights_s)


def measure_limit(model: RecModel, inputs: InputPool, gemm_rate: float) -> Limit:
    """The limit of one model on this core."""
    weight_bytes = costs(model.config, 1).weight_bytes
    return Limit(gemm_rate, gather_bytes_per_s(model, inputs), weight_bytes / read_bytes_per_s(weight_bytes))
