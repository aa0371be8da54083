"""What the studies of designs have in common: flags, worlds, goals, cases."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from experiments.common.study import out_folder, progress
from experiments.recpipe.chains import Scored
from experiments.recpipe.chip import Misses
from experiments.recpipe.datasets.rankers import (
    LIST_ITEMS,
    RankerSource,
    SourceOptions,
    load,
    sources,
)
from experiments.recpipe.world import RankingWorld, SystemDesign, cpu_profiles
from infra.settings.fields import flag


@dataclass(frozen=True)
class WorldOptions(SourceOptions):
    """The flags of what compares designs."""

    profiles: str = flag("", "folder of the rankers' times (default: measured, beside the rows)")


@dataclass(frozen=True)
class GoalOptions(WorldOptions):
    """And of what is asked of them."""

    rate_qps: float = flag(500.0, "at which p95 is compared", above=0)
    floor: float = flag(0.995, "share of the large ranker's NDCG: equal quality", above=0)
    cores: int = flag(32, "of the server in virtual time", low=1)


@dataclass(frozen=True)
class WorldSettings:
    """What a world is made of; `profiles`: folder of the rankers' times, empty: beside the rows."""

    source: RankerSource
    profiles: str
    n_cores: int


@dataclass(frozen=True)
class DesignCase:
    """A design in a world, or none: then it is the goal of all others that is computed.

    `floor`: share of the large ranker's NDCG.
    """

    data: str
    name: str
    settings: WorldSettings
    floor: float
    rate_qps: float
    sla_ms: float
    design: SystemDesign | None = None


@dataclass(frozen=True)
class GoalRow:
    """What is asked of designs: NDCG of `floor` or more in lists of k, p95 within the SLA."""

    data: str
    k: int
    floor: float
    rate_qps: float
    sla_ms: float
    n_cores: int


@cache
def world_of(settings: WorldSettings) -> RankingWorld:
    """The world of these settings, its rankers trained and timed; raises ValueError."""
    shown = progress()
    scored = Scored.of(load(settings.source, shown))
    folder = Path(settings.profiles or out_folder() / "profiles")
    # A cache's stream is of queries of one size; MovieLens' have many.
    misses = None if settings.source.data == "movielens" else Misses((scored,))
    cpu = cpu_profiles(scored, folder, shown)
    return RankingWorld(scored, cpu, settings.n_cores, misses=misses)


def worlds(options: WorldOptions, n_cores: int, *, quick: bool) -> list[WorldSettings]:
    """The world of each data set that the flags name."""
    named = sources(options, quick=quick)
    return [WorldSettings(source, options.profiles, n_cores) for source in named]


def goals_and_designs(
    options: GoalOptions,
    kept: Mapping[str, Sequence[int]],
    designs: Callable[[Sequence[int], int], Iterable[SystemDesign]],
    *,
    quick: bool,
    sla_ms: float = np.inf,
) -> list[DesignCase]:
    """The goal of each data set and its designs, which hand on `kept` items."""
    cases = []
    for settings in worlds(options, options.cores, quick=quick):
        data = settings.source.data
        asked = (settings, options.floor, options.rate_qps, sla_ms)
        cases.append(DesignCase(data, "goal", *asked))
        todo = designs(kept[data], LIST_ITEMS[data])
        cases += [DesignCase(data, design.key, *asked, design) for design in todo]
    return cases


def rows_of(
    study: str, case: DesignCase, measure: Callable[..., Sequence[Any]]
) -> dict[str, Sequence[Any]]:
    """The goal's row, or those of the design; none if a stage would hand on all that there is."""
    world = world_of(case.settings)
    if case.design is None:
        floor = case.floor * world.quality(world.scored.large).ndcg
        k = world.scored.data.k
        goal = GoalRow(case.data, k, floor, case.rate_qps, case.sla_ms, world.n_cores)
        return {f"{study}_goal_{case.data}": [goal]}
    if any(keep >= world.most_items for keep in case.design.chain.keeps[:-1]):
        return {}
    return {f"{study}_{case.data}": measure(world, case.design, case)}
