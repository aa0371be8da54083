"""The eight models of DeepRecSys: six architectures, a file each, and the release's configurations.

An architecture is imported when it is built, so that `models.costs` can be had without PyTorch.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from infra.settings.config import ModelConfig

if TYPE_CHECKING:
    import torch

    from models.base import RecModel
    from models.embedding.tables import OnProgress

MODELS = {  # architecture: its file and class
    "dlrm": ("dlrm", "DLRM"),
    "wnd": ("wide_and_deep", "WideAndDeep"),
    "mtwnd": ("mtwnd", "MultiTaskWideAndDeep"),
    "ncf": ("ncf", "NCF"),
    "din": ("din", "DIN"),
    "dien": ("dien", "DIEN"),
}


def architecture(model_type: str) -> type[RecModel]:
    """The class of an architecture."""
    module, name = MODELS[model_type]
    model: type[RecModel] = getattr(import_module(f"models.{module}"), name)
    return model


def build(
    config: ModelConfig,
    seed: int,
    on_progress: OnProgress | None = None,
    device: torch.device | None = None,
    tables_of: RecModel | None = None,
    weights: Mapping[str, Any] | None = None,
) -> RecModel:
    """The model with weights drawn from `seed`, ready to score.

    `on_progress` gets the fraction of the tables built. `device`: laid out for that device (a CPU:
    packed, see RecModel.pack); None: plain PyTorch that can go anywhere. `tables_of`: a model on
    the CPU of the same tables, whose rows are shared instead of drawn again. `weights`: trained
    ones under the net's blob names instead of drawn ones; raises KeyError, ValueError if they are
    another net's.
    """
    import torch  # noqa: PLC0415 (see above)

    with torch.inference_mode(False), torch.no_grad():
        model = architecture(config.model_type)(config)
        if weights is not None:
            model.load_reference(dict(weights))
        elif tables_of is None:
            model.initialise(seed, on_progress)
        else:
            model.tables.weight_RD = tables_of.tables.weight_RD
            model.initialise_layers(seed)
        if device is not None and device.type == "cpu":
            model.pack()
        elif device is not None:
            model.to(device)
            model.tables.use_plan()
    return model.eval()
