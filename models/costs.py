"""What one forward pass takes, from a configuration alone: FLOPs, bytes, look-ups, launches. No PyTorch.

FLOPs count a multiply-add as 2 and are those of matrix products, as torch.utils.flop_counter counts them; activations,
sums and the pooling of rows are small beside them or are counted as bytes.
"""

# B items, T tables, D embedding width, S behaviours, H hidden width

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from infra.config import ModelConfig

FLOAT_BYTES = ID_BYTES = 4


@dataclass(frozen=True, slots=True)
class Gemm:
    """`groups` products of weights of their own, or of one weight used `rows` times an item: (B rows, n_in) x n_out."""

    n_in: int
    n_out: int
    rows: int = 1
    groups: int = 1
    launches: int = 2  # the product and its activation
    weighted: bool = True  # False: both factors are activations

    def flops(self, n_items: int) -> int:
        """Multiply-adds count 2."""
        return 2 * n_items * self.rows * self.groups * self.n_in * self.n_out

    @property
    def weight_bytes(self) -> int:
        """Read once a forward pass; bias included."""
        return FLOAT_BYTES * self.groups * self.n_out * (self.n_in + 1) if self.weighted else 0

    def activation_bytes(self, n_items: int) -> int:
        """Read and written."""
        return FLOAT_BYTES * n_items * self.rows * self.groups * (self.n_in + self.n_out)


@dataclass(frozen=True, slots=True)
class Costs:
    """One forward pass of `n_items`."""

    n_items: int
    gemms: tuple[Gemm, ...]
    lookups_per_item: int
    row_bytes: int
    output_width: int
    dense_width: int
    n_tables: int
    table_bytes: int

    @property
    def flops(self) -> int:
        """Of all matrix products."""
        return sum(gemm.flops(self.n_items) for gemm in self.gemms)

    @property
    def gather_bytes(self) -> int:
        """Embedding rows read."""
        return self.n_items * self.lookups_per_item * self.row_bytes

    @property
    def pooled_bytes(self) -> int:
        """Pooled rows written and read again."""
        return 2 * self.n_items * self.n_tables * self.row_bytes

    @property
    def weight_bytes(self) -> int:
        """Of all layers; tables not included."""
        return sum(gemm.weight_bytes for gemm in self.gemms)

    @property
    def input_bytes(self) -> int:
        """Over a host's link: ids and offsets int32, dense features float32 (models/batch.py)."""
        ids = self.lookups_per_item + self.n_tables
        return self.n_items * (ID_BYTES * ids + FLOAT_BYTES * self.dense_width) + ID_BYTES

    @property
    def output_bytes(self) -> int:
        """Scores, back over the link."""
        return FLOAT_BYTES * self.n_items * self.output_width

    @property
    def n_launches(self) -> int:
        """Kernels of a plain port with one fused look-up: products, activations, look-up, concatenation."""
        return sum(gemm.launches for gemm in self.gemms) + 2

    @property
    def bytes_moved(self) -> int:
        """Rows, pooled rows, weights and activations: what memory has to carry."""
        activations = sum(gemm.activation_bytes(self.n_items) for gemm in self.gemms)
        return self.gather_bytes + self.pooled_bytes + self.weight_bytes + activations


def costs(config: ModelConfig, n_items: int) -> Costs:
    """Costs of one forward pass; raises ValueError below 1 item."""
    if n_items < 1:
        raise ValueError(f"n_items is {n_items}; expected at least 1")
    gemms, output_width = _NETS[config.model_type](config)
    n_tables = len(config.table_rows)
    mean_ids = config.num_indices_per_lookup
    if not config.num_indices_per_lookup_fixed:
        mean_ids = (mean_ids + 1) // 2  # 1 to that many, evenly
    return Costs(
        n_items, tuple(gemms), n_tables * mean_ids, config.arch_sparse_feature_size * FLOAT_BYTES, output_width,
        config.dense_width, n_tables, config.table_bytes,
    )  # fmt: skip


def _mlp(widths: Sequence[int], rows: int = 1, groups: int = 1) -> list[Gemm]:
    return [Gemm(n_in, n_out, rows, groups) for n_in, n_out in itertools.pairwise(widths)]


def _dlrm(config: ModelConfig) -> tuple[list[Gemm], int]:
    n_tables, width, bottom = len(config.table_rows), config.arch_sparse_feature_size, config.bot_widths
    interaction, n_top = [], bottom[-1] + n_tables * width
    if config.arch_interaction_op == "dot":
        n_vectors = n_tables + 1
        n_top = bottom[-1] + n_vectors * (n_vectors + (1 if config.arch_interaction_itself else -1)) // 2
        interaction = [Gemm(width, n_vectors, rows=n_vectors, launches=3, weighted=False)]
    return [*_mlp(bottom), *interaction, *_mlp((n_top, *config.top_widths))], config.top_widths[-1]


def _joined(config: ModelConfig) -> int:
    return config.dense_width + len(config.table_rows) * config.arch_sparse_feature_size


def _wnd(config: ModelConfig) -> tuple[list[Gemm], int]:
    return _mlp((_joined(config), *config.top_widths)), config.top_widths[-1]


def _mtwnd(config: ModelConfig) -> tuple[list[Gemm], int]:
    tasks = _mlp(config.task_widths, groups=config.num_multi_tasks)
    return [*_mlp((_joined(config), *config.top_widths)), *tasks], config.num_multi_tasks * config.task_widths[-1]


def _ncf(config: ModelConfig) -> tuple[list[Gemm], int]:
    width, (*tower, n_out) = config.arch_sparse_feature_size, config.top_widths
    n_out = 1 if config.arch_variant == "paper" else n_out
    return [*_mlp((2 * width, *tower)), *_mlp((width + tower[-1], n_out))], n_out


def _din(config: ModelConfig) -> tuple[list[Gemm], int]:
    width, hidden, n_behaviours = config.arch_sparse_feature_size, config.bot_widths, len(config.table_rows) - 3
    top = _mlp((4 * width, *config.top_widths))
    if config.arch_variant == "paper":
        return [*_mlp((3 * width, *hidden, 1), rows=n_behaviours), *top], config.top_widths[-1]
    of_ad = Gemm(width, n_behaviours * hidden[0], launches=1)
    # With one hidden unit the behaviours' part is an element-wise product, which is no matrix product.
    own = [] if hidden[0] == 1 else [Gemm(width, hidden[0], groups=n_behaviours, launches=2)]
    return [of_ad, *own, *_mlp((*hidden, width), groups=n_behaviours), *top], config.top_widths[-1]


def _dien(config: ModelConfig) -> tuple[list[Gemm], int]:
    width, hidden, n_steps = config.arch_sparse_feature_size, config.hidden_size, len(config.table_rows) - 3
    top = _mlp((hidden + 3 * width, *config.top_widths))
    if config.arch_variant == "paper":
        cells = [
            part
            for n_in in (width, hidden)
            for part in (
                Gemm(n_in, 3 * hidden, rows=n_steps, launches=1),
                Gemm(hidden, 3 * hidden, rows=n_steps, launches=10 * n_steps),
            )
        ]
        attention = [Gemm(width, hidden, launches=1), Gemm(hidden, 1, rows=n_steps, launches=2, weighted=False)]
        return [*cells, *attention, *top], config.top_widths[-1]
    layers = [
        part
        for n_in in (width, hidden)
        for part in (
            Gemm(n_in, hidden, rows=n_steps, launches=1),
            Gemm(hidden, hidden, rows=n_steps - 1, launches=3 * (n_steps - 1)),
        )
    ]
    dropped = Gemm(hidden, hidden, rows=n_steps, launches=3)  # computed and not used, as released
    return [*layers, dropped, *top], config.top_widths[-1]


_NETS = {"dlrm": _dlrm, "wnd": _wnd, "mtwnd": _mtwnd, "ncf": _ncf, "din": _din, "dien": _dien}
