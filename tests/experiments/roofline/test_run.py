"""Roofline: costs against PyTorch's counter, the arithmetic, and a run on small tables."""

import pandas as pd
import pytest

from accelerator.devices import model_configs
from experiments.common.released import net_of
from experiments.roofline import run as roofline
from models.costs import costs


@pytest.mark.parametrize("name", sorted(model_configs()))
def test_the_table_of_models_agrees_with_pytorch_s_flop_counter(name):
    assert roofline.check_flops(name) == 1


def test_a_model_whose_costs_differ_from_the_count_is_complained_about():
    rates = pd.DataFrame({"model": ["rm1", "wnd"], "counted": [1.0, 1 + 1e-9]})
    (complaint,) = roofline.complaints(rates)
    assert complaint.endswith("wnd")


def test_a_model_is_dominated_by_what_takes_its_least_time():
    ceilings = roofline.Ceilings(flops=1e11, stream=2e10, rows=1e10)
    dominant = {}
    for name in model_configs():
        share = roofline.dominated_by(costs(net_of(name, 0.001), 1024), ceilings)
        assert sum(share.values()) == pytest.approx(1)
        dominant[name] = max(share, key=share.get)
    assert dominant["rm1"] == dominant["rm2"] == "embedding"
    assert dominant["wnd"] == dominant["rm3"] == "MLP"
    assert dominant["dien"] == "recurrence"


def test_intensity_is_flops_over_bytes():
    model = net_of("wnd", 0.001)
    cost = costs(model, 64)
    line = roofline.row("x", "measured", model, 64, ms=2.0)
    assert line.gflops * 2e6 == pytest.approx(cost.flops)
    assert line.flops_per_byte * line.gb_per_s == pytest.approx(line.gflops)


def test_the_ceilings_are_the_best_rates_and_rows_are_those_of_large_tables():
    rates = {"gflops": [3, 5, 4], "stream_gb_s": [7, 7, 7], "rows_gb_s": [9, 2, 1]}
    rates = pd.DataFrame({"table_gib": [0.1, 3.8, 2.4], **rates})
    (line,) = roofline.best(rates).to_dict("records")
    assert line == {"gflops": 5, "stream_gb_s": 7, "rows_gb_s": 2}
    assert roofline.best(rates[:1])["rows_gb_s"].item() == 9


def test_the_roofline_study_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(roofline, "SECONDS", 0.0)
    monkeypatch.setattr(roofline, "STREAM_BYTES", 1 << 20)
    roofline.stream_bytes_per_s.cache_clear()
    words = "--quick --models ncf,wnd --table_scale 0.001 --out"
    assert roofline.STUDY.command([*words.split(), str(tmp_path)]) == 0
    rows = pd.read_csv(tmp_path / "roofline.csv")
    assert set(rows["device"]) > {"this core", "nvidia_h200", "intel_skylake"}
    assert (rows["gflops"] > 0).all()
    assert (pd.read_csv(tmp_path / "models.csv")["costs/counted FLOPs"] == 1).all()
    assert (tmp_path / "roofline.png").stat().st_size > 10_000
