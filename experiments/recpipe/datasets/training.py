"""Training of a ranker: one loop for all of them, the weights of the best pass, a checkpoint."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn, optim

from infra.progress import OnFraction

Weights = dict[str, npt.NDArray[np.float32]]


class Trainable(Protocol):
    """A net: inputs -> logit, and its weights under the blob names of models/."""

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Logit of each example, (B,)."""

    def weights(self) -> Weights:
        """A copy of the weights as they are."""


def linears(widths: Sequence[int]) -> nn.ModuleList:
    """Layers from each width to the next."""
    return nn.ModuleList([nn.Linear(a, b) for a, b in itertools.pairwise(widths)])


def blobs(modules: Mapping[str, nn.Module]) -> Weights:
    """Copies of the weights and biases of layers and tables, by the names of the released nets."""
    return {
        f"param.{name}_{kind[0]}": weight.detach().numpy().copy()
        for name, module in modules.items()
        for kind, weight in module.named_parameters()
    }


def fit(
    net: Trainable,
    passes: Iterable[Iterable[Sequence[Tensor]]],
    n_steps: int,
    optimiser: optim.Optimizer,
    validation_ndcg: Callable[[], float],
    on_fraction: OnFraction,
    schedule: optim.lr_scheduler.LRScheduler | None = None,
) -> Weights:
    """The weights of the pass with the best validation NDCG; the loss is binary cross-entropy.

    A pass is batches of inputs with their labels at the end; `n_steps` counts those of all passes.
    """
    best = -1.0
    weights = net.weights()
    step = 0
    for batches in passes:
        for *inputs, label_B in batches:
            loss = nn.functional.binary_cross_entropy_with_logits(net(*inputs), label_B)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            if schedule is not None:
                schedule.step()
            step += 1
            on_fraction(step / n_steps, f"loss {loss.item():.3f}")
        ndcg = validation_ndcg()
        on_fraction(step / n_steps, f"validation NDCG {ndcg:.4f}")
        if ndcg > best:
            best = ndcg
            weights = net.weights()
    return weights


def checkpoint(
    folder: Path,
    name: str,
    facts: Sequence[object],
    arrays: Sequence[npt.NDArray[Any]],
    train: Callable[[], Weights],
) -> Weights:
    """The weights of a net that follows from the facts and arrays; trained if it never was."""
    digest = hashlib.sha256(json.dumps(facts).encode())
    for array in arrays:
        digest.update(array.tobytes())
    file = folder / f"{name}-{digest.hexdigest()[:12]}.npz"
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(file, **train())  # type: ignore[arg-type]
    with np.load(file) as weights:
        return dict(weights)
