"""The study of speedups: crossovers, and speedups as published or by times."""

import math

import pandas as pd
import pytest

from accelerator.devices import ROOT, load_device
from accelerator.latency import Profile
from experiments.common.released import net_of
from experiments.speedup.sweep_rt import STUDY, crossover, speedups
from models.costs import costs


@pytest.mark.parametrize(
    ("speedup", "batch"),
    [
        ([2, 3, 4], 1),
        ([0.5, 2, 4], 2),
        ([0.25, 0.5, 2], 8),
        ([0.5, 0.7, 0.9], math.inf),
        ([2, 0.5, 2], 8),
    ],
)
def test_the_crossover_is_where_the_speedup_stays_above_one(speedup, batch):
    assert crossover([1, 4, 16], speedup) == pytest.approx(batch)


def test_speedups_are_published_or_ratios_of_times(tmp_path):
    assert STUDY.command(["--out", str(tmp_path)]) == 0
    rows = pd.read_csv(tmp_path / "speedup.csv").set_index(["device", "model", "batch"])["speedup"]
    assert rows["nvidia_gtx_1080_ti", "wnd", 1024] == pytest.approx(4.615, rel=1e-3)
    t4 = load_device(ROOT, "nvidia_t4")
    model = net_of("rm2")
    over_3_ms = speedups(t4, model, Profile({1: 3.0, 4096: 3.0}))
    assert over_3_ms[64] == pytest.approx(3.0 / t4.roofline.ms(costs(model, 64)))
    assert (tmp_path / "speedup.png").stat().st_size > 10_000
    assert len(pd.read_csv(tmp_path / "crossover.csv")) == len([*ROOT.glob("nvidia_*")])
