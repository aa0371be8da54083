"""Deep interest network: attention of every behaviour to the candidate ad.

Zhou et al. 2018, 1706.06978.
"""

# B items, N behaviours, D embedding width, H hidden width of the attention unit

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import itertools
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
    Dice,
    GroupedFC,
    OneFC,
    PackedFC,
    Relu,
    Softmax,
    Sum,
    dice_mlp,
    load,
    mlp,
    normal,
)


class FirstAttentionFC(nn.Module):
    """First layer of the N attention units: W_k [b_k, ad, b_k + ad] + c_k, for all k at once.

    The input is linear in b_k and ad, so the weight's three parts fold into two and nothing is
    concatenated: (W_b + W_s) b_k + (W_a + W_s) ad + c_k.
    """

    operator = "FC"

    def __init__(self, blobs: list[str], width: int, n_hidden: int) -> None:
        super().__init__()
        self.blobs = blobs
        self.behaviour_NDH = nn.Parameter(
            torch.empty(len(blobs), width, n_hidden), requires_grad=False
        )
        self.ad_ND_H = nn.Parameter(
            torch.empty(len(blobs) * n_hidden, width), requires_grad=False
        )  # (N * H, D)
        self.bias_NH = nn.Parameter(torch.empty(len(blobs), n_hidden), requires_grad=False)

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
        of_ad_BNH = torch.addmm(self.bias_NH.view(-1), ad_BD, self.ad_ND_H.T).view(
            -1, n_units, n_hidden
        )
        if n_hidden == 1:
            return of_ad_BNH.add_(
                (behaviours_BND * self.behaviour_NDH.squeeze(2)).sum(2, keepdim=True)
            )
        return of_ad_BNH.add_(torch.einsum("bnd,ndh->bnh", behaviours_BND, self.behaviour_NDH))


class ReleasedAttention(nn.Module):
    """The release's: every behaviour has a unit 3D - hidden - D of its own, ReLU throughout; the
    outputs are added.
    """

    def __init__(self, n_behaviours: int, width: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        units = [f"atten._fc_{k}" for k in range(n_behaviours)]
        self.first = FirstAttentionFC([f"{u}.fc1" for u in units], width, hidden[0])
        self.relu = Relu()
        widths = (*hidden, width)
        self.rest = nn.ModuleList(
            [
                GroupedFC([f"{u}.fc{i}" for u in units], n_in, n_out)
                for i, (n_in, n_out) in enumerate(itertools.pairwise(widths), start=2)
            ]
        )
        self.sum = Sum(dim=0)
        self._attend: Callable[..., None] | None = None

    def pack(self, dtype: torch.dtype) -> None:
        """Units with one hidden number each, as released, go through the compiled kernel (float32)."""
        del dtype
        n_units, width, n_hidden = self.first.behaviour_NDH.shape
        if n_hidden > 1 or len(self.rest) > 1:
            return
        of_ad, (last,) = FC("", width, n_units), self.rest
        assert isinstance(last, GroupedFC)
        of_ad.weight_OI.copy_(self.first.ad_ND_H)
        of_ad.bias_O.copy_(self.first.bias_NH.view(-1))
        self._of_ad = PackedFC(of_ad)
        self._attend = attention(width)
        self._own, self._weight, self._bias = (
            weight_ND.reshape(n_units, width).numpy()
            for weight_ND in (self.first.behaviour_NDH, last.weight_GIO, last.bias_G1O)
        )

    def forward(self, behaviours_BND: Tensor, ad_BD: Tensor) -> Tensor:
        """(B, D)."""
        if self._attend is not None:
            interest_BD = ad_BD.new_empty(ad_BD.shape)
            of_ad_BN = self._of_ad(ad_BD)
            self._attend(
                behaviours_BND.numpy(),
                of_ad_BN.numpy(),
                self._own,
                self._weight,
                self._bias,
                interest_BD.numpy(),
            )
            return interest_BD
        x_NBH = self.relu(self.first(behaviours_BND, ad_BD)).transpose(0, 1)
        for layer in self.rest:
            x_NBH = self.relu(layer(x_NBH))
        return self.sum(x_NBH)  # type: ignore[no-any-return]


class Add(nn.Module):
    """Of one tensor or more."""

    operator = "Sum"

    def forward(self, first: Tensor, *others: Tensor) -> Tensor:
        """Any shape."""
        total = first + others[0] if others else first
        for other in others[1:]:
            total += other
        return total


class UnitByUnit(nn.Module):
    """ReleasedAttention operator by operator, one unit after the other, with the same weights for
    the same seed.
    """

    def __init__(self, n_behaviours: int, width: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        units = [f"atten._fc_{k}" for k in range(n_behaviours)]
        self.first = nn.ModuleList([FC(f"{unit}.fc1", 3 * width, hidden[0]) for unit in units])
        widths = (*hidden, width)
        self.rest = nn.ModuleList(
            [
                GroupedFC([f"{unit}.fc{i}" for unit in units], n_in, n_out)
                for i, (n_in, n_out) in enumerate(itertools.pairwise(widths), start=2)
            ]
        )
        self.concat = Concat()
        self.add = Add()
        self.one = OneFC()
        self.relu = Relu()

    def forward(self, behaviours_NBD: Sequence[Tensor], ad_BD: Tensor) -> Tensor:
        """(B, D), of N times (B, D)."""
        outputs = []
        for unit, (first, own_BD) in enumerate(zip(self.first, behaviours_NBD, strict=True)):
            x_BH = self.relu(first(self.concat(own_BD, ad_BD, self.add(own_BD, ad_BD))))
            for layer in self.rest:
                x_BH = self.relu(self.one(x_BH, layer, unit))
            outputs.append(x_BH)
        return self.add(*outputs)  # type: ignore[no-any-return]


class PublishedAttention(nn.Module):
    """The paper's: one unit for all behaviours gives a weight to each; the weighted behaviours are
    added (sec. 4.2).
    """

    def __init__(self, width: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        widths = (3 * width, *hidden)
        for i, (n_in, n_out) in enumerate(itertools.pairwise(widths), start=1):
            layers += [FC(f"atten.fc{i}", n_in, n_out), Dice(n_out)]
        self.unit = nn.Sequential(*layers, FC(f"atten.fc{len(widths)}", widths[-1], 1))
        self.sum = Sum(dim=1)

    def forward(self, behaviours_BND: Tensor, ad_BD: Tensor) -> Tensor:
        """(B, D)."""
        ads_BND = ad_BD.unsqueeze(1).expand_as(behaviours_BND)
        weight_BN1 = self.unit(
            torch.cat((behaviours_BND, behaviours_BND * ads_BND, ads_BND), dim=2)
        )
        return self.sum(weight_BN1 * behaviours_BND)  # type: ignore[no-any-return]


class DIN(RecModel):
    """Tables [profile, behaviours, ad, context]; no dense input is read."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        width = config.arch_sparse_feature_size
        n_behaviours = len(config.table_rows) - 3
        widths = (4 * width, *config.top_widths)
        self.concat = Concat()
        self.attention: nn.Module
        if config.arch_variant == "paper":
            self.attention = PublishedAttention(width, config.bot_widths)
            self.top = dice_mlp("top", widths, last=Softmax())
        else:
            attention = UnitByUnit if config.fused == "off" else ReleasedAttention
            self.attention = attention(n_behaviours, width, config.bot_widths)
            self.top = mlp("top", widths)

    def forward(self, batch: Batch) -> Tensor:
        """(B, last width of arch_mlp_top)."""
        if isinstance(self.attention, UnitByUnit):
            profile_BD, *behaviours_NBD, ad_BD, context_BD = self.tables.pooled(batch)
            interest_BD = self.attention(behaviours_NBD, ad_BD)
        else:
            rows_BTD = self.tables(batch)
            profile_BD = rows_BTD[:, 0]
            ad_BD = rows_BTD[:, -2]
            context_BD = rows_BTD[:, -1]
            interest_BD = self.attention(rows_BTD[:, 1:-2], ad_BD)
        scores: Tensor = self.top(self.concat(profile_BD, interest_BD, ad_BD, context_BD))
        return scores


if __name__ == "__main__":
    from models.standalone import main

    sys.exit(main(sys.argv[1:], "din"))
