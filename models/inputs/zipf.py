"""Ids of which a few are asked for often: Zipf's law over the rows of a table."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from models.embedding.offsets import Int64Array

FloatArray = npt.NDArray[np.float64]


def draw_ranks(n_rows: int, alpha: float, n: int, rng: np.random.Generator) -> Int64Array:
    """n ranks 1..n_rows, independent, rank k as likely as k^-alpha; alpha 0 is uniform.

    Rejection-inversion (Hoermann and Derflinger, ACM TOMACS 6, 1996): the area under x^-alpha is
    inverted, and of the candidates some are thrown away; no table of n_rows probabilities. Raises
    ValueError for alpha < 0 or no rows.
    """
    if n_rows < 1 or not (alpha >= 0 and math.isfinite(alpha)):
        raise ValueError(
            f"Zipf's law needs rows and alpha of at least 0; got {n_rows} rows, alpha {alpha:g}"
        )
    if alpha == 0:
        return rng.integers(1, n_rows + 1, n)
    first, last = _area(np.array([1.5, n_rows + 0.5]), alpha) - np.array([1.0, 0.0])
    at_once = 2 - float(_inverse_area(_area(np.array([2.5]), alpha) - 2.0**-alpha, alpha)[0])
    parts: list[Int64Array] = []
    missing = n
    while missing > 0:
        area = last + rng.random(missing + missing // 8 + 16) * (first - last)
        x = _inverse_area(area, alpha)
        rank = np.clip(np.floor(x + 0.5), 1, n_rows)
        is_kept = (rank - x <= at_once) | (area >= _area(rank + 0.5, alpha) - rank**-alpha)
        parts.append(rank[is_kept][:missing].astype(np.int64))
        missing -= len(parts[-1])
    return np.concatenate(parts) if parts else np.empty(0, np.int64)


def draw_rows(n_rows: int, alpha: float, n: int, rng: np.random.Generator) -> Int64Array:
    """n rows 0..n_rows - 1 by Zipf's law; which row has which rank is drawn too.

    So the popular ones are spread. Ranks become rows by an affine map of the residues modulo n_rows
    (one factor without a common divisor, one shift).
    """
    factor = int(rng.integers(n_rows // 3, n_rows + 1)) | 1
    while math.gcd(factor, n_rows) > 1:
        factor += 2
    shift = int(rng.integers(n_rows))
    return (draw_ranks(n_rows, alpha, n, rng) * (factor % n_rows) + shift) % n_rows


def _area(x: FloatArray, alpha: float) -> FloatArray:
    """Integral of t^-alpha from 1 to x, also at alpha = 1."""
    log_x = np.log(x)
    scaled = (1 - alpha) * log_x
    area: FloatArray = np.where(
        np.abs(scaled) > 1e-8, np.expm1(scaled) / (1 - alpha or 1.0), log_x * (1 + scaled / 2)
    )
    return area


def _inverse_area(area: FloatArray, alpha: float) -> FloatArray:
    scaled = np.maximum((1 - alpha) * area, -1.0)
    with np.errstate(divide="ignore"):
        logs = np.where(
            np.abs(scaled) > 1e-8, np.log1p(scaled) / (1 - alpha or 1.0), area * (1 - scaled / 2)
        )
    x: FloatArray = np.exp(logs)
    return x
