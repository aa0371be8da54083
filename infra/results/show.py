"""Tables of a command line that also runs where rich is not installed, as on a borrowed GPU
machine.
"""

from __future__ import annotations

import pandas as pd


def show(title: str, rows: pd.DataFrame) -> None:
    """Print a table, as infra.results.report does if it can."""
    try:
        from infra.results.report import console, frame  # noqa: PLC0415 (rich may be missing)
    except ImportError:
        print(f"{title}\n{rows.to_string(index=False)}")
        return
    console().print(frame(title, rows))
