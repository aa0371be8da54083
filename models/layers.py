"""The operators that nets are made of.

A module with an `operator` is timed under that name by --enable_profiling.
"""

# B items, G units that are computed together, I input width, O output width

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.batch import Batch
from models.embedding.tables import EmbeddingTables
from models.kernels.mlp import NONE, RELU, SIGMOID, mlp_kernel, panels

Array = npt.NDArray[np.float32]
_PACKED_FROM = (
    800_000  # input width x output width x root of the batch from which oneDNN is the faster
)


class FC(nn.Module):
    """y = x W^T + b. `blob` is its name in the released net; W ~ N(0, 2/(in+out)), b ~ N(0, 1/out)
    (variances).
    """

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


class PackedFC(nn.Module):
    """An FC for one core of this CPU: weights laid out for oneDNN, the activation behind it in the
    same call.

    float32 or bfloat16 (inputs are cast). oneDNN costs 16 us more a call than a plain product and
    computes up to twice as fast, so small float32 products stay plain; the border was measured
    (experiments/LOG.md).
    """

    operator = "FC"
    weight_OI: Tensor
    bias_O: Tensor
    packed: Tensor

    def __init__(
        self, layer: FC | PackedFC, activation: str = "none", dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        self.weight_OI = layer.weight_OI.detach().to(dtype)
        self.bias_O = layer.bias_O.detach().to(dtype)
        self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight_OI.contiguous(), None)  # noqa: SLF001
        self._call = torch.ops.mkldnn._linear_pointwise.default  # noqa: SLF001
        self.dtype = dtype
        self.activation = activation
        n_out, n_in = self.weight_OI.shape
        self._fewest_items = (
            2.0 if dtype != torch.float32 else max(2.0, (_PACKED_FROM / (n_in * n_out)) ** 2)
        )
        self._activate = {"none": None, "relu": torch.relu_, "sigmoid": torch.sigmoid_}[activation]

    def forward(self, x_BI: Tensor) -> Tensor:
        """(B, I) -> (B, O)."""
        if x_BI.dtype != self.dtype:
            x_BI = x_BI.to(self.dtype)
        if x_BI.shape[0] >= self._fewest_items:
            y_BO: Tensor = self._call(x_BI, self.packed, self.bias_O, self.activation, [], "")
            return y_BO
        y_BO = F.linear(x_BI, self.weight_OI, self.bias_O)
        return y_BO if self._activate is None else self._activate(y_BO)


class GroupedFC(nn.Module):
    """G fully connected layers with weights of their own as one batched product: (G, B, I) -> (G,
    B, O).
    """

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

    def single(self, group: int) -> FC:
        """One of the layers, with weights of its own."""
        _, n_in, n_out = self.weight_GIO.shape
        layer = FC(self.blobs[group], n_in, n_out)
        layer.weight_OI.copy_(self.weight_GIO[group].T)
        layer.bias_O.copy_(self.bias_G1O[group, 0])
        return layer

    def forward(self, x_GBI: Tensor) -> Tensor:
        """(G, B, I) -> (G, B, O)."""
        return torch.baddbmm(self.bias_G1O, x_GBI, self.weight_GIO)


class OneFC(nn.Module):
    """One of a GroupedFC's layers, by itself."""

    operator = "FC"

    def forward(self, x_BI: Tensor, layer: GroupedFC, group: int) -> Tensor:
        """(B, I) -> (B, O)."""
        return torch.addmm(layer.bias_G1O[group], x_BI, layer.weight_GIO[group])


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


class JoinedInput(nn.Module):
    """[first, every table's row] as the next layer reads it: (B, I), batch -> (B, I + T * D).

    With packed tables the look-up writes into its place and nothing is concatenated.
    """

    operator: str

    def __init__(self, tables: EmbeddingTables) -> None:
        super().__init__()
        self.tables = tables
        self.concat = Concat()
        if tables.one_by_one is None:
            self.operator = "Concat"

    def forward(self, first_BI: Tensor, batch: Batch) -> Tensor:
        """(B, I + T * D)."""
        if self.tables.one_by_one is not None:
            joined_BI: Tensor = self.concat(first_BI, *self.tables.pooled(batch))
            return joined_BI
        if not self.tables.is_packed:
            return torch.cat((first_BI, self.tables(batch).flatten(1)), dim=1)
        (n_items, n_first), (n_tables, width) = first_BI.shape, self.tables.shape_TD
        joined = first_BI.new_empty(n_items, n_first + n_tables * width)
        joined[:, :n_first] = first_BI
        self.tables(batch, joined[:, n_first:].view(n_items, n_tables, width))
        return joined


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
    """p x + (1 - p) alpha x, p = sigmoid of the input normalised by running statistics; Zhou et al.
    2018, sec. 4.3.
    """

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


class Stack(nn.Module):
    """FC layers and their activations, float32 in and out."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.small: SmallStack | None = None

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self.layers)

    def __getitem__(self, i: int) -> nn.Module:
        return self.layers[i]

    def pack(self, dtype: torch.dtype) -> None:
        """From now on each FC and the activation behind it are one PackedFC; small stacks and
        batches one call.
        """
        layers: list[nn.Module] = []
        for layer in self:
            if isinstance(layer, FC):
                layers.append(PackedFC(layer, dtype=dtype))
            elif (
                type(layer) in _FUSED
                and isinstance(layers[-1], PackedFC)
                and layers[-1].activation == "none"
            ):
                layers[-1] = PackedFC(layers[-1], _FUSED[type(layer)], dtype)
            else:
                layers.append(layer)
        fused = [layer for layer in layers if isinstance(layer, PackedFC)]
        small = (
            len(fused) == len(layers)
            and sum(layer.weight_OI.numel() for layer in fused) <= SmallStack.MOST_WEIGHTS
        )
        self.small = (
            SmallStack([layer for layer in self if isinstance(layer, FC)], fused) if small else None
        )
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        """(B, I) -> (B, O)."""
        if self.small is not None and len(x) <= self.small.most_items:
            scores: Tensor = self.small(x)
            return scores
        for layer in self.layers:
            x = layer(x)
        return x.float()


class SmallStack(nn.Module):
    """A stack whose weights fit the core's own cache, as one compiled call; float32.

    Faster than MKL and oneDNN at every batch measured (experiments/LOG.md); bfloat16 gains on it
    from some 100,000 weights and 65 items on.
    """

    operator = "FC"
    MOST_WEIGHTS, FEWEST_FOR_BFLOAT16 = 320_000, 100_000

    def __init__(self, layers: Sequence[FC], packed: Sequence[PackedFC]) -> None:
        super().__init__()
        large = sum(layer.weight_OI.numel() for layer in layers) >= self.FEWEST_FOR_BFLOAT16
        self.most_items = 64 if large and packed[0].dtype == torch.bfloat16 else math.inf
        weights = [(layer.weight_OI.numpy(), layer.bias_O.numpy()) for layer in layers]
        self._panels = panels(weights)
        self._widths = np.array([weights[0][0].shape[1], *(len(bias_O) for _, bias_O in weights)])
        codes = {"none": NONE, "relu": RELU, "sigmoid": SIGMOID}
        self._activations = np.array([codes[layer.activation] for layer in packed])
        self._run = mlp_kernel()
        self._n_out = int(self._widths[-1])

    def forward(self, x_BI: Tensor) -> Tensor:
        """(B, I) -> (B, O)."""
        out_BO = x_BI.new_empty(len(x_BI), self._n_out)
        self._run(x_BI.numpy(), self._panels, self._widths, self._activations, out_BO.numpy())
        return out_BO


_FUSED: dict[type[nn.Module], str] = {Relu: "relu", Sigmoid: "sigmoid"}


def mlp(blob: str, widths: Sequence[int], last: nn.Module | None = None) -> Stack:
    """FC stack `blob`.fc1, .fc2, ... with ReLU after every layer; `last` replaces the last ReLU."""
    layers: list[nn.Module] = []
    for i, (n_in, n_out) in enumerate(itertools.pairwise(widths), start=1):
        layers += [FC(f"{blob}.fc{i}", n_in, n_out), Relu()]
    if last is not None:
        layers[-1] = last
    return Stack(*layers)


def dice_mlp(blob: str, widths: Sequence[int], last: nn.Module) -> Stack:
    """FC stack with Dice after every layer but the last, which has `last`."""
    layers: list[nn.Module] = []
    for i, (n_in, n_out) in enumerate(itertools.pairwise(widths), start=1):
        layers += [FC(f"{blob}.fc{i}", n_in, n_out), Dice(n_out)]
    layers[-1] = last
    return Stack(*layers)


def normal(rng: np.random.Generator, shape: tuple[int, ...], variance: float) -> Tensor:
    """N(0, variance), float32."""
    return torch.from_numpy(
        rng.standard_normal(shape, dtype=np.float32) * np.float32(variance**0.5)
    )


def load(target: Tensor, array: Array, blob: str) -> None:
    """Copy a released weight; raises ValueError if the shapes differ."""
    if tuple(target.shape) != array.shape:
        raise ValueError(f"{blob}: the weight is {array.shape}, the model's {tuple(target.shape)}")
    target.copy_(torch.from_numpy(np.ascontiguousarray(array)))
