"""A study that squares numbers; what it is told to do badly, it does."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from experiments.common.study import Study, View, names
from infra.settings.fields import flag


@dataclass(frozen=True)
class ToyCase:
    """One number, and what happens on the way."""

    model: str
    number: int
    scale: float
    event: str
    folder: str


@dataclass(frozen=True)
class ToyOptions:
    """The flags."""

    models: tuple[str, ...] = names((), "models (default: the effort's)", ("wnd", "ncf"))
    scale: float = flag(1.0, "factor of the numbers", low=0.5)
    event: str = flag("none", "what happens at number 3", ("none", "fail", "kill", "wait"))
    folder: str = flag("", "where every computed case leaves a file")


@dataclass(frozen=True)
class SquareRow:
    """A row of squares.csv."""

    model: str
    number: int
    square: float


def cases(effort, options):
    """All numbers of all models."""
    settings = (options.scale, options.event, options.folder)
    models = options.models or ("wnd", "ncf")
    return [ToyCase(model, i, *settings) for model in models for i in range(effort)]


def run(case):
    """A square, and its halves."""
    if case.folder:
        Path(case.folder, f"{case.model}{case.number}.{os.getpid()}").touch()
    if case.number == 3 and case.event == "fail":
        raise RuntimeError("three is\nnot a number")
    if case.number == 3 and case.event == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if case.number >= 3 and case.event == "wait":
        time.sleep(600)
    square = case.scale * case.number**2
    halves = [{"model": case.model, "half": square / 2, "left": i or None} for i in range(2)]
    return {"squares": [SquareRow(case.model, case.number, square)], "halves": halves}


def means(squares):
    """A line per model."""
    return squares.groupby("model", sort=False)["square"].mean().reset_index()


def draw(squares):
    """Square by number."""
    figure = Figure()
    figure.add_subplot().plot(squares["number"], squares["square"])
    return figure


def cannot_draw(_squares):
    """Raise."""
    raise KeyError("colour")


def complaints(squares):
    """Squares that are too large."""
    return [f"{value} is too large" for value in squares["square"] if value > 1e3]


STUDY = Study(
    "toy",
    "What is a square?",
    cases,
    run,
    efforts={"quick": 2, "full": 5},
    options=ToyOptions,
    parallel=True,
    derived={"means": View(means, "squares")},
    figures={"squares": View(draw, "squares"), "bad": View(cannot_draw, "squares")},
    report={"Means": View(means, "squares"), "Missing": View(pd.DataFrame, "no_such_table")},
    check=View(complaints, "squares"),
)

if __name__ == "__main__":
    STUDY.main()
