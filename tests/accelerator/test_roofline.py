"""Rooflines: the formula by hand, every folder, what is missing or wrong."""

import shutil
from dataclasses import replace

import pytest
import yaml
from helpers import ROOT, run_script

from accelerator.devices import latency_profile, load_device, model_configs
from accelerator.roofline import Roofline, roofline_profile
from infra.settings.cli import parse
from infra.settings.config import ConfigError
from models.costs import costs

FOLDERS = sorted(path.parent.name for path in (ROOT / "accelerator").glob("*/device.yaml"))
UNIT = Roofline(
    peak_fp32_gflops=1.0,
    mem_gb_s=1.0,
    launch_us=0.0,
    link_us=0.0,
    gemm_efficiency=1.0,
    gather_efficiency=1.0,
    memory_gib=1.0,
    link_gb_s=None,
)
ROOFLINES = [n for n in FOLDERS if load_device(ROOT / "accelerator", n).kind == "roofline"]


def model(name, *words):
    return parse(["--config_file", str(model_configs()[name]), "--num_batches", "1", *words]).model


def test_each_part_of_the_formula_is_what_it_says():
    cost = costs(model("wnd"), 64)
    product_bytes = sum(gemm.weight_bytes + gemm.activation_bytes(64) for gemm in cost.gemms)
    memory_bytes = product_bytes + cost.gather_bytes + cost.pooled_bytes
    link_bytes = cost.input_bytes + cost.output_bytes
    fast = {"peak_fp32_gflops": 1e12, "mem_gb_s": 1e12}

    def ms(**changes):
        return replace(UNIT, **changes).ms(cost)

    assert ms(peak_fp32_gflops=1e12) == pytest.approx(memory_bytes / 1e6)
    assert ms(mem_gb_s=1e12) == pytest.approx(cost.flops / 1e6)
    assert ms(mem_gb_s=1e12, gemm_efficiency=0.5) == pytest.approx(2 * cost.flops / 1e6)
    assert ms(**fast, launch_us=10) == pytest.approx(cost.n_launches * 0.01, rel=1e-3)
    assert ms(**fast, link_us=500) == pytest.approx(0.5, rel=1e-3)
    assert ms(**fast, link_gb_s=1.0) == pytest.approx(link_bytes / 1e6, rel=1e-3)


@pytest.mark.parametrize("name", FOLDERS)
def test_every_folder_is_a_device_with_its_source_and_a_generator(name):
    device = load_device(ROOT / "accelerator", name)
    assert device.settings["source"]
    assert (device.folder / "generate_data.py").is_file()
    assert device.tdp_w is None or device.tdp_w > 0


@pytest.mark.parametrize("name", ROOFLINES)
@pytest.mark.parametrize("net", sorted(model_configs()))
def test_a_rooflines_time_rises_with_the_batch_and_an_item_gets_cheaper(name, net):
    profile = latency_profile(load_device(ROOT / "accelerator", name), model(net))
    sizes = sorted(profile.batch_ms)
    times = [profile.batch_ms[n] for n in sizes]
    assert sizes[-1] == 4096
    assert times == sorted(times)
    per_item = [ms / n for n, ms in zip(sizes, times, strict=True)]
    assert per_item == sorted(per_item, reverse=True)
    assert "roofline" in profile.provenance["source"]


def test_a_small_batch_on_a_gpu_is_launches_and_a_newer_gpu_is_faster_at_a_large_one():
    by_age = ("t4", "v100", "a100", "h100", "h200")
    gpus = [load_device(ROOT / "accelerator", f"nvidia_{name}") for name in by_age]
    config = model("rm2")
    for gpu in gpus:
        launches_ms = costs(config, 1).n_launches * gpu.settings["launch_us"] / 1e3
        assert launches_ms > 0.5 * latency_profile(gpu, config).ms(1)
    times = [latency_profile(gpu, config).ms(4096) for gpu in gpus]
    assert times == sorted(times, reverse=True)


def test_tables_that_do_not_fit_are_said():
    too_large = roofline_profile(UNIT, "small", model("rm1"), "made up").provenance
    fits = roofline_profile(UNIT, "small", model("ncf"), "made up").provenance
    assert "do not fit" in too_large["warning"]
    assert "warning" not in fits


def test_a_measurement_in_the_folder_is_preferred(tmp_path):
    shutil.copytree(ROOT / "accelerator/nvidia_t4", tmp_path / "nvidia_t4")
    device = load_device(tmp_path, "nvidia_t4")
    config = model("wnd")
    path = device.characterization(config)
    path.parent.mkdir(exist_ok=True)
    path.write_text("# source: measured\nbatch,ms\n1,7\n1024,9\n")
    assert latency_profile(device, config).ms(1) == pytest.approx(7)


def test_measurements_from_elsewhere_are_used_as_they_are():
    device = load_device(ROOT / "accelerator", "amd_epyc_zen4")
    for net in model_configs():
        profile = latency_profile(device, model(net))
        assert max(profile.batch_ms) == 4096
        assert set(profile.busy_ms) == {1}
        assert profile.provenance["cpu"]
    with pytest.raises(ConfigError, match="no profile"):
        latency_profile(device, model("wnd", "--table_scale", "0.5"))


WRONG = [
    ({"mem_gb_s": None}, "mem_gb_s is None; expected a number"),
    ({"mem_gb_s": float("nan")}, "mem_gb_s is nan; expected a number"),
    ({"launch_us": float("inf")}, "launch_us is inf; expected a number"),
    ({"mem_gb_s": -1}, "mem_gb_s is -1; expected more than 0"),
    ({"gemm_efficiency": 1.5}, "at most 1"),
    ({"launch_us": "fast"}, "launch_us is 'fast'; expected a number"),
    ({"tdp_w": -5}, "tdp_w is -5; expected watts"),
    ({"kind": "magic"}, "kind is 'magic'; expected measured, speedup, roofline"),
]


@pytest.mark.parametrize(("change", "expected"), WRONG)
def test_a_wrong_device_file_is_one_line_that_says_what_to_change(tmp_path, change, expected):
    settings = yaml.safe_load((ROOT / "accelerator/nvidia_t4/device.yaml").read_text())
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/device.yaml").write_text(yaml.safe_dump({**settings, **change}))
    with pytest.raises(ConfigError, match=expected):
        load_device(tmp_path, "mine")


def test_predictions_of_a_roofline_need_no_measurement(tmp_path):
    words = "accelerator/predict_execution.py --device nvidia_h200 --model".split()
    done = run_script(*words, "wnd", "--batch", "300", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "NVIDIA H200: wnd at batch 300" in done.stdout
    assert run_script(*words, "foo", cwd=tmp_path).returncode == 2


def test_the_profiler_measures_a_core_alone_and_beside_a_busy_neighbour(tmp_path):
    measured = shutil.ignore_patterns("char*", "raw*")
    shutil.copytree(ROOT / "accelerator/cpu_core", tmp_path / "cpu_core", ignore=measured)

    def profiler(line):
        words = f"--models ncf --table_scale 0.001 {line}".split()
        root = ("--accel_root_dir", str(tmp_path))
        return run_script("accelerator/profiler.py", *root, *words, cwd=tmp_path)

    done = profiler("--neighbours 1 --max_mini_batch_size 8")
    assert done.returncode == 0, done.stderr
    config = model("ncf", "--table_scale", "0.001")
    profile = latency_profile(load_device(tmp_path, "cpu_core"), config, 8)
    assert sorted(profile.batch_ms) == [1, 2, 4, 8]
    assert set(profile.busy_ms) == {1}
    for wrong in ("--models nix", "--neighbours 99", "--device nix"):
        done = profiler(wrong)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
