"""Names of all schedules, with the values that their knobs may take; the first is the default.

Plain data, so that a plan can be read and checked without PyTorch, Triton or a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Value = int | str
Params = tuple[tuple[str, Value], ...]  # (name, value), sorted by name
Knobs = Mapping[str, Sequence[Value]]

# of the rows; all but the first need an error budget
STORAGE = ("float32", "float16", "bfloat16", "int8")

WARPS = (4, 1, 2, 8)
BAGS = (16, 1, 2, 4, 8, 32, 64, 128, 256, 512)
IDS = (4, 1, 2, 8, 16, 32, 64)
# columns of a tile; 0, or more than the width: the whole row
LANES = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256)
PARTS = (8, 2, 4, 16, 32, 64, 128)
_TILE: Knobs = {"tile_bags": BAGS, "tile_lanes": LANES, "warps": WARPS}


def _bags_from(default: int) -> tuple[int, ...]:
    return (default, *(n for n in BAGS if n != default))


CUDA_SCHEDULES: dict[str, Knobs] = {  # models/embedding/gpu/kernels.py
    # bags of any length, the tile loops as often as its longest needs
    "bags": {**_TILE, "tile_ids": IDS},
    # bags of exactly one id
    "gather": {**_TILE, "tile_bags": _bags_from(64)},
    # bags of exactly so many ids
    "fixed_length": {**_TILE, "tile_ids": IDS},
    # long bags
    "split": {**_TILE, "tile_bags": _bags_from(1), "tile_ids": IDS, "parts": PARTS},
}
CUDA_SETTINGS: Knobs = {
    # one launch for all of equal warps, one a schedule of them, or a group
    "launch": ("fused", "by_schedule", "grouped"),
    "warps": (0, *sorted(WARPS)),  # of every program; 0: as each group says
    # of a thread; 0: as many as the compiler takes
    "max_registers": (0, 32, 40, 48, 64, 80, 96, 128, 168),
}

# what is prefetched: rows of ids to come, so many before they are read; or the whole next table
_AHEAD: Knobs = {"ahead": ("ids", "none", "table"), "distance": (32, 8, 16, 64, 128)}
SCHEDULES: dict[str, dict[str, Knobs]] = {  # device: schedule: its knobs
    "cpu": {
        "per_table": {},  # torch's embedding_bag, one call a table
        "fused": {},  # one embedding_bag for all tables of a width
        "gather": {},  # one index_select for all tables of a width; bags of exactly one id
        # embedding_bag on (bags, ids) without offsets; bags of exactly so many ids
        "fixed_length": {},
        "histogram": {},  # counts of the ids times the table: for some dozens of rows
        "dedup": {},  # every distinct row read once
        "compiled": {  # our own kernel, bags of any length
            **_AHEAD,
            "order": ("table", "item"),
            "unroll": (1, 2, 4, 8),  # sums side by side; 1 adds in the order of the ids
            "storage": STORAGE,
        },
        "one_width": {},  # the models' kernel for one matrix of all tables and item-major ids
        "copy": {**_AHEAD, "storage": STORAGE},  # our own kernel; bags of exactly one id
    },
    "cuda": CUDA_SCHEDULES,
}

ONE_ID = {"gather", "copy"}  # schedules for tables that declare exactly one id a bag
FIXED_IDS = {"fixed_length"}  # and for those that declare any number
WHOLE = {"one_width"}  # for all tables at once

SETTINGS: dict[str, Knobs] = {  # device: knobs of a whole bucket
    "cpu": {"threads": range(1, 1025)},
    "cuda": CUDA_SETTINGS,
}


def complete(knobs: Knobs, params: Params) -> dict[str, Value]:
    """Every knob's value, defaults included."""
    return {name: values[0] for name, values in knobs.items()} | dict(params)


def in_words(params: Params) -> str:
    """name=value, with blanks between."""
    return " ".join(f"{name}={value}" for name, value in params)


def check_params(place: str, knobs: Knobs, params: Params) -> None:
    """Raise ValueError, in one line, if a name or a value is not in the catalogue."""
    for name, value in params:
        if name not in knobs:
            names = f"knows {', '.join(knobs)}" if knobs else "has none"
            raise ValueError(f"{place}: unknown parameter {name!r}; it {names}")
        allowed = knobs[name]
        if value not in allowed or isinstance(value, bool):
            expected = (
                f"{allowed[0]} to {allowed[-1]}"
                if isinstance(allowed, range)
                else f"one of {', '.join(map(str, allowed))}"
            )
            raise ValueError(f"{place}: {name} is {value!r}; expected {expected}")
