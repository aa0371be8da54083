"""Locality of a stream of ids: LRU stack distances of a trace, and ids with such distances.

The distance of an access is the id's place in the list of all ids by last use: 1 = the id just
used, d = d - 1 others were used since, 0 = never used before. An LRU cache of c rows hits exactly
the accesses with distances 1 to c (Mattson et al., IBM Systems Journal 9, 1970).
"""

# n accesses, U different ids

# mypy: allow-untyped-defs, allow-incomplete-defs
# ruff: noqa: ANN001, ANN202 (numba types what it compiles)

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numba
import numpy as np
import numpy.typing as npt
import pandas as pd

from models.embedding.offsets import Int64Array

FloatArray = npt.NDArray[np.float64]
_FEWEST_SLOTS = 64
NOTEWORTHY = 0.01  # share of ids that are not as far apart as drawn, above which a warning says so
log = logging.getLogger(__name__)
_compiled = numba.njit(cache=True)


@dataclass(frozen=True)
class Locality:
    """Ids in the order of their first use, and how often each stack distance occurs.

    `first_ids` int64[U]; `distance` ascending and `cumulative` in (0, 1]: the share of accesses
    with at most that distance. Raises ValueError if it is no such distribution.
    """

    first_ids: Int64Array
    distance: Int64Array
    cumulative: FloatArray

    def __post_init__(self) -> None:
        shares = self.cumulative
        if not len(self.distance) or len(self.distance) != len(shares):
            raise ValueError(f"{len(self.distance)} distances, but {len(shares)} shares")
        if self.distance[0] < 0 or (np.diff(self.distance) <= 0).any():
            raise ValueError("distances must ascend from 0 or more")
        if not np.isfinite(shares).all() or shares[0] <= 0 or (np.diff(shares) < 0).any():
            raise ValueError("cumulative shares must be above 0 and must not descend")
        if abs(shares[-1] - 1) > 1e-6:
            raise ValueError(f"the last cumulative share is {shares[-1]:g}; expected 1")
        if self.first_ids.min(initial=0) < 0:
            raise ValueError(f"id {self.first_ids.min()} is below 0")
        if len(pd.unique(self.first_ids)) < len(self.first_ids):
            raise ValueError("an id stands twice among the first uses")

    @property
    def largest_id(self) -> int:
        """-1 where there are no ids."""
        return int(self.first_ids.max(initial=-1))

    @property
    def share(self) -> FloatArray:
        """Share of accesses with each distance."""
        return np.diff(self.cumulative, prepend=0.0)

    def hit_rate(self, cache_rows: npt.ArrayLike) -> FloatArray:
        """Share of accesses that an LRU cache of so many rows has."""
        never = self.share[0] if self.distance[0] == 0 else 0.0
        at = np.searchsorted(self.distance, np.asarray(cache_rows), side="right")
        shares = np.concatenate(([0.0], self.cumulative))
        return np.asarray(shares[at] - np.where(at > 0, never, 0.0))


def stack_distances(ids: npt.ArrayLike) -> Int64Array:
    """Distance of every access, exact; O(n log U). int64[n]."""
    codes, different = pd.factorize(np.asarray(ids))
    n_ids = len(different)
    return np.asarray(_distances(codes.astype(np.int64), n_ids, _n_slots(n_ids)))


def locality_of(ids: npt.ArrayLike, max_distance: int | None = None) -> Locality:
    """Profile of a trace; accesses deeper than `max_distance` count as first ones.

    Raises ValueError if it is empty.
    """
    ids = np.asarray(ids)
    if not len(ids):
        raise ValueError("the trace is empty")
    distances = stack_distances(ids)
    if max_distance is not None:
        distances[distances > max_distance] = 0
    counts = np.bincount(distances)
    distance = np.flatnonzero(counts)
    cumulative = np.cumsum(counts[distance]) / len(ids)
    return Locality(pd.unique(ids).astype(np.int64), distance, cumulative)


def generate(
    locality: Locality, n_rows: int, n: int, rng: np.random.Generator, *, padding: bool = False
) -> Int64Array:
    """n ids of a table of `n_rows` with the profile's distances, each drawn by its share.

    O(log n_rows) an id. New ids come in the profile's order, then from the table's other rows in a
    random one. A distance deeper than what was used so far changes places with the next new id, so
    that the distances drawn occur in another order; where no new id is to come (far fewer ids than
    were profiled), it becomes one, and a warning says how often. `padding`: it is drawn anew among
    those possible instead, as the release does. When no row is left, a new id is the one not used
    for longest. Raises ValueError if the profile has an id outside of the table.
    """
    if locality.largest_id >= n_rows:
        raise ValueError(f"id {locality.largest_id} is outside of its table of {n_rows} rows")
    drawn = rng.random(n) * locality.cumulative[-1]
    distances = locality.distance[np.searchsorted(locality.cumulative, drawn)]
    n_new = min(n, n_rows)
    fresh = locality.first_ids[:n_new]
    few = (distances == 0).sum() >= len(fresh) or distances.max(initial=0) > len(fresh)
    if len(fresh) < n_new and (padding or few):
        unused = np.ones(n_rows, dtype=bool)
        unused[fresh] = False
        others = rng.permutation(np.flatnonzero(unused))
        fresh = np.concatenate((fresh, others[: n_new - len(fresh)]))
    possible = locality.cumulative if padding else np.empty(0)
    uniform = rng.random(n if padding else 0)
    n_slots = _n_slots(len(fresh))
    ids, n_shallow = _ids(distances, fresh, locality.distance, possible, uniform, n_slots)
    if n_shallow > NOTEWORTHY * n:
        log.warning(
            "%.1f %% of %d ids could not be as far apart as profiled: they are too few",
            100 * n_shallow / n,
            n,
        )
    return np.asarray(ids)


def read_locality(path: str | Path) -> Locality:
    """The release's file of three lines: ids by first use, distances, cumulative shares.

    Each with commas between. Raises ValueError naming the file and what is wrong.
    """
    if not Path(path).is_file():
        raise ValueError(f"{path}: no such file; expected a profile of stack distances")
    try:
        lines = Path(path).read_text().strip().splitlines()
        if len(lines) != 3:
            raise ValueError(
                f"{len(lines)} lines; expected 3: ids by first use, distances, cumulative shares"
            )
        ids, distance = (
            np.array([int(word) for word in line.split(",")], dtype=np.int64) for line in lines[:2]
        )
        return Locality(ids, distance, np.array([float(word) for word in lines[2].split(",")]))
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def write_locality(path: Path, locality: Locality, *, cumulative: bool = True) -> None:
    """Write what `read_locality` reads.

    Not `cumulative`: the third line has each distance's own share.
    """
    shares = locality.cumulative if cumulative else locality.share
    lines = (locality.first_ids, locality.distance, [f"{share:.12g}" for share in shares])
    path.write_text("".join(", ".join(map(str, line)) + "\n" for line in lines))


def _n_slots(n_ids: int) -> int:
    return max(_FEWEST_SLOTS, 1 << (2 * n_ids - 1).bit_length())


# The list by last use: slots in the order of use, and a Fenwick tree of how many are taken, so that
# both an id's place and the id at a place take O(log slots). Slots are a power of two, at least
# twice the ids; when the last is taken, those in use move to the front.


@_compiled
def _add(tree, slot, change):
    i = slot + 1
    while i < len(tree):
        tree[i] += change
        i += i & -i


@_compiled
def _taken_until(tree, slot):
    i = slot + 1
    total = 0
    while i > 0:
        total += tree[i]
        i -= i & -i
    return total


@_compiled
def _slot_of_rank(tree, rank):
    """The slot with the rank-th oldest id, counted from 1."""
    position = 0
    step = len(tree) - 1
    while step > 0:
        if position + step < len(tree) and tree[position + step] < rank:
            position += step
            rank -= tree[position]
        step >>= 1
    return position


@_compiled
def _to_the_front(tree, owner):
    """Move the ids to the first slots, in order; how many they are."""
    n = 0
    for slot in range(len(owner)):
        if owner[slot] >= 0:
            owner[n] = owner[slot]
            n += 1
    owner[n:] = -1
    tree[:] = 0
    for i in range(1, len(tree)):
        tree[i] += i <= n
        above = i + (i & -i)
        if above < len(tree):
            tree[above] += tree[i]
    return n


@_compiled
def _distances(codes, n_ids, n_slots):
    tree = np.zeros(n_slots + 1, np.int32)
    owner = np.full(n_slots, -1, np.int64)
    slot_of = np.full(n_ids, -1, np.int64)
    distances = np.empty(len(codes), np.int64)
    end = live = 0
    for t in range(len(codes)):
        code = codes[t]
        slot = slot_of[code]
        if slot >= 0:
            distances[t] = live - _taken_until(tree, slot) + 1
            _add(tree, slot, -1)
            owner[slot] = -1
        else:
            distances[t] = 0
            live += 1
        if end == n_slots:
            end = _to_the_front(tree, owner)
            for i in range(end):
                slot_of[owner[i]] = i
        slot_of[code] = end
        owner[end] = code
        _add(tree, end, 1)
        end += 1
    return distances


@_compiled
def _possible(values, cumulative, live, u):
    """A distance of at most `live`, drawn by its share among those; 0 if there is none."""
    n = np.searchsorted(values, live, side="right")
    return 0 if n == 0 else values[np.searchsorted(cumulative[:n], u * cumulative[n - 1])]


@_compiled
def _change_places(distances, t, later):
    """Move the distance of access t to the next access that wants a new id.

    Gives the place of that access; it is the number of accesses if there is none.
    """
    later = max(later, t + 1)
    while later < len(distances) and distances[later] != 0:
        later += 1
    if later < len(distances):
        distances[later] = distances[t]
    return later


@_compiled
def _ids(distances, fresh, values, cumulative, uniform, n_slots):
    tree = np.zeros(n_slots + 1, np.int32)
    owner = np.full(n_slots, -1, np.int64)
    ids = np.empty(len(distances), np.int64)
    end = live = later = n_shallow = 0
    for t in range(len(distances)):
        distance = distances[t]
        if distance > live and len(cumulative) > 0:
            distance = _possible(values, cumulative, live, uniform[t])
        elif distance > live:
            later = _change_places(distances, t, later)
            n_shallow += later == len(distances)
            distance = 0
        if distance == 0 and live == len(fresh):
            distance = live
        if end == n_slots:
            end = _to_the_front(tree, owner)
        if distance == 0:
            ids[t] = fresh[live]
            live += 1
        else:
            slot = _slot_of_rank(tree, live - distance + 1)
            ids[t] = owner[slot]
            _add(tree, slot, -1)
            owner[slot] = -1
        owner[end] = ids[t]
        _add(tree, end, 1)
        end += 1
    return ids, n_shallow
