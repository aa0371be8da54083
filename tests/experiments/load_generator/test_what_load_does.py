"""What the load does to p95 and to the best policy, in the quick setting."""

import pandas as pd
from helpers import run_script


def test_the_load_study_runs(tmp_path):
    words = ["experiments/load_generator/what_load_does.py", "--quick", "--out", str(tmp_path)]
    done = run_script(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = pd.read_csv(tmp_path / "what_load_does.csv").set_index(["sizes", "arrivals"])
    (bursty,) = [name for name in rows.index.levels[1] if name.startswith("bursty")]
    for law in ("fixed", "normal", "lognormal", "production"):
        assert rows.loc[(law, bursty), "p95_ms"] > rows.loc[(law, "Poisson"), "p95_ms"]
        assert rows.loc[(law, bursty), "best_qps"] < rows.loc[(law, "Poisson"), "best_qps"]
    assert (tmp_path / "what_load_does.png").stat().st_size > 10_000
