"""What a model is measured against: a plain PyTorch port, the same compiled, and FBGEMM's inference
look-up.

All hold the model's own weights (tables are shared, not copied) and get their inputs in the form
they like best, prepared outside of the timed part. Each must give the model's own scores before it
is timed.
"""

# B items, T tables, D embedding width

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from models.base import RecModel
from models.batch import Batch
from models.dien import DIEN, PlainRNN, ReleasedEvolution
from models.din import DIN, ReleasedAttention
from models.dlrm import DLRM
from models.layers import FC, GroupedFC, Sigmoid
from models.mtwnd import MultiTaskWideAndDeep
from models.ncf import NCF
from models.wide_and_deep import WideAndDeep

JaggedTables = list[tuple[Tensor, Tensor]]  # a table's ids and offsets
Net = Callable[
    [Tensor | None, list[Tensor]], Tensor
]  # dense (B, F), pooled rows (B, D) of each table -> scores


def by_table(model: RecModel, batch: Batch) -> JaggedTables:
    """A batch as nn.EmbeddingBag reads it: for each table its ids, counted from its first row, and
    offsets; int32.
    """
    n_tables = len(model.tables.table_rows)
    lengths_BT = torch.diff(batch.offsets).view(-1, n_tables)
    table_L = (
        torch.arange(n_tables)
        .repeat(batch.n_items)
        .repeat_interleave(lengths_BT.reshape(-1).long())
    )
    jagged = []
    for table, first_row in enumerate(model.tables.first_rows[:-1].tolist()):
        offsets = torch.cat(
            (torch.zeros(1, dtype=torch.int32), lengths_BT[:, table].cumsum(0, dtype=torch.int32))
        )
        jagged.append((batch.ids_L[table_L == table] - first_row, offsets))
    return jagged


def as_one(jagged: JaggedTables) -> tuple[Tensor, Tensor]:
    """Ids and offsets of all tables, table after table: FBGEMM's form."""
    ids = torch.cat([ids for ids, _ in jagged])
    first = 0
    offsets = []
    for own_ids, own_offsets in jagged:
        offsets.append(own_offsets[:-1] + first)
        first += len(own_ids)
    return ids, torch.cat((*offsets, torch.tensor([first], dtype=torch.int32)))


class PlainPort(nn.Module):
    """nn.EmbeddingBag per table, nn.Linear, nn.RNN: what one writes first."""

    def __init__(self, model: RecModel) -> None:
        super().__init__()
        self.bags = nn.ModuleList(
            nn.EmbeddingBag.from_pretrained(
                model.tables.table(t), mode="sum", include_last_offset=True
            )
            for t in range(len(model.tables.table_rows))
        )
        self.net = plain_net(model)

    def forward(self, dense_BF: Tensor | None, jagged: JaggedTables) -> Tensor:
        """Scores."""
        rows = [bag(ids, offsets) for bag, (ids, offsets) in zip(self.bags, jagged, strict=True)]
        scores: Tensor = self.net(dense_BF, rows)
        return scores


class FbgemmPort(nn.Module):
    """FBGEMM's inference table-batched embedding, float32 on the CPU, and the plain MLPs.

    Raises ImportError.
    """

    def __init__(self, model: RecModel) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from fbgemm_gpu.split_embedding_configs import SparseType  # noqa: PLC0415
            from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation  # noqa: PLC0415
            from fbgemm_gpu.split_table_batched_embeddings_ops_inference import (  # noqa: PLC0415
                IntNBitTableBatchedEmbeddingBagsCodegen,
            )

        self.width = model.tables.weight_RD.shape[1]
        specs = [
            (f"t{t}", n_rows, self.width, SparseType.FP32, EmbeddingLocation.HOST)
            for t, n_rows in enumerate(model.tables.table_rows)
        ]
        self.bags = IntNBitTableBatchedEmbeddingBagsCodegen(
            specs, device="cpu", output_dtype=SparseType.FP32
        )
        self.bags.initialize_weights()
        self.bags.weights_host = model.tables.weight_RD.view(-1).view(
            torch.uint8
        )  # the same layout: nothing is copied
        self.net = plain_net(model)

    def forward(self, dense_BF: Tensor | None, ids_L: Tensor, offsets: Tensor) -> Tensor:
        """Scores."""
        scores: Tensor = self.net(
            dense_BF, list(self.bags(ids_L, offsets).split(self.width, dim=1))
        )
        return scores


def linear(weight_OI: Tensor, bias_O: Tensor) -> nn.Linear:
    """nn.Linear with these weights."""
    layer = nn.Linear(weight_OI.shape[1], weight_OI.shape[0])
    layer.weight, layer.bias = (
        nn.Parameter(t.clone(), requires_grad=False) for t in (weight_OI, bias_O)
    )
    return layer


def stack(layers: Sequence[nn.Module]) -> nn.Sequential:
    """Our FC stack in PyTorch's own modules."""
    plain = {"Relu": nn.ReLU, "Sigmoid": nn.Sigmoid}
    return nn.Sequential(
        *(
            linear(layer.weight_OI, layer.bias_O)
            if isinstance(layer, FC)
            else plain[type(layer).__name__]()
            for layer in layers
        )
    )


class _Joined(nn.Module):
    """WnD, and DLRM with its bottom MLP: [dense, rows] through one stack."""

    def __init__(self, bot: nn.Module, top: nn.Module) -> None:
        super().__init__()
        self.bot = bot
        self.top = top

    def forward(self, dense_BF: Tensor, rows: list[Tensor]) -> Any:
        return self.top(torch.cat([self.bot(dense_BF), *rows], dim=1))


class _Tasks(nn.Module):
    def __init__(self, tasks: nn.Sequential, n_tasks: int) -> None:
        super().__init__()

        def one(layer: nn.Module, g: int) -> nn.Module:
            if isinstance(layer, GroupedFC):
                return linear(layer.weight_GIO[g].T, layer.bias_G1O[g, 0])
            return nn.Sigmoid() if isinstance(layer, Sigmoid) else nn.ReLU()

        self.tasks = nn.ModuleList(
            nn.Sequential(*(one(layer, g) for layer in tasks)) for g in range(n_tasks)
        )

    def forward(self, shared_BI: Tensor) -> Tensor:
        return torch.stack([task(shared_BI) for task in self.tasks])


class _Ncf(nn.Module):
    def __init__(self, model: NCF) -> None:
        super().__init__()
        self.tower = stack([*model.tower])
        self.final = stack([*model.final])

    def forward(self, _: Tensor | None, rows: list[Tensor]) -> Any:
        mf_user, mf_item, user, item = rows
        return self.final(
            torch.cat([mf_user + mf_item, self.tower(torch.cat([user, item], dim=1))], dim=1)
        )


class _Din(nn.Module):
    """One attention unit after the other, as the released net has them."""

    def __init__(self, model: DIN) -> None:
        super().__init__()
        attention = model.attention
        assert isinstance(attention, ReleasedAttention)
        first = attention.first
        units = []
        n_units, width, n_hidden = first.behaviour_NDH.shape
        of_ad_NHD = first.ad_ND_H.view(n_units, n_hidden, width)
        for k in range(n_units):  # of the folded weights none is left for the sum b_k + ad
            weight = torch.cat(
                (first.behaviour_NDH[k].T, of_ad_NHD[k], torch.zeros(n_hidden, width)), dim=1
            )
            layers = [linear(weight, first.bias_NH[k]), nn.ReLU()]
            for layer in attention.rest:
                assert isinstance(layer, GroupedFC)
                layers += [linear(layer.weight_GIO[k].T, layer.bias_G1O[k, 0]), nn.ReLU()]
            units.append(nn.Sequential(*layers))
        self.units = nn.ModuleList(units)
        self.top = stack([*model.top])

    def forward(self, _: Tensor | None, rows: list[Tensor]) -> Any:
        profile, *behaviours, ad, context = rows
        interest = torch.zeros_like(ad)
        for unit, behaviour in zip(self.units, behaviours, strict=True):
            interest = interest + unit(torch.cat([behaviour, ad, behaviour + ad], dim=1))
        return self.top(torch.cat([profile, interest, ad, context], dim=1))


def _rnn(layer: PlainRNN) -> nn.RNN:
    n_hidden, n_in = layer.from_input.weight_OI.shape
    rnn = nn.RNN(n_in, n_hidden)
    sources = (
        layer.from_input.weight_OI,
        layer.from_hidden.weight_OI,
        layer.from_input.bias_O,
        layer.from_hidden.bias_O,
    )
    with torch.no_grad():
        for target, source in zip(rnn.parameters(), sources, strict=True):
            target.copy_(source)
    return rnn.requires_grad_(requires_grad=False)


class _Dien(nn.Module):
    def __init__(self, model: DIEN) -> None:
        super().__init__()
        evolve = model.evolve
        assert isinstance(evolve, ReleasedEvolution)
        self.rnn_0 = _rnn(evolve.rnn_0)
        self.rnn_1 = _rnn(evolve.rnn_1)
        self.blob = stack([*evolve.blob_0])[0]
        self.top = stack([*model.top])

    def forward(self, _: Tensor | None, rows: list[Tensor]) -> Any:
        profile, *behaviours, ad, context = rows
        n_steps, (n_items, width) = len(behaviours), ad.shape
        states, _last = self.rnn_0(torch.cat(behaviours, dim=1).view(n_steps, n_items, width))
        _dropped = self.blob(states) + torch.softmax(
            states, dim=-1
        )  # as released: computed, not used
        last = self.rnn_1(states)[0][-1]
        return self.top(torch.cat([last, profile, ad, context], dim=1))


def plain_net(model: RecModel) -> nn.Module:
    """The model's layers, `caffe2` variant, in PyTorch's own modules; raises TypeError for a model
    that has no port.
    """
    if isinstance(model, DLRM):
        return _Joined(stack([*model.bot]), stack([*model.top]))
    if isinstance(model, WideAndDeep):
        return _Joined(nn.Identity(), stack([*model.top]))
    if isinstance(model, MultiTaskWideAndDeep):
        tasks = _Tasks(model.tasks.together, model.config.num_multi_tasks)
        return _Joined(nn.Identity(), nn.Sequential(stack([*model.top]), tasks))
    if isinstance(model, NCF):
        return _Ncf(model)
    if isinstance(model, DIN):
        return _Din(model)
    if isinstance(model, DIEN):
        return _Dien(model)
    raise TypeError(f"no plain port of {type(model).__name__}")
