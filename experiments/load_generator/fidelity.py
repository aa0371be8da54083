#!/usr/bin/env python3
"""Does the generator send what it says? Lateness and the law of the sent gaps, beside LoadGen.

python experiments/load_generator/fidelity.py [--seconds 10] [--out FOLDER]

2 null engines answer; KS is the Kolmogorov-Smirnov distance of the gaps between sends, as the
sender saw them, from the exponential law of the asked rate. LoadGen does not say when its schedule
wanted a query, so it has no lateness. fidelity.csv, gaps.csv (what the figure shows) and
fidelity.png; 3 minutes.
"""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy import stats

from backends.processes.engine import NullEngine, PoolSpec
from backends.processes.process import ProcessSession
from experiments.common.panels import finish, legend, panels
from experiments.common.servers import schedule_at
from experiments.common.study import Study, View
from experiments.common.tails import FloatArray
from experiments.harness_overhead import peers
from infra.messages import CPU
from infra.settings.fields import flag
from scheduler import Policy

RATES_QPS = (100, 1_000, 10_000, 20_000)
N_ENGINES = 2
OURS = "ours"
LOADGEN = "LoadGen"
LONGER = np.geomspace(1, 5e-3, 100)  # shares that the figure shows


@dataclass(frozen=True)
class FidelityOptions:
    """Flags of the study."""

    seconds: float = flag(0.0, "length of a run; 0: the effort's", low=0)


@dataclass(frozen=True)
class FidelityCase:
    """A rate, sent by each of the senders in turn."""

    rate_qps: int
    seconds: float
    senders: tuple[str, ...]


@dataclass(frozen=True)
class FidelityRow:
    """What a sender did at a rate."""

    who: str
    rate_qps: int
    n: int
    ks: float
    sent_qps: float
    late_p50_us: float
    late_p99_us: float


def cases(seconds: float, options: FidelityOptions) -> list[FidelityCase]:
    """A case a rate; LoadGen is left out where it is not installed."""
    senders = [OURS]
    if importlib.util.find_spec("mlperf_loadgen") is not None:
        senders.append(LOADGEN)
    else:
        sys.stderr.write("fidelity.py: LoadGen is not installed: left out\n")
    seconds = options.seconds or seconds
    return [FidelityCase(rate, seconds, tuple(senders)) for rate in RATES_QPS]


def send(who: str, case: FidelityCase) -> tuple[FloatArray, FloatArray]:
    """Sent times and lateness in ns; LoadGen's lateness is not known."""
    if who == LOADGEN:
        n = round(case.rate_qps * case.seconds)
        run = peers.through_loadgen(N_ENGINES, case.rate_qps, n)
        return np.asarray(run["sent_ns"]), np.array([np.nan])
    schedule = schedule_at(case.rate_qps, seed=1, seconds=case.seconds)
    with ProcessSession([PoolSpec(CPU, N_ENGINES, lambda _: NullEngine(), yields=True)]) as session:
        queries = session.run(schedule, Policy(16)).queries
    sent_ns = queries["sent_ns"].to_numpy(float)
    return sent_ns, sent_ns - queries["arrival_ns"].to_numpy(float)


def measure(case: FidelityCase) -> dict[str, list[Any]]:
    """A row a sender, and its gaps over their mean: those that a share of all are longer than."""
    rows = []
    points = []
    for who in case.senders:
        sent_ns, late_ns = send(who, case)
        gaps = np.diff(sent_ns) / 1e9 * case.rate_qps
        ks = float(stats.kstest(gaps, "expon").statistic)
        sent_qps = len(gaps) / float(sent_ns[-1] - sent_ns[0]) * 1e9
        late_us = (np.quantile(late_ns, (0.5, 0.99)) / 1e3).tolist()
        rows.append(FidelityRow(who, case.rate_qps, len(sent_ns), ks, sent_qps, *late_us))
        columns = {"longer": LONGER, "gap": np.quantile(gaps, 1 - LONGER)}
        points.append(pd.DataFrame({"who": who, "rate_qps": case.rate_qps, **columns}))
    return {"fidelity": rows, "gaps": pd.concat(points).to_dict("records")}


def draw(rows: pd.DataFrame, gaps: pd.DataFrame) -> Figure:
    """Distribution of the sent gaps at each rate; the law is a straight line."""
    figure, all_axes = panels(len(RATES_QPS), 3, 3.2)
    for axes, rate_qps in zip(all_axes, RATES_QPS, strict=True):
        for row in rows[rows["rate_qps"] == rate_qps].itertuples():
            line = gaps[(gaps["rate_qps"] == rate_qps) & (gaps["who"] == row.who)]
            axes.plot(line["gap"], line["longer"], label=f"{row.who}, KS {row.ks:.3f}")
        x = np.linspace(0, 5)
        axes.plot(x, np.exp(-x), "k:", label="exponential")
        axes.set(xlim=(0, 5), yscale="log", ylim=(5e-3, 1))
        finish(axes, "gap over its mean", "share of longer gaps", f"{rate_qps:,} QPS")
        legend(axes)
    return figure


STUDY = Study(
    "fidelity",
    "Does the generator send what it says?",
    cases,
    measure,
    efforts={"quick": 2.0, "full": 10.0},  # seconds of a run
    options=FidelityOptions,
    figures={"fidelity": View(draw, "fidelity", "gaps")},
    report={"Sent gaps and lateness": View(pd.DataFrame, "fidelity")},
    float_format="%.4g",
)

if __name__ == "__main__":
    STUDY.main()
