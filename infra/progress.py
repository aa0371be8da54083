"""Progress on a terminal: what is being done, how far, how long still.

It is quiet where nobody watches.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol, Self

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

_PLAIN_EVERY_S = 5.0


class OnFraction(Protocol):
    """What is told how far a step is."""

    def __call__(self, fraction: float, detail: str = "", /) -> None:
        """`fraction` of the step is done; `detail` says what is at hand."""


class Progress:
    """Shows steps while it is entered (a context manager).

    `auto`: bars on a terminal, else silence; `plain`: lines on stderr; `none`: silence.
    """

    def __init__(self, mode: str) -> None:
        self._plain = mode == "plain"
        self._bars: RichProgress | None = None
        if mode == "auto" and sys.stderr.isatty():
            self._bars = _bars()

    def __enter__(self) -> Self:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(self, *_error: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    @contextmanager
    def step(self, title: str) -> Iterator[OnFraction]:
        """A piece of work; what this yields is to be called with the fraction done."""
        if self._bars is not None:
            bars = self._bars
            bar = self._bars.add_task(title, total=1.0)

            def show(fraction: float, detail: str = "", /) -> None:
                bars.update(bar, completed=fraction, description=f"{title} {detail}".rstrip())

            try:
                yield show
            finally:
                bars.remove_task(bar)
        elif self._plain:
            yield from self._plain_step(title)
        else:
            yield lambda _fraction, _detail="": None

    def _plain_step(self, title: str) -> Iterator[OnFraction]:
        begun = last = time.monotonic()
        sys.stderr.write(f"{title}\n")

        def tell(fraction: float, detail: str = "", /) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last < _PLAIN_EVERY_S or not 0 < fraction < 1:
                return
            last = now
            left_s = (now - begun) * (1 - fraction) / fraction
            sys.stderr.write(
                f"{title} {detail}".rstrip() + f": {fraction:.0%}, about {left_s:.0f} s left\n"
            )

        yield tell


def _bars() -> RichProgress:
    from rich import console, progress  # noqa: PLC0415 (what shows no bars needs no rich)

    return progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.TextColumn("{task.percentage:>3.0f}%"),
        progress.TimeElapsedColumn(),
        progress.TextColumn("left"),
        progress.TimeRemainingColumn(),
        console=console.Console(stderr=True),
        transient=True,
    )
