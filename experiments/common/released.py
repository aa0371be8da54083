"""The released models as studies run them: names in the release's order, settings, cases."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from accelerator.devices import model_configs
from experiments.common.servers import MEDIUM_SLA_MS
from experiments.common.study_flags import names
from infra.settings.cli import parse
from infra.settings.config import ModelConfig, RunConfig
from infra.settings.fields import flag

MODELS = tuple(MEDIUM_SLA_MS)
LARGEST_ITEMS = 1024
PRODUCTION = f"--queue --max_mini_batch_size {LARGEST_ITEMS} --batch_size_distribution production"
ONE_ENGINE = (
    f"{PRODUCTION} --inference_engines 1 --num_batches 16 --batch_configs 128 --progress none"
)


@dataclass(frozen=True)
class ModelOptions:
    """Flags of a study that times models."""

    models: tuple[str, ...] = names(MODELS, "models, with commas", MODELS)
    table_scale: float = flag(1.0, "fraction of the tables' rows")


@dataclass(frozen=True)
class ModelCase:
    """One model under a study's options; which others are asked for is no part of it."""

    model: str
    options: Any
    effort: Any


def model_cases(effort: Any, options: Any) -> list[ModelCase]:
    """A case a model: of those asked for, else the effort's."""
    models = options.models or effort.models
    return [ModelCase(model, replace(options, models=()), effort) for model in models]


def config_of(model: str, words: str, flags: Iterable[str] = ()) -> RunConfig:
    """The released configuration with a study's flags (`words`), then the user's.

    A flag that cannot be used ends the program with one line.
    """
    return parse(["--config_file", str(model_configs()[model]), *words.split(), *flags])


def net_of(model: str, table_scale: float = 1) -> ModelConfig:
    """The released net with a fraction of its tables' rows."""
    return config_of(model, f"--num_batches 1 --table_scale {table_scale}").model
