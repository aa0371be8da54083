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
PARTS = ("mlp", "attention", "recurrent", "interaction")
MLP, ATTENTION, RECURRENT, INTERACTION = PARTS
_DICE = 9  # element-wise operators of models.layers.Dice


@dataclass(frozen=True, slots=True)
class Gemm:
    """`groups` products, each with a weight of its own that is used `rows` times an item.

    (B rows, n_in) x n_out.
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
        n_weights = self.groups * self.n_out * (self.n_in + self.bias)
        return FLOAT_BYTES * n_weights if self.weighted else 0

    def activation_bytes(self, n_items: int) -> int:
        """Read and written."""
        return FLOAT_BYTES * n_items * self.rows * self.groups * (self.n_in + self.n_out)


@dataclass(frozen=True, slots=True)
class Net:
    """What an architecture computes for one item beside its look-up."""

    gemms: tuple[Gemm, ...]
    output_width: int
    # operators that belong to no product; the look-up and the last concatenation not counted
    other_launches: int = 0


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
        """Operators of one eager forward pass that are no views: each is a kernel.

        For two items or more; DIEN's first layer copies its input only then.
        """
        look_up_and_last_concatenation = 2
        launches = sum(gemm.launches for gemm in self.gemms)
        return launches + self.other_launches + look_up_and_last_concatenation

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
    lookups = n_tables * bag_ids
    if not config.num_indices_per_lookup_fixed:
        lookups = n_tables * (bag_ids + 1) // 2  # of 1 to K ids, evenly drawn: the mean
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


def _dice_mlp(
    widths: Sequence[int], last_launches: int = 2, rows: int = 1, part: str = MLP
) -> list[Gemm]:
    *hidden, last = _mlp(widths, rows, part=part)
    dice = [replace(gemm, launches=1 + _DICE) for gemm in hidden]
    return [*dice, replace(last, launches=last_launches)]


def _top(config: ModelConfig, n_in: int) -> list[Gemm]:
    widths = (n_in, *config.top_widths)
    return _dice_mlp(widths) if config.arch_variant == "paper" else _mlp(widths)


def _dlrm(config: ModelConfig) -> Net:
    n_vectors = len(config.table_rows) + 1
    width = config.arch_sparse_feature_size
    bottom = _mlp(config.bot_widths)
    interaction = []
    n_interactions = (n_vectors - 1) * width
    if config.arch_interaction_op == "dot":
        itself = 1 if config.arch_interaction_itself else -1
        n_interactions = n_vectors * (n_vectors + itself) // 2
        # launches: the vectors' concatenation, the product, the choice of its pairs
        interaction = [
            Gemm(width, n_vectors, rows=n_vectors, launches=3, weighted=False, part=INTERACTION)
        ]
    top = _mlp((config.bot_widths[-1] + n_interactions, *config.top_widths))
    return Net((*bottom, *interaction, *top), config.top_widths[-1])


def _joined_mlp(config: ModelConfig) -> list[Gemm]:
    n_joined = config.dense_width + len(config.table_rows) * config.arch_sparse_feature_size
    return _mlp((n_joined, *config.top_widths))


def _wnd(config: ModelConfig) -> Net:
    return Net(tuple(_joined_mlp(config)), config.top_widths[-1])


def _mtwnd(config: ModelConfig) -> Net:
    tasks = _mlp(config.task_widths, groups=config.num_multi_tasks)
    n_out = config.num_multi_tasks * config.task_widths[-1]
    return Net((*_joined_mlp(config), *tasks), n_out)


def _ncf(config: ModelConfig) -> Net:
    width = config.arch_sparse_feature_size
    *tower, n_out = config.top_widths
    if config.arch_variant == "paper":
        n_out = 1
    gemms = (*_mlp((2 * width, *tower)), *_mlp((width + tower[-1], n_out)))
    return Net(gemms, n_out, other_launches=1)  # the two factors joined


def _din(config: ModelConfig) -> Net:
    width = config.arch_sparse_feature_size
    hidden = config.bot_widths
    n_behaviours = len(config.table_rows) - 3
    top = _top(config, 4 * width)
    n_out = config.top_widths[-1]
    if config.arch_variant == "paper":
        units = _dice_mlp((3 * width, *hidden, 1), 1, rows=n_behaviours, part=ATTENTION)
        # others: behaviours by ad, their concatenation, behaviours by weight, the sum
        return Net((*units, *top), n_out, other_launches=4)
    of_ad = Gemm(width, n_behaviours * hidden[0], launches=1, part=ATTENTION)
    # With one hidden unit the product is an element-wise one and a sum: one operator more.
    of_behaviours = Gemm(
        width,
        hidden[0],
        groups=n_behaviours,
        launches=4 if hidden[0] == 1 else 3,
        bias=False,
        part=ATTENTION,
    )
    rest = _mlp((*hidden, width), groups=n_behaviours, part=ATTENTION)
    # others: the sum over behaviours
    return Net((of_ad, of_behaviours, *rest, *top), n_out, other_launches=1)


def _dien(config: ModelConfig) -> Net:
    width = config.arch_sparse_feature_size
    hidden = config.hidden_size
    n_steps = len(config.table_rows) - 3
    top = _top(config, hidden + 3 * width)
    n_out = config.top_widths[-1]

    def recurrent(n_in: int, n_out: int, launches: int, rows: int = n_steps) -> Gemm:
        return Gemm(n_in, n_out, rows=rows, launches=launches, part=RECURRENT)

    if config.arch_variant == "paper":
        gates = 3 * hidden
        cells = []
        for n_in, step_launches in ((width, 10), (hidden, 11)):  # 11: attention scales the gate
            step = recurrent(hidden, gates, step_launches * n_steps)
            cells += [recurrent(n_in, gates, 1), replace(step, bias=False)]
        compare = Gemm(width, hidden, launches=1, part=ATTENTION)
        scores = Gemm(hidden, 1, rows=n_steps, launches=2, weighted=False, part=ATTENTION)
        # others: the first layer's bias apart from its product; of both cells the first state and
        # the stacked ones
        return Net((*cells, compare, scores, *top), n_out, other_launches=5)
    layers = []
    for n_in in (width, hidden):
        # The first step has no product: its state is 0. It adds the bias, takes tanh.
        steps = recurrent(hidden, hidden, 3 * (n_steps - 1) + 2, n_steps - 1)
        layers += [recurrent(n_in, hidden, 1), steps]
    dropped = recurrent(hidden, hidden, 3)  # computed and not used, as released
    # others: the behaviours laid out anew, the first layer's states stacked
    return Net((*layers, dropped, *top), n_out, other_launches=2)


_NETS = {"dlrm": _dlrm, "wnd": _wnd, "mtwnd": _mtwnd, "ncf": _ncf, "din": _din, "dien": _dien}
