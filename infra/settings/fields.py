"""Dataclass fields that are command line flags: how they are declared, and how they are checked."""

from __future__ import annotations

import dataclasses
import math
import operator
from typing import Any

# A bound: when a value breaks it, and what was expected.
_BOUNDS = {
    "low": (operator.lt, "at least"),
    "high": (operator.gt, "at most"),
    "above": (operator.le, "more than"),
    "below": (operator.ge, "less than"),
}


class ConfigError(ValueError):
    """A setting that cannot be used; `flag` is the one to change."""

    def __init__(self, flag: str, problem: str) -> None:
        super().__init__(f"{flag} {problem}")
        self.flag = flag


def flag(
    default: Any, help_text: str, choices: tuple[str, ...] = (), unit: str = "", **bounds: float
) -> Any:
    """A dataclass field that is a command line flag.

    Bounds, in `unit`: `low` and `high` are inclusive, `above` and `below` are not.
    """
    return dataclasses.field(
        default=default,
        metadata={"help": help_text, "choices": choices, "bounds": bounds, "unit": unit},
    )


def check_fields(part: Any) -> None:
    """Raise ConfigError if a field is outside its choices or bounds."""
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        choices = field.metadata["choices"]
        if choices and value not in choices:
            raise ConfigError(field.name, f"is {value!r}; expected one of {', '.join(choices)}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(field.name, f"is {value}; expected a finite number")
        for bound, limit in field.metadata["bounds"].items():
            breaks, expected = _BOUNDS[bound]
            if value is not None and breaks(value, limit):
                shown = f"{value:g}" if isinstance(value, float) else value
                least = f"{limit:g} {field.metadata['unit']}".rstrip()
                raise ConfigError(field.name, f"is {shown}; expected {expected} {least}")


def dashed(name: str, text: str) -> tuple[int, ...]:
    """'4-3-2' -> (4, 3, 2); every number at least 1."""
    parts = text.split("-")
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ConfigError(
            name,
            f"is {text!r}; expected whole numbers of at least 1 with dashes between, like 4-3-2",
        )
    return tuple(int(part) for part in parts)
