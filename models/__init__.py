"""The eight models of DeepRecSys: six architectures, one file each, and the configurations of the release."""

from __future__ import annotations

import torch

from infra.config import ModelConfig
from models.base import RecModel
from models.dien import DIEN
from models.din import DIN
from models.dlrm import DLRM
from models.embedding.tables import OnProgress
from models.mtwnd import MultiTaskWideAndDeep
from models.ncf import NCF
from models.wide_and_deep import WideAndDeep

MODELS: dict[str, type[RecModel]] = {
    "dlrm": DLRM,
    "wnd": WideAndDeep,
    "mtwnd": MultiTaskWideAndDeep,
    "ncf": NCF,
    "din": DIN,
    "dien": DIEN,
}


def build(
    config: ModelConfig, seed: int, on_progress: OnProgress | None = None, device: torch.device | None = None
) -> RecModel:
    """The model with weights drawn from `seed`, ready to score; `on_progress` gets the fraction of the tables built.

    `device`: laid out for that device (a CPU: packed, see RecModel.pack); None: plain PyTorch that can go anywhere.
    """
    with torch.inference_mode(False), torch.no_grad():
        model = MODELS[config.model_type](config)
        model.initialise(seed, on_progress)
        if device is not None and device.type == "cpu":
            model.pack()
        elif device is not None:
            model.to(device)
    return model.eval()
