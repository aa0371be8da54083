"""Hit rates by the ids' law and on data: fits, curves, and a run on a small folder."""

import numpy as np
import pandas as pd
import pytest

from experiments.locality import hit_rates
from models.inputs.zipf import draw_rows


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.4])
def test_the_zipf_fit_finds_the_exponent(alpha):
    ids = draw_rows(500, alpha, 200_000, np.random.default_rng(1))
    assert hit_rates.fitted_alpha(ids) == pytest.approx(alpha, abs=0.02)


def test_uniform_ids_hit_a_cache_as_often_as_it_has_rows():
    ids = np.random.default_rng(1).integers(0, 200, 100_000)
    error = 4 * np.sqrt(0.25 / 100_000) + 0.002  # 200 are first uses
    for point in hit_rates.curve("x", "y", ids).itertuples():
        assert point.hit_rate == pytest.approx(point.cache_rows / 200, abs=error)


def test_hit_rates_of_laws_and_of_a_folder_of_interactions(tmp_path):
    rng = np.random.default_rng(2)
    lines = [f"{u}\t{i}\t5\t{t}" for t, (u, i) in enumerate(rng.zipf(1.5, (3000, 2)) % 300)]
    (tmp_path / "u.data").write_text("\n".join(lines))
    words = ["--n", "20000", "--movielens", str(tmp_path), "--out", str(tmp_path)]
    assert hit_rates.STUDY.command(words) == 0
    rows = pd.read_csv(tmp_path / "hit_rates.csv")
    assert set(rows["part"]) == {"laws", "MovieLens users", "MovieLens items"}
    assert rows["hit_rate"].between(0, 1).all()
    fits = pd.read_csv(tmp_path / "fits.csv").set_index("trace")["largest error"]
    assert fits[[trace for trace in fits.index if "generated" in trace]].max() < 0.05
    assert (fits[[trace for trace in fits.index if "in order" in trace]] == 0).all()
