"""One seed per run, one independent stream per purpose: new sizes leave the arrivals alone."""

from __future__ import annotations

import zlib

import numpy as np


def stream(seed: int, *names: str | int) -> np.random.Generator:
    """Generator of the stream `names` (purpose first, then indices) of the run with this seed.

    Equal arguments give equal draws; different names give independent streams (NumPy SeedSequence).
    """
    numbers = [zlib.crc32(name.encode()) if isinstance(name, str) else name for name in names]
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence([seed, *numbers])))
