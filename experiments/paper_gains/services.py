"""What a task costs: service times of several software stacks, on slower cores, beside a card.

A service's time for n items is `slower` x (profile(n) + what a task costs beside its items). The
card is the GTX 1080 Ti by its published speedups over `card_cores` such cores; it converts nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from accelerator.devices import ROOT, derived_profile, load_device
from accelerator.latency import Profile
from accelerator.service import ServiceTable, table_of_profiles
from experiments.common.servers import LARGEST, core_beside_neighbour
from infra.arrays import FloatArray, Int64Array
from infra.clock import NS_PER_MS
from loadGenerator import production_quantile

HERE = Path(__file__).resolve().parent
TIMES = HERE.parent / "model_speed/data/released_times.csv"
CONVERSIONS = HERE / "data/released_conversion.csv"
CARD = "nvidia_gtx_1080_ti"
OURS = "ours"
RELEASED = "released"
AT_SCALE = "released at scale"
PROPORTIONAL = "proportional"
PROFILES = (OURS, RELEASED, AT_SCALE, PROPORTIONAL)
STATIC_ITEMS = 25  # a task of the baseline: the largest query over all 40 cores
MANY_ITEMS = 256  # a task whose cost beside its items hardly counts


@dataclass(frozen=True)
class Service:
    """How long tasks take.

    `task_cost`: added to each task, in times of a baseline task. `card_cores`: so many cores are
    what the card's published speedups are counted against; 0: no card.
    """

    profile: str = OURS
    slower: float = 1.0
    task_cost: float = 0.0
    card_cores: int = 0


def times_ms(profile: str, model: str) -> Profile:
    """Times by items, without what a task costs at scale."""
    if profile == OURS:
        return core_beside_neighbour(model)
    if profile == PROPORTIONAL:
        item_ms = core_beside_neighbour(model).ms(MANY_ITEMS) / MANY_ITEMS
        return Profile({1: item_ms, LARGEST: LARGEST * item_ms})
    return released_times_ms(model)


def released_times_ms(model: str) -> Profile:
    """The released harness: feeding the net's inputs, and running it."""
    table = pd.read_csv(TIMES, comment="#")
    rows = table[table["model"] == model]
    times = rows["feed_ms"] + rows["run_ms"]
    return Profile(dict(zip(rows["batch_size"].tolist(), times.tolist(), strict=True)))


def conversion_ms(profile: str, model: str) -> float:
    """What each task converts at scale, however few items it has; 0 for the other profiles."""
    if profile != AT_SCALE:
        return 0.0
    table = pd.read_csv(CONVERSIONS, comment="#").set_index("model")
    return float(table.loc[model, "convert_ms"])


@cache
def table_of(model: str, service: Service) -> ServiceTable:
    """The service's table of a CPU core and, where it has one, the card."""
    times = times_ms(service.profile, model)
    cards = [card_ms(model, times, service)] if service.card_cores else []
    table = table_of_profiles(times, cards, LARGEST, seed=11)
    cpu_ns = table.cpu_ns + conversion_ms(service.profile, model) * NS_PER_MS
    cpu_ns = cpu_ns + service.task_cost * cpu_ns[:, [STATIC_ITEMS]]
    whole_ns = np.maximum(np.rint(service.slower * cpu_ns), 1).astype(np.int64)
    return replace(table, cpu_ns=whole_ns)


def card_ms(model: str, times: Profile, service: Service) -> Profile:
    """The card's times: a core's over the published speedup, which is over `card_cores` cores."""
    card = derived_profile(load_device(ROOT, CARD), model, times)
    factor = service.slower / service.card_cores
    return Profile({n: factor * ms for n, ms in card.batch_ms.items()}, card.provenance)


def waste(cpu_ns: Int64Array) -> float:
    """What a baseline task takes beyond its items, over what these take in a task of many."""
    items_ns = STATIC_ITEMS * float(cpu_ns[MANY_ITEMS]) / MANY_ITEMS
    return float(cpu_ns[STATIC_ITEMS]) / items_ns - 1


def work_ns(cpu_ns: Int64Array, n_items: Int64Array, batch_items: int) -> float:
    """Engine time of a query in the mean, split into tasks of at most so many items."""
    whole, rest = np.divmod(n_items, batch_items)
    by_query: FloatArray = whole * float(cpu_ns[batch_items]) + np.where(rest, cpu_ns[rest], 0)
    return float(by_query.mean())


def production_sizes(n: int = 10_000) -> Int64Array:
    """Query sizes as the studies draw them, evenly over their law."""
    sizes = np.rint(production_quantile((np.arange(n) + 0.5) / n)).clip(1, LARGEST)
    return np.asarray(sizes, np.int64)
