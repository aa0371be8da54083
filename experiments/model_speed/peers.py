"""What a model is measured against: a plain PyTorch port, compiled or not, and FBGEMM's look-up.

All hold the model's own weights (tables are shared, not copied) and get their inputs in the form
they like best, prepared outside of the timed part. Each must give the model's own scores before it
is timed.
"""

# B items, T tables, D embedding width

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from experiments.common.look_up_peers import embedding_bags, fbgemm_inference, feature_major
from models.base import RecModel
from models.batch import Batch
from models.dien import DIEN, PlainRNN, ReleasedEvolution
from models.din import DIN, ReleasedAttention
from models.dlrm import DLRM
from models.embedding.jagged import Bags
from models.layers import FC, GroupedFC, Sigmoid
from models.mtwnd import MultiTaskWideAndDeep
from models.ncf import NCF
from models.wide_and_deep import WideAndDeep

JaggedTables = list[tuple[Tensor, Tensor]]  # a table's ids and offsets


def rival_bags(model: RecModel, batch: Batch) -> Bags:
    """A batch as the peers read it."""
    n_tables = len(model.tables.table_rows)
    bags = Bags(batch.ids_L, batch.offsets, n_tables, item_major=True)
    return feature_major(bags, model.tables.first_rows[:-1])


class PlainPort(nn.Module):
    """nn.EmbeddingBag per table, nn.Linear, nn.RNN: what one writes first."""

    def __init__(self, model: RecModel) -> None:
        super().__init__()
        n_tables = len(model.tables.table_rows)
        self.bags = embedding_bags(model.tables.table(t) for t in range(n_tables))
        self.net = plain_net(model)

    def look_up(self, jagged: JaggedTables) -> list[Tensor]:
        """(B, D) of each table."""
        return [bag(ids, offsets) for bag, (ids, offsets) in zip(self.bags, jagged, strict=True)]

    def forward(self, dense_BF: Tensor | None, jagged: JaggedTables) -> Tensor:
        """Scores."""
        scores: Tensor = self.net(dense_BF, self.look_up(jagged))
        return scores


class FbgemmPort(nn.Module):
    """FBGEMM's inference table-batched embedding, float32 on the CPU, and the plain MLPs.

    Raises ImportError.
    """

    def __init__(self, model: RecModel) -> None:
        super().__init__()
        weight_RD = model.tables.weight_RD
        self.width = weight_RD.shape[1]
        self.bags = fbgemm_inference([(n_rows, self.width) for n_rows in model.tables.table_rows])
        self.bags.weights_host = weight_RD.view(-1).view(torch.uint8)  # same layout: not copied
        self.net = plain_net(model)

    def forward(self, dense_BF: Tensor | None, ids_L: Tensor, offsets: Tensor) -> Tensor:
        """Scores."""
        rows = list(self.bags(ids_L, offsets).split(self.width, dim=1))
        scores: Tensor = self.net(dense_BF, rows)
        return scores


def linear(weight_OI: Tensor, bias_O: Tensor) -> nn.Linear:
    """nn.Linear with these weights."""
    layer = nn.Linear(weight_OI.shape[1], weight_OI.shape[0])
    layer.weight = nn.Parameter(weight_OI.clone(), requires_grad=False)
    layer.bias = nn.Parameter(bias_O.clone(), requires_grad=False)
    return layer


def grouped_linear(layer: nn.Module, group: int) -> nn.Linear:
    """nn.Linear of one group of a grouped layer."""
    assert isinstance(layer, GroupedFC)
    return linear(layer.weight_GIO[group].T, layer.bias_G1O[group, 0])


def stack(layers: Iterable[nn.Module], group: int = 0) -> nn.Sequential:
    """Our FC stack in PyTorch's own modules; of grouped layers one group."""

    def plain(layer: nn.Module) -> nn.Module:
        if isinstance(layer, FC):
            return linear(layer.weight_OI, layer.bias_O)
        if isinstance(layer, GroupedFC):
            return grouped_linear(layer, group)
        return nn.Sigmoid() if isinstance(layer, Sigmoid) else nn.ReLU()

    return nn.Sequential(*map(plain, layers))


class _Joined(nn.Module):
    """WnD, and DLRM with its bottom MLP: [dense, rows] through one stack."""

    def __init__(self, bot: nn.Module, top: nn.Module) -> None:
        super().__init__()
        self.bot = bot
        self.top = top

    def forward(self, dense_BF: Tensor, rows: list[Tensor]) -> Any:
        return self.top(torch.cat([self.bot(dense_BF), *rows], dim=1))


class _Tasks(nn.Module):
    """MT-WnD's tasks one after the other."""

    def __init__(self, tasks: nn.Sequential, n_tasks: int) -> None:
        super().__init__()
        self.tasks = nn.ModuleList(stack(tasks, group) for group in range(n_tasks))

    def forward(self, shared_BI: Tensor) -> Tensor:
        return torch.stack([task(shared_BI) for task in self.tasks])


class _Ncf(nn.Module):
    def __init__(self, model: NCF) -> None:
        super().__init__()
        self.tower = stack(model.tower)
        self.final = stack(model.final)

    def forward(self, _: Tensor | None, rows: list[Tensor]) -> Any:
        mf_user, mf_item, user, item = rows
        deep = self.tower(torch.cat([user, item], dim=1))
        return self.final(torch.cat([mf_user + mf_item, deep], dim=1))


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
                layers += [grouped_linear(layer, k), nn.ReLU()]
            units.append(nn.Sequential(*layers))
        self.units = nn.ModuleList(units)
        self.top = stack(model.top)

    def forward(self, _: Tensor | None, rows: list[Tensor]) -> Any:
        profile, *behaviours, ad, context = rows
        interest = torch.zeros_like(ad)
        for unit, behaviour in zip(self.units, behaviours, strict=True):
            interest = interest + unit(torch.cat([behaviour, ad, behaviour + ad], dim=1))
        return self.top(torch.cat([profile, interest, ad, context], dim=1))


def _rnn(layer: PlainRNN) -> nn.RNN:
    n_hidden, n_in = layer.from_input.weight_OI.shape
    rnn = nn.RNN(n_in, n_hidden)
    inner = (layer.from_input, layer.from_hidden)
    sources = (*(fc.weight_OI for fc in inner), *(fc.bias_O for fc in inner))
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
        self.blob = stack(evolve.blob_0)[0]
        self.top = stack(model.top)

    def forward(self, _: Tensor | None, rows: list[Tensor]) -> Any:
        profile, *behaviours, ad, context = rows
        n_steps, (n_items, width) = len(behaviours), ad.shape
        states, _last = self.rnn_0(torch.cat(behaviours, dim=1).view(n_steps, n_items, width))
        _dropped = self.blob(states) + torch.softmax(states, dim=-1)  # as released: not used
        last = self.rnn_1(states)[0][-1]
        return self.top(torch.cat([last, profile, ad, context], dim=1))


def plain_net(model: RecModel) -> nn.Module:
    """The model's layers, `caffe2` variant, in PyTorch's own modules.

    Raises TypeError for a model that has no port.
    """
    if isinstance(model, DLRM):
        return _Joined(stack(model.bot), stack(model.top))
    if isinstance(model, WideAndDeep):
        return _Joined(nn.Identity(), stack(model.top))
    if isinstance(model, MultiTaskWideAndDeep):
        tasks = _Tasks(model.tasks.together, model.config.num_multi_tasks)
        return _Joined(nn.Identity(), nn.Sequential(stack(model.top), tasks))
    if isinstance(model, NCF):
        return _Ncf(model)
    if isinstance(model, DIN):
        return _Din(model)
    if isinstance(model, DIEN):
        return _Dien(model)
    raise TypeError(f"no plain port of {type(model).__name__}")
