"""Power: counters by hand, what is stated, what is not known."""

import pytest

from backends.tuning.power import Power, ServerPower, check_power, rapl_watts, server_power
from infra.deployment import resolve
from infra.messages import ACCEL
from infra.settings.cli import parse
from infra.settings.config import ConfigError
from scheduler import Policy

TUNE = ["--queue", "--num_batches", "1", "--tune_batch_qps", "--objective", "qps_per_watt"]


def package(root, number, energy_uj):
    folder = root / f"intel-rapl:{number}"
    folder.mkdir(parents=True)
    (folder / "energy_uj").write_text(f"{energy_uj}\n")
    (folder / "max_energy_range_uj").write_text("1000000000\n")
    (root / f"intel-rapl:{number}:0").mkdir()  # a part of the package: not counted twice
    return folder


def test_energy_of_all_packages_over_the_time_even_where_a_counter_wraps(tmp_path, monkeypatch):
    first = package(tmp_path, 0, 5_000_000)
    second = package(tmp_path, 1, 999_000_000)
    times = iter([100.0, 110.0])
    monkeypatch.setattr("backends.tuning.power.time.monotonic", lambda: next(times))

    def work():
        (first / "energy_uj").write_text("205000000")  # 200 J
        (second / "energy_uj").write_text("99000000")  # 100 J, past the end of the range

    assert rapl_watts(work, tmp_path) == pytest.approx(30.0)


def test_where_no_counter_can_be_read_nothing_is_known_and_nothing_is_run(tmp_path):
    assert rapl_watts(lambda: pytest.fail("run for nothing"), tmp_path) is None


def test_an_accelerator_counts_where_a_policy_uses_it():
    power = ServerPower(Power(100, "stated"), Power(250, "TDP"))
    assert power.of(Policy(8)) == 100
    assert power.of(Policy(8, 64)) == 350
    assert "stated" in str(power)
    assert "TDP" in str(power)


def test_what_is_not_known_is_asked_for_before_anything_starts(monkeypatch):
    monkeypatch.setattr("backends.tuning.power.rapl_watts", lambda _: None)
    with pytest.raises(ConfigError, match="cpu_watts"):
        check_power(resolve(parse(TUNE)))
    check_power(resolve(parse([*TUNE, "--cpu_watts", "200"])))
    check_power(resolve(parse([*TUNE, "--objective", "qps"])))


def test_the_report_says_where_the_watts_come_from(monkeypatch):
    monkeypatch.setattr("backends.tuning.power.rapl_watts", lambda _: None)
    deployment = resolve(parse([*TUNE, "--cpu_watts", "200"]))
    power = server_power(deployment, None, {ACCEL: {"device": "NVIDIA T4", "tdp_w": 70}})
    assert power.of(Policy(8, 64)) == 270
    assert power.as_json()["cpu"]["source"] == "--cpu_watts"
    with pytest.raises(ConfigError, match="tdp_w"):
        server_power(deployment, None, {ACCEL: {"device": "x", "tdp_w": None}})
    assert server_power(resolve(parse([*TUNE, "--objective", "qps"])), None, {}) is None
