#!/usr/bin/env python3
"""How much of the look-ups would a cache of so many rows have, by the ids' law and on real data?

python experiments/locality/hit_rates.py [--movielens FOLDER] [--n 1000000] [--out FOLDER]

LRU stack distances of each trace, exact, give the hit rate of all cache sizes at once: Zipf's law,
uniform ids, and MovieLens beside its fits. MovieLens 100K is taken from recbole's wheel if it is
installed (pip install --no-deps recbole; --where prints its folder), or from a folder of one's own;
without either that part is left out. hit_rates.csv, fits.csv, hit_rates.png; some seconds.
"""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure
from scipy.optimize import minimize_scalar

from experiments.common.panels import finish, legend, panels
from experiments.common.study import Study, View
from infra.rng import stream
from infra.settings.fields import flag
from models.inputs.datasets import movielens_folder, read_interactions
from models.inputs.stack_distance import generate, locality_of
from models.inputs.zipf import draw_rows

ALPHAS = (0.0, 0.8, 1.05, 1.2)
TABLE_ROWS = 1_000_000
IN_ORDER = "in order of time"
SHOWN_ROWS = (100, 1_000, 10_000, 100_000)
Int64Array = npt.NDArray[np.int64]
interactions = functools.cache(read_interactions)  # checked first, then used by its cases


@dataclass(frozen=True)
class HitRatesOptions:
    """Flags of the study."""

    movielens: str = flag("", "folder or file of MovieLens-style interactions (recbole's)")
    n: int = flag(1_000_000, "ids of each law", low=1)


@dataclass(frozen=True)
class LawIds:
    """So many ids of one table by Zipf's law; 0: uniform."""

    alpha: float
    n: int


@dataclass(frozen=True)
class MovieLensIds:
    """The users or the items of a folder."""

    column: str
    folder: str


def cases(_: object, options: HitRatesOptions) -> list[LawIds | MovieLensIds]:
    """All laws, then MovieLens; raises ValueError for a folder that cannot be read."""
    laws = [LawIds(alpha, options.n) for alpha in ALPHAS]
    folder = options.movielens or movielens_folder()
    if folder is None:
        places = "--movielens FOLDER, or pip install --no-deps recbole"
        sys.stderr.write(f"hit_rates: no MovieLens here ({places}): left out\n")
        return [*laws]
    interactions(str(folder))
    return [*laws, *(MovieLensIds(column, str(folder)) for column in ("user", "item"))]


def law_name(alpha: float) -> str:
    """What tables and legends call a law of ids."""
    return f"Zipf {alpha:g}" if alpha else "uniform"


def fitted_alpha(ids: Int64Array) -> float:
    """Zipf exponent of greatest likelihood for the ids' ranks by frequency."""
    counts = np.sort(np.unique(ids, return_counts=True)[1])[::-1]
    log_rank = np.log(np.arange(1, len(counts) + 1))

    def cost(alpha: float) -> float:
        mean = alpha * (counts * log_rank).sum() / counts.sum()
        return float(mean + np.log(np.exp(-alpha * log_rank).sum()))

    return float(minimize_scalar(cost, bounds=(0, 3), method="bounded").x)


def curve(trace: str, part: str, ids: Int64Array) -> pd.DataFrame:
    """Hit rate by cache size in rows; 60 sizes up to the ids there are."""
    locality = locality_of(ids)
    n_ids = len(locality.first_ids)
    rows = np.unique(np.geomspace(1, n_ids, 60).astype(int))
    columns = {"cache_rows": rows, "of_ids": rows / n_ids, "hit_rate": locality.hit_rate(rows)}
    return pd.DataFrame({"part": part, "trace": trace, **columns})


def hit_rate(line: pd.DataFrame, cache_rows: Any) -> Any:
    """Hit rates of a curve at these sizes, between its points by logarithms."""
    return np.interp(np.log(cache_rows), np.log(line["cache_rows"]), line["hit_rate"])


def movielens(case: MovieLensIds) -> dict[str, list[dict[str, object]]]:
    """Ids in the order of time, shuffled, drawn by their Zipf fit and by their stack distances."""
    ids: Int64Array = getattr(interactions(case.folder), case.column)
    name = f"{case.column}s"
    n = len(ids)
    n_ids = len(np.unique(ids))
    alpha = fitted_alpha(ids)
    rng = stream(2, name)
    traces = {
        IN_ORDER: ids,
        "shuffled": rng.permutation(ids),
        f"Zipf {alpha:.2f} (fit)": draw_rows(n_ids, alpha, n, rng),
        "generated from its stack distances": generate(locality_of(ids), n_ids, n, rng),
    }
    curves = {label: curve(label, f"MovieLens {name}", trace) for label, trace in traces.items()}
    real = curves[IN_ORDER]
    fits = [
        {
            "trace": f"{name}, {label}",
            "accesses": n,
            "ids": n_ids,
            "hit rate of a tenth": hit_rate(line, n_ids / 10),
            "largest error": abs(hit_rate(line, real["cache_rows"]) - real["hit_rate"]).max(),
        }
        for label, line in curves.items()
    ]
    return {"hit_rates": pd.concat(curves.values()).to_dict("records"), "fits": fits}


def hit_rates(case: LawIds | MovieLensIds) -> dict[str, list[dict[str, object]]]:
    """The curves of a case, and of MovieLens how far off its models are."""
    if isinstance(case, MovieLensIds):
        return movielens(case)
    name = law_name(case.alpha)
    ids = draw_rows(TABLE_ROWS, case.alpha, case.n, stream(1, name))
    return {"hit_rates": curve(name, "laws", ids).to_dict("records")}


def draw(rows: pd.DataFrame) -> Figure:
    """A panel a part: hit rate by cache size."""
    parts = rows.groupby("part", sort=False)
    figure, all_axes = panels(len(parts), 5, 4.4)
    for axes, (part, traces) in zip(all_axes, parts, strict=True):
        for trace, line in traces.groupby("trace", sort=False):
            dash = "--" if "generated" in trace else "-"
            axes.plot(line["cache_rows"], line["hit_rate"], dash, label=trace)
        axes.set_ylim(0, 1)
        title = f"{part}: a table of {TABLE_ROWS:,} rows" if part == "laws" else part
        finish(axes, "rows in an LRU cache", "hit rate", title, log="x")
        legend(axes, loc="upper left")
    return figure


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Hit rates of some caches, a line a law."""
    laws = rows[rows["part"] == "laws"].groupby("trace", sort=False)
    rates = {law: hit_rate(line, SHOWN_ROWS) for law, line in laws}
    return pd.DataFrame.from_dict(rates, "index", columns=[f"{n:,} rows" for n in SHOWN_ROWS])


STUDY = Study(
    "hit_rates",
    "How much of the look-ups would a cache of so many rows have?",
    cases,
    hit_rates,
    efforts={"quick": None, "full": None},  # it takes some seconds
    options=HitRatesOptions,
    parallel=True,
    figures={"hit_rates": View(draw, "hit_rates")},
    report={
        "MovieLens: hit rate of a tenth of the ids, error of its models": View(
            pd.DataFrame, "fits"
        ),
        "Hit rate of an LRU cache": View(summary, "hit_rates"),
    },
    formats={"fits": "%.4g"},
)

if __name__ == "__main__":
    if sys.argv[1:] == ["--where"]:
        where = movielens_folder()
        print(where or "not here: pip install --no-deps recbole")
        sys.exit(0 if where else 2)
    STUDY.main()
