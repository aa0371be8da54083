"""How long a device takes for a task: measured profiles, interpolated."""

from __future__ import annotations

import csv
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from infra.clock import NS_PER_MS

log = logging.getLogger(__name__)


class LatencyModel(Protocol):
    """Time of one task on a device."""

    def latency_ns(self, model: str, n_items: int, n_busy: int) -> int:
        """ns for `n_items` of `model` while `n_busy` other engines of the device work."""


@dataclass(frozen=True)
class Profile:
    """Measured time by batch size for one model: {items: ms}, and where it comes from."""

    batch_ms: Mapping[int, float]
    provenance: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.batch_ms or any(n < 1 or not ms > 0 for n, ms in self.batch_ms.items()):
            raise ValueError("a profile needs batch sizes of at least 1 item and times above 0 ms")

    def ms(self, n_items: int) -> float:
        """Time at a batch size.

        Between two sizes the logarithm of the time is interpolated linearly in log2 of the batch (exact where time
        follows a power of the batch, so also where it is proportional to it). Beyond the largest size every further
        item costs what an item costs between the last two.
        """
        if n_items < 1:
            raise ValueError(f"a batch of {n_items} items has no latency; expected at least 1")
        sizes = sorted(self.batch_ms)
        last, before = sizes[-1], sizes[-2] if len(sizes) > 1 else 0
        if n_items > last:
            ms_per_item = (self.batch_ms[last] - self.batch_ms.get(before, 0.0)) / (last - before)
            return self.batch_ms[last] + (n_items - last) * max(ms_per_item, 0.0)
        logs = np.interp(math.log2(n_items), np.log2(sizes), [math.log(self.batch_ms[n]) for n in sizes])
        return math.exp(float(logs))


@dataclass
class ProfiledDevice:
    """A LatencyModel over one profile per model; the first task beyond a profile's largest batch is logged."""

    name: str
    profiles: Mapping[str, Profile]
    _beyond_said: bool = False

    def latency_ns(self, model: str, n_items: int, n_busy: int) -> int:
        """Time from the profile; the busy neighbours of an accelerator do not slow it down."""
        del n_busy
        profile = self.profiles[model]
        if not self._beyond_said and n_items > max(profile.batch_ms):
            self._beyond_said = True
            log.warning(
                "%s was profiled for %s up to %d items; beyond, the last two sizes' cost per item is used",
                self.name, model, max(profile.batch_ms),
            )  # fmt: skip
        return round(profile.ms(n_items) * NS_PER_MS)


def read_profile(path: Path) -> Profile:
    """A characterization file: `# key: value` lines of provenance, then batch,ms rows; raises ValueError."""
    text = path.read_text().splitlines()
    provenance = dict(line[1:].strip().split(": ", 1) for line in text if line.startswith("#") and ": " in line)
    rows = csv.DictReader(line for line in text if line.strip() and not line.startswith("#"))
    try:
        return Profile({int(row["batch"]): float(row["ms"]) for row in rows}, provenance)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}; expected rows of batch,ms") from error


def write_profile(path: Path, profile: Profile) -> None:
    """The inverse of `read_profile`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"# {key}: {value}" for key, value in profile.provenance.items()]
    lines += ["batch,ms", *(f"{n},{profile.batch_ms[n]:.6g}" for n in sorted(profile.batch_ms))]
    path.write_text("\n".join(lines) + "\n")
