"""Figures and tables of the gains study from its rows."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.common.panels import finish, legend, legend_below, panels
from experiments.common.servers import LARGEST
from experiments.paper_gains.services import (
    AT_SCALE,
    OURS,
    PROPORTIONAL,
    RELEASED,
    STATIC_ITEMS,
    production_sizes,
    waste,
    work_ns,
)
from infra.arrays import FloatArray

SLAS = ("low", "medium", "high")
# Geometric means over the static baseline as published (Gupta et al., ISCA 2020), by SLA.
PUBLISHED = {"CPU": (1.7, 2.1, 2.7), "CPU + GPU": (4.0, 5.1, 5.8), "QPS/W": (2.0, 2.6, 2.9)}
SERVICE = ["profile", "slower", "task_cost", "card_cores"]
FITTED = (AT_SCALE, 2.5, 0.0, 10)  # profile, slower, task_cost, card_cores
SLOWER = ", cores 2.5 times slower"
WATTS = 250.0  # of the CPUs (two sockets of 125 W) and of the card, as stated
PROFILE_COLORS = {
    "paper": "#444444",
    AT_SCALE: "#d1495b",
    RELEASED: "#edae49",
    OURS: "#1f77b4",
    PROPORTIONAL: "#2a9d8f",
}
SLA_COLORS = {"low": "#a6cbe6", "medium": "#1f77b4", "high": "#17507d"}


def gains(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows whose baseline meets the SLA, with a column for each of the published gains."""
    met = rows[rows["static_qps"] > 0]
    static = met["static_qps"]
    with_card = met["card_qps"] / (2 * WATTS)
    per_watt = np.fmax(with_card, met["cpu_qps"] / WATTS).where(met["card_qps"].notna())
    columns = {
        "CPU": met["cpu_qps"] / static,
        "CPU + GPU": met["card_qps"] / static,
        "QPS/W": per_watt / (static / WATTS),
    }
    return met.assign(**columns)


def means(rows: pd.DataFrame) -> pd.DataFrame:
    """A line a service, SLA and gain: mean over the models, then over seeds, least and most."""
    table = gains(rows).melt([*SERVICE, "sla", "seed", "model"], list(PUBLISHED), "gain")
    table = table.dropna(subset="value")
    by_seed = table.groupby([*SERVICE, "sla", "gain", "seed"])["value"]
    of_models = by_seed.agg(
        value=lambda x: float(np.exp(np.log(x).mean())), models="count"
    ).reset_index()
    grouped = of_models.groupby([*SERVICE, "gain", "sla"])
    return pd.DataFrame(
        {
            "mean": grouped["value"].mean(),
            "least": grouped["value"].min(),
            "most": grouped["value"].max(),
            "models": grouped["models"].min(),
            "seeds": grouped["value"].count(),
        }
    ).reset_index()


def mean_table(rows: pd.DataFrame) -> pd.DataFrame:
    """A line a service and gain, low, medium and high as 'mean [least, most]', and the paper's."""
    table = means(rows)
    cells = [
        f"{x.mean:.2f} [{x.least:.2f}, {x.most:.2f}]"
        for x in table[["mean", "least", "most"]].itertuples(index=False, name="Cell")
    ]
    lines = table.assign(cell=cells).pivot_table("cell", [*SERVICE, "gain"], "sla", aggfunc="first")
    lines = lines[[sla for sla in SLAS if sla in lines]].fillna("-").reset_index()
    lines["paper"] = [", ".join(map(str, PUBLISHED[gain])) for gain in lines["gain"]]
    return lines


def model_table(rows: pd.DataFrame) -> pd.DataFrame:
    """CPU gain and batch of each model on the fitted service, means over seeds."""
    table = gains(select(rows, FITTED))
    grouped = table.groupby(["model", "sla"])
    lines = pd.DataFrame(
        {
            "static QPS": grouped["static_qps"].mean(),
            "batch": grouped["cpu_batch"].median(),
            "threshold": grouped["card_threshold"].median(),
            **{name: grouped[name].mean() for name in PUBLISHED},
            "by engine time": grouped["work_gain"].mean(),
        }
    )
    return lines.reset_index()


def select(rows: pd.DataFrame, service: tuple[object, ...]) -> pd.DataFrame:
    """The rows of a service."""
    same = np.all([rows[name] == value for name, value in zip(SERVICE, service, strict=True)], 0)
    return rows[same]


def figure_paper(rows: pd.DataFrame) -> Figure:
    """The paper's gains by SLA beside those of the services; whiskers: least and most of seeds."""
    table = means(rows)
    services = {AT_SCALE: FITTED, RELEASED: (RELEASED, 1.0, 0.0, 0), OURS: (OURS, 1.0, 0.0, 0)}
    figure, axes = panels(3, 4.0, 3.6)
    for panel, (gain, published) in zip(axes, PUBLISHED.items(), strict=True):
        bars = {"paper": pd.DataFrame({"mean": published}, index=SLAS)}
        for profile, service in services.items():
            part = select(table[table["gain"] == gain], service).set_index("sla")
            if len(part):
                bars[profile] = part.reindex(SLAS)
        _bars(panel, bars)
        panel.axhline(1, color="black", linewidth=0.8)
        finish(panel, "SLA", "over the static baseline" if gain == "CPU" else "", gain)
    legend_below(figure, 4)
    return figure


def _bars(axes: Axes, bars: Mapping[str, pd.DataFrame]) -> None:
    at = np.arange(len(SLAS), dtype=float)
    for i, (name, part) in enumerate(bars.items()):
        label = f"{name}{SLOWER}" if name == AT_SCALE else name
        where = at + 0.2 * (i - (len(bars) - 1) / 2)
        axes.bar(where, part["mean"], 0.19, color=PROFILE_COLORS[name], label=label)
        if "least" in part:
            ends = [part["mean"] - part["least"], part["most"] - part["mean"]]
            axes.errorbar(where, part["mean"], ends, fmt="none", ecolor="black", capsize=2)
    axes.set_xticks(at, SLAS)


def figure_cost(rows: pd.DataFrame, sla: str = "medium") -> Figure:
    """CPU gain against the waste of a baseline task: models, services; the line: engine time."""
    table = gains(rows[rows["sla"] == sla])
    table = table[(table["slower"] == 1) | (table["card_cores"] == FITTED[-1])]
    groups = [*SERVICE[:3], "model"]
    points = table.groupby(groups)[["waste", "CPU"]].mean().reset_index()
    figure, (axes,) = panels(1, 7.0, 4.4)
    line = engine_time_line()
    axes.plot(1 + line[0], line[1], color="black", linewidth=1, label="by engine time alone")
    kinds = {
        "": (points["task_cost"] == 0) & (points["slower"] == 1),
        SLOWER: points["slower"] > 1,
        ", with a cost a task": points["task_cost"] > 0,
    }
    for (kind, chosen), mark in zip(kinds.items(), ("o", "D", "."), strict=True):
        for profile, part in points[chosen].groupby("profile"):
            shade = PROFILE_COLORS[str(profile)]
            axes.plot(1 + part["waste"], part["CPU"], mark, color=shade, label=f"{profile}{kind}")
    x = f"time of a task of {STATIC_ITEMS} items over that of its items in a task of 256"
    finish(axes, x, "gain in QPS, CPU", f"a point a model, {sla} SLA")
    legend(axes, loc="upper left")
    return figure


def engine_time_line() -> tuple[FloatArray, FloatArray]:
    """Waste and gain where a task takes its items plus a constant and no SLA binds."""
    sizes = production_sizes()
    items_ns = 1000 * np.arange(LARGEST + 1)
    costs = STATIC_ITEMS * np.geomspace(0.01, 20, 60)
    times = [items_ns + round(1000 * cost) for cost in costs]
    gain = [work_ns(t, sizes, STATIC_ITEMS) / work_ns(t, sizes, LARGEST) for t in times]
    return np.array([waste(t) for t in times]), np.array(gain)


def figure_cores(rows: pd.DataFrame) -> Figure:
    """CPU gain of the release at scale against how much slower the cores are; dotted: the paper."""
    table = means(rows)
    at_scale = (table["profile"] == AT_SCALE) & (table["task_cost"] == 0)
    at_scale &= table["card_cores"].isin((0, FITTED[-1]))
    table = table[at_scale & (table["gain"] == "CPU")]
    figure, (axes,) = panels(1, 6.0, 3.8)
    for sla, published in zip(SLAS, PUBLISHED["CPU"], strict=True):
        part = table[table["sla"] == sla].sort_values("slower")
        shade = SLA_COLORS[sla]
        axes.fill_between(part["slower"], part["least"], part["most"], color=shade, alpha=0.3)
        axes.plot(part["slower"], part["mean"], "o-", color=shade, label=f"{sla} SLA")
        axes.axhline(published, color=shade, linestyle=":")
    title = f"{AT_SCALE}; dotted: the paper"
    finish(axes, "service times over those measured here", "gain in QPS, CPU", title)
    legend(axes)
    return figure
