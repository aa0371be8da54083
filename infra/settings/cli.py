"""Flags and files -> RunConfig. Precedence: explicit flag, then the file, then the default."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import sys
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from infra.settings.config import PARTS, ConfigError, ReleaseOnlyConfig, RunConfig, from_settings

FIELDS: dict[str, dataclasses.Field[Any]] = {
    field.name: field for part in PARTS.values() for field in dataclasses.fields(part)
}
_TYPES: dict[str, Any] = {
    name: hint for part in PARTS.values() for name, hint in typing.get_type_hints(part).items()
}
# Three ways to state the load: the nearest source (flags, then the file) wins.
_RATES = {"avg_arrival_rate", "arrival_qps", "offered_load"}


class _Parser(argparse.ArgumentParser):
    """argparse with one line per error and a guess at what was meant."""

    def error(self, message: str) -> NoReturn:
        sys.stderr.write(f"{self.prog}: {message}\n")
        sys.exit(2)


def convert(name: str, value: Any) -> Any:
    """`value`, the text of a flag or what a file holds, as the type of setting `name`.

    Raises ConfigError.
    """
    kind, *others = typing.get_args(_TYPES[name]) or (_TYPES[name],)
    if others and value in (None, "None"):
        return None
    if value is None:
        raise ConfigError(name, "has no value")
    if kind is bool:
        return _to_bool(name, value)
    if kind is str:
        return str(value)
    if name == "inference_engines" and value == "auto":
        return 0
    return _to_number(name, value, kind)


def _to_bool(name: str, value: Any) -> bool:
    word = str(value).lower()
    if word in ("true", "1", "yes", "on"):
        return True
    if word in ("false", "0", "no", "off"):
        return False
    raise ConfigError(name, f"is {value!r}; expected true or false")


def _to_number(name: str, value: Any, kind: type) -> Any:
    if isinstance(value, bool):
        raise ConfigError(name, f"is {value}; expected a number")
    expected = f"expected a {'whole ' if kind is int else ''}number"
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ConfigError(name, f"is {value!r}; {expected}") from None
    if kind is int and not number.is_integer():
        raise ConfigError(name, f"is {value!r}; {expected}")
    return kind(number)


def unknown(name: str, names: Sequence[str]) -> str:
    """What to say of a name that is none of `names`."""
    guesses = difflib.get_close_matches(name, names, n=1)
    return f"unknown key {name!r}" + (f"; did you mean {guesses[0]!r}?" if guesses else "")


def _from_yaml(text: str) -> Any:
    import yaml  # noqa: PLC0415 (JSON files are read without)

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def read_file(path: str) -> dict[str, Any]:
    """{flag: value} of a JSON or YAML file, or of a saved run (its run.json).

    Raises ValueError.
    """
    loaded = _loaded(path)
    if isinstance(loaded, dict) and "provenance" in loaded:
        loaded = loaded.get("config")
    if not isinstance(loaded, dict):
        problem = f"{path}: expected one mapping of flag names to values"
        raise ValueError(problem)  # noqa: TRY004 (shown as bad input)
    settings = {}
    for name, value in loaded.items():
        if name not in FIELDS:
            raise ValueError(f"{path}: {unknown(str(name), list(FIELDS))}")
        try:
            settings[name] = convert(name, value)
        except ConfigError as error:
            raise ValueError(f"{path}: {error}") from error
    return settings


def _loaded(path: str) -> Any:
    file = Path(path)
    if not file.is_file():
        raise ValueError(
            f"{path}: no such file; --config_file takes a JSON or YAML file of flag names and "
            "values"
        )
    try:
        text = file.read_text()
        return _from_yaml(text) if file.suffix in (".yaml", ".yml") else json.loads(text)
    except ValueError as error:  # also what is no text or no JSON
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{path}: not readable as {file.suffix[1:] or 'JSON'}: {reason}"
        ) from error


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = _Parser(
        prog=prog,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=36, width=120),
        description="Measures and tunes at-scale inference of neural recommendation models.",
        epilog="A flag beats the file, the file beats the default. Every run saves its settings "
        "in run.json, which --config_file reads again.",
    )
    parser.add_argument(
        "--config_file", metavar="FILE", help="JSON or YAML of flag names and values, or a run.json"
    )
    for part in PARTS.values():
        group = parser.add_argument_group((part.__doc__ or "").rstrip("."))
        for field in dataclasses.fields(part):
            help_text = f"{field.metadata['help']} (default: {field.default})".replace("%", "%%")
            if field.metadata["choices"]:
                help_text = f"{'|'.join(field.metadata['choices'])}: {help_text}"
            if _TYPES[field.name] is bool:
                group.add_argument(
                    f"--{field.name}", nargs="?", const=True, metavar="true|false", help=help_text
                )
            else:
                kind = str(field.type).removesuffix(" | None")
                group.add_argument(f"--{field.name}", metavar=kind.upper(), help=help_text)
    return parser


def parse(
    argv: Sequence[str], prog: str = "DeepRecSys.py", forced: dict[str, Any] | None = None
) -> RunConfig:
    """RunConfig of a command line; bad input ends the process: one line on stderr, exit code 2.

    `forced` are defaults of the calling script: weaker than the file and the flags.
    """
    parser = _parser(prog)
    args, rest = parser.parse_known_args(argv)
    if rest:
        parser.error(_stray(rest[0]))
    flags = vars(args)
    path = flags.pop("config_file", None)
    from_file: dict[str, Any] = {}
    try:
        explicit = {name: convert(name, value) for name, value in flags.items()}
        from_file = read_file(path) if path is not None else {}
        if _RATES & explicit.keys():
            from_file = {name: value for name, value in from_file.items() if name not in _RATES}
        config = from_settings({**(forced or {}), **from_file, **explicit})
    except ConfigError as error:
        where = f"{path}: " if error.flag in from_file and error.flag not in flags else "--"
        parser.error(f"{where}{error}")
    except ValueError as error:
        parser.error(str(error))
    _say_no_effect(explicit)
    return config


def _stray(word: str) -> str:
    """What to say of a word that is no flag."""
    if not word.startswith("--"):
        return f"unexpected argument {word!r}; every setting is a --flag with a value"
    name = word.lstrip("-").split("=")[0]
    return unknown(name, [*FIELDS, "config_file"]).replace("key", "flag")


def _say_no_effect(explicit: dict[str, Any]) -> None:
    for field in dataclasses.fields(ReleaseOnlyConfig):
        if explicit.get(field.name, field.default) != field.default:
            sys.stderr.write(
                f"note: --{field.name} has no effect here ({field.metadata['help']})\n"
            )
