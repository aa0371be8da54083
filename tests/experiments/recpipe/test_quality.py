"""The quality study: rows say what they should, bad input is one line."""

import numpy as np
import pandas as pd
from helpers import run_script

STUDY = "experiments/recpipe/quality.py"


def test_the_quality_study_runs(tmp_path):
    rng = np.random.default_rng(1)
    user = np.repeat(np.arange(20), 12)
    item = np.concatenate([rng.permutation(15)[:12] + 15 * (u % 2) for u in range(20)])
    times = rng.random(len(user))
    lines = [f"{u}\t{i}\t5\t{t}" for u, i, t in zip(user, item, times, strict=True)]
    (tmp_path / "u.data").write_text("\n".join(lines))
    words = f"--quick --data movielens --movielens {tmp_path} --cache {tmp_path} --out {tmp_path}"
    done = run_script(STUDY, *words.split(), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = pd.read_csv(tmp_path / "chain_quality_movielens.csv").set_index("chain")
    assert rows.loc["large", "less_than_large"] == 0
    assert (rows["ndcg"] <= rows["hit_rate"] + 1e-9).all()
    assert (rows["mrr"] <= rows["ndcg"] + 1e-9).all()
    assert rows.loc["small 400 > large", "ndcg"] == rows.loc["large", "ndcg"]  # keeps all 30 items
    assert (tmp_path / "quality_movielens.png").stat().st_size > 10_000


def test_the_study_says_what_it_misses(tmp_path):
    done = run_script(STUDY, *f"--data criteo --out {tmp_path}".split(), cwd=tmp_path)
    assert done.returncode == 2
    assert "--criteo FILE" in done.stderr
