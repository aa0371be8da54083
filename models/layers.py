"""The operators that nets are made of.

A module with an `operator` is timed under that name by --enable_profiling.
"""

# B items, G units that are computed together, I input width, O output width

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.batch import Batch
from models.embedding.tables import EmbeddingTables
from models.kernels.mlp import NONE, RELU, SIGMOID, mlp_kernel, panels

Array = npt.NDArray[np.float32]
# input width x output width x root of the batch from which oneDNN is the faster
_PACKED_FROM = 800_000


class Layer(nn.Module):
    """A module whose call gives a tensor."""

    __call__: Callable[..., Tensor]


class FC(Layer):
    """y = x W^T + b; W ~ N(0, 2 / (in + out)), b ~ N(0, 1 / out) (variances).

    `blob` is its name in the released net.
    """

    operator = "FC"

    def __init__(self, blob: str, n_in: int, n_out: int) -> None:
        super().__init__()
        self.blob = blob
        self.weight_OI = parameter(n_out, n_in)
        self.bias_O = parameter(n_out)

    def initialise(self, rng: np.random.Generator) -> None:
        """Draw the weights."""
        n_out, n_in = self.weight_OI.shape
        draw_normal(self.weight_OI, rng, 2 / (n_in + n_out))
        draw_normal(self.bias_O, rng, 1 / n_out)

    def load_reference(self, arrays: dict[str, Array]) -> None:
        """Take the weights of the released net."""
        load(self.weight_OI, arrays[f"param.{self.blob}_w"], self.blob)
        load(self.bias_O, arrays[f"param.{self.blob}_b"], self.blob)

    def forward(self, x_BI: Tensor) -> Tensor:
        """(..., I) -> (..., O)."""
        return F.linear(x_BI, self.weight_OI, self.bias_O)


class PackedFC(Layer):
    """An FC for one core of this CPU: weights laid out for oneDNN, its activation in the same call.

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
        onednn = torch.ops.mkldnn
        pack = onednn._reorder_linear_weight  # noqa: SLF001 (the only way in)
        self.packed = pack(self.weight_OI.contiguous(), None)
        self._call = onednn._linear_pointwise.default  # noqa: SLF001 (the only way in)
        self.dtype = dtype
        self.activation = activation
        self._fewest_items = 2.0
        if dtype == torch.float32:
            border = (_PACKED_FROM / self.weight_OI.numel()) ** 2
            self._fewest_items = max(self._fewest_items, border)
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


class GroupedFC(Layer):
    """G fully connected layers, each with weights of its own, as one batched product."""

    operator = "FC"

    def __init__(self, blobs: Sequence[str], n_in: int, n_out: int) -> None:
        super().__init__()
        self.blobs = tuple(blobs)
        self.weight_GIO = parameter(len(blobs), n_in, n_out)
        self.bias_G1O = parameter(len(blobs), 1, n_out)

    def initialise(self, rng: np.random.Generator) -> None:
        """Draw the weights."""
        _, n_in, n_out = self.weight_GIO.shape
        draw_normal(self.weight_GIO, rng, 2 / (n_in + n_out))
        draw_normal(self.bias_G1O, rng, 1 / n_out)

    def load_reference(self, arrays: dict[str, Array]) -> None:
        """Take the weights of the released net."""
        for group, blob in enumerate(self.blobs):
            load(self.weight_GIO[group], arrays[f"param.{blob}_w"].T, blob)
            load(self.bias_G1O[group, 0], arrays[f"param.{blob}_b"], blob)

    def single(self, group: int) -> FC:
        """A copy of one of the layers."""
        _, n_in, n_out = self.weight_GIO.shape
        layer = FC(self.blobs[group], n_in, n_out)
        layer.weight_OI.copy_(self.weight_GIO[group].T)
        layer.bias_O.copy_(self.bias_G1O[group, 0])
        return layer

    def forward(self, x_GBI: Tensor) -> Tensor:
        """(G, B, I) -> (G, B, O)."""
        return torch.baddbmm(self.bias_G1O, x_GBI, self.weight_GIO)


class OneFC(Layer):
    """One of a GroupedFC's layers, by itself."""

    operator = "FC"

    def forward(self, x_BI: Tensor, layer: GroupedFC, group: int) -> Tensor:
        """(B, I) -> (B, O)."""
        return torch.addmm(layer.bias_G1O[group], x_BI, layer.weight_GIO[group])


class Relu(Layer):
    """max(x, 0), in place."""

    operator = "Relu"

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return x.relu_()


class Sigmoid(Layer):
    """1 / (1 + exp(-x)), in place."""

    operator = "Sigmoid"

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return x.sigmoid_()


class Softmax(Layer):
    """Softmax over the last axis."""

    operator = "Softmax"

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return torch.softmax(x, dim=-1)


class Concat(Layer):
    """Concatenation along the width; inputs (B, ...) are flattened to (B, width) first."""

    operator = "Concat"

    def forward(self, *parts: Tensor) -> Tensor:
        """(B, sum of widths)."""
        return torch.cat([part.flatten(1) for part in parts], dim=1)


class JoinedInput(Layer):
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

    def width(self, n_first: int) -> int:
        """I + T * D, for a first part of so many numbers."""
        n_tables, width = self.tables.shape_TD
        return n_first + n_tables * width

    def forward(self, first_BI: Tensor, batch: Batch) -> Tensor:
        """(B, I + T * D)."""
        if self.tables.one_by_one is not None:
            return self.concat(first_BI, *self.tables.pooled(batch))
        if not self.tables.is_packed:
            return torch.cat((first_BI, self.tables(batch).flatten(1)), dim=1)
        n_items, n_first = first_BI.shape
        joined_BI = first_BI.new_empty(n_items, self.width(n_first))
        joined_BI[:, :n_first] = first_BI
        self.tables(batch, joined_BI[:, n_first:].view(n_items, *self.tables.shape_TD))
        return joined_BI


class Sum(Layer):
    """The sum over one axis."""

    operator = "Sum"

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        """The axis is gone."""
        return x.sum(self.dim)


class Dice(Layer):
    """p x + (1 - p) alpha x; p: sigmoid of the input, normalised by running statistics.

    Zhou et al. 2018, sec. 4.3.
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


class Stack(Layer):
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
        """Compute each FC and the activation behind it as one PackedFC from now on.

        Small stacks take small batches in one call.
        """
        layers: list[nn.Module] = []
        for layer in self:
            last = layers[-1] if layers else None
            if isinstance(layer, FC):
                layers.append(PackedFC(layer, dtype=dtype))
            elif type(layer) in _FUSED and isinstance(last, PackedFC) and last.activation == "none":
                layers[-1] = PackedFC(last, _FUSED[type(layer)], dtype)
            else:
                layers.append(layer)
        fused = [layer for layer in layers if isinstance(layer, PackedFC)]
        n_weights = sum(layer.weight_OI.numel() for layer in fused)
        self.small = None
        if len(fused) == len(layers) and n_weights <= SmallStack.MOST_WEIGHTS:
            self.small = SmallStack([layer for layer in self if isinstance(layer, FC)], fused)
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        """(B, I) -> (B, O)."""
        if self.small is not None and len(x) <= self.small.most_items:
            return self.small(x)
        for layer in self.layers:
            x = layer(x)
        return x.float()


class SmallStack(Layer):
    """A stack whose weights fit the core's own cache, as one compiled call; float32.

    Faster than MKL and oneDNN at every batch measured (experiments/LOG.md); bfloat16 gains on it
    from some 100,000 weights and 65 items on.
    """

    operator = "FC"
    MOST_WEIGHTS = 320_000
    FEWEST_FOR_BFLOAT16 = 100_000

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


def mlp(
    blob: str, widths: Sequence[int], last: nn.Module | None = None, *, dice: bool = False
) -> Stack:
    """FC stack `blob`.fc1, .fc2, ... with ReLU (or Dice) after every layer.

    `last` replaces the last of them.
    """
    layers: list[nn.Module] = []
    for i, (n_in, n_out) in enumerate(itertools.pairwise(widths), start=1):
        layers += [FC(f"{blob}.fc{i}", n_in, n_out), Dice(n_out) if dice else Relu()]
    if last is not None:
        layers[-1] = last
    return Stack(*layers)


def grouped(blobs: Sequence[str], widths: Sequence[int], first: int = 1) -> list[GroupedFC]:
    """A GroupedFC from each width to the next; the layers are called <blob>.fc<first>, ..."""
    return [
        GroupedFC([f"{blob}.fc{i}" for blob in blobs], n_in, n_out)
        for i, (n_in, n_out) in enumerate(itertools.pairwise(widths), start=first)
    ]


def parameter(*shape: int) -> nn.Parameter:
    """Room for weights."""
    return nn.Parameter(torch.empty(shape), requires_grad=False)


def normal(rng: np.random.Generator, shape: Sequence[int], variance: float) -> Tensor:
    """N(0, variance), float32."""
    noise = rng.standard_normal(tuple(shape), dtype=np.float32)
    return torch.from_numpy(noise * np.float32(variance**0.5))


def draw_normal(target: Tensor, rng: np.random.Generator, variance: float) -> None:
    """Fill a tensor with N(0, variance)."""
    target.copy_(normal(rng, target.shape, variance))


def load(target: Tensor, array: Array, blob: str) -> None:
    """Copy a released weight; raises ValueError if the shapes differ."""
    if tuple(target.shape) != array.shape:
        raise ValueError(f"{blob}: the weight is {array.shape}, the model's {tuple(target.shape)}")
    target.copy_(torch.from_numpy(np.ascontiguousarray(array)))
