#!/usr/bin/env python3
"""How much quality does a pipeline of rankers keep, for how much computing? MovieLens, three trained NeuMF rankers.

python experiments/recpipe/quality.py [--movielens FOLDER] [--cache FOLDER] [--quick] [--out FOLDER]

Leave-one-out by time; every ranker is trained once with a fixed seed (checkpoints in the cache folder). ranked.csv:
quality of each ranker by the number of items ranked (as RecPipe's figure 3); chains.csv: quality and FLOPs of one, two
and three stages, each paired with the large ranker alone. quality.png. Some 5 minutes the first time, then seconds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure

from experiments.locality.hit_rates import movielens_folder
from experiments.recpipe.movielens import RANKERS, RankerConfig, Split, chain, scores, split, trained
from infra.figures import plain_log, style
from infra.progress import Progress
from infra.ranking import hit_rate_at_k, mean_with_interval, ndcg_at_k, paired, reciprocal_rank
from infra.report import console, frame
from infra.rng import stream
from models.costs import costs
from models.inputs.datasets import read_interactions

HERE = Path(__file__).resolve().parent
K = 10
POOLS = (0.0625, 0.125, 0.25, 0.5, 1.0)  # of the catalogue
KEPT = (20, 50, 100, 200, 400)
MEASURES = ("ndcg", "hit_rate", "mrr")
SHADES = {"small": "#2a9d8f", "medium": "#edae49", "large": "#d1495b"}
FloatArray = npt.NDArray[np.float64]
Scores = dict[str, npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Chain:
    """Rankers one after the other, and how many items each hands on."""

    rankers: tuple[str, ...]
    keeps: tuple[int, ...]

    @property
    def label(self) -> str:
        """For instance small 100 > large."""
        middle = [f"{name} {keep}" for name, keep in zip(self.rankers[:-1], self.keeps, strict=False)]
        return " > ".join([*middle, self.rankers[-1]])

    def flops(self, n_items: float, of_item: dict[str, float]) -> float:
        """Of a query of so many candidates."""
        ranked = (n_items, *self.keeps[:-1])
        return sum(of_item[name] * min(n, n_items) for name, n in zip(self.rankers, ranked, strict=True))


def chains() -> Iterator[Chain]:
    """One, two and three stages, each stage with a larger ranker than the one before."""
    for name in SHADES:
        yield Chain((name,), (K,))
    for pair in (("small", "medium"), ("small", "large"), ("medium", "large")):
        for keep in KEPT:
            yield Chain(pair, (keep, K))
    for first in KEPT[2:]:
        for second in KEPT[:3]:
            if second < first:
                yield Chain(("small", "medium", "large"), (first, second, K))


def quality(own: Chain, found: Scores, data: Split, pools: Sequence[npt.NDArray[np.int64]]) -> dict[str, FloatArray]:
    """Each measure for every user; the ideal list has the user's test item first, whether the pool had it or not."""
    by_stage = [found[name] for name in own.rankers]
    lists = [chain(by_stage, user, pools[user], own.keeps) == data.test_item[user] for user in range(data.n_users)]
    return {
        "ndcg": np.array([ndcg_at_k(hits, [1], K) for hits in lists]),
        "hit_rate": np.array([hit_rate_at_k(hits, K) for hits in lists]),
        "mrr": np.array([reciprocal_rank(hits) for hits in lists]),
    }


def means(by_user: dict[str, FloatArray]) -> dict[str, float]:
    """Mean and 95 % interval over users of each measure."""
    line: dict[str, float] = {}
    for name in MEASURES:
        mean = mean_with_interval(by_user[name])
        line |= {name: mean.value, f"{name}_low": mean.low, f"{name}_high": mean.high}
    return line


def by_items_ranked(found: Scores, data: Split) -> pd.DataFrame:
    """Quality of each ranker alone on a random part of each user's candidates."""
    lines = []
    for share in POOLS:
        rng = stream(11, "pools")
        pools = []
        for user in range(data.n_users):
            candidates = rng.permutation(data.candidates(user))
            pools.append(candidates[: max(round(share * len(candidates)), 1)])
        n_items = float(np.mean([len(pool) for pool in pools]))
        lines += [
            {"ranker": name, "items_ranked": n_items, **means(quality(Chain((name,), (K,)), found, data, pools))}
            for name in found
        ]
    return pd.DataFrame(lines)


def by_chain(found: Scores, data: Split, of_item: dict[str, float]) -> pd.DataFrame:
    """Quality, FLOPs and the paired difference to the large ranker alone for every chain on all candidates."""
    pools = [data.candidates(user) for user in range(data.n_users)]
    n_items = float(np.mean([len(pool) for pool in pools]))
    reference = quality(Chain(("large",), (K,)), found, data, pools)
    lines = []
    for own in chains():
        by_user = quality(own, found, data, pools)
        against = paired(by_user["ndcg"], reference["ndcg"])
        lines.append({
            "chain": own.label, "stages": len(own.rankers), "mflops": own.flops(n_items, of_item) / 1e6,
            **means(by_user),
            "less_than_large": against.difference.value, "less_low": against.difference.low,
            "less_high": against.difference.high, "p_value": against.p_value,
        })  # fmt: skip
    return pd.DataFrame(lines)


def pareto(rows: pd.DataFrame) -> pd.DataFrame:
    """Chains that no other one beats in both quality and FLOPs."""
    ordered = rows.sort_values(["mflops", "ndcg"], ascending=[True, False])
    return ordered[ordered["ndcg"] > ordered["ndcg"].cummax().shift(fill_value=-1.0)]


def draw(ranked: pd.DataFrame, rows: pd.DataFrame) -> Figure:
    """Left: quality by items ranked; right: quality by FLOPs, chains by their number of stages."""
    figure = Figure(figsize=(11.5, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, own in ranked.groupby("ranker", sort=False):
        shade = SHADES[str(name)]
        left.plot(own["items_ranked"], own["ndcg"], "o-", color=shade, markersize=4, label=str(name))
        left.fill_between(own["items_ranked"], own["ndcg_low"], own["ndcg_high"], color=shade, alpha=0.12)
    plain_log(left, "x")
    style(left, "items ranked per query", f"NDCG@{K}, mean over users", "One ranker, a random part of the candidates")
    left.legend(frameon=False, fontsize=8)
    for n_stages, own in rows.groupby("stages"):
        right.errorbar(own["mflops"], own["ndcg"], [own["ndcg"] - own["ndcg_low"], own["ndcg_high"] - own["ndcg"]],
                       fmt="o^s"[int(n_stages) - 1], markersize=5, elinewidth=0.5,
                       label=f"{n_stages} stages")  # fmt: skip
    front = pareto(rows)
    right.plot(front["mflops"], front["ndcg"], "k--", linewidth=0.8, label="not beaten")
    for _, line in rows[rows["stages"] == 1].iterrows():
        right.annotate(
            line["chain"], (line["mflops"], line["ndcg"]), xytext=(4, 5), textcoords="offset points", fontsize=8
        )
    plain_log(right, "x")
    style(right, "MFLOPs per query", f"NDCG@{K}, mean over users", "All candidates ranked by the first stage")
    right.legend(frameon=False, fontsize=8)
    return figure


def main(argv: Sequence[str]) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--movielens", type=Path, help="folder or file of MovieLens-style interactions")
    parser.add_argument("--cache", type=Path, default=Path("results/recpipe"), help="folder of checkpoints")
    parser.add_argument("--quick", action="store_true", help="two passes of training")
    parser.add_argument("--out", type=Path, default=HERE)
    args = parser.parse_args(argv)
    folder = args.movielens or movielens_folder()
    if folder is None:
        parser.error("no MovieLens here: --movielens FOLDER, or pip install --no-deps recbole")
    try:
        data = split(read_interactions(str(folder)))
    except ValueError as error:
        parser.error(str(error))
    args.out.mkdir(parents=True, exist_ok=True)
    found: Scores = {}
    of_item: dict[str, float] = {}
    with Progress("auto") as progress:
        for ranker in RANKERS:
            own: RankerConfig = replace(ranker, epochs=2) if args.quick else ranker
            with progress.step(f"training {own.name}") as on_fraction:
                model = trained(own, data, args.cache, on_fraction)
            found[own.name] = scores(model, data)
            of_item[own.name] = costs(own.model_config(data), 1).flops
        with progress.step("ranking") as on_fraction:
            ranked = by_items_ranked(found, data)
            on_fraction(0.3)
            rows = by_chain(found, data, of_item)
    ranked.to_csv(args.out / "ranked.csv", index=False, float_format="%.5g")
    rows.to_csv(args.out / "chains.csv", index=False, float_format="%.5g")
    draw(ranked, rows).savefig(args.out / "quality.png", dpi=110)
    out = console()
    out.print(frame(f"{data.n_users} users, {data.n_items} items: quality by items ranked", ranked))
    shown = ["chain", "mflops", "ndcg", "hit_rate", "mrr", "less_than_large", "less_low", "less_high", "p_value"]
    out.print(frame("Chains that no other one beats in quality and FLOPs", pareto(rows)[shown]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
