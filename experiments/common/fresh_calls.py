"""A model that is timed: called again and again, each time on items that it has not just seen."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from experiments.common.released import LARGEST_ITEMS, net_of
from models import build
from models.base import RecModel
from models.batch import Batch
from models.inputs.synthetic import InputPool

N_INPUTS = 4
SEED = 4


def model_with_inputs(
    name: str, table_scale: float, seed: int = SEED
) -> tuple[RecModel, InputPool]:
    """A released model on this core, packed, and inputs drawn from the seed."""
    config = net_of(name, table_scale)
    model = build(config, SEED, device=torch.device("cpu"))
    return model, InputPool(config, N_INPUTS, LARGEST_ITEMS, seed)


class FreshCalls:
    """A model's forward pass, called on the next items of its inputs."""

    def __init__(self, score: Callable[[Batch], Tensor], inputs: InputPool) -> None:
        self._score = score
        self._inputs = inputs
        self._n_calls = 0

    def __call__(self, n_items: int) -> Tensor:
        """Scores of the next items; the inputs take turns."""
        n_turns, input_id = divmod(self._n_calls, self._inputs.n_inputs)
        self._n_calls += 1
        first = n_turns * n_items % (self._inputs.max_items - n_items + 1)
        return self._score(self._inputs.batch(input_id, first, n_items))
