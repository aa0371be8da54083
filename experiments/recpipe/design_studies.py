"""What the studies of designs have in common: flags, worlds, goals, cases."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from experiments.common.case_log import digest_of
from experiments.recpipe.chains import Scored
from experiments.recpipe.chip import Misses
from experiments.recpipe.datasets.rankers import RankerSource, SourceOptions, load, sources
from experiments.recpipe.world import RankingWorld, SystemDesign, cpu_profiles
from infra.progress import Progress
from infra.settings.fields import flag


@dataclass(frozen=True)
class WorldOptions(SourceOptions):
    """The flags of what compares designs."""

    profiles: str = flag("", "folder of measured times (default: profiles in the cache)")


@dataclass(frozen=True)
class GoalOptions(WorldOptions):
    """And of what is asked of them."""

    rate_qps: float = flag(500.0, "at which p95 is compared", low=0.001)
    floor: float = flag(0.995, "share of the large ranker's NDCG: equal quality", low=0.001)
    cores: int = flag(32, "of the server in virtual time", low=1)


@dataclass(frozen=True)
class WorldSettings:
    """What a world is made of; `times`: digest of the rankers' profiles once they are known."""

    source: RankerSource
    profiles: str
    n_cores: int
    times: str = field(default="", compare=False)  # the same world with and without it


@dataclass(frozen=True)
class DesignGoal:
    """What is asked of designs: NDCG of `floor` or more in lists of k, p95 within the SLA."""

    data: str
    k: int
    floor: float
    rate_qps: float
    sla_ms: float
    n_cores: int


@dataclass(frozen=True)
class DesignCase:
    """A design in a world."""

    name: str
    design: SystemDesign
    goal: DesignGoal
    settings: WorldSettings


@cache
def world_of(settings: WorldSettings) -> RankingWorld:
    """The world of these settings, its rankers trained and timed; raises ValueError."""
    with Progress("auto") as shown:
        scored = Scored.of(load(settings.source, shown))
        cpu = cpu_profiles(scored, Path(settings.profiles), shown)
    # A cache's stream is of queries of one size; MovieLens' have many.
    misses = None if settings.source.data == "movielens" else Misses((scored,))
    return RankingWorld(scored, cpu, settings.n_cores, misses=misses)


def worlds(
    options: WorldOptions, n_cores: int, *, quick: bool
) -> Iterator[tuple[WorldSettings, RankingWorld]]:
    """The world of each data set that the flags name."""
    for source in sources(options, quick=quick):
        profiles = options.profiles or f"{source.cache}/profiles"
        settings = WorldSettings(source, profiles, n_cores)
        world = world_of(settings)
        yield replace(settings, times=digest_of("times", 1, world.cpu)), world


def goals_and_designs(
    options: GoalOptions,
    kept: Mapping[str, Sequence[int]],
    designs: Callable[[Sequence[int], int], Iterable[SystemDesign]],
    *,
    quick: bool,
    sla_ms: float = np.inf,
) -> list[DesignGoal | DesignCase]:
    """The goal of each data set and its designs, which hand on `kept` items."""
    cases: list[DesignGoal | DesignCase] = []
    for settings, world in worlds(options, options.cores, quick=quick):
        data = world.scored.data
        floor = options.floor * world.quality(world.scored.large).value
        goal = DesignGoal(data.name, data.k, floor, options.rate_qps, sla_ms, options.cores)
        fewer = [n for n in kept[data.name] if n < world.most_items]
        cases.append(goal)
        cases += [DesignCase(d.key, d, goal, settings) for d in designs(fewer, data.k)]
    return cases


def rows_of(
    study: str, case: DesignGoal | DesignCase, measure: Callable[..., Sequence[Any]]
) -> dict[str, Sequence[Any]]:
    """A goal is its own row; a design has those that are measured."""
    if isinstance(case, DesignGoal):
        return {f"{study}_goal_{case.data}": [case]}
    rows = measure(world_of(case.settings), case.design, case.goal)
    return {f"{study}_{case.goal.data}": rows}
