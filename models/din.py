"""Deep interest network: attention of every behaviour to the candidate ad.

Zhou et al. 2018, 1706.06978.
"""

# B items, N behaviours, D embedding width, H hidden width of the attention unit

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from models.standalone import main

    sys.exit(main(sys.argv[1:], "din"))

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from infra.settings.config import ModelConfig
from models.base import RecModel
from models.batch import Batch
from models.kernels.din import attention
from models.layers import (
    FC,
    Array,
    Concat,
    GroupedFC,
    Layer,
    OneFC,
    PackedFC,
    Relu,
    Softmax,
    Sum,
    grouped,
    load,
    mlp,
    normal,
    parameter,
)


class FirstAttentionFC(Layer):
    """First layer of the N attention units: W_k [b_k, ad, b_k + ad] + c_k, for all k at once.

    The input is linear in b_k and ad, so the weight's three parts fold into two and nothing is
    concatenated: (W_b + W_s) b_k + (W_a + W_s) ad + c_k.
    """

    operator = "FC"

    def __init__(self, blobs: Sequence[str], width: int, n_hidden: int) -> None:
        super().__init__()
        self.blobs = tuple(blobs)
        self.behaviour_NDH = parameter(len(blobs), width, n_hidden)
        self.ad_ND_H = parameter(len(blobs) * n_hidden, width)  # (N * H, D)
        self.bias_NH = parameter(len(blobs), n_hidden)

    def set_unit(self, unit: int, weight_H3D: Tensor, bias_H: Tensor) -> None:
        """Fold the weights of one unit, as the released net holds them, into this layer."""
        width, n_hidden = self.behaviour_NDH.shape[1:]
        of_behaviour, of_ad, of_sum = torch.split(weight_H3D, width, dim=1)
        self.behaviour_NDH[unit] = (of_behaviour + of_sum).T
        self.ad_ND_H[unit * n_hidden : (unit + 1) * n_hidden] = of_ad + of_sum
        self.bias_NH[unit] = bias_H

    def initialise(self, rng: np.random.Generator) -> None:
        """Draw the weights."""
        n_units, width, n_hidden = self.behaviour_NDH.shape
        for unit in range(n_units):
            weight_H3D = normal(rng, (n_hidden, 3 * width), 2 / (3 * width + n_hidden))
            self.set_unit(unit, weight_H3D, normal(rng, (n_hidden,), 1 / n_hidden))

    def load_reference(self, arrays: dict[str, Array]) -> None:
        """Take the weights of the released net."""
        _, width, n_hidden = self.behaviour_NDH.shape
        for unit, blob in enumerate(self.blobs):
            weight_H3D = torch.empty(n_hidden, 3 * width)
            bias_H = torch.empty(n_hidden)
            load(weight_H3D, arrays[f"param.{blob}_w"], blob)
            load(bias_H, arrays[f"param.{blob}_b"], blob)
            self.set_unit(unit, weight_H3D, bias_H)

    def forward(self, behaviours_BND: Tensor, ad_BD: Tensor) -> Tensor:
        """(B, N, H)."""
        n_units, _, n_hidden = self.behaviour_NDH.shape
        of_ad_BN_H = torch.addmm(self.bias_NH.view(-1), ad_BD, self.ad_ND_H.T)
        of_ad_BNH = of_ad_BN_H.view(-1, n_units, n_hidden)
        if n_hidden == 1:
            products_BND = behaviours_BND * self.behaviour_NDH.squeeze(2)
            return of_ad_BNH.add_(products_BND.sum(2, keepdim=True))
        return of_ad_BNH.add_(torch.einsum("bnd,ndh->bnh", behaviours_BND, self.behaviour_NDH))


def unit_blobs(n_behaviours: int) -> list[str]:
    """Names of the attention units in the released net."""
    return [f"atten._fc_{k}" for k in range(n_behaviours)]


class ReleasedAttention(Layer):
    """The release's: every behaviour has a unit 3D - hidden - D of its own, ReLU throughout.

    The units' outputs are added.
    """

    def __init__(self, n_behaviours: int, width: int, hidden: Sequence[int]) -> None:
        super().__init__()
        units = unit_blobs(n_behaviours)
        self.first = FirstAttentionFC([f"{unit}.fc1" for unit in units], width, hidden[0])
        self.relu = Relu()
        self.rest = nn.ModuleList(grouped(units, (*hidden, width), first=2))
        self.sum = Sum(dim=0)
        self._attend: Callable[..., None] | None = None

    def pack(self, dtype: torch.dtype) -> None:
        """Take units of one hidden number, as released, through the compiled kernel (float32)."""
        del dtype
        n_units, width, n_hidden = self.first.behaviour_NDH.shape
        if n_hidden > 1 or len(self.rest) > 1:
            return
        last = self.rest[0]
        assert isinstance(last, GroupedFC)
        of_ad = FC("", width, n_units)
        of_ad.weight_OI.copy_(self.first.ad_ND_H)
        of_ad.bias_O.copy_(self.first.bias_NH.view(-1))
        self._of_ad = PackedFC(of_ad)
        self._attend = attention(width)
        self._weights_ND = [
            weight.reshape(n_units, width).numpy()
            for weight in (self.first.behaviour_NDH, last.weight_GIO, last.bias_G1O)
        ]

    def forward(self, behaviours_BND: Tensor, ad_BD: Tensor) -> Tensor:
        """(B, D)."""
        if self._attend is not None:
            interest_BD = ad_BD.new_empty(ad_BD.shape)
            of_ad_BN = self._of_ad(ad_BD).numpy()
            self._attend(behaviours_BND.numpy(), of_ad_BN, *self._weights_ND, interest_BD.numpy())
            return interest_BD
        x_NBH = self.relu(self.first(behaviours_BND, ad_BD)).transpose(0, 1)
        for layer in self.rest:
            x_NBH = self.relu(layer(x_NBH))
        return self.sum(x_NBH)


class Add(Layer):
    """The sum of one tensor or more."""

    operator = "Sum"

    def forward(self, first: Tensor, *others: Tensor) -> Tensor:
        """Any shape."""
        total = first + others[0] if others else first
        for other in others[1:]:
            total += other
        return total


class UnitByUnit(Layer):
    """ReleasedAttention operator by operator, one unit after the other.

    It has the same weights for the same seed.
    """

    def __init__(self, n_behaviours: int, width: int, hidden: Sequence[int]) -> None:
        super().__init__()
        units = unit_blobs(n_behaviours)
        self.first = nn.ModuleList([FC(f"{unit}.fc1", 3 * width, hidden[0]) for unit in units])
        self.rest = nn.ModuleList(grouped(units, (*hidden, width), first=2))
        self.concat = Concat()
        self.add = Add()
        self.single = OneFC()
        self.relu = Relu()

    def forward(self, behaviours_NBD: Sequence[Tensor], ad_BD: Tensor) -> Tensor:
        """(B, D), of N times (B, D)."""
        outputs_NBD = []
        for unit, (first, behaviour_BD) in enumerate(zip(self.first, behaviours_NBD, strict=True)):
            sum_BD = self.add(behaviour_BD, ad_BD)
            x_BH = self.relu(first(self.concat(behaviour_BD, ad_BD, sum_BD)))
            for layer in self.rest:
                x_BH = self.relu(self.single(x_BH, layer, unit))
            outputs_NBD.append(x_BH)
        return self.add(*outputs_NBD)


class PublishedAttention(Layer):
    """The paper's: one unit for all behaviours gives a weight to each (sec. 4.2).

    The weighted behaviours are added.
    """

    def __init__(self, width: int, hidden: Sequence[int]) -> None:
        super().__init__()
        *layers, _ = mlp("atten", (3 * width, *hidden, 1), dice=True)
        self.unit = nn.Sequential(*layers)
        self.sum = Sum(dim=1)

    def forward(self, behaviours_BND: Tensor, ad_BD: Tensor) -> Tensor:
        """(B, D)."""
        ads_BND = ad_BD.unsqueeze(1).expand_as(behaviours_BND)
        x_BNI = torch.cat((behaviours_BND, behaviours_BND * ads_BND, ads_BND), dim=2)
        weight_BN1 = self.unit(x_BNI)
        return self.sum(weight_BN1 * behaviours_BND)


class DIN(RecModel):
    """Tables [profile, behaviours, ad, context]; no dense input is read."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        width = config.arch_sparse_feature_size
        n_behaviours = len(config.table_rows) - 3
        widths = (4 * width, *config.top_widths)
        self.concat = Concat()
        self.attention: Layer
        if self.published:
            self.attention = PublishedAttention(width, config.bot_widths)
        else:
            kind = UnitByUnit if config.fused == "off" else ReleasedAttention
            self.attention = kind(n_behaviours, width, config.bot_widths)
        last = Softmax() if self.published else None
        self.top = mlp("top", widths, last, dice=self.published)

    def forward(self, batch: Batch) -> Tensor:
        """(B, last width of arch_mlp_top)."""
        behaviours: Tensor | list[Tensor]
        if isinstance(self.attention, UnitByUnit):
            profile_BD, *behaviours, ad_BD, context_BD = self.tables.pooled(batch)
        else:
            profile_BD, behaviours, ad_BD, context_BD = self.behaviour_rows(batch)
        interest_BD = self.attention(behaviours, ad_BD)
        return self.top(self.concat(profile_BD, interest_BD, ad_BD, context_BD))
