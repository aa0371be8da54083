#!/usr/bin/env python3
"""breakdown.csv -> breakdown.png and agreement.csv: python experiments/operator_breakdown/plot.py
[--folder FOLDER].
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from infra.results.figures import style
from infra.results.report import console, frame
from models.operator_times import OTHER, RELEASED

HERE = Path(__file__).resolve().parent
MODELS = ("rm1", "rm2", "rm3", "ncf", "wnd", "mtwnd", "din", "dien")
PUBLISHED, AS_RELEASED = "published", "as released"
BARS = (PUBLISHED, AS_RELEASED, "ours")
SURE = 0.6  # from this share on the published dominant operator should be ours too
# slicing, calls, Python: time in no operator, which the published shares leave out
BETWEEN = "between operators"
OPERATORS = (*RELEASED, OTHER, BETWEEN)
COLORS = dict(
    zip(
        OPERATORS,
        (
            "#17507d",
            "#d1495b",
            "#edae49",
            "#2a9d8f",
            "#8c564b",
            "#6a4c93",
            "#b185db",
            "#808080",
            "#e4e4e4",
        ),
        strict=True,
    )
)


def published(device: str) -> pd.DataFrame:
    """The published shares as rows like ours: model, batch, execution, operator, share."""
    rows = pd.read_csv(HERE / "published_operator_breakdown.csv", comment="#")
    rows = rows[rows["device"] == ("gpu" if device == "cuda" else "cpu")]
    return rows.assign(
        batch=rows["batch_size"], execution=PUBLISHED, share=rows["percent_of_runtime"] / 100
    )[["model", "batch", "execution", "operator", "share"]]


def agreement(rows: pd.DataFrame) -> pd.DataFrame:
    """One row for each model and batch of both: the dominant operator published and ours, their
    shares, agreement.

    Shares are of the time in operators, as the published ones are.
    """
    both = pd.concat([published(rows["device"].iloc[0]), rows[rows["execution"] != PUBLISHED]])
    lines = []
    for (model, batch), own in both.groupby(["model", "batch"], sort=False):
        whole = {
            name: part.set_index("operator")["share"].drop(BETWEEN, errors="ignore")
            for name, part in own.groupby("execution")
        }
        top = {name: part / part.sum() for name, part in whole.items()}
        if PUBLISHED not in top or AS_RELEASED not in top:
            continue
        theirs = top[PUBLISHED].idxmax()
        ours = top[AS_RELEASED].idxmax()
        sure = top[PUBLISHED].max() >= SURE
        lines.append(
            {
                "model": model,
                "batch": batch,
                "published": theirs,
                "share": top[PUBLISHED].max(),
                "here": ours,
                "share here": top[AS_RELEASED].max(),
                "of theirs here": top[AS_RELEASED][theirs],
                "agrees": "yes" if theirs == ours else "NO" if sure else "unsure",
                "ours": top["ours"].idxmax(),
                "share ours": top["ours"].max(),
            }
        )
    return pd.DataFrame(lines)


def draw(rows: pd.DataFrame) -> Figure:
    """A panel a model; at each batch stacked shares: published, as released, ours."""
    device = rows["device"].iloc[0]
    both = pd.concat([published(device), rows])
    models = [model for model in MODELS if model in set(rows["model"])]
    n_columns = min(4, len(models))
    n_rows = -(-len(models) // n_columns)
    figure = Figure(figsize=(4.2 * n_columns, 3.1 * n_rows + 0.6), layout="constrained")
    for i, model in enumerate(models):
        axes = figure.add_subplot(n_rows, n_columns, i + 1)
        own = both[both["model"] == model]
        batches = sorted(set(rows["batch"]))
        for at, batch in enumerate(batches):
            for bar, name in enumerate(BARS):
                part = own[(own["batch"] == batch) & (own["execution"] == name)].set_index(
                    "operator"
                )["share"]
                low = 0.0
                for operator in OPERATORS:
                    share = float(part.get(operator, 0.0))
                    axes.bar(at + (bar - 1) * 0.27, share, 0.25, bottom=low, color=COLORS[operator])
                    low += share
                if low > 0:
                    axes.annotate(
                        "PRO"[bar],
                        (at + (bar - 1) * 0.27, 1.01),
                        ha="center",
                        fontsize=6,
                        color="#444444",
                    )
        axes.set_xticks(range(len(batches)), [str(batch) for batch in batches])
        axes.set_yticks(
            np.arange(0, 1.01, 0.25), [f"{tick:.0%}" for tick in np.arange(0, 1.01, 0.25)]
        )
        axes.set_ylim(0, 1.07)
        style(axes, "batch (items)", "share of the run time" if i % n_columns == 0 else "", model)
    handles = [Patch(color=COLORS[name], label=name) for name in OPERATORS]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9
    )
    figure.suptitle(
        f"Run time by operator, {device}: P published (Caffe2, "
        f"{'GTX 1080 Ti' if device == 'cuda' else 'Skylake'}), R as released (operator by "
        "operator), O ours",
        fontsize=11,
    )
    return figure


def main(argv: Sequence[str]) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=HERE)
    folder = parser.parse_args(argv).folder
    rows = pd.read_csv(folder / "breakdown.csv")
    draw(rows).savefig(folder / "breakdown.png", dpi=110)
    table = agreement(rows)
    table.to_csv(folder / "agreement.csv", index=False, float_format="%.3g")
    console().print(frame("Dominant operator, published and here", table))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
