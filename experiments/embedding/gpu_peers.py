"""What the GPU study measures: our kernels, PyTorch's, FBGEMM's and TorchRec's look-ups, all on the
same weights.

FBGEMM's operators know no inference mode: torch.no_grad is what all are called in.
"""

# B items, T tables, L ids, S columns (sum of all widths)

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.embedding.gpu.look_up import TritonBags
from models.embedding.plan.plan import Bucket
from models.embedding.plan.spec import Layout


@dataclass(frozen=True, slots=True)
class Input:
    """Ids of one batch on the host and on the device, table after table; int32."""

    n_items: int
    host_ids_L: Tensor
    host_offsets: Tensor  # (T * B + 1,)
    ids_L: Tensor
    offsets: Tensor

    @classmethod
    def of(
        cls,
        ids_L: np.ndarray[Any, Any],
        offsets: np.ndarray[Any, Any],
        n_tables: int,
        device: torch.device,
    ) -> Input:
        """Page-locked on the host if the device is another one."""
        host = [torch.from_numpy(array) for array in (ids_L, offsets)]
        if device.type == "cuda":
            host = [tensor.pin_memory() for tensor in host]
        return cls((len(offsets) - 1) // n_tables, *host, *(tensor.to(device) for tensor in host))

    def by_table(self, n_tables: int) -> list[slice]:
        """Where the ids of each table are."""
        ends = self.host_offsets[:: self.n_items].tolist()
        return [slice(first, end) for first, end in itertools.pairwise(ends)][:n_tables]


class Method:
    """One way to look a batch up; `call(i)` works on input i, `from_host(i)` begins with its ids on
    the host.
    """

    def __init__(self, inputs: Sequence[Input]) -> None:
        self.inputs = inputs

    def call(self, i: int) -> Tensor:
        """(B, S)."""
        raise NotImplementedError

    def from_host(self, i: int) -> Tensor:
        """The same, copies of ids and offsets included."""
        raise NotImplementedError

    def input(self, i: int) -> Input:
        """Inputs in turn."""
        return self.inputs[i % len(self.inputs)]


class Ours(Method):
    """Kernels written by Triton; `by_length`: their programs ordered anew for every batch."""

    def __init__(
        self,
        layout: Layout,
        weight_E: Tensor,
        inputs: Sequence[Input],
        bucket: Bucket,
        *,
        by_length: bool = False,
    ) -> None:
        super().__init__(inputs)
        self.bags = TritonBags(layout, bucket, weight_E, by_length=by_length)

    def call(self, i: int) -> Tensor:
        """See Method."""
        own = self.input(i)
        return self.bags(own.ids_L, own.offsets)

    def from_host(self, i: int) -> Tensor:
        """See Method."""
        own = self.input(i)
        device = self.bags.weight_E.device
        ids_L, offsets = (
            t.to(device, non_blocking=True) for t in (own.host_ids_L, own.host_offsets)
        )
        return self.bags(ids_L, offsets)


class PerTable(Method):
    """F.embedding_bag for every table, then cat."""

    def __init__(self, layout: Layout, weight_E: Tensor, inputs: Sequence[Input]) -> None:
        super().__init__(inputs)
        self.tables = table_views(layout, weight_E)
        self._prepared = [
            self._parts(own, own.ids_L, self._offsets(own).to(weight_E.device)) for own in inputs
        ]

    def _offsets(self, own: Input) -> Tensor:
        """(T, B + 1), each table's from 0 on."""
        whole = own.host_offsets.unfold(0, own.n_items + 1, own.n_items)
        return whole - whole[:, :1]

    def _parts(self, own: Input, ids_L: Tensor, offsets: Tensor) -> list[tuple[Tensor, Tensor]]:
        return [
            (ids_L[part], offsets[table])
            for table, part in enumerate(own.by_table(len(self.tables)))
        ]

    def _look_up(self, parts: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        pooled = [
            F.embedding_bag(ids, table, offsets, mode="sum", include_last_offset=True)
            for table, (ids, offsets) in zip(self.tables, parts, strict=True)
        ]
        return torch.cat(pooled, dim=1)

    def call(self, i: int) -> Tensor:
        """See Method."""
        return self._look_up(self._prepared[i % len(self.inputs)])

    def from_host(self, i: int) -> Tensor:
        """See Method."""
        own = self.input(i)
        device = self.tables[0].device
        ids_L, offsets = (
            t.to(device, non_blocking=True) for t in (own.host_ids_L, self._offsets(own))
        )
        return self._look_up(self._parts(own, ids_L, offsets))


class Graphed(Method):
    """Another method's calls, captured once for each input and replayed; its inputs stay where they
    are.
    """

    def __init__(self, method: Method) -> None:
        super().__init__(method.inputs)
        self._graphs: list[tuple[Any, Tensor]] = []
        for i in range(len(method.inputs)):
            method.call(i)
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                out = method.call(i)
            self._graphs.append((graph, out))

    def call(self, i: int) -> Tensor:
        """See Method."""
        graph, out = self._graphs[i % len(self._graphs)]
        graph.replay()
        return out


class Fbgemm(Method):
    """FBGEMM's table-batched look-up, float32 on the device; raises ImportError, and ValueError for
    odd widths.
    """

    def __init__(self, layout: Layout, weight_E: Tensor, inputs: Sequence[Input]) -> None:
        super().__init__(inputs)
        if any(spec.dim % 4 for spec in layout.specs):
            raise ValueError("FBGEMM needs widths that are multiples of 4")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from fbgemm_gpu.split_table_batched_embeddings_ops_common import (  # noqa: PLC0415
                EmbeddingLocation,
                PoolingMode,
            )
            from fbgemm_gpu.split_table_batched_embeddings_ops_training import (  # noqa: PLC0415
                ComputeDevice,
                SplitTableBatchedEmbeddingBagsCodegen,
            )
        on_gpu = weight_E.is_cuda
        location = EmbeddingLocation.DEVICE if on_gpu else EmbeddingLocation.HOST
        compute = ComputeDevice.CUDA if on_gpu else ComputeDevice.CPU
        self._bags = SplitTableBatchedEmbeddingBagsCodegen(
            [(spec.rows, spec.dim, location, compute) for spec in layout.specs],
            pooling_mode=PoolingMode.SUM,
            device=weight_E.device,
        )
        for own, table in zip(
            self._bags.split_embedding_weights(), table_views(layout, weight_E), strict=True
        ):
            own.copy_(table)
        self._long = [(own.ids_L.long(), own.offsets.long()) for own in inputs]

    def call(self, i: int) -> Tensor:
        """See Method."""
        ids_L, offsets = self._long[i % len(self._long)]
        out: Tensor = self._bags(ids_L, offsets)
        return out

    def from_host(self, i: int) -> Tensor:
        """See Method; ids cross as int32 and become int64 on the device."""
        own = self.input(i)
        device = self._long[0][0].device
        ids_L, offsets = (
            t.to(device, non_blocking=True).long() for t in (own.host_ids_L, own.host_offsets)
        )
        out: Tensor = self._bags(ids_L, offsets)
        return out


class TorchRec(Method):
    """TorchRec's fused collection of tables (FBGEMM's kernels below); raises ImportError,
    ValueError for odd widths.
    """

    def __init__(self, layout: Layout, weight_E: Tensor, inputs: Sequence[Input]) -> None:
        super().__init__(inputs)
        if any(spec.dim % 4 for spec in layout.specs):
            raise ValueError("TorchRec needs widths that are multiples of 4")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation  # noqa: PLC0415
            from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType  # noqa: PLC0415
            from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection  # noqa: PLC0415
            from torchrec.sparse.jagged_tensor import KeyedJaggedTensor  # noqa: PLC0415
        self._keys = [f"f{t}" for t in range(len(layout.specs))]
        self._jagged = KeyedJaggedTensor
        tables = [
            EmbeddingBagConfig(
                name=f"t{t}",
                num_embeddings=spec.rows,
                embedding_dim=spec.dim,
                feature_names=[f"f{t}"],
                pooling=PoolingType.SUM,
            )
            for t, spec in enumerate(layout.specs)
        ]
        self._bags = FusedEmbeddingBagCollection(
            tables=tables,
            optimizer_type=torch.optim.SGD,
            optimizer_kwargs={"lr": 0.0},
            device=weight_E.device,
            location=EmbeddingLocation.DEVICE if weight_E.is_cuda else EmbeddingLocation.HOST,
        )
        views = table_views(layout, weight_E)
        self._bags.load_state_dict(
            {f"embedding_bags.t{t}.weight": table for t, table in enumerate(views)}
        )
        self._long = [(own.ids_L.long(), own.offsets.long()) for own in inputs]

    def _look_up(self, ids_L: Tensor, offsets: Tensor) -> Tensor:
        out: Tensor = self._bags(
            self._jagged(keys=self._keys, values=ids_L, offsets=offsets)
        ).values()
        return out

    def call(self, i: int) -> Tensor:
        """See Method."""
        return self._look_up(*self._long[i % len(self._long)])

    def from_host(self, i: int) -> Tensor:
        """See Method; ids cross as int32 and become int64 on the device."""
        own = self.input(i)
        device = self._long[0][0].device
        return self._look_up(
            *(t.to(device, non_blocking=True).long() for t in (own.host_ids_L, own.host_offsets))
        )


def table_views(layout: Layout, weight_E: Tensor) -> list[Tensor]:
    """(R, D) of every table."""
    firsts = layout.elements_T.tolist()
    return [
        weight_E[first : first + spec.rows * spec.dim].view(spec.rows, spec.dim)
        for first, spec in zip(firsts, layout.specs, strict=True)
    ]


def built(make: Callable[[], Method]) -> Method | str:
    """The method, once it has looked its first input up, or in a line why there is none here."""
    try:
        method = make()
        if method.inputs:
            method.call(0)
    except (ImportError, OSError, RuntimeError, ValueError, NotImplementedError) as error:
        words = str(error).splitlines()
        return f"{type(error).__name__}: {words[0] if words else ''}"
    return method
