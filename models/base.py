"""What every model is: tables and layers built from a ModelConfig, a Batch in, scores out."""

# B items, T tables, N behaviours, D embedding width

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from infra.rng import stream
from infra.settings.config import ConfigError, ModelConfig
from models.batch import Batch
from models.embedding.plan.plan import plan_of
from models.embedding.tables import EmbeddingTables, OnProgress, fill_uniform
from models.layers import Array, Layer, load


class RecModel(Layer):
    """Base of the eight models.

    `forward(batch)` gives float32 (B, n_out); MT-WnD gives (tasks, B, n_out).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.published = config.arch_variant == "paper"
        operator = "per_table" if config.fused == "off" else config.embedding_operator
        bag_ids = config.num_indices_per_lookup if config.num_indices_per_lookup_fixed else None
        self.tables = EmbeddingTables(
            config.table_rows, config.arch_sparse_feature_size, operator, bag_ids, plan_of(config)
        )

    def forward(self, batch: Batch) -> Tensor:
        """Score every item of the batch."""
        raise NotImplementedError

    def behaviour_rows(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Rows of tables [profile, behaviours, ad, context]: (B, D), (B, N, D), (B, D), (B, D)."""
        rows_BTD = self.tables(batch)
        return rows_BTD[:, 0], rows_BTD[:, 1:-2], rows_BTD[:, -2], rows_BTD[:, -1]

    @property
    def table_blobs(self) -> list[str]:
        """Names of the tables in the released net."""
        return [f"emb.sls{t}" for t in range(len(self.tables.table_rows))]

    def initialise(self, seed: int, on_progress: OnProgress | None = None) -> None:
        """Draw all weights as the release does; the tables take seconds."""
        self.initialise_layers(seed)
        fill_uniform(self.tables.weight_RD, self.tables.table_rows, seed, on_progress)

    def initialise_layers(self, seed: int) -> None:
        """Draw all weights but the tables' rows."""
        rng = stream(seed, "weights")
        for draw in self._of_layers("initialise"):
            draw(rng)

    def pack(self) -> None:
        """Lay tables and layers out for one core of this CPU, in the configuration's `dtype`.

        The scores stay what they were, but for rounding. Afterwards the model cannot move to
        another device. With `fused` off nothing changes. Raises ConfigError if this CPU cannot
        multiply in that type.
        """
        # A PyTorch built without oneDNN is slower, not wrong.
        onednn = torch.ops.mkldnn
        if self.config.fused == "off" or not hasattr(onednn, "_linear_pointwise"):
            return
        dtype = torch.bfloat16 if self.config.dtype == "bfloat16" else torch.float32
        has_bfloat16 = onednn._is_mkldnn_bf16_supported  # noqa: SLF001 (it has no public name)
        if dtype == torch.bfloat16 and not has_bfloat16():
            raise ConfigError("dtype", "is bfloat16, which needs a CPU with AVX-512; take float32")
        for pack in self._of_layers("pack"):
            pack(dtype)

    def load_reference(self, arrays: dict[str, Array]) -> None:
        """Take tables and weights under the released net's blob names ('param.<blob>').

        Raises KeyError, ValueError.
        """
        for t, blob in enumerate(self.table_blobs):
            load(self.tables.table(t), arrays[f"param.{blob}_w"], blob)
        for take in self._of_layers("load_reference"):
            take(arrays)

    def _of_layers(self, method: str) -> Iterator[Callable[..., Any]]:
        """This method of all modules inside that have it."""
        for layer in [*self.modules()][1:]:
            if hasattr(layer, method):
                yield getattr(layer, method)
