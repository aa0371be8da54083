"""The points that RecPipe's release published, as the files in data/ hold them."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

FILES = Path(__file__).resolve().parents[1] / "data"
FLOOR = 0.9225  # of its own NDCG@64, which calls it equal quality
RELEASED_NAMES = {"dim_4_0": "small", "dim_16": "medium", "dim_32_0": "large"}
WORST_MS = 500.0  # what the release calls unachievable


def published(name: str) -> pd.DataFrame:
    """The rows of pipelines, accelerator or cache_split."""
    return pd.read_csv(FILES / f"published_{name}.csv", comment="#", dtype={"figure": str})


def equal_pipelines() -> pd.DataFrame:
    """The points of figures 7 and 8 that it calls equal in quality."""
    rows = published("pipelines")
    return rows[(rows["figure"] == "7/8") & (rows["dcg64"] >= FLOOR)].copy()
