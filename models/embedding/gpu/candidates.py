"""Which GPU schedules are worth compiling for a table: all that waste little, the best guess first.

The guess is arithmetic on tiles, not a measurement; it only orders and cuts the list that the tuner
times.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from models.embedding.backend import Choice
from models.embedding.gpu.schedules import (
    MOST_ELEMENTS,
    Branch,
    applies,
    branch_of,
    power_of_two,
)
from models.embedding.plan.plan import params
from models.embedding.plan.spec import TableSpec

MOST_WASTE = 3.0
_BAGS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_IDS = (1, 2, 4, 8, 16, 32, 64)
_PARTS = (2, 4, 8, 16, 32)
_MOST_A_THREAD = 16  # elements: above, a thread runs out of registers
# sm_90
_LANES_PER_SM = 128
_WARPS_PER_SM = 64
_PROGRAMS_PER_SM = 32
# guesses: a program's first loads; a gather; its addresses
_START_CLOCKS = 1500.0
_STEP_CLOCKS = 600.0
_STEP_WORK = 4.0


@dataclass(frozen=True, slots=True)
class Load:
    """What a table's bags are like, in a batch of `n_items`, and how many such tables there are."""

    n_items: int
    mean_ids: float  # of a bag, empty ones included
    most_ids: int
    n_tables: int = 1
    n_sms: int = 132


def gpu_candidates(
    spec: TableSpec, load: Load, warps: Sequence[int] = (1, 2, 4, 8), most: int = 12
) -> list[Choice]:
    """At most so many, cheapest by the guess first; never none.

    Left out: tiles of fewer elements than threads, tiles of which more than two thirds would be
    idle, tiles that take more registers than threads have. If that leaves nothing (a batch of one
    item), those with the fewest idle lanes.
    """
    branch_by_choice = {
        choice: branch_of(spec, choice.schedule, choice.params)
        for choice in _ways(spec, load, warps)
    }
    fitting = {
        choice: branch
        for choice, branch in branch_by_choice.items()
        if _fits(branch) and wasted(branch, load) <= MOST_WASTE
    }
    if not fitting:
        idles = {choice: idle(branch, load) for choice, branch in branch_by_choice.items()}
        least = min(idles.values())
        fitting = {c: branch_by_choice[c] for c, lanes in idles.items() if lanes <= 1.5 * least}
    return sorted(fitting, key=lambda choice: clocks(fitting[choice], load))[:most]


def _ways(spec: TableSpec, load: Load, warps: Sequence[int]) -> Iterator[Choice]:
    row = power_of_two(spec.dim)
    lanes = [0, *(n for n in (32, 64, 128) if n < row and row >= 128)]
    for n_warps, n_lanes, bags in itertools.product(warps, lanes, _BAGS):
        tile = {"tile_bags": bags, "tile_lanes": n_lanes, "warps": n_warps}
        if applies(spec, "gather"):
            yield Choice("gather", params(**tile))
            continue
        for ids in _IDS:
            if bags * ids * (n_lanes or row) > MOST_ELEMENTS:
                continue
            schedule = "fixed_length" if applies(spec, "fixed_length") else "bags"
            yield Choice(schedule, params(**tile, tile_ids=ids))
            for parts in _PARTS:
                if load.most_ids >= 2 * parts * ids and bags == 1:
                    yield Choice("split", params(**tile, tile_ids=ids, parts=parts))


def _fits(branch: Branch) -> bool:
    return branch.threads <= branch.elements <= branch.threads * _MOST_A_THREAD


def steps(branch: Branch, load: Load) -> float:
    """How often a tile's loop runs, about: until the longest of its bags is done."""
    if branch.schedule == "gather":
        return 1.0
    if branch.bag_ids:
        return float(math.ceil(branch.bag_ids / branch.tile_ids))
    longest = load.mean_ids + (load.most_ids - load.mean_ids) * (1 - 1 / branch.tile_bags)
    return max((longest / branch.parts + (branch.tile_ids - 1) / 2) / branch.tile_ids, 1.0)


def wasted(branch: Branch, load: Load) -> float:
    """Lanes that tiles occupy over those that carry an element of a row; 1 is best."""
    carried = load.n_items * max(load.mean_ids, 1.0) * branch.dim
    return branch.tiles(load.n_items) * steps(branch, load) * branch.elements / max(carried, 1.0)


def idle(branch: Branch, load: Load) -> float:
    """As `wasted`, but threads that hold no element count too."""
    return wasted(branch, load) * max(branch.threads / branch.elements, 1.0)


def clocks(branch: Branch, load: Load) -> float:
    """What looking these tables up may take.

    The work of all lanes, and the waves of programs that wait for memory.
    """
    n_steps = steps(branch, load)
    n_programs = load.n_tables * branch.tiles(load.n_items)
    threads = branch.threads
    a_thread = max(branch.elements / threads, 1.0)
    work = n_programs * n_steps * threads * (a_thread + _STEP_WORK) / (_LANES_PER_SM * load.n_sms)
    resident = load.n_sms * min(_WARPS_PER_SM // branch.warps, _PROGRAMS_PER_SM)
    waves = max(n_programs / resident, 1.0)
    second_launch = _START_CLOCKS * 2 if branch.schedule == "split" else 0.0
    return work + waves * (_START_CLOCKS + n_steps * _STEP_CLOCKS) + second_launch
