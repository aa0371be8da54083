"""Sub-arrays and the cache's split: utilisation by size, access time by bytes, the study."""

import numpy as np
import pandas as pd
import pytest
from helpers import run_script

from accelerator.rpaccel import RANKERS
from experiments.recpipe import arrays
from experiments.recpipe.chip import CHIP_NAMES
from models.inputs.stack_distance import Locality


def test_small_arrays_are_used_better_and_none_more_than_whole():
    for name in CHIP_NAMES.values():
        used = [arrays.utilisation(RANKERS[name], side, 4096)[1] for side in arrays.SIDES]
        assert used == sorted(used)
        assert used[0] > 0
        assert used[-1] <= 1
    more, fewer = (arrays.utilisation(RANKERS["rm-large"], 32, n)[1] for n in (4096, 64))
    assert more > fewer  # filling and draining is spread over more items


def test_the_access_time_weighs_both_caches_by_their_bytes():
    uniform = Locality(np.arange(1000), np.array([1, 1000, 100_000]), np.array([0.2, 0.6, 1.0]))
    whole = arrays.amat_cycles([0.0, 1.0], 1000 * 128 / 1e6, 1 / 8, uniform)
    # Half of the bytes each, 0.6 of its accesses hit.
    assert whole == pytest.approx([0.3 + 0.7 * 100] * 2)
    packed = arrays.amat_cycles([1.0], 1000 * 16 / 1e6, 1 / 8, uniform, arrays.ROW_BYTES)
    assert packed == pytest.approx([0.3 + 0.7 * 100])


def test_the_array_study_runs(tmp_path):
    done = run_script("experiments/recpipe/arrays.py", "--out", str(tmp_path), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = pd.read_csv(tmp_path / "cache_split.csv")
    error = (rows["ours"] / rows["amat_cycles"] - 1).abs()
    assert error.median() < 0.1
    assert (rows["packed"] <= rows["ours"] + 1e-9).all()
    assert (tmp_path / "arrays.png").stat().st_size > 10_000
