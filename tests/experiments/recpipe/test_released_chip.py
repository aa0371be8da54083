"""The released chip's study: published service times, corrections one by one."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from drawn_rankers import drawn_misses
from helpers import run_script

from accelerator.rpaccel import Corrections
from experiments.recpipe import released_chip
from experiments.recpipe.chip import ChipDesign, TimedDesign
from experiments.recpipe.datasets.published import published


def test_every_published_service_time_is_the_model_s():
    table = released_chip.compare_services(published("accelerator"))
    assert len(table) == 647
    error = (table["computed_ms"] - table["service_ms"]).abs()
    assert error.max() < 1e-5  # published with six digits


def test_corrections_alone_and_together_begin_at_the_released_time():
    alone = ChipDesign(("rm-large",), (400,), (1,), (1,))
    misses = drawn_misses()
    rows = pd.DataFrame(released_chip.corrections_of({"alone": alone}, misses))
    table = rows.set_index("correction")
    assert table.loc["units", "alone_ms"] == table.loc["units", "together_ms"]
    last = replace(alone, n_sub_batches=released_chip.N_SUB_BATCHES)
    expected = TimedDesign.of(last, Corrections.all(), misses).idle_ms()
    assert table["together_ms"].iloc[-1] == pytest.approx(expected)
    whole = ChipDesign(("rm-large",), (4096,), (1,), (1,))
    assert sum(whole.stage_ms(Corrections(), [0.5])) == pytest.approx(2.0907438257427215, rel=1e-12)


def test_the_study_of_the_released_chip_runs(tmp_path):
    flags = f"--queries 2000 --quick --cache {tmp_path} --out {tmp_path}"
    words = f"experiments/recpipe/released_chip.py {flags}".split()
    done = run_script(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    best = pd.read_csv(tmp_path / "best.csv").set_index(["stages", "rate_qps"])
    assert best.loc[(2, 2000.0), "Poisson"] < 20
    assert np.isinf(best.loc[(1, 2000.0), "Poisson"])
    assert (tmp_path / "accelerator.png").stat().st_size > 10_000
