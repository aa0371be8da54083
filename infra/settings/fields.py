"""Dataclass fields that are command line flags: how they are declared, and how they are checked."""

from __future__ import annotations

import dataclasses
import math
from typing import Any


class ConfigError(ValueError):
    """A setting that cannot be used; `flag` is the one to change."""

    def __init__(self, flag: str, problem: str) -> None:
        super().__init__(f"{flag} {problem}")
        self.flag = flag


def flag(
    default: Any,
    help_text: str,
    choices: tuple[str, ...] = (),
    low: float | None = None,
    high: float | None = None,
) -> Any:
    """A dataclass field that is a command line flag; `low` and `high` are inclusive bounds."""
    return dataclasses.field(
        default=default, metadata={"help": help_text, "choices": choices, "low": low, "high": high}
    )


def check_fields(part: Any) -> None:
    """Raise ConfigError if a field is outside its choices or bounds."""
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        meta = field.metadata
        if meta["choices"] and value not in meta["choices"]:
            raise ConfigError(
                field.name, f"is {value!r}; expected one of {', '.join(meta['choices'])}"
            )
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(field.name, f"is {value}; expected a finite number")
        for bound, wrong, word in (("low", -1, "at least"), ("high", 1, "at most")):
            limit = meta[bound]
            if value is not None and limit is not None and (value - limit) * wrong > 0:
                raise ConfigError(field.name, f"is {value}; expected {word} {limit:g}")


def dashed(name: str, text: str) -> tuple[int, ...]:
    """'4-3-2' -> (4, 3, 2); every number at least 1."""
    parts = text.split("-")
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ConfigError(
            name,
            f"is {text!r}; expected whole numbers of at least 1 with dashes between, like 4-3-2",
        )
    return tuple(int(part) for part in parts)
