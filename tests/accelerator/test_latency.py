"""Device profiles: interpolation, extrapolation, files, the released two scripts, pacing."""

import itertools
import logging
import math
from typing import ClassVar

import pytest
from helpers import MS, ROOT, run_script

from accelerator.devices import (
    BATCHES,
    derived_profile,
    latency_profile,
    load_device,
    profile_key,
    published_speedups,
    undisturbed,
)
from accelerator.latency import (
    Profile,
    ProfiledDevice,
    read_profile,
    service_times_ns,
    write_profile,
)
from accelInferenceEngine import ModelledEngine
from infra.clock import monotonic_ns
from infra.messages import WireTask
from infra.settings.config import ConfigError, ModelConfig

PROFILE = Profile({1: 0.5, 4: 0.8, 16: 1.0, 64: 2.0, 256: 8.0, 1024: 32.0}, {"source": "made up"})
WND = ModelConfig(model_type="wnd", model_name="wnd", arch_mlp_bot="4")


def test_a_profile_is_exact_at_its_sizes_and_rises_between():
    for n, ms in PROFILE.batch_ms.items():
        assert PROFILE.ms(n) == pytest.approx(ms)
    times = [PROFILE.ms(n) for n in range(1, 2000)]
    assert all(b > a for a, b in itertools.pairwise(times))


def test_where_time_is_proportional_to_the_batch_interpolation_is_exact():
    assert PROFILE.ms(512) == pytest.approx(16.0)
    assert PROFILE.ms(128) == pytest.approx(4.0)


def test_beyond_the_last_size_the_last_cost_per_item_is_used_and_said_once(caplog):
    assert PROFILE.ms(2048) == pytest.approx(32.0 + 1024 * (32.0 - 8.0) / 768)
    device = ProfiledDevice("a device", {"wnd": PROFILE})
    with caplog.at_level(logging.WARNING):
        assert device.latency_ns("wnd", 1024, 0) == 32 * MS
        assert not caplog.records
        device.latency_ns("wnd", 2048, 0)
        device.latency_ns("wnd", 4096, 0)
    assert len(caplog.records) == 1
    assert "1024 items" in caplog.text


def test_one_measured_size_is_a_cost_per_item():
    assert Profile({10: 5.0}).ms(20) == pytest.approx(10.0)


def test_between_numbers_of_neighbours_time_is_linear_and_beyond_the_last_flat():
    profile = Profile(
        {1: 1.0, 4: 2.0}, busy_ms={1: {1: 2.0, 4: 6.0}, 4: {1: 8.0, 4: 12.0, 8: 20.0}}
    )
    times_ms = service_times_ns(profile, 5) / MS
    alone = [1, math.sqrt(2), math.sqrt(3), 2, 2 + 1 / 3]
    assert times_ms[0, 1:] == pytest.approx(alone, rel=1e-5)
    assert times_ms[:, 1] == pytest.approx([1, 2, 4, 6, 8])
    assert times_ms[:, 4] == pytest.approx([2, 6, 8, 10, 12])
    assert [profile.ms(4, k) for k in (0, 1, 3, 4, 9)] == pytest.approx([2, 6, 10, 12, 12])


@pytest.mark.parametrize("bad", [{}, {0: 1.0}, {1: 0.0}, {1: float("nan")}])
def test_a_profile_that_makes_no_sense_is_refused(bad):
    with pytest.raises(ValueError, match="profile"):
        Profile(bad)


def test_there_is_no_latency_for_no_items():
    with pytest.raises(ValueError, match="at least 1"):
        PROFILE.ms(0)


def test_a_profile_survives_its_file(tmp_path):
    write_profile(tmp_path / "x/wnd.csv", PROFILE)
    assert read_profile(tmp_path / "x/wnd.csv") == PROFILE
    (tmp_path / "bad.csv").write_text("batch,time\n1,2\n")
    with pytest.raises(ValueError, match=r"bad\.csv.*batch,ms"):
        read_profile(tmp_path / "bad.csv")


def test_the_gtx_1080_ti_is_this_machines_time_over_the_published_speedup():
    device = load_device(ROOT / "accelerator", "nvidia_gtx_1080_ti")
    derived = derived_profile(device, "wnd", PROFILE)
    assert derived.batch_ms[256] == pytest.approx(8.0 / 3.2857)
    assert derived.batch_ms[1] == pytest.approx(0.5 / 0.4724)
    assert derived.provenance["baseline source"] == "made up"


def test_every_model_has_a_published_speedup_at_every_batch():
    device = load_device(ROOT / "accelerator", "nvidia_gtx_1080_ti")
    for model in ("rm1", "rm2", "rm3", "ncf", "wnd", "mtwnd", "din", "dien"):
        assert tuple(published_speedups(device, model)) == BATCHES
    with pytest.raises(ConfigError, match="eight models"):
        published_speedups(device, "bert")


def test_an_unknown_device_is_refused_with_those_there_are():
    with pytest.raises(ConfigError, match=r"accel_device is 'tpu'.*nvidia_gtx_1080_ti"):
        load_device(ROOT / "accelerator", "tpu")


@pytest.fixture
def tree(tmp_path):
    """A copy of the device folders to write into."""
    for name in ("cpu_core", "nvidia_gtx_1080_ti"):
        (tmp_path / name).mkdir()
        for file in (ROOT / "accelerator" / name).glob("*.*"):
            if file.is_file():
                (tmp_path / name / file.name).write_text(file.read_text())
    return tmp_path


def test_the_cpu_is_measured_once_for_a_net_and_again_for_another(tree):
    device = load_device(tree, "nvidia_gtx_1080_ti")
    calls = []

    def measure():
        calls.append(1)
        return PROFILE

    first = latency_profile(device, WND, 1024, measure)
    second = latency_profile(device, WND, 1024, measure)
    assert second.batch_ms == pytest.approx(first.batch_ms, rel=1e-4)
    assert len(calls) == 1
    wider = ModelConfig(model_type="wnd", model_name="wnd", arch_mlp_bot="8")
    latency_profile(device, wider, 1024, measure)
    assert len(calls) == 2
    assert profile_key(WND, 1024) != profile_key(wider, 1024)
    latency_profile(device, wider, 1024, measure, renew=True)
    assert len(calls) == 3


class FakeUse:
    """What others used of the cores during one measurement after the other."""

    shares: ClassVar[list[float]] = []

    def share(self):
        return self.shares.pop(0)


@pytest.mark.parametrize(
    ("shares", "n_measured", "is_kept"),
    [([0.01], 1, True), ([0.5, 0.3, 0.05], 3, True), ([0.5, 0.3, 0.2], 3, False)],
)
def test_a_disturbed_profile_is_measured_again_and_never_kept(
    tree, monkeypatch, shares, n_measured, is_kept
):
    monkeypatch.setattr("accelerator.devices.ForeignUse", FakeUse)
    monkeypatch.setattr(FakeUse, "shares", [*shares])
    calls = []

    def measure():
        calls.append(1)
        return PROFILE

    device = load_device(tree, "cpu_core")
    profile = latency_profile(device, WND, 1024, lambda: undisturbed(measure))
    assert len(calls) == n_measured
    assert device.characterization(WND).is_file() == is_kept
    assert profile.batch_ms == PROFILE.batch_ms
    if not is_kept:
        assert "other programs used 20% of the cores" in profile.provenance["warning"]
        card = derived_profile(load_device(tree, "nvidia_gtx_1080_ti"), "wnd", profile)
        assert card.provenance["warning"] == profile.provenance["warning"]
    latency_profile(device, WND, 1024, measure)
    assert len(calls) == n_measured + (not is_kept)


def test_without_a_measurement_there_is_no_profile(tree):
    with pytest.raises(ConfigError, match="no profile of this net"):
        latency_profile(load_device(tree, "cpu_core"), WND)


@pytest.mark.alone
def test_a_modelled_engine_takes_as_long_as_the_device():
    device = ProfiledDevice("a device", {"wnd": Profile({1: 1.0, 64: 3.0})})
    engine = ModelledEngine(device, "wnd")
    errors = []
    for n_items in (1, 64) * 20:
        start = monotonic_ns()
        engine.score(WireTask(1, 0, 0, 0, n_items))
        errors.append((monotonic_ns() - start) / MS - (1.0 if n_items == 1 else 3.0))
    assert min(errors) >= 0
    assert sorted(errors)[len(errors) // 2] < 0.2  # the median: a busy machine may preempt one


def run_tool(tree, line):
    """A program of accelerator/ with the device folders of `tree`."""
    script, *words = line.split()
    return run_script(f"accelerator/{script}", "--accel_root_dir", str(tree), *words, cwd=tree)


def predict(tree, device, model):
    return run_tool(tree, f"predict_execution.py --device {device} --model {model} --batch 64")


def test_generate_data_and_predict_execution_work_for_this_machines_core(tree):
    line = "cpu_core/generate_data.py --models ncf,wnd --table_scale 0.001 --nepochs 2"
    done = run_tool(tree, line)
    assert done.returncode == 0, done.stderr
    lines = (tree / "cpu_core/raw_data/results_ncf.txt").read_text().splitlines()
    assert len(lines) == len(BATCHES)
    assert all(len([float(word) for word in line.split()]) == 6 for line in lines)
    done = predict(tree, "cpu_core", "ncf")
    assert done.returncode == 0, done.stderr
    profile = read_profile(tree / "cpu_core/characterization_data/ncf.csv")
    total_ms = [float(line.split()[5]) for line in lines]
    assert list(profile.batch_ms.values()) == pytest.approx(total_ms, rel=1e-4)
    assert f"{profile.ms(64):.4g} ms" in done.stdout
    done = predict(tree, "nvidia_gtx_1080_ti", "ncf")
    assert done.returncode == 0, done.stderr
    assert f"{profile.ms(64) / 0.9506:.4g} ms" in done.stdout


def test_a_device_that_is_not_here_is_one_clear_line(tmp_path):
    done = run_script("accelerator/nvidia_gtx_1080_ti/generate_data.py", cwd=tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "GTX 1080 Ti" in done.stderr


def test_a_prediction_without_data_says_what_to_run(tree):
    done = predict(tree, "cpu_core", "rm1")
    assert done.returncode == 2
    assert "generate_data.py" in done.stderr
