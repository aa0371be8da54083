"""What one forward pass takes, from a configuration alone: FLOPs, bytes, look-ups, launches.

No PyTorch.

FLOPs count a multiply-add as 2 and are those of all products with weights or between vectors, as
torch.utils.flop_counter counts them (and DIN's one-unit layer, an element-wise product that it does
not see); activations and sums are small beside them, the pooling of rows is counted as bytes.
"""

# B items, T tables, D embedding width, S behaviours, H hidden width

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from infra.settings.config import ModelConfig

FLOAT_BYTES = ID_BYTES = 4
MLP, ATTENTION, RECURRENT, INTERACTION = PARTS = ("mlp", "attention", "recurrent", "interaction")
_DICE = 9  # element-wise operators of models.layers.Dice


@dataclass(frozen=True, slots=True)
class Gemm:
    """`groups` products of weights of their own, or of one weight used `rows` times an item: (B
    rows, n_in) x n_out.
    """

    n_in: int
    n_out: int
    rows: int = 1
    groups: int = 1
    launches: int = 2  # the product and its activation
    weighted: bool = True  # False: both factors are activations
    bias: bool = True
    part: str = MLP

    def flops(self, n_items: int) -> int:
        """Multiply-adds count 2."""
        return 2 * n_items * self.rows * self.groups * self.n_in * self.n_out

    @property
    def weight_bytes(self) -> int:
        """Read once a forward pass; bias included."""
        return (
            FLOAT_BYTES * self.groups * self.n_out * (self.n_in + self.bias) if self.weighted else 0
        )

    def activation_bytes(self, n_items: int) -> int:
        """Read and written."""
        return FLOAT_BYTES * n_items * self.rows * self.groups * (self.n_in + self.n_out)


@dataclass(frozen=True, slots=True)
class Net:
    """What an architecture computes for one item beside its look-up."""

    gemms: tuple[Gemm, ...]
    output_width: int
    other_launches: int = (
        0  # operators that belong to no product; the look-up and the last concatenation not counted
    )


@dataclass(frozen=True, slots=True)
class Costs:
    """One forward pass of `n_items`."""

    n_items: int
    gemms: tuple[Gemm, ...]
    lookups_per_item: int  # the mean (rounded down) where bags differ in length
    row_bytes: int
    output_width: int
    dense_width: int
    n_tables: int
    table_bytes: int
    other_launches: int

    @property
    def flops(self) -> int:
        """Of all products of activations with weights or with each other."""
        return sum(gemm.flops(self.n_items) for gemm in self.gemms)

    @property
    def flops_by_part(self) -> dict[str, int]:
        """{part: FLOPs} for each of PARTS; they add up to `flops`."""
        return {
            part: sum(g.flops(self.n_items) for g in self.gemms if g.part == part) for part in PARTS
        }

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
        """Operators of one eager forward pass that are no views: each is a kernel, the fused
        look-up one.

        For two items or more; DIEN's first layer copies its input only then.
        """
        return (
            sum(gemm.launches for gemm in self.gemms) + self.other_launches + 2
        )  # look-up, last concatenation

    @property
    def bytes_moved(self) -> int:
        """Rows, pooled rows, weights and activations: what memory has to carry."""
        activations = sum(gemm.activation_bytes(self.n_items) for gemm in self.gemms)
        return self.gather_bytes + self.pooled_bytes + self.weight_bytes + activations


def costs(config: ModelConfig, n_items: int) -> Costs:
    """Costs of one forward pass; raises ValueError below 1 item."""
    if n_items < 1:
        raise ValueError(f"n_items is {n_items}; expected at least 1")
    net = _NETS[config.model_type](config)
    n_tables = len(config.table_rows)
    bag_ids = config.num_indices_per_lookup
    # Bags of 1 to K ids, evenly drawn, have (K + 1) / 2 on average.
    lookups = (
        n_tables * bag_ids if config.num_indices_per_lookup_fixed else n_tables * (bag_ids + 1) // 2
    )
    return Costs(
        n_items,
        net.gemms,
        lookups,
        config.arch_sparse_feature_size * FLOAT_BYTES,
        net.output_width,
        config.dense_width,
        n_tables,
        config.table_bytes,
        net.other_launches,
    )


def _mlp(widths: Sequence[int], rows: int = 1, groups: int = 1, part: str = MLP) -> list[Gemm]:
    return [
        Gemm(n_in, n_out, rows, groups, part=part) for n_in, n_out in itertools.pairwise(widths)
    ]


def _dice_mlp(widths: Sequence[int]) -> list[Gemm]:
    *hidden, last = _mlp(widths)
    return [*(replace(gemm, launches=1 + _DICE) for gemm in hidden), last]


def _dlrm(config: ModelConfig) -> Net:
    n_tables = len(config.table_rows)
    width = config.arch_sparse_feature_size
    bottom = config.bot_widths
    interaction = []
    n_top = bottom[-1] + n_tables * width
    if config.arch_interaction_op == "dot":
        n_vectors = n_tables + 1
        n_top = (
            bottom[-1]
            + n_vectors * (n_vectors + (1 if config.arch_interaction_itself else -1)) // 2
        )
        # launches: the vectors' concatenation, the product, the choice of its pairs
        interaction = [
            Gemm(width, n_vectors, rows=n_vectors, launches=3, weighted=False, part=INTERACTION)
        ]
    return Net(
        (*_mlp(bottom), *interaction, *_mlp((n_top, *config.top_widths))), config.top_widths[-1]
    )


def _joined(config: ModelConfig) -> int:
    return config.dense_width + len(config.table_rows) * config.arch_sparse_feature_size


def _wnd(config: ModelConfig) -> Net:
    return Net(tuple(_mlp((_joined(config), *config.top_widths))), config.top_widths[-1])


def _mtwnd(config: ModelConfig) -> Net:
    tasks = _mlp(config.task_widths, groups=config.num_multi_tasks)
    shared = _mlp((_joined(config), *config.top_widths))
    return Net((*shared, *tasks), config.num_multi_tasks * config.task_widths[-1])


def _ncf(config: ModelConfig) -> Net:
    width, (*tower, n_out) = config.arch_sparse_feature_size, config.top_widths
    n_out = 1 if config.arch_variant == "paper" else n_out
    return Net(
        (*_mlp((2 * width, *tower)), *_mlp((width + tower[-1], n_out))), n_out, 1
    )  # 1: the two factors joined


def _din(config: ModelConfig) -> Net:
    width = config.arch_sparse_feature_size
    hidden = config.bot_widths
    n_behaviours = len(config.table_rows) - 3
    widths = (4 * width, *config.top_widths)
    if config.arch_variant == "paper":
        *units, last = _mlp((3 * width, *hidden, 1), rows=n_behaviours, part=ATTENTION)
        units = [*(replace(unit, launches=1 + _DICE) for unit in units), replace(last, launches=1)]
        # others: behaviours by ad, their concatenation, behaviours by weight, the sum
        return Net((*units, *_dice_mlp(widths)), config.top_widths[-1], 4)
    of_ad = Gemm(width, n_behaviours * hidden[0], launches=1, part=ATTENTION)
    # With one hidden unit the behaviours' product is computed as an element-wise one and a sum: one
    # operator more.
    own_launches = 4 if hidden[0] == 1 else 3
    own = Gemm(
        width, hidden[0], groups=n_behaviours, launches=own_launches, bias=False, part=ATTENTION
    )
    rest = _mlp((*hidden, width), groups=n_behaviours, part=ATTENTION)
    return Net(
        (of_ad, own, *rest, *_mlp(widths)), config.top_widths[-1], 1
    )  # 1: the sum over behaviours


def _dien(config: ModelConfig) -> Net:
    width = config.arch_sparse_feature_size
    hidden = config.hidden_size
    n_steps = len(config.table_rows) - 3
    widths = (hidden + 3 * width, *config.top_widths)
    if config.arch_variant == "paper":
        cells = [
            part
            for n_in, step_launches in (
                (width, 10),
                (hidden, 11),
            )  # 11: the step's attention scales the gate
            for part in (
                Gemm(n_in, 3 * hidden, rows=n_steps, launches=1, part=RECURRENT),
                Gemm(
                    hidden,
                    3 * hidden,
                    rows=n_steps,
                    launches=step_launches * n_steps,
                    bias=False,
                    part=RECURRENT,
                ),
            )
        ]
        compare = Gemm(width, hidden, launches=1, part=ATTENTION)
        scores = Gemm(hidden, 1, rows=n_steps, launches=2, weighted=False, part=ATTENTION)
        # others: the first layer's bias apart from its product; of both cells the first state and
        # the stacked ones
        return Net((*cells, compare, scores, *_dice_mlp(widths)), config.top_widths[-1], 5)
    layers = [
        part
        for n_in in (width, hidden)
        for part in (
            Gemm(n_in, hidden, rows=n_steps, launches=1, part=RECURRENT),
            # The first step has no product: its state is 0. It adds the bias, takes tanh.
            Gemm(hidden, hidden, rows=n_steps - 1, launches=3 * (n_steps - 1) + 2, part=RECURRENT),
        )
    ]
    dropped = Gemm(
        hidden, hidden, rows=n_steps, launches=3, part=RECURRENT
    )  # computed and not used, as released
    # others: the behaviours laid out anew, the first layer's states stacked
    return Net((*layers, dropped, *_mlp(widths)), config.top_widths[-1], 2)


_NETS = {"dlrm": _dlrm, "wnd": _wnd, "mtwnd": _mtwnd, "ncf": _ncf, "din": _din, "dien": _dien}
