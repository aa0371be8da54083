"""What the tuner may try on a CPU: candidates, each with a cost that a model of memory tells."""

# B items, T tables

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from models.embedding.backend import Choice, Cluster
from models.embedding.cpu.storage import ERRORS
from models.embedding.plan.plan import params

_LINE_BYTES = 64
_L2_BYTES = 512 << 10
_BAG_S = 4e-9
_ID_S = 0.7e-9
_NEAR_S = 0.4e-9
_FAR_S = 2e-9
_MEMORY_S = 6e-9
_STREAMED_LINE_S = 2.5e-9
_TORCH_CALL_S = 5e-6
_WORST = 3.0

Estimates = Iterator[tuple[Choice, float]]  # with seconds


def choices(cluster: Cluster, max_error: float) -> list[Choice]:
    """Every candidate within a factor of the best estimate, best first."""
    costs = _Costs.of(cluster)
    storages = [storage for storage, error in ERRORS.items() if error <= max_error]
    compiled = (pair for storage in storages for pair in _compiled(cluster, costs, storage))
    estimates = sorted((*compiled, *_by_torch(cluster, costs)), key=lambda pair: pair[1])
    return [choice for choice, cost_s in estimates if cost_s <= _WORST * estimates[0][1]]


@dataclass(frozen=True)
class _Costs:
    """Seconds that a cluster takes, and the numbers behind them."""

    n_bags: int
    n_ids: float
    rows_s: float  # to read the rows
    plain_s: float  # to look up, nothing asked for ahead
    streamed_s: float  # and with whole tables asked for

    @classmethod
    def of(cls, cluster: Cluster) -> _Costs:
        """Rows that were not read before come from memory, others from a cache."""
        n_tables = len(cluster.tables)
        spec = cluster.spec
        n_bags = n_tables * cluster.n_items
        n_ids = n_bags * cluster.mean_ids
        table_bytes = spec.n_elements * 4
        lines = max(spec.dim * 4 / _LINE_BYTES, 1.0)
        n_touched = min(n_ids, n_tables * spec.rows) * lines
        again_s = _NEAR_S if table_bytes <= _L2_BYTES else _FAR_S
        rows_s = n_touched * _MEMORY_S + max(n_ids * lines - n_touched, 0) * again_s
        plain_s = n_bags * _BAG_S + n_ids * _ID_S + rows_s
        streamed_s = plain_s - n_touched * _MEMORY_S + n_touched * again_s
        streamed_s += n_tables * table_bytes / _LINE_BYTES * _STREAMED_LINE_S
        return cls(n_bags, n_ids, rows_s, plain_s, streamed_s)


def _compiled(cluster: Cluster, costs: _Costs, storage: str) -> Estimates:
    narrow = {} if storage == "float32" else {"storage": storage}

    def choice(schedule: str, ahead: str, **knobs: int | str) -> Choice:
        return Choice(schedule, params(ahead=ahead, **knobs, **narrow))

    side_by_side = cluster.mean_ids >= 4 and cluster.spec.dim <= 64
    for unroll in (1, 4) if side_by_side else (1,):
        yield choice("compiled", "none", unroll=unroll), costs.plain_s
        yield choice("compiled", "table", unroll=unroll), costs.streamed_s
    for distance in (16, 64):
        yield choice("compiled", "ids", distance=distance), costs.plain_s * 1.05
    if cluster.item_major:
        yield choice("compiled", "none", order="item"), costs.plain_s * 1.02
    if cluster.spec.bag_ids == 1:
        yield choice("copy", "none"), costs.plain_s * 0.9
        yield choice("copy", "ids", distance=16), costs.plain_s
        yield choice("copy", "table"), costs.streamed_s * 0.9


def _by_torch(cluster: Cluster, costs: _Costs) -> Estimates:
    n_tables = len(cluster.tables)
    spec = cluster.spec
    bags = costs.n_bags
    again_s = costs.n_ids * _ID_S + costs.rows_s
    yield Choice("fused", ()), 4 * _TORCH_CALL_S + bags * 20e-9 + 3 * again_s
    yield Choice("per_table", ()), n_tables * _TORCH_CALL_S + bags * 8e-9 + again_s
    if spec.bag_ids == 1:
        yield Choice("gather", ()), 4 * _TORCH_CALL_S + bags * 15e-9 + 2 * again_s
    if spec.bag_ids is not None:
        yield Choice("fixed_length", ()), 4 * _TORCH_CALL_S + bags * 20e-9 + 2 * again_s
    cells_s = cluster.n_items * spec.rows * n_tables * (1e-9 + spec.dim * 3e-11)
    yield Choice("histogram", ()), 4 * n_tables * _TORCH_CALL_S + costs.n_ids * 4e-9 + cells_s
    sorted_s = 8 * _TORCH_CALL_S + costs.n_ids * 60e-9 + bags * 20e-9
    yield Choice("dedup", ()), sorted_s + cluster.distinct_frac * costs.rows_s
