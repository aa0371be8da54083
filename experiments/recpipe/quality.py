#!/usr/bin/env python3
"""How much quality does a pipeline of rankers keep, for how much computing?

Trained rankers, MovieLens and clicks.

python experiments/recpipe/quality.py [--data clicks,movielens,criteo] [--movielens FOLDER]
    [--criteo FILE] [--criteo_rows N] [--cache FOLDER] [--quick] [--out FOLDER]

Every ranker is trained once with a fixed seed (checkpoints in the cache folder). ranked_<data>.csv:
quality of each ranker by the number of items ranked (RecPipe's figure 3, its points beside ours);
chain_quality_<data>.csv: quality and FLOPs of one, two and three stages, each paired with the large
ranker alone; quality_<data>.png. Some 2 to 3 minutes a data set the first time, then seconds.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from experiments.common.panels import finish, legend
from experiments.common.study import Study, progress
from experiments.recpipe.chains import (
    KEPT,
    MEASURES,
    ORACLE,
    Chain,
    FloatArray,
    Scored,
    chains,
    pareto,
    quality,
    quality_of,
)
from experiments.recpipe.datasets.published import RELEASED_NAMES, published
from experiments.recpipe.datasets.rankers import RankerSource, SourceOptions, load, sources
from experiments.recpipe.drawing import bars, line, lines, views
from infra.ranking import mean_with_interval, paired

POOLS = (0.0625, 0.125, 0.25, 0.5, 1.0)  # of a query's candidates


def means(by_query: dict[str, FloatArray]) -> dict[str, float]:
    """Mean and 95 % interval over queries of each measure."""
    columns: dict[str, float] = {}
    for name in MEASURES:
        mean = mean_with_interval(by_query[name])
        columns |= {name: mean.value, f"{name}_low": mean.low, f"{name}_high": mean.high}
    return columns


def by_items_ranked(scored: Scored) -> list[dict[str, Any]]:
    """Quality of each ranker alone on a random part of each query's candidates."""
    rows = []
    for share in POOLS:
        pools = scored.parts(share)
        n_items = float(np.mean([len(pool) for pool in pools]))
        for name in scored.scores:
            measures = means(quality(Chain((name,), (scored.data.k,)), scored, pools))
            facts = {"data": scored.data.name, "ranker": name, "items_ranked": n_items}
            rows.append(facts | measures)
    return rows


def by_chain(scored: Scored) -> list[dict[str, Any]]:
    """Quality, FLOPs and the paired difference to the large ranker alone of every chain."""
    data = scored.data
    of_item = {name: ranker.item_flops for name, ranker in data.rankers.items()}
    reference = quality_of(scored.large, scored)
    rows = []
    for chain in chains(KEPT[data.name], data.k):
        by_query = quality_of(chain, scored)
        against = paired(by_query["ndcg"], reference["ndcg"])
        facts = {
            "data": data.name,
            "chain": chain.label,
            "stages": len(chain.rankers),
            "rankers": "+".join(chain.rankers),
            "keeps": "+".join(map(str, chain.keeps)),
            "n_items": scored.n_items,
            "n_queries": len(data.queries),
            "k": data.k,
            "mflops": chain.flops(scored.n_items, of_item) / 1e6,
        }
        difference = {
            "less_than_large": against.difference.value,
            "less_low": against.difference.low,
            "less_high": against.difference.high,
            "p_value": against.p_value,
        }
        rows.append(facts | means(by_query) | difference)
    return rows


def not_beaten(rows: pd.DataFrame) -> pd.DataFrame:
    """Chains that no other one beats in both quality and FLOPs."""
    return pareto(rows, ["ndcg"], ["mflops"]).sort_values("mflops")


def released() -> pd.DataFrame:
    """Figure 3 of the release: other data, and its own measure (infra.ranking.ndcg_released)."""
    rows = published("pipelines")
    alone = rows[(rows["figure"] == "3") & (rows["stages"] == 1)].astype({"items": int})
    return alone.assign(ranker=alone["models"].map(RELEASED_NAMES))


def draw(ranked: pd.DataFrame, rows: pd.DataFrame) -> Figure:
    """Left: quality by items ranked; right: quality by FLOPs, chains by their number of stages."""
    figure = Figure(figsize=(11.5, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    measure = f"NDCG@{rows['k'].iloc[0]}, mean over queries"
    lines(left, ranked, "ranker", "items_ranked", "ndcg", "o-", band=True)
    title = "One ranker, a random part of the candidates"
    if (rows["k"] == 64).all():
        lines(left, released(), "ranker", "items", "dcg64", "s:", linewidth=0.6, label=None)
        title += "\nsquares: published on Criteo, its ideal 64 clicks"
    finish(left, "items ranked per query", measure, title, "x")
    legend(left)
    ticks = ranked["items_ranked"].drop_duplicates()
    left.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks], minor=False)
    left.set_xticks([], minor=True)
    for n_stages, part in rows.groupby("stages"):
        look = {"markersize": 5, "elinewidth": 0.5, "color": f"C{n_stages - 1}"}
        bars(right, part, "mflops", "o^s"[n_stages - 1], n_stages, **look)
    line(right, not_beaten(rows), "mflops", "ndcg", "k--", linewidth=0.8, label="not beaten")
    for alone in rows[rows["stages"] == 1].itertuples():
        place = {"xytext": (4, 5), "textcoords": "offset points", "fontsize": 8}
        right.annotate(alone.chain, (alone.mflops, alone.ndcg), **place)
    finish(right, "MFLOPs per query", measure, "All candidates ranked by the first stage", "x")
    legend(right)
    right.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    return figure


def cases(quick: bool, options: SourceOptions) -> list[RankerSource]:
    """A case for each data set."""
    return sources(options, quick=quick)


def run(source: RankerSource) -> dict[str, list[dict[str, Any]]]:
    """The rows of a data set, with those of a ranker that knows the probabilities of the labels."""
    scored = Scored.of(load(source, progress()))
    ranked = by_items_ranked(scored)
    if scored.data.known_QN is not None:
        ranked += by_items_ranked(replace(scored, scores={ORACLE: scored.data.known_QN}))
    name = scored.data.name
    return {f"ranked_{name}": ranked, f"chain_quality_{name}": by_chain(scored)}


def shown_ranked(ranked: pd.DataFrame) -> pd.DataFrame:
    """What is printed of the rankers alone."""
    return ranked[["ranker", "items_ranked", *MEASURES]]


def shown_chains(rows: pd.DataFrame) -> pd.DataFrame:
    """What is printed of the chains that are not beaten."""
    difference = ["less_than_large", "less_low", "less_high", "p_value"]
    columns = ["chain", "mflops", *MEASURES, *difference]
    return not_beaten(rows)[columns].reset_index(drop=True)


STUDY = Study(
    "recpipe_quality",
    "How much quality does a pipeline of rankers keep, for how much computing?",
    cases,
    run,
    efforts={"quick": True, "full": False},
    options=SourceOptions,
    figures=views("quality_{}", draw, "ranked_{}", "chain_quality_{}"),
    report={
        **views("Quality by items ranked, {}", shown_ranked, "ranked_{}"),
        **views("Chains not beaten, {}", shown_chains, "chain_quality_{}"),
    },
)

if __name__ == "__main__":
    STUDY.main()
