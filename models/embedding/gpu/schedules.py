"""The GPU's schedules as plain data: knobs, the distinct functions that a plan needs, their tiles.

Neither PyTorch nor Triton; a plan for a GPU can be made and checked anywhere.
"""

# T tables, D width of a row

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from models.embedding.plan.catalogue import (
    CUDA_SCHEDULES,
    CUDA_SETTINGS,
    FIXED_IDS,
    ONE_ID,
    Params,
    Value,
    check_params,
    complete,
)
from models.embedding.plan.plan import Bucket, Group
from models.embedding.plan.spec import TableSpec, column_offsets

THREADS = 32  # of a warp
MOST_ELEMENTS = 1 << 15  # of a tile
_WIDEST_STORE = 4  # float32 that one thread writes at once


@dataclass(frozen=True, slots=True, order=True)
class Branch:
    """One function of a kernel: a schedule and all numbers that the compiler gets to know.

    `bag_ids` 0: any; `column_align`: all its columns are multiples of so many.
    """

    schedule: str
    dim: int
    bag_ids: int
    tile_bags: int
    tile_ids: int
    tile_lanes: int
    parts: int
    warps: int
    column_align: int

    def tiles(self, n_bags: int) -> int:
        """Programs for one table."""
        parts = self.parts if self.schedule == "split" else 1
        return -(-n_bags // self.tile_bags) * -(-self.dim // self.tile_lanes) * parts

    @property
    def elements(self) -> int:
        """Row elements that a tile holds at once."""
        return self.tile_bags * self.tile_ids * self.tile_lanes

    @property
    def threads(self) -> int:
        """Of a program."""
        return THREADS * self.warps

    def cost(self, mean_bag_ids: float) -> float:
        """Elements that one tile reads, about.

        A row's first element counts for a sector, a tile for a few rows.
        """
        lanes = max(min(self.tile_lanes, self.dim), 8)
        return lanes * (self.tile_bags * (mean_bag_ids / self.parts + 1) + 4)


def branches(
    specs: Sequence[TableSpec], groups: Sequence[Group], warps: int = 0
) -> dict[int, Branch]:
    """The branch of every table in a group, all of so many `warps` if not 0.

    Raises ValueError for unfit groups.
    """
    *columns, width = column_offsets(specs).tolist()
    branch_of_table = dict[int, Branch]()
    for group in groups:
        of_group = {table: _branch(specs, group, table, warps) for table in group.tables}
        aligned = dict.fromkeys(of_group.values(), math.gcd(_WIDEST_STORE, width))
        for table, branch in of_group.items():
            aligned[branch] = math.gcd(aligned[branch], columns[table])
        for table, branch in of_group.items():
            if table in branch_of_table:
                raise ValueError(f"table {table} is in two groups; expected at most one")
            branch_of_table[table] = replace(branch, column_align=aligned[branch])
    return branch_of_table


def _branch(specs: Sequence[TableSpec], group: Group, table: int, warps: int) -> Branch:
    schedule = group.schedule
    if schedule not in CUDA_SCHEDULES:
        raise ValueError(
            f"unknown schedule {schedule!r}; expected one of {', '.join(CUDA_SCHEDULES)}"
        )
    if not 0 <= table < len(specs):
        raise ValueError(f"table {table} is in a group, but there are {len(specs)} tables")
    spec = specs[table]
    check_params(schedule, CUDA_SCHEDULES[schedule], group.params)
    if not applies(spec, schedule):
        needs = "exactly one id" if schedule in ONE_ID else "a fixed number of ids"
        raise ValueError(f"table {table} ({spec}): {schedule} needs bags of {needs}")
    branch = branch_of(spec, schedule, group.params, warps)
    if branch.elements > MOST_ELEMENTS:
        raise ValueError(
            f"table {table} ({spec}): {schedule} has tiles of {branch.elements} elements; "
            f"at most {MOST_ELEMENTS}"
        )
    return branch


def branch_of(spec: TableSpec, schedule: str, params: Params, warps: int = 0) -> Branch:
    """The function that looks this table up, of columns aligned by chance."""
    knobs = {name: int(value) for name, value in complete(CUDA_SCHEDULES[schedule], params).items()}
    row = power_of_two(spec.dim)
    return Branch(
        schedule,
        spec.dim,
        (schedule in FIXED_IDS and spec.bag_ids) or 0,
        knobs["tile_bags"],
        knobs.get("tile_ids", 1),
        min(knobs["tile_lanes"] or row, row),
        knobs.get("parts", 1),
        warps or knobs["warps"],
        1,
    )


def applies(spec: TableSpec, schedule: str) -> bool:
    """Whether a schedule can look this table up."""
    if schedule in ONE_ID:
        return spec.bag_ids == 1
    return schedule not in FIXED_IDS or spec.bag_ids is not None


def combining(branch: Branch) -> Branch:
    """What sums the parts of a `split` branch."""
    lanes = min(power_of_two(branch.dim), 128)
    tile_bags = 4 * THREADS * _WIDEST_STORE // lanes
    return replace(
        branch, schedule="combine", tile_ids=1, tile_lanes=lanes, tile_bags=tile_bags, warps=4
    )


def power_of_two(n: int) -> int:
    """The smallest that is not smaller."""
    return 1 << (n - 1).bit_length()


def check_settings(bucket: Bucket) -> dict[str, Value]:
    """Settings with defaults; raises ValueError."""
    check_params("settings", CUDA_SETTINGS, bucket.settings)
    return complete(CUDA_SETTINGS, bucket.settings)
