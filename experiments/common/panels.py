"""What the figures of several studies share: panels beside each other, lines, axes, legends."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from infra.results.figures import color, plain_log, style


def panels(n: int, width: float, height: float, n_columns: int = 0) -> tuple[Figure, list[Axes]]:
    """A figure with n panels of so many inches, row by row; 0: all beside each other."""
    n_columns = min(n_columns or n, n)
    n_rows = -(-n // n_columns)
    figure = Figure(figsize=(width * n_columns, height * n_rows), layout="constrained")
    return figure, [figure.add_subplot(n_rows, n_columns, i + 1) for i in range(n)]


def model_line(axes: Axes, model: str, x: Any, y: Any, line: str = "o-", label: str = "") -> None:
    """A line with markers in the model's colour; it is called as the model where no label says."""
    axes.plot(x, y, line, color=color(model), markersize=4, label=label or model)


def finish(axes: Axes, x: str, y: str, title: str = "", log: str = "") -> None:
    """Named axes, after all is drawn; those in `log` ('x', 'y', 'xy') are logarithmic."""
    for which in log:
        plain_log(axes, which)
    style(axes, x, y, title)


def legend(axes: Axes, size: float = 8, **places: Any) -> None:
    """A legend without a frame."""
    axes.legend(fontsize=size, frameon=False, **places)


def legend_below(figure: Figure, n_columns: int, size: float = 9, most: int | None = None) -> None:
    """The first panel's legend below all panels, `most` entries of it."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    places: dict[str, Any] = {"ncols": n_columns, "fontsize": size, "frameon": False}
    figure.legend(handles[:most], labels[:most], loc="outside lower center", **places)
