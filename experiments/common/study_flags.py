"""The command line that all studies share, and the flags of a study's options record."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import types
import typing
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NoReturn

from infra.settings.fields import ConfigError, check_fields, flag


def names(default: tuple[str, ...], help_text: str, among: Collection[str]) -> Any:
    """An options field of names with commas between, all of them from `among` (empty: any)."""
    metadata = {**flag(default, help_text).metadata, "among": tuple(among)}
    return dataclasses.field(default=default, metadata=metadata)


def passed_on() -> Any:
    """The options field `flags`: all flags that the study does not have, for another program."""
    return flag((), "")


class _StudyParser(argparse.ArgumentParser):
    """argparse with one line per error."""

    def error(self, message: str) -> NoReturn:
        sys.stderr.write(f"{self.prog}: {message}\n")
        sys.exit(2)


def parse(
    argv: Sequence[str], question: str, efforts: Sequence[str], options_type: type[Any]
) -> tuple[argparse.Namespace, Any]:
    """The shared flags and the study's options; bad input ends in one line and exit code 2."""
    parser = _parser(question, efforts)
    hints = typing.get_type_hints(options_type)
    fields = [field for field in dataclasses.fields(options_type) if field.name != "flags"]
    for field in fields:
        _add_flag(parser, field, hints[field.name])
    args, rest = parser.parse_known_args(argv)
    settings = {field.name: getattr(args, field.name) for field in fields}
    if "flags" in hints:
        settings["flags"] = tuple(rest)
    elif rest:
        parser.error(f"unknown flag {rest[0]}; --help lists those that there are")
    if args.jobs is not None and args.jobs < 1:
        parser.error(f"--jobs is {args.jobs}; expected at least 1")
    if args.quick:
        args.effort = "quick"
    try:
        options = options_type(**settings)
        _check_names(options)
        check_fields(options)
    except ConfigError as error:
        parser.error(f"--{error}")
    return args, options


def _parser(question: str, efforts: Sequence[str]) -> argparse.ArgumentParser:
    parser = _StudyParser(prog=Path(sys.argv[0]).name, description=question, allow_abbrev=False)
    add = parser.add_argument
    add("--effort", choices=efforts, default="full", help="how much is run (default: full)")
    add("--quick", action="store_true", help="short for --effort quick")
    add("--only", metavar="FIELD=VALUE,...", help="cases with these values; --list shows them")
    add("--out", type=Path, metavar="FOLDER", help="default: results/<study>-<time>")
    add("--jobs", type=int, metavar="N", help="cases at a time (default: one a core; timed: 1)")
    add("--list", action="store_true", help="print the cases and run nothing")
    add("--plot", type=Path, metavar="FOLDER", help="only redraw the figures of a folder's rows")
    add("--publish", action="store_true", help="copy rows and figures to the study's data/")
    return parser


def _add_flag(parser: argparse.ArgumentParser, field: dataclasses.Field[Any], hint: Any) -> None:
    default = "the effort's" if field.default in (None, ()) else field.default
    text = f"{field.metadata['help']} (default: {default})".replace("%", "%%")
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    kind = next(kind for kind in kinds if kind is not type(None))
    if kind is bool:
        parser.add_argument(f"--{field.name}", action="store_true", help=field.metadata["help"])
        return
    convert = _CONVERTERS.get(kind, kind)
    parser.add_argument(f"--{field.name}", type=convert, default=field.default, help=text)


def _split(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _split_numbers(text: str) -> tuple[int, ...]:
    words = text.split(",")
    if not all(word.isdecimal() and int(word) > 0 for word in words):
        raise argparse.ArgumentTypeError(f"{text!r}; expected whole numbers like 1,8,64")
    return tuple(int(word) for word in words)


_CONVERTERS: dict[Any, Any] = {tuple[str, ...]: _split, tuple[int, ...]: _split_numbers}


def _check_names(options: Any) -> None:
    for field in dataclasses.fields(options):
        among: tuple[str, ...] = field.metadata.get("among", ())
        if among and (unknown := set(getattr(options, field.name)) - set(among)):
            words = ", ".join(sorted(unknown))
            raise ConfigError(field.name, f"{words}: not among {', '.join(among)}")


def flags_of(case_type: type[Any], models: Collection[str]) -> type[Any]:
    """Options of a study whose cases differ by their model.

    --models, and the fields of a case that are declared as flags; what is not given is the
    effort's.
    """
    options: list[tuple[str, Any, Any]] = [
        ("models", tuple[str, ...], names((), "models, with commas", models))
    ]
    hints = typing.get_type_hints(case_type)
    for field in dataclasses.fields(case_type):
        if field.metadata:
            kind = hints[field.name]
            is_switch = kind is bool
            flag = dataclasses.field(
                default=False if is_switch else None, metadata=dict(field.metadata)
            )
            options.append((field.name, kind if is_switch else kind | None, flag))
    return dataclasses.make_dataclass(f"{case_type.__name__}Options", options, frozen=True)


def of_models(effort: Sequence[Any], options: Any) -> list[Any]:
    """The effort's cases, which differ by their model, with what the options say instead."""
    settings = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    models = settings.pop("models") or [case.model for case in effort]
    settings = {k: v for k, v in settings.items() if v is not None and v is not False}
    return [dataclasses.replace(effort[0], model=model, **settings) for model in models]


def wanted(only: str | None) -> dict[str, set[str]]:
    """'model=wnd,model=ncf' -> {'model': {'wnd', 'ncf'}}; raises ValueError."""
    values: dict[str, set[str]] = {}
    for word in only.split(",") if only else ():
        name, equals, value = word.partition("=")
        if not equals:
            raise ValueError(f"--only is {only!r}; expected FIELD=VALUE with commas between")
        values.setdefault(name.strip(), set()).add(value.strip())
    return values
