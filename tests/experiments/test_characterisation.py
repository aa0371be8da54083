"""The studies of operators, devices, neighbours and locality, on small tables, and their
arithmetic.
"""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import run_script

from accelerator.devices import accelerator_root, model_configs
from accelerator.latency import Profile
from experiments.colocation import engines, pairs, two_models
from experiments.load_generator import laws
from experiments.locality import hit_rates, look_ups
from experiments.operator_breakdown import plot as breakdown
from experiments.operator_breakdown import sweep_p
from experiments.operator_breakdown.sweep_p import by_released_name, shares
from experiments.roofline import run as roofline
from experiments.speedup import sweep_rt
from infra.settings.cli import parse
from models.costs import costs
from models.inputs.zipf import draw_rows
from models.operator_times import RELEASED, library_times, released_name

SMALL = ("--table_scale", "0.001")


def study(module, folder, *words):
    assert module.main([*words, "--out", str(folder)]) == 0


@pytest.mark.parametrize(
    ("path", "words", "expected"),
    [
        ("operator_breakdown/sweep_p.py", ["--models", "nix"], "--models: nix unknown"),
        ("speedup/sweep_rt.py", ["--devices", "nix"], "accel_device is 'nix'"),
        ("roofline/run.py", ["--models", "nix"], "--models: nix unknown"),
        ("colocation/engines.py", ["--profile", "nix"], "accel_device is 'nix'"),
        ("colocation/pairs.py", ["--models", "nix"], "--models: nix unknown"),
        ("colocation/two_models.py", ["--pairs", "wnd+nix"], "expected two different ones"),
        ("locality/look_ups.py", ["--models", "nix"], "--models: nix unknown"),
        ("locality/hit_rates.py", ["--n", "20", "--movielens", "nix"], "no such file or folder"),
    ],
)
def test_a_study_starts_from_any_folder_and_says_what_it_does_not_know(
    tmp_path, path, words, expected
):
    bad = run_script(f"experiments/{path}", *words, "--out", str(tmp_path), cwd=tmp_path)
    assert bad.returncode == 2
    assert expected in bad.stderr.splitlines()[-1]


def model_of(name):
    words = ["--config_file", str(model_configs()[name]), *SMALL, "--num_batches", "1"]
    return parse(words).model


# Operators


def test_shares_are_of_the_time_without_hooks_and_add_up():
    found = shares({"FC": 3.0, "Concat": 1.0, "Other": 0.5}, whole_ms=10.0)
    assert found["FC"] == pytest.approx(0.3)
    assert found["Other"] == pytest.approx(0.05)
    assert found[breakdown.BETWEEN] == pytest.approx(0.55)
    assert sum(found.values()) == pytest.approx(1)
    noisy = shares(
        {"FC": 12.0}, whole_ms=10.0
    )  # the operators of one pass took longer than the whole of another
    assert noisy["FC"] == 1
    assert sum(noisy.values()) == pytest.approx(1)


def test_names_of_the_library_and_ours_become_the_release_s():
    times = by_released_name(
        {"aten::addmm": 1.0, "FC": 2.0, "aten::cat": 3.0, "Sigmoid": 4.0, "aten::tanh": 5.0}
    )
    assert dict(times) == {"FC": 3.0, "Concat": 3.0, "Other": 9.0}
    assert {released_name(name) for name in RELEASED} == set(RELEASED)


def test_the_library_s_profiler_sees_the_operators_of_a_call():
    x = torch.rand(64, 64)
    weight = torch.rand(64, 64)
    times = library_times(lambda: torch.nn.functional.linear(x, weight, weight[0]).relu_())
    named = by_released_name(times)
    assert named["FC"] > 0
    assert named["Relu"] > 0


def test_published_shares_are_whole():
    for device in ("cpu", "cuda"):
        rows = breakdown.published(device)
        assert len(rows) == 8 * 4 * 7
        assert rows.groupby(["model", "batch"])["share"].sum().to_numpy() == pytest.approx(
            1, abs=2e-3
        )


def test_disagreement_with_a_sure_publication_is_shouted():
    def rows_with(model, batch, dominant):
        return [
            {
                "device": "cpu",
                "model": model,
                "batch": batch,
                "execution": execution,
                "operator": operator,
                "share": 0.5
                if operator == dominant
                else 0.04
                if operator != breakdown.BETWEEN
                else 0.2,
            }
            for execution in ("as released", "ours")
            for operator in breakdown.OPERATORS
        ]

    cases = [("rm3", 1, "FC"), ("rm3", 16, "Concat"), ("rm1", 1, "Concat"), ("rm1", 4, "FC")]
    table = breakdown.agreement(pd.DataFrame([row for case in cases for row in rows_with(*case)]))
    said = table.set_index(["model", "batch"])["agrees"]
    assert said.to_dict() == {("rm1", 1): "unsure", ("rm3", 1): "yes", ("rm3", 16): "NO"}
    assert table["share here"].to_numpy() == pytest.approx(0.5 / 0.78)  # of the time in operators


def test_the_operator_sweep_runs(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(sweep_p, "QUICK", sweep_p.Effort((1, 64, 1024), 0.005))
    monkeypatch.setattr(sweep_p, "ROUNDS", 2)
    study(sweep_p, tmp_path, "--quick", "--models", "ncf,rm3", *SMALL)
    assert "USDT" not in capfd.readouterr().err
    rows = pd.read_csv(tmp_path / "breakdown.csv")
    whole = rows.groupby(["model", "batch", "execution"])["share"].sum()
    assert len(whole) == 2 * 3 * 3
    assert whole.to_numpy() == pytest.approx(1, abs=2e-3)
    fc = rows[rows["operator"] == "FC"].set_index(["model", "batch", "execution"])["share"]
    assert fc["rm3", 1024, "as released"] > 0.6  # MLPs of 2560 to 512 wide, whatever the machine
    assert len(pd.read_csv(tmp_path / "agreement.csv")) == 2 * 3
    assert (tmp_path / "breakdown.png").stat().st_size > 10_000


# Devices


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
    assert sweep_rt.crossover([1, 4, 16], speedup) == pytest.approx(batch)


def test_speedups_are_published_or_ratios_of_times(tmp_path):
    study(sweep_rt, tmp_path)
    rows = pd.read_csv(tmp_path / "speedup.csv").set_index(["device", "model", "batch"])["speedup"]
    assert rows["nvidia_gtx_1080_ti", "wnd", 1024] == pytest.approx(4.615, rel=1e-3)
    root = accelerator_root("accelerator/")
    model = parse(["--config_file", str(model_configs()["rm2"]), "--num_batches", "1"]).model
    t4 = sweep_rt.load_device(root, "nvidia_t4")
    twice = Profile({1: 3.0, 4096: 3.0})
    found = sweep_rt.speedups(t4, model, twice)
    assert found[64] == pytest.approx(3.0 / t4.roofline.ms(costs(model, 64)))
    assert (tmp_path / "speedup.png").stat().st_size > 10_000
    assert len(pd.read_csv(tmp_path / "crossover.csv")) == len([*root.glob("nvidia_*")])


@pytest.mark.parametrize("name", sorted(model_configs()))
def test_the_table_of_models_agrees_with_pytorch_s_flop_counter(name):
    assert roofline.check_flops(model_of(name)) == 1


def test_a_model_is_dominated_by_what_takes_its_least_time():
    ceilings = roofline.Ceilings(flops=1e11, stream=2e10, rows=1e10)
    share = {
        name: roofline.dominated_by(costs(model_of(name), 1024), ceilings)
        for name in model_configs()
    }
    for own in share.values():
        assert sum(own.values()) == pytest.approx(1)
    assert (
        max(share["rm1"], key=share["rm1"].get)
        == max(share["rm2"], key=share["rm2"].get)
        == "embedding"
    )
    assert (
        max(share["wnd"], key=share["wnd"].get) == max(share["rm3"], key=share["rm3"].get) == "MLP"
    )
    assert max(share["dien"], key=share["dien"].get) == "recurrence"


def test_intensity_is_flops_over_bytes():
    model = model_of("wnd")
    cost = costs(model, 64)
    line = roofline.row("x", "measured", model, 64, ms=2.0)
    assert line["gflops"] * 2e6 == pytest.approx(cost.flops)
    assert line["flops_per_byte"] * line["gb_per_s"] == pytest.approx(line["gflops"])


def test_the_roofline_study_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(roofline, "SECONDS", 0.0)
    monkeypatch.setattr(roofline, "STREAM_BYTES", 1 << 20)
    study(roofline, tmp_path, "--quick", "--models", "ncf,wnd", *SMALL)
    rows = pd.read_csv(tmp_path / "roofline.csv")
    assert set(rows["device"]) > {"this core", "nvidia_h200", "intel_skylake"}
    assert (rows["gflops"] > 0).all()
    assert (pd.read_csv(tmp_path / "models.csv")["costs/counted FLOPs"] == 1).all()
    assert (tmp_path / "roofline.png").stat().st_size > 10_000


# Neighbours


def test_one_engine_has_no_neighbours_and_more_are_slower(tmp_path):
    study(engines, tmp_path, "--quick")
    rows = pd.read_csv(tmp_path / "engines.csv")
    for world in (engines.BESIDE, engines.ADDING):
        ratio = engines.ratios(rows, world)
        assert ratio[1].to_numpy() == pytest.approx(1, abs=1e-3)
        assert ratio[40].min() >= 0.999
    assert (
        engines.ratios(rows, engines.ADDING)[40].mean()
        > engines.ratios(rows, engines.BESIDE)[40].mean()
    )
    assert (tmp_path / "engines.png").stat().st_size > 10_000


@pytest.mark.skipif(len(pairs.usable_cores()) < 2, reason="one core: no neighbour fits")
@pytest.mark.alone
def test_pairs_are_measured_alone_and_together(tmp_path, monkeypatch):
    monkeypatch.setattr(pairs, "QUICK", pairs.Effort((64,), 3, 0.01))
    study(pairs, tmp_path, "--quick", "--models", "ncf,wnd", *SMALL)
    rows = pd.read_csv(tmp_path / "pairs.csv")
    assert {*zip(rows["model"], rows["neighbour"], strict=True)} == {
        (a, b) for a in ("ncf", "wnd") for b in ("ncf", "wnd")
    }
    assert ((rows["least"] <= rows["slowdown"]) & (rows["slowdown"] <= rows["most"])).all()
    assert (tmp_path / "pairs.png").stat().st_size > 10_000


def test_the_cost_of_neighbours_is_summed_up_by_who_pays_and_who_causes():
    rows = pd.DataFrame(
        [
            {
                "model": a,
                "neighbour": b,
                "batch": 64,
                "slowdown": slow,
                "p95_over_p50_alone": 1.1,
                "p95_over_p50_beside": 1.2,
            }
            for a, b, slow in (
                ("rm1", "rm1", 1.2),
                ("rm1", "ncf", 1.0),
                ("ncf", "rm1", 1.6),
                ("ncf", "ncf", 1.0),
            )
        ]
    )
    table = pairs.summary(rows).set_index("model")
    assert table.loc["ncf", "mean slow-down"] == pytest.approx(1.3)
    assert table.loc["ncf", "beside"] == "rm1"
    assert table.loc["rm1", "costs others"] == pytest.approx(1.4)


@pytest.mark.skipif(len(pairs.usable_cores()) < 2, reason="one core: two engines do not fit")
@pytest.mark.alone
def test_two_models_are_served_alone_and_at_once(tmp_path):
    words = ["--pairs", "rm1+ncf", "--seconds", "0.3", *SMALL, "--out", str(tmp_path)]
    done = run_script("experiments/colocation/two_models.py", *words, cwd=tmp_path, timeout=200)
    assert done.returncode == 0, done.stderr
    rows = pd.read_csv(tmp_path / "two_models.csv")
    assert len(rows) == 4 * len(two_models.FRACTIONS)
    assert (rows["p50_ms"] <= rows["p95_ms"]).all()
    rates = rows.pivot_table(index=["model", "fraction"], columns="company", values="rate_qps")
    assert rates["alone"].to_numpy() == pytest.approx(rates["both at once"].to_numpy())
    assert (tmp_path / "two_models.png").stat().st_size > 10_000


@pytest.mark.parametrize("pair", ["wnd", "wnd+wnd", "wnd+rm9"])
def test_a_pair_is_two_different_models(tmp_path, pair, capsys):
    with pytest.raises(SystemExit) as stop:
        two_models.main(["--pairs", pair, "--out", str(tmp_path)])
    assert stop.value.code == 2
    assert "expected two different ones" in capsys.readouterr().err


def test_what_two_models_carry_is_the_highest_rate_that_met_the_sla():
    rows = pd.DataFrame(
        [
            {
                "pair": "a+b",
                "model": "a",
                "company": company,
                "fraction": f,
                "rate_qps": 100 * f,
                "sla_ms": 10.0,
                "p95_ms": p95,
                "meets_sla": p95 <= 10,
            }
            for company, f, p95 in (
                ("alone", 0.5, 5.0),
                ("alone", 0.7, 8.0),
                ("both at once", 0.5, 7.5),
                ("both at once", 0.7, 16.0),
            )
        ]
    )
    (line,) = two_models.summary(rows).to_dict("records")
    assert line["QPS, alone"] == pytest.approx(70)
    assert line["QPS, both at once"] == pytest.approx(50)
    assert line["p95 together/alone"] == pytest.approx((1.5 + 2) / 2)


# Locality, sizes, arrivals


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.4])
def test_the_zipf_fit_finds_the_exponent(alpha):
    ids = draw_rows(500, alpha, 200_000, np.random.default_rng(1))
    assert hit_rates.fitted_alpha(ids) == pytest.approx(alpha, abs=0.02)


def test_uniform_ids_hit_a_cache_as_often_as_it_has_rows():
    ids = np.random.default_rng(1).integers(0, 200, 100_000)
    own = hit_rates.curve("x", "y", ids).set_index("cache_rows")["hit_rate"]
    for n_rows, hits in own.items():
        assert hits == pytest.approx(
            n_rows / 200, abs=4 * np.sqrt(0.25 / 100_000) + 0.002
        )  # 200 are first uses


def test_hit_rates_of_laws_and_of_a_folder_of_interactions(tmp_path):
    rng = np.random.default_rng(2)
    lines = [f"{u}\t{i}\t5\t{t}" for t, (u, i) in enumerate(rng.zipf(1.5, (3000, 2)) % 300)]
    (tmp_path / "u.data").write_text("\n".join(lines))
    study(hit_rates, tmp_path, "--n", "20000", "--movielens", str(tmp_path))
    rows = pd.read_csv(tmp_path / "hit_rates.csv")
    assert set(rows["part"]) == {"laws", "MovieLens users", "MovieLens items"}
    assert rows["hit_rate"].between(0, 1).all()
    fits = pd.read_csv(tmp_path / "fits.csv").set_index("trace")["largest error"]
    assert fits[[trace for trace in fits.index if "generated" in trace]].max() < 0.05
    assert (fits[[trace for trace in fits.index if "in order" in trace]] == 0).all()


@pytest.mark.alone
def test_look_ups_and_tails_by_law(tmp_path, monkeypatch):
    monkeypatch.setattr(look_ups, "ALPHAS", (0.0, 1.2))
    monkeypatch.setattr(look_ups, "QUICK", replace(look_ups.QUICK, rounds=2))
    study(look_ups, tmp_path, "--quick", "--models", "ncf", "--seconds", "0.3", *SMALL)
    rows = pd.read_csv(tmp_path / "look_ups.csv")
    assert set(rows["law"]) == {look_ups.law_name(alpha) for alpha in look_ups.ALPHAS}
    assert (rows[rows["law"] == "uniform"]["over_uniform"] == 1).all()
    p95 = pd.read_csv(tmp_path / "p95.csv")
    assert len(set(p95["rate_qps"])) == 1
    assert (p95["p50_ms"] <= p95["p95_ms"]).all()


def test_the_laws_have_the_published_shape(tmp_path):
    study(laws, tmp_path)
    sizes = pd.concat([laws.size_rows(law, load) for law, load in laws.SIZES.items()])
    facts = laws.size_facts(sizes).set_index("law")
    assert facts.loc["production (ISCA 2020)", "items in the largest quarter"] == pytest.approx(
        0.5, abs=0.03
    )
    assert facts.loc["mlperf (DLRM-v2)", "p50"] == 200
    arrivals = pd.read_csv(tmp_path / "arrivals.csv")
    spread = (
        arrivals[arrivals["what"] == "dispersion"]
        .pivot_table(index="law", columns="at_s", values="value")
        .iloc[:, 5]
    )
    assert spread["Poisson"] == pytest.approx(1, abs=0.1)
    assert spread["gamma, k = 0.25"] > 2
    assert spread["release's whole ms"] < 0.7
    assert (tmp_path / "laws.png").stat().st_size > 10_000
