#!/usr/bin/env python3
"""Does the generator send what it says? Lateness and the law of the sent gaps, beside LoadGen.

python experiments/load_generator/fidelity.py [FOLDER] [--seconds 10]     writes fidelity.csv and .png; 3 minutes
2 null engines answer; KS is the Kolmogorov-Smirnov distance of the gaps between sends, as the sender saw them, from
the exponential law of the asked rate. LoadGen does not say when its schedule wanted a query, so it has no lateness.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import argparse
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure
from scipy import stats

from backends.processes.engine import NullEngine, PoolSpec
from backends.processes.process import ProcessSession
from experiments.common.servers import schedule_at
from experiments.harness_overhead import peers
from infra.messages import CPU
from scheduler import Policy, Stage

RATES_QPS = (100, 1_000, 10_000, 20_000)
N_ENGINES = 2
Gaps = dict[tuple[str, int], npt.NDArray[np.float64]]  # (who, rate) -> gaps over their mean


def ours(rate_qps: int, seconds: float) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Sent times and lateness in ns."""
    schedule = schedule_at(rate_qps, seed=1, seconds=seconds)
    with ProcessSession([PoolSpec(CPU, N_ENGINES, lambda _: NullEngine(), yields=True)]) as session:
        queries = session.run(schedule, [Stage(Policy(16))]).queries
    sent_ns = queries["sent_ns"].to_numpy(float)
    return sent_ns, sent_ns - queries["arrival_ns"].to_numpy(float)


def measure(seconds: float) -> tuple[pd.DataFrame, Gaps]:
    """Both at every rate, in turn."""
    rows = []
    gaps = {}
    skipped = ""
    for rate_qps in RATES_QPS:
        sent_ns, late_ns = ours(rate_qps, seconds)
        found = {"ours": sent_ns}
        if not skipped:
            try:
                found["LoadGen"] = np.asarray(
                    peers.through_loadgen(N_ENGINES, rate_qps, round(rate_qps * seconds))["sent_ns"]
                )
            except ImportError as error:
                skipped = str(error)
                print(f"LoadGen skipped: {skipped}", file=sys.stderr)
        for who, times_ns in found.items():
            own = np.diff(times_ns) / 1e9 * rate_qps
            gaps[who, rate_qps] = own
            late_us = np.quantile(late_ns, (0.5, 0.99)) / 1e3 if who == "ours" else (np.nan, np.nan)
            rows.append(
                {
                    "who": who,
                    "rate_qps": rate_qps,
                    "n": len(times_ns),
                    "ks": float(stats.kstest(own, "expon").statistic),
                    "sent_qps": len(own) / float(times_ns[-1] - times_ns[0]) * 1e9,
                    "late_p50_us": late_us[0],
                    "late_p99_us": late_us[1],
                }
            )
        print(f"{rate_qps} QPS done", file=sys.stderr)
    return pd.DataFrame(rows), gaps


def draw(table: pd.DataFrame, gaps: Gaps) -> Figure:
    """Distribution of the sent gaps at each rate; the law is a straight line."""
    figure, axes = plt.subplots(
        1, len(RATES_QPS), figsize=(3 * len(RATES_QPS), 3.2), sharey=True, layout="constrained"
    )
    for axis, rate_qps in zip(axes, RATES_QPS, strict=True):
        for who in table["who"].unique():
            own = np.sort(gaps[who, rate_qps])
            ks = table.loc[(table["who"] == who) & (table["rate_qps"] == rate_qps), "ks"].item()
            axis.plot(own, 1 - np.arange(len(own)) / len(own), label=f"{who}, KS {ks:.3f}")
        x = np.linspace(0, 5)
        axis.plot(x, np.exp(-x), "k:", label="exponential")
        axis.set(
            title=f"{rate_qps:,} QPS",
            xlim=(0, 5),
            ylim=(5e-3, 1),
            yscale="log",
            xlabel="gap over its mean",
        )
        axis.legend(frameon=False, fontsize=8)
    axes[0].set_ylabel("share of longer gaps")
    return figure


def main(argv: Sequence[str]) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path, default=Path.cwd())
    parser.add_argument("--seconds", type=float, default=10.0, help="length of each run")
    args = parser.parse_args(argv)
    table, gaps = measure(args.seconds)
    table.to_csv(args.folder / "fidelity.csv", index=False, float_format="%.4g")
    print(table.round(3).to_string(index=False))
    draw(table, gaps).savefig(args.folder / "fidelity.png")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
