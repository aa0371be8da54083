"""The operators that nets are made of. A module with an `operator` is timed under that name by --enable_profiling."""

# B items, G units that are computed together, I input width, O output width

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

Array = npt.NDArray[np.float32]


class FC(nn.Module):
    """y = x W^T + b. `blob` is its name in the released net; W ~ N(0, 2/(in+out)), b ~ N(0, 1/out) (variances)."""

    operator = "FC"

    def __init__(self, blob: str, n_in: int, n_out: int) -> None:
        super().__init__()
        self.blob = blob
        self.weight_OI = nn.Parameter(torch.empty(n_out, n_in), requires_grad=False)
        self.bias_O = nn.Parameter(torch.empty(n_out), requires_grad=False)

    def initialise(self, rng: np.random.Generator) -> None:
        """Draw the weights."""
        n_out, n_in = self.weight_OI.shape
        self.weight_OI.copy_(normal(rng, (n_out, n_in), 2 / (n_in + n_out)))
        self.bias_O.copy_(normal(rng, (n_out,), 1 / n_out))

    def load_reference(self, arrays: dict[str, Array]) -> None:
        """Take the weights of the released net."""
        load(self.weight_OI, arrays[f"param.{self.blob}_w"], self.blob)
        load(self.bias_O, arrays[f"param.{self.blob}_b"], self.blob)

    def forward(self, x_BI: Tensor) -> Tensor:
        """(..., I) -> (..., O)."""
        return F.linear(x_BI, self.weight_OI, self.bias_O)


class GroupedFC(nn.Module):
    """G fully connected layers with weights of their own as one batched product: (G, B, I) -> (G, B, O)."""

    operator = "FC"

    def __init__(self, blobs: Sequence[str], n_in: int, n_out: int) -> None:
        super().__init__()
        self.blobs = tuple(blobs)
        self.weight_GIO = nn.Parameter(torch.empty(len(blobs), n_in, n_out), requires_grad=False)
        self.bias_G1O = nn.Parameter(torch.empty(len(blobs), 1, n_out), requires_grad=False)

    def initialise(self, rng: np.random.Generator) -> None:
        """Draw the weights."""
        _, n_in, n_out = self.weight_GIO.shape
        self.weight_GIO.copy_(normal(rng, tuple(self.weight_GIO.shape), 2 / (n_in + n_out)))
        self.bias_G1O.copy_(normal(rng, tuple(self.bias_G1O.shape), 1 / n_out))

    def load_reference(self, arrays: dict[str, Array]) -> None:
        """Take the weights of the released net."""
        for group, blob in enumerate(self.blobs):
            load(self.weight_GIO[group], arrays[f"param.{blob}_w"].T, blob)
            load(self.bias_G1O[group, 0], arrays[f"param.{blob}_b"], blob)

    def forward(self, x_GBI: Tensor) -> Tensor:
        """(G, B, I) -> (G, B, O)."""
        return torch.baddbmm(self.bias_G1O, x_GBI, self.weight_GIO)


class Relu(nn.Module):
    """In place."""

    operator = "Relu"

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return x.relu_()


class Sigmoid(nn.Module):
    """In place."""

    operator = "Sigmoid"

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return x.sigmoid_()


class Softmax(nn.Module):
    """Over the last axis."""

    operator = "Softmax"

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return torch.softmax(x, dim=-1)


class Concat(nn.Module):
    """Along the width; inputs (B, ...) are flattened to (B, width) first."""

    operator = "Concat"

    def forward(self, *parts: Tensor) -> Tensor:
        """(B, sum of widths)."""
        return torch.cat([part.flatten(1) for part in parts], dim=1)


class Sum(nn.Module):
    """Over one axis."""

    operator = "Sum"

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        """The axis is gone."""
        return x.sum(self.dim)


class Dice(nn.Module):
    """p x + (1 - p) alpha x, p = sigmoid of the input normalised by running statistics; Zhou et al. 2018, sec. 4.3."""

    operator = "Dice"
    mean: Tensor
    variance: Tensor
    alpha: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("variance", torch.ones(width))
        self.register_buffer("alpha", torch.full((width,), 0.25))

    def forward(self, x: Tensor) -> Tensor:
        """(..., width)."""
        p = torch.sigmoid((x - self.mean) * torch.rsqrt(self.variance + 1e-8))
        return x * (p + (1 - p) * self.alpha)


def mlp(blob: str, widths: Sequence[int], last: nn.Module | None = None) -> nn.Sequential:
    """FC stack `blob`.fc1, .fc2, ... with ReLU after every layer; `last` replaces the last ReLU."""
    layers: list[nn.Module] = []
    for i, (n_in, n_out) in enumerate(itertools.pairwise(widths), start=1):
        layers += [FC(f"{blob}.fc{i}", n_in, n_out), Relu()]
    if last is not None:
        layers[-1] = last
    return nn.Sequential(*layers)


def dice_mlp(blob: str, widths: Sequence[int], last: nn.Module) -> nn.Sequential:
    """FC stack with Dice after every layer but the last, which has `last`."""
    layers: list[nn.Module] = []
    for i, (n_in, n_out) in enumerate(itertools.pairwise(widths), start=1):
        layers += [FC(f"{blob}.fc{i}", n_in, n_out), Dice(n_out)]
    layers[-1] = last
    return nn.Sequential(*layers)


def normal(rng: np.random.Generator, shape: tuple[int, ...], variance: float) -> Tensor:
    """N(0, variance), float32."""
    return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32) * np.float32(variance**0.5))


def load(target: Tensor, array: Array, blob: str) -> None:
    """Copy a released weight; raises ValueError if the shapes differ."""
    if tuple(target.shape) != array.shape:
        raise ValueError(f"{blob}: the weight is {array.shape}, the model's {tuple(target.shape)}")
    target.copy_(torch.from_numpy(np.ascontiguousarray(array)))
