"""What the figures of all studies have in common: colours, words, lines."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from experiments.common.study import View
from experiments.recpipe.chains import pareto
from experiments.recpipe.datasets.rankers import DATA

SHADES: dict[object, str] = {
    "small": "#2a9d8f",
    "medium": "#edae49",
    "large": "#d1495b",
    "rm-small": "#2a9d8f",
    "rm-med": "#edae49",
    "rm-large": "#d1495b",
    "CPU": "#17507d",
    "GPU": "#2a9d8f",
    "GPU in front": "#edae49",
    "GPU behind": "#6a4c93",
    "RPAccel": "#d1495b",
    1: "#17507d",  # stages on the chip
    2: "#d1495b",
    3: "#2a9d8f",
}
STAGE_SHADES: dict[object, str] = {1: "#d1495b", 2: "#17507d", 3: "#2a9d8f"}  # on cores


def views(name: str, function: Callable[..., Any], *tables: str) -> dict[str, View]:
    """What is shown of each data set's tables; `{}` in names stands for the data set."""
    return {
        name.format(data): View(function, *(table.format(data) for table in tables))
        for data in DATA
    }


def words(name: Any) -> str:
    """A number of stages in words; what has a name keeps it."""
    return str(name) if isinstance(name, str) else f"{name} stage{'s' * (name > 1)}"


def line(axes: Axes, rows: pd.DataFrame, x: str, y: str, mark: str, **look: Any) -> None:
    """One column against another, with small markers."""
    axes.plot(rows[x], rows[y], mark, **{"markersize": 4, **look})


def lines(
    axes: Axes,
    rows: pd.DataFrame,
    by: str,
    x: str,
    y: str,
    marks: str | Mapping[Any, str],
    *,
    shades: Mapping[object, str] = SHADES,
    band: bool = False,
    **look: Any,
) -> None:
    """A line for each value of a column; band: with the 95 % interval of NDCG."""
    for name, part in rows.groupby(by, sort=False):
        shade = shades.get(name, "#888888")
        mark = marks if isinstance(marks, str) else marks[name]
        line(axes, part, x, y, mark, **{"color": shade, "label": words(name), **look})
        if band:
            axes.fill_between(part[x], part["ndcg_low"], part["ndcg_high"], color=shade, alpha=0.12)


def bars(axes: Axes, rows: pd.DataFrame, x: str, mark: str, name: Any, **look: Any) -> None:
    """NDCG against a column, with its 95 % interval."""
    below = rows["ndcg"] - rows["ndcg_low"]
    above = rows["ndcg_high"] - rows["ndcg"]
    look = {"color": SHADES[name], "label": words(name), "markersize": 4, **look}
    axes.errorbar(rows[x], rows["ndcg"], [below, above], fmt=mark, **look)


def front(
    axes: Axes,
    rows: pd.DataFrame,
    x: str,
    name: Any,
    shades: Mapping[object, str] = SHADES,
    *,
    more: bool,
) -> None:
    """NDCG against a column of which more or less is better; a line along what is not beaten."""
    look = {"color": shades[name]}
    line(axes, rows, x, "ndcg", ".", alpha=0.25, markersize=3, **look)
    best = pareto(rows, ["ndcg", x]) if more else pareto(rows, ["ndcg"], [x])
    line(axes, best.sort_values(x), x, "ndcg", "o-", linewidth=1, label=words(name), **look)
