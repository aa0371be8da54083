#!/usr/bin/env python3
"""Which queries make the work, and how bursty are arrivals? The laws of sizes and arrivals.

python experiments/load_generator/laws.py [--out FOLDER]

sizes.csv: distribution of query sizes and the share of the items in queries up to a size, by law;
size_facts.csv: their quantiles. arrivals.csv: queries a second over time, and variance over mean of
the counts by window. laws.png; a few seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from experiments.common.panels import finish, legend, panels
from experiments.common.released import LARGEST_ITEMS
from experiments.common.study import Study, View
from infra.clock import NS_PER_S
from infra.rng import stream
from infra.settings.config import LoadConfig
from loadGenerator import draw_arrivals_ns, draw_sizes

DAY_FILE = Path(__file__).resolve().parent / "data" / "day.csv"
N_SIZES = 400_000
N_ARRIVALS = 200_000
RATE_QPS = 200.0
WINDOWS_S = np.geomspace(0.01, 20, 12)
SHOWN_S = 60.0
PRODUCTION = "production (ISCA 2020)"
MATCHED = "lognormal, mean of production"


def size_law(law: str, location: float = 5.1, scale: float = 0.2) -> LoadConfig:
    """Sizes of a law with these parameters."""
    return LoadConfig(
        batch_size_distribution=law, avg_mini_batch_size=location, var_mini_batch_size=scale
    )


SIZES = {
    PRODUCTION: size_law("production"),
    "lognormal(5.1, 0.2)": size_law("lognormal", 5.1, 0.2),
    "normal(165, 16)": size_law("normal", 165, 16),
    "mlperf (DLRM-v2)": size_law("mlperf"),
}
DAY = LoadConfig(
    arrival_process="diurnal", arrival_file=str(DAY_FILE), arrival_time_scale=SHOWN_S / 86400
)
ARRIVALS = {
    "Poisson": LoadConfig(),
    "release's whole ms": LoadConfig(arrival_process="legacy"),
    "gamma, k = 0.25": LoadConfig(arrival_process="gamma", arrival_gamma_shape=0.25),
    "bursts (mmpp, 10x, 10 %, 1 s)": LoadConfig(arrival_process="mmpp"),
    "diurnal (a day in 60 s)": DAY,
}


@dataclass(frozen=True)
class LawCase:
    """One law, of sizes or of arrivals."""

    law: str


@dataclass(frozen=True)
class ArrivalsRow:
    """`what` is qps at a time, or the dispersion of the counts in windows of a length."""

    law: str
    what: str
    at_s: float
    value: float


def cases(*_: object) -> list[LawCase]:
    """All laws."""
    return [LawCase(law) for law in (*SIZES, MATCHED, *ARRIVALS)]


def size_rows(law: str, load: LoadConfig) -> pd.DataFrame:
    """Share of queries and of their items up to each size."""
    sizes = draw_sizes(load, LARGEST_ITEMS, N_SIZES, stream(1, law))
    counts = np.bincount(sizes, minlength=LARGEST_ITEMS + 1)
    items = counts * np.arange(LARGEST_ITEMS + 1)
    return pd.DataFrame(
        {
            "law": law,
            "items": np.arange(LARGEST_ITEMS + 1),
            "share_of_queries": np.cumsum(counts) / N_SIZES,
            "share_of_items": np.cumsum(items) / items.sum(),
        }
    )


def size_facts(rows: pd.DataFrame) -> dict[str, Any]:
    """A law's mean and quantiles, and the items' share in the largest quarter of the queries."""
    cdf = rows["share_of_queries"].to_numpy()
    return {
        "law": rows["law"].iloc[0],
        "mean items": float((np.diff(cdf, prepend=0) * rows["items"]).sum()),
        **{f"p{p}": int(np.searchsorted(cdf, p / 100)) for p in (50, 75, 95, 99)},
        "items in the largest quarter": 1 - np.interp(0.75, cdf, rows["share_of_items"]),
    }


def matched() -> LoadConfig:
    """The lognormal law with the mean of production's sizes."""
    mean = size_facts(size_rows(PRODUCTION, SIZES[PRODUCTION]))["mean items"]
    return size_law("lognormal", float(np.log(mean) - 0.45**2 / 2), 0.45)


def arrival_rows(law: str, load: LoadConfig) -> list[ArrivalsRow]:
    """Queries a second for a minute, and the index of dispersion of the counts by window."""
    arrival_s = draw_arrivals_ns(load, RATE_QPS, N_ARRIVALS, stream(3, law)) / NS_PER_S
    shown = np.histogram(arrival_s, np.arange(0, SHOWN_S + 0.5, 0.5))[0]
    rows = [ArrivalsRow(law, "qps", i * 0.5, n / 0.5) for i, n in enumerate(shown)]
    for window_s in WINDOWS_S:
        counts = np.histogram(arrival_s, np.arange(0, arrival_s[-1], window_s))[0]
        rows.append(ArrivalsRow(law, "dispersion", window_s, counts.var() / counts.mean()))
    return rows


def rows_of(case: LawCase) -> dict[str, list[Any]]:
    """The law's rows, in its tables."""
    law = case.law
    if law in ARRIVALS:
        return {"arrivals": arrival_rows(law, ARRIVALS[law])}
    rows = size_rows(law, matched() if law == MATCHED else SIZES[law])
    shown = rows[rows["items"] % 4 == 0]
    return {"sizes": shown.to_dict("records"), "size_facts": [size_facts(rows)]}


def draw(sizes: pd.DataFrame, arrivals: pd.DataFrame) -> Figure:
    """Sizes: queries and items by size. Arrivals: a minute of them, and their dispersion."""
    figure, (queries, items, minute, dispersion) = panels(4, 6.5, 4, n_columns=2)
    for law, part in sizes.groupby("law", sort=False):
        queries.plot(part["items"], part["share_of_queries"], label=law)
        items.plot(part["items"], part["share_of_items"])
    for axes, what in ((queries, "share of the queries"), (items, "share of all items (the work)")):
        axes.set(xlim=(1, LARGEST_ITEMS), ylim=(0, 1.02))
        finish(axes, "query size (items)", f"{what} up to it", log="x")
    for law, part in arrivals.groupby("law", sort=False):
        lines = part.set_index("at_s").groupby("what")["value"]
        minute.plot(lines.get_group("qps"), linewidth=0.9)
        spread = lines.get_group("dispersion").clip(lower=1e-3)
        dispersion.plot(spread, "o-", markersize=3, label=law)
    finish(minute, "time (s)", "queries per second", f"a minute at {RATE_QPS:g} QPS on average")
    dispersion.axhline(1, color="grey", linewidth=0.8)
    title = "burstiness; Poisson arrivals have 1"
    finish(dispersion, "window (s)", "variance / mean of the counts", title, log="xy")
    legend(queries)
    legend(dispersion)
    return figure


STUDY = Study(
    "laws",
    "Which queries make the work, and how bursty are arrivals?",
    cases,
    rows_of,
    efforts={"quick": None, "full": None},  # it takes some seconds
    parallel=True,
    figures={"laws": View(draw, "sizes", "arrivals")},
    report={"Query sizes": View(pd.DataFrame, "size_facts")},
    float_format="%.4g",
)

if __name__ == "__main__":
    STUDY.main()
