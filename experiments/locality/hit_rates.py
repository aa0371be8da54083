#!/usr/bin/env python3
"""How much of the look-ups would a cache of so many rows have?

Zipf's law, uniform ids, and MovieLens beside its fits.

python experiments/locality/hit_rates.py [--movielens FOLDER] [--n 1000000] [--out FOLDER]

LRU stack distances of each trace, exact, give the hit rate of every cache size at once. MovieLens
100K is taken from recbole's wheel if it is installed (pip install --no-deps recbole), or from a
folder of one's own; without either that part is left out. hit_rates.csv, fits.csv, hit_rates.png;
some seconds.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure
from scipy.optimize import minimize_scalar

from infra.results.figures import plain_log, style
from infra.results.report import console, frame
from infra.rng import stream
from models.inputs.datasets import Interactions, read_interactions
from models.inputs.stack_distance import generate, locality_of
from models.inputs.zipf import draw_rows

HERE = Path(__file__).resolve().parent
ALPHAS = (0.0, 0.8, 1.05, 1.2)
TABLE_ROWS = 1_000_000
Int64Array = npt.NDArray[np.int64]


def movielens_folder() -> Path | None:
    """MovieLens 100K as recbole's wheel ships it; None if it is not installed.

    Nothing of recbole is imported.
    """
    found = importlib.util.find_spec("recbole")
    if found is None or not found.submodule_search_locations:
        return None
    folder = Path(next(iter(found.submodule_search_locations))) / "dataset_example" / "ml-100k"
    return folder if folder.is_dir() else None


def fitted_alpha(ids: Int64Array) -> float:
    """Zipf exponent of greatest likelihood for the ids' ranks by frequency."""
    counts = np.sort(np.unique(ids, return_counts=True)[1])[::-1]
    log_rank = np.log(np.arange(1, len(counts) + 1))

    def cost(alpha: float) -> float:
        return float(
            alpha * (counts * log_rank).sum() / counts.sum()
            + np.log(np.exp(-alpha * log_rank).sum())
        )

    return float(minimize_scalar(cost, bounds=(0, 3), method="bounded").x)


def curve(trace: str, kind: str, ids: Int64Array) -> pd.DataFrame:
    """Hit rate by cache size in rows; 60 sizes up to the ids there are."""
    locality = locality_of(ids)
    rows = np.unique(np.geomspace(1, len(locality.first_ids), 60).astype(int))
    return pd.DataFrame(
        {
            "part": kind,
            "trace": trace,
            "cache_rows": rows,
            "of_ids": rows / len(locality.first_ids),
            "hit_rate": locality.hit_rate(rows),
        }
    )


def of_laws(n: int) -> pd.DataFrame:
    """n ids of one table of a million rows by each law."""
    parts = []
    for alpha in ALPHAS:
        name = f"Zipf {alpha:g}" if alpha else "uniform"
        parts.append(curve(name, "laws", draw_rows(TABLE_ROWS, alpha, n, stream(1, name))))
    return pd.concat(parts)


def of_movielens(data: Interactions) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Users and items in the order of time, shuffled, drawn by their Zipf fit, and drawn by their
    stack distances.
    """
    parts: list[pd.DataFrame] = []
    fits = []
    for name, ids in (("users", data.user), ("items", data.item)):
        n_ids = len(np.unique(ids))
        alpha = fitted_alpha(ids)
        rng = stream(2, name)
        traces = {
            "in order of time": ids,
            "shuffled": rng.permutation(ids),
            f"Zipf {alpha:.2f} (fit)": draw_rows(n_ids, alpha, len(ids), rng),
            "generated from its stack distances": generate(locality_of(ids), n_ids, len(ids), rng),
        }
        curves = {
            label: curve(label, f"MovieLens {name}", trace) for label, trace in traces.items()
        }
        parts += curves.values()
        own = curves["in order of time"]
        for label, part in curves.items():
            at = np.interp(
                np.log([n_ids / 10, *own["cache_rows"]]),
                np.log(part["cache_rows"]),
                part["hit_rate"],
            )
            fits.append(
                {
                    "trace": f"{name}, {label}",
                    "accesses": len(ids),
                    "ids": n_ids,
                    "hit rate of a tenth": at[0],
                    "largest error": np.abs(at[1:] - own["hit_rate"]).max(),
                }
            )
    return pd.concat(parts), pd.DataFrame(fits)


def draw(rows: pd.DataFrame) -> Figure:
    """A panel a part: hit rate by cache size."""
    kinds = list(dict.fromkeys(rows["part"]))
    figure = Figure(figsize=(5 * len(kinds), 4.4), layout="constrained")
    for i, kind in enumerate(kinds):
        axes = figure.add_subplot(1, len(kinds), i + 1)
        for trace, own in rows[rows["part"] == kind].groupby("trace", sort=False):
            axes.plot(
                own["cache_rows"],
                own["hit_rate"],
                "--" if "generated" in str(trace) else "-",
                label=str(trace),
            )
        plain_log(axes, "x")
        axes.set_ylim(0, 1)
        title = f"{kind}: a table of {TABLE_ROWS:,} rows" if kind == "laws" else kind
        style(axes, "rows in an LRU cache", "hit rate" if i == 0 else "", title)
        axes.legend(fontsize=8, frameon=False, loc="upper left")
    return figure


def main(argv: Sequence[str]) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--movielens", type=Path, help="folder or file of MovieLens-style interactions"
    )
    parser.add_argument(
        "--where", action="store_true", help="print the folder of MovieLens 100K and end"
    )
    parser.add_argument("--n", type=int, default=1_000_000, help="ids of each law")
    parser.add_argument("--out", type=Path, default=HERE)
    args = parser.parse_args(argv)
    if args.where:
        found = movielens_folder()
        print(found or "not here: pip install --no-deps recbole")
        return 0 if found else 2
    if args.n < 1:
        parser.error(f"--n is {args.n}; expected at least 1")
    args.out.mkdir(parents=True, exist_ok=True)
    rows = of_laws(args.n)
    folder = args.movielens or movielens_folder()
    out = console()
    if folder is None:
        sys.stderr.write(
            "hit_rates: no MovieLens here (--movielens FOLDER, or pip install --no-deps recbole): "
            "left out\n"
        )
    else:
        try:
            data = read_interactions(str(folder))
        except ValueError as error:
            parser.error(str(error))
        more, fits = of_movielens(data)
        rows = pd.concat([rows, more])
        fits.to_csv(args.out / "fits.csv", index=False, float_format="%.4g")
        out.print(
            frame(
                "MovieLens: hit rate of an LRU cache of a tenth of the ids, and how far off its "
                "models are",
                fits,
            )
        )
    rows.to_csv(args.out / "hit_rates.csv", index=False, float_format="%.5g")
    draw(rows).savefig(args.out / "hit_rates.png", dpi=110)
    laws = rows[rows["part"] == "laws"]
    table = pd.DataFrame(
        [
            {
                "law": law,
                **{
                    f"{n:,} rows": float(
                        np.interp(np.log(n), np.log(own["cache_rows"]), own["hit_rate"])
                    )
                    for n in (100, 1_000, 10_000, 100_000)
                },
            }
            for law, own in laws.groupby("trace", sort=False)
        ]
    )
    out.print(frame(f"Hit rate of an LRU cache, {args.n:,} look-ups", table))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
