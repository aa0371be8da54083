"""What the GPU study measures: look-ups by our kernels, PyTorch, FBGEMM, TorchRec; same weights.

FBGEMM's operators know no inference mode: torch.no_grad is what all are called in.
"""

# B items, T tables, L ids, S columns (sum of all widths)

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from experiments.common.look_up_peers import quiet_import
from experiments.embedding.contenders import table_views
from models.embedding.gpu.look_up import TritonBags
from models.embedding.plan.plan import Bucket
from models.embedding.plan.spec import Layout

_COMMON = "fbgemm_gpu.split_table_batched_embeddings_ops_common"


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
    """One way to look a batch up: what is prepared of its ids and offsets is what `look_up` takes.

    A subclass sets what `prepared` needs before it calls this constructor.
    """

    bags: Callable[..., Tensor]

    def __init__(self, inputs: Sequence[Input], device: torch.device) -> None:
        self.inputs = inputs
        self.device = device
        self._ready = [
            self.prepared(batch, batch.ids_L, self.host_offsets(batch).to(device))
            for batch in inputs
        ]

    def look_up(self, *prepared: Any) -> Tensor:
        """(B, S)."""
        return self.bags(*prepared)

    def prepared(self, batch: Input, ids_L: Tensor, offsets: Tensor) -> tuple[Any, ...]:
        """What `look_up` takes, of tensors on the device."""
        del batch
        return ids_L, offsets

    def host_offsets(self, batch: Input) -> Tensor:
        """The offsets that cross to the device."""
        return batch.host_offsets

    def call(self, i: int) -> Tensor:
        """Look up input i, which is ready on the device; inputs take turns."""
        return self.look_up(*self._ready[i % len(self._ready)])

    def from_host(self, i: int) -> Tensor:
        """The same from ids on the host, copies of ids and offsets included."""
        batch = self.inputs[i % len(self.inputs)]
        host = (batch.host_ids_L, self.host_offsets(batch))
        ids_L, offsets = (tensor.to(self.device, non_blocking=True) for tensor in host)
        return self.look_up(*self.prepared(batch, ids_L, offsets))


class Ours(Method):
    """Kernels written by Triton."""

    def __init__(
        self, layout: Layout, weight_E: Tensor, inputs: Sequence[Input], bucket: Bucket
    ) -> None:
        super().__init__(inputs, weight_E.device)
        self.bags = TritonBags(layout, bucket, weight_E)


class PerTable(Method):
    """F.embedding_bag for each table, then cat."""

    def __init__(self, layout: Layout, weight_E: Tensor, inputs: Sequence[Input]) -> None:
        self.tables = table_views(layout, weight_E)
        super().__init__(inputs, weight_E.device)

    def host_offsets(self, batch: Input) -> Tensor:
        """(T, B + 1), each table's from 0 on."""
        offsets = batch.host_offsets.unfold(0, batch.n_items + 1, batch.n_items)
        return offsets - offsets[:, :1]

    def prepared(self, batch: Input, ids_L: Tensor, offsets: Tensor) -> tuple[Any, ...]:
        """Each table's rows, ids and offsets."""
        parts = batch.by_table(len(self.tables))
        ids = [ids_L[part] for part in parts]
        return tuple(zip(self.tables, ids, offsets.unbind(), strict=True))

    def look_up(self, *prepared: Any) -> Tensor:
        """See Method."""
        pooled = [
            F.embedding_bag(ids, table, offsets, mode="sum", include_last_offset=True)
            for table, ids, offsets in prepared
        ]
        return torch.cat(pooled, dim=1)


class Graphed(Method):
    """Another method's calls, captured once for each input and replayed.

    Its inputs stay where they are.
    """

    def __init__(self, make: Callable[[], Method]) -> None:
        method = make()
        super().__init__(method.inputs, method.device)
        self._ready = []
        for i in range(len(method.inputs)):
            method.call(i)
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                out = method.call(i)
            self._ready.append((graph, out))

    def look_up(self, *prepared: Any) -> Tensor:
        """See Method."""
        graph, out = prepared
        graph.replay()
        return cast("Tensor", out)


class WideIdsPeer(Method):
    """A library that reads int64 ids, and widths that are multiples of 4: ValueError for others."""

    def __init__(self, layout: Layout, weight_E: Tensor, inputs: Sequence[Input]) -> None:
        if any(spec.dim % 4 for spec in layout.specs):
            raise ValueError(f"{type(self).__name__} needs widths that are multiples of 4")
        location = quiet_import(_COMMON).EmbeddingLocation
        self.location = location.DEVICE if weight_E.is_cuda else location.HOST
        super().__init__(inputs, weight_E.device)

    def prepared(self, batch: Input, ids_L: Tensor, offsets: Tensor) -> tuple[Any, ...]:
        """Ids cross as int32 and become int64 on the device."""
        del batch
        return ids_L.long(), offsets.long()


class Fbgemm(WideIdsPeer):
    """FBGEMM's table-batched look-up, float32 on the device; raises ImportError."""

    def __init__(self, layout: Layout, weight_E: Tensor, inputs: Sequence[Input]) -> None:
        super().__init__(layout, weight_E, inputs)
        module = quiet_import("fbgemm_gpu.split_table_batched_embeddings_ops_training")
        compute = module.ComputeDevice.CUDA if weight_E.is_cuda else module.ComputeDevice.CPU
        bags = module.SplitTableBatchedEmbeddingBagsCodegen(
            [(spec.rows, spec.dim, self.location, compute) for spec in layout.specs],
            pooling_mode=quiet_import(_COMMON).PoolingMode.SUM,
            device=weight_E.device,
        )
        tables = table_views(layout, weight_E)
        for weight, table in zip(bags.split_embedding_weights(), tables, strict=True):
            weight.copy_(table)
        self.bags = bags


class TorchRec(WideIdsPeer):
    """TorchRec's fused collection of tables, FBGEMM's kernels below; raises ImportError."""

    def __init__(self, layout: Layout, weight_E: Tensor, inputs: Sequence[Input]) -> None:
        super().__init__(layout, weight_E, inputs)
        configs = quiet_import("torchrec.modules.embedding_configs")
        module = quiet_import("torchrec.modules.fused_embedding_modules")
        self._jagged = quiet_import("torchrec.sparse.jagged_tensor").KeyedJaggedTensor
        self._keys = [f"f{t}" for t in range(len(layout.specs))]
        tables = [
            configs.EmbeddingBagConfig(
                name=f"t{t}",
                num_embeddings=spec.rows,
                embedding_dim=spec.dim,
                feature_names=[f"f{t}"],
                pooling=configs.PoolingType.SUM,
            )
            for t, spec in enumerate(layout.specs)
        ]
        collection = module.FusedEmbeddingBagCollection(
            tables=tables,
            optimizer_type=torch.optim.SGD,
            optimizer_kwargs={"lr": 0.0},
            device=weight_E.device,
            location=self.location,
        )
        views = enumerate(table_views(layout, weight_E))
        collection.load_state_dict({f"embedding_bags.t{t}.weight": table for t, table in views})
        self.bags = collection

    def look_up(self, *prepared: Any) -> Tensor:
        """See Method."""
        ids_L, offsets = prepared
        jagged = self._jagged(keys=self._keys, values=ids_L, offsets=offsets)
        return self.bags(jagged).values()


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
