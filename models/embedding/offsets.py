"""Where things begin that lie one behind the other."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Int64Array = npt.NDArray[np.int64]


def starts_of(lengths: npt.ArrayLike) -> Int64Array:
    """(n + 1,): where each of n things of these lengths begins; the last number is their end."""
    return np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
