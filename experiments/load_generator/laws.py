#!/usr/bin/env python3
"""What the laws of sizes and arrivals look like: which queries make the work, and how bursty
arrivals are.

python experiments/load_generator/laws.py [--out FOLDER]

sizes.csv: distribution of query sizes and the share of the items in queries up to a size, by law.
arrivals.csv: queries a second over time, and variance over mean of the counts by window. laws.png;
a few seconds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from infra.clock import NS_PER_S
from infra.results.figures import plain_log, style
from infra.results.report import console, frame
from infra.rng import stream
from infra.settings.config import LoadConfig
from loadGenerator import draw_arrivals_ns, draw_sizes

HERE = Path(__file__).resolve().parent
N_SIZES = 400_000
N_ARRIVALS = 200_000
LARGEST = 1024
RATE_QPS = 200.0
WINDOWS_S = np.geomspace(0.01, 20, 12)
SHOWN_S = 60.0
SIZES = {
    "production (ISCA 2020)": LoadConfig(batch_size_distribution="production"),
    "lognormal(5.1, 0.2)": LoadConfig(
        batch_size_distribution="lognormal", avg_mini_batch_size=5.1, var_mini_batch_size=0.2
    ),
    "normal(165, 16)": LoadConfig(
        batch_size_distribution="normal", avg_mini_batch_size=165, var_mini_batch_size=16
    ),
    "mlperf (DLRM-v2)": LoadConfig(batch_size_distribution="mlperf"),
}
DAY = LoadConfig(
    arrival_process="diurnal",
    arrival_file=str(HERE / "day.csv"),
    arrival_time_scale=SHOWN_S / 86400,
)
ARRIVALS = {
    "Poisson": LoadConfig(),
    "release's whole ms": LoadConfig(arrival_process="legacy"),
    "gamma, k = 0.25": LoadConfig(arrival_process="gamma", arrival_gamma_shape=0.25),
    "bursts (mmpp, 10x, 10 %, 1 s)": LoadConfig(arrival_process="mmpp"),
    "diurnal (a day in 60 s)": DAY,
}


def size_rows(law: str, load: LoadConfig) -> pd.DataFrame:
    """Share of queries and of their items up to each size."""
    sizes = draw_sizes(load, LARGEST, N_SIZES, stream(1, law))
    counts = np.bincount(sizes, minlength=LARGEST + 1)
    items = counts * np.arange(LARGEST + 1)
    return pd.DataFrame(
        {
            "law": law,
            "items": np.arange(LARGEST + 1),
            "share_of_queries": np.cumsum(counts) / N_SIZES,
            "share_of_items": np.cumsum(items) / items.sum(),
        }
    )


def size_facts(rows: pd.DataFrame) -> pd.DataFrame:
    """A line a law: quantiles of the sizes, the mean, and the items' share in the largest quarter
    of the queries.
    """
    lines = []
    for law, own in rows.groupby("law", sort=False):
        cdf = own["share_of_queries"].to_numpy()
        p50, p75, p95, p99 = (int(np.searchsorted(cdf, p)) for p in (0.5, 0.75, 0.95, 0.99))
        mean = float((np.diff(cdf, prepend=0) * own["items"]).sum())
        tail = 1 - np.interp(0.75, cdf, own["share_of_items"])
        lines.append(
            {
                "law": law,
                "mean items": mean,
                "p50": p50,
                "p75": p75,
                "p95": p95,
                "p99": p99,
                "items in the largest quarter": tail,
            }
        )
    return pd.DataFrame(lines)


def arrival_rows(law: str, load: LoadConfig) -> pd.DataFrame:
    """Queries a second for a minute, and the index of dispersion of the counts by window."""
    arrival_s = draw_arrivals_ns(load, RATE_QPS, N_ARRIVALS, stream(3, law)) / NS_PER_S
    shown = np.histogram(arrival_s, np.arange(0, SHOWN_S + 0.5, 0.5))[0] / 0.5
    parts = [
        pd.DataFrame(
            {"law": law, "what": "qps", "at_s": np.arange(len(shown)) * 0.5, "value": shown}
        )
    ]
    for window_s in WINDOWS_S:
        counts = np.histogram(arrival_s, np.arange(0, arrival_s[-1], window_s))[0]
        parts.append(
            pd.DataFrame(
                {
                    "law": [law],
                    "what": ["dispersion"],
                    "at_s": [window_s],
                    "value": [counts.var() / counts.mean()],
                }
            )
        )
    return pd.concat(parts)


def draw(sizes: pd.DataFrame, arrivals: pd.DataFrame) -> Figure:
    """Sizes: queries and items by size. Arrivals: a minute of them, and their dispersion."""
    figure = Figure(figsize=(13, 8), layout="constrained")
    queries, items, minute, dispersion = figure.subplots(2, 2).flat
    for law, own in sizes.groupby("law", sort=False):
        queries.plot(own["items"], own["share_of_queries"], label=law)
        items.plot(own["items"], own["share_of_items"], label=law)
    for axes, what in ((queries, "share of the queries"), (items, "share of all items (the work)")):
        axes.set_xlim(1, LARGEST)
        plain_log(axes, "x")
        axes.set_ylim(0, 1.02)
        style(axes, "query size (items)", f"{what} up to it", "")
    queries.legend(fontsize=8, frameon=False)
    for law, own in arrivals.groupby("law", sort=False):
        rates = own[own["what"] == "qps"]
        spread = own[own["what"] == "dispersion"]
        minute.plot(rates["at_s"], rates["value"], linewidth=0.9)
        dispersion.plot(
            spread["at_s"], np.maximum(spread["value"], 1e-3), "o-", markersize=3, label=law
        )
    style(minute, "time (s)", "queries per second", f"a minute at {RATE_QPS:g} QPS on average")
    plain_log(dispersion, "x")
    plain_log(dispersion, "y")
    dispersion.axhline(1, color="grey", linewidth=0.8)
    style(
        dispersion,
        "window (s)",
        "variance / mean of the counts",
        "burstiness; Poisson arrivals have 1",
    )
    dispersion.legend(fontsize=8, frameon=False)
    return figure


def main(argv: Sequence[str]) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=HERE)
    out = parser.parse_args(argv).out
    out.mkdir(parents=True, exist_ok=True)
    sizes = pd.concat([size_rows(law, load) for law, load in SIZES.items()])
    moments = size_facts(sizes)
    target = float(moments.loc[0, "mean items"])
    matched = replace(
        SIZES["lognormal(5.1, 0.2)"],
        avg_mini_batch_size=float(np.log(target) - 0.45**2 / 2),
        var_mini_batch_size=0.45,
    )
    sizes = pd.concat([sizes, size_rows("lognormal, mean of production", matched)])
    arrivals = pd.concat([arrival_rows(law, load) for law, load in ARRIVALS.items()])
    sizes[sizes["items"] % 4 == 0].to_csv(out / "sizes.csv", index=False, float_format="%.4g")
    arrivals.to_csv(out / "arrivals.csv", index=False, float_format="%.4g")
    draw(sizes, arrivals).savefig(out / "laws.png", dpi=110)
    console().print(frame("Query sizes", size_facts(sizes)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
