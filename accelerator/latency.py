"""How long a device takes for a task: measured profiles, interpolated."""

from __future__ import annotations

import csv
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from infra.arrays import FloatArray, Int64Array
from infra.clock import NS_PER_MS

PROFILED_BATCHES = tuple(2**i for i in range(13))  # 1 to 4096
SPREAD = 20  # factors
OVERHEADS = ("wake_us", "gap_us", "arrival_us")
_SPREAD_COLUMNS = [f"s{i}" for i in range(1, SPREAD + 1)]
log = logging.getLogger(__name__)


class LatencyModel(Protocol):
    """Time of one task on a device."""

    def latency_ns(self, model: str, n_items: int, n_busy: int) -> int:
        """Time of `n_items` of `model` in ns while `n_busy` other engines of the device work."""


@dataclass(frozen=True)
class Profile:
    """Time by batch size for a model: {items: ms}, and where it comes from.

    `busy_ms`: the same while 1, 2, ... neighbours work ({neighbours: {items: ms}}), where that was
    measured. `spread`: {items: the mean of each twentieth of the times over `ms`}, so equally
    likely factors with the right mean. `wake_us`, `gap_us`: what the harness adds before a task on
    an idle and on a busy engine, `arrival_us`: what each query that arrives while a task runs takes
    from it, as the driver runs on the engines' cores (accelerator.service).
    """

    batch_ms: Mapping[int, float]
    provenance: Mapping[str, str] = field(default_factory=dict)
    busy_ms: Mapping[int, Mapping[int, float]] = field(default_factory=dict)
    spread: Mapping[int, tuple[float, ...]] = field(default_factory=dict)
    wake_us: float = 0.0
    gap_us: float = 0.0
    arrival_us: float = 0.0

    def __post_init__(self) -> None:
        for times in (self.batch_ms, *self.busy_ms.values()):
            if not times or any(n < 1 or not ms > 0 for n, ms in times.items()):
                raise ValueError(
                    "a profile needs batch sizes of at least 1 item and times above 0 ms"
                )
        if any(n_busy < 1 for n_busy in self.busy_ms):
            raise ValueError("a profile's neighbours are counted from 1")
        if any(len(row) != SPREAD or not min(row) > 0 for row in self.spread.values()):
            raise ValueError(f"a profile's spread has {SPREAD} factors above 0 for each batch")
        if not all(getattr(self, name) >= 0 for name in OVERHEADS):
            raise ValueError(f"a profile's {', '.join(OVERHEADS)} are at least 0")

    def ms(self, n_items: int, n_busy: int = 0) -> float:
        """Time at a batch size while `n_busy` neighbours work.

        Between two numbers of neighbours it is linear, beyond the last flat. Between two sizes the
        logarithm of the time is interpolated linearly in log2 of the batch (exact where time
        follows a power of the batch, so also where it is proportional to it). Beyond the largest
        size each further item costs what an item costs between the last two.
        """
        if n_items < 1:
            raise ValueError(f"a batch of {n_items} items has no latency; expected at least 1")
        return float(self.times_ms(np.array([n_items]), n_busy)[0])

    def times_ms(self, n_items_N: Int64Array, n_busy: int) -> FloatArray:
        """The same for many sizes of at least 1 item."""
        levels = {0: self.batch_ms, **self.busy_ms}
        below = max(k for k in levels if k <= n_busy)
        above = min((k for k in levels if k >= n_busy), default=below)
        low_N = _interpolated_ms(levels[below], n_items_N)
        if above == below:
            return low_N
        high_N = _interpolated_ms(levels[above], n_items_N)
        return low_N + (n_busy - below) / (above - below) * (high_N - low_N)


def _interpolated_ms(batch_ms: Mapping[int, float], n_items_N: Int64Array) -> FloatArray:
    sizes = sorted(batch_ms)
    measured_ms = np.array([batch_ms[n] for n in sizes])
    last = sizes[-1]
    before = sizes[-2] if len(sizes) > 1 else 0
    ms_per_item = max((batch_ms[last] - batch_ms.get(before, 0.0)) / (last - before), 0.0)
    times_N: FloatArray = np.where(
        n_items_N > last,
        measured_ms[-1] + (n_items_N - last) * ms_per_item,
        np.exp(np.interp(np.log2(n_items_N), np.log2(sizes), np.log(measured_ms))),
    )
    return times_N


def spread_of(times: FloatArray, typical: float) -> tuple[float, ...]:
    """The mean of each twentieth of the sorted times, over the typical time."""
    ranks = np.linspace(0, 1, SPREAD * 50, endpoint=False) + 0.01 / SPREAD
    twentieths = np.quantile(times, ranks).reshape(SPREAD, -1).mean(axis=1)
    return tuple(float(x) for x in twentieths * (times.mean() / twentieths.mean()) / typical)


def service_times_ns(profile: Profile, max_items: int) -> Int64Array:
    """Time of a task, int64[busy neighbours, max_items + 1]; 0 items have no meaning."""
    levels = range(max(profile.busy_ms, default=0) + 1)
    n_items_N = np.arange(1, max_items + 1)
    times_KN = np.array([profile.times_ms(n_items_N, k) for k in levels])
    return np.pad(np.rint(times_KN * NS_PER_MS).astype(np.int64), ((0, 0), (1, 0)))


@dataclass
class ProfiledDevice:
    """A LatencyModel over a profile per model.

    The first task beyond a profile's largest batch is logged.
    """

    name: str
    profiles: Mapping[str, Profile]
    _has_warned: bool = False

    def latency_ns(self, model: str, n_items: int, n_busy: int) -> int:
        """Time from the profile."""
        profile = self.profiles[model]
        largest = max(profile.batch_ms)
        if n_items > largest and not self._has_warned:
            self._has_warned = True
            beyond = "beyond, the last two sizes' cost per item is used"
            log.warning(
                "%s was profiled for %s up to %d items; %s", self.name, model, largest, beyond
            )
        return round(profile.ms(n_items, n_busy) * NS_PER_MS)


def read_profile(path: Path) -> Profile:
    """The profile in a characterization file; raises ValueError.

    It has `# key: value` lines of provenance, then rows of batch,ms[,n_busy][,s1,...,s20]; the
    spread stands beside the times without neighbours.
    """
    text = path.read_text().splitlines()
    provenance = dict(
        line[1:].strip().split(": ", 1) for line in text if line.startswith("#") and ": " in line
    )
    rows = csv.DictReader(line for line in text if line.strip() and not line.startswith("#"))
    levels: dict[int, dict[int, float]] = {0: {}}
    spread: dict[int, tuple[float, ...]] = {}
    try:
        for row in rows:
            n_busy = int(row.get("n_busy") or 0)
            batch = int(row["batch"])
            levels.setdefault(n_busy, {})[batch] = float(row["ms"])
            if n_busy == 0 and row.get("s1"):
                spread[batch] = tuple(float(row[name]) for name in _SPREAD_COLUMNS)
        overhead = {name: float(provenance.pop(name, 0.0)) for name in OVERHEADS}
        return Profile(levels.pop(0), provenance, levels, spread, **overhead)
    except (KeyError, TypeError, ValueError) as error:
        expected = "expected rows of batch,ms or batch,ms,n_busy"
        raise ValueError(f"{path}: {error}; {expected}") from error


def write_profile(path: Path, profile: Profile) -> None:
    """The inverse of `read_profile`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    overheads = {name: getattr(profile, name) for name in OVERHEADS}
    lines = [f"# {key}: {value}" for key, value in profile.provenance.items()]
    lines += [f"# {name}: {us:.4g}" for name, us in overheads.items() if us]
    columns = ["batch", "ms"]
    if profile.busy_ms:
        columns.append("n_busy")
    if profile.spread:
        columns += _SPREAD_COLUMNS
    lines.append(",".join(columns))
    for n_busy, times in sorted({0: profile.batch_ms, **profile.busy_ms}.items()):
        for n in sorted(times):
            cells = {"batch": str(n), "ms": f"{times[n]:.6g}", "n_busy": str(n_busy)}
            if n_busy == 0 and n in profile.spread:
                factors = [f"{factor:.4g}" for factor in profile.spread[n]]
                cells.update(zip(_SPREAD_COLUMNS, factors, strict=True))
            lines.append(",".join(cells.get(name, "") for name in columns))
    path.write_text("\n".join(lines) + "\n")
