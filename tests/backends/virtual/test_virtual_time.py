"""`--backend simulated` as its users start it: the same rows and report, without PyTorch, the same
bytes again.
"""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from helpers import MS, ROOT, TINY, run_script

from infra.results import run_folder
from infra.results.rows import TASK_COLUMNS

WIDE_AND_DEEP = f"{ROOT}/models/configs/wide_and_deep.json"
VIRTUAL = [
    *f"--queue --backend simulated --config_file {WIDE_AND_DEEP} --num_batches 32 --nepochs 100 "
    "--max_mini_batch_size 1024 --batch_size_distribution production --sub_task_batch_size 128 "
    "--inference_engines 40 --arrival_qps 4000 --target_latency 25 --log_file".split(),
    "",
]
MM1 = [
    "--service_law",
    "exponential",
    "--inference_engines",
    "1",
    "--arrival_qps",
    "700",
    "--batch_size_distribution",
    "fixed",
    "--avg_mini_batch_size",
    "8",
    "--nepochs",
    "3000",
]


def run(folder, *words, timeout=60):
    done = run_script("DeepRecSys.py", *VIRTUAL, *words, cwd=folder, timeout=timeout)
    return done, run_folder.find(folder / "results")


def test_a_measuring_run_has_the_rows_and_the_report_of_real_engines(tmp_path):
    done, (saved,) = run(tmp_path)
    assert done.returncode == 0, done.stderr
    rows = saved.rows()
    assert list(rows.tasks.columns) == TASK_COLUMNS
    assert set(rows.tasks["engine"]) == set(range(40))
    assert (
        rows.tasks.groupby("query_id")["n_items"].sum().tolist() == rows.queries["n_items"].tolist()
    )
    assert (rows.queries["done_ns"] == rows.tasks.groupby("query_id")["end_ns"].max()).all()
    document = saved.document
    assert document["summary"]["n_queries"] == 3000
    assert document["n_engines"] == 40
    assert document["service"]["cpu"]["source"].startswith("measured")
    assert document["memory"] == {}
    assert (saved.folder / "latency.png").is_file()
    assert "40 simulated CPU engine(s)" in done.stdout
    assert "Virtual time; service times: amd_epyc_zen4: measured" in done.stdout
    assert [line.split(":")[0] for line in done.stdout.splitlines()[-3:]] == [
        "Measured QPS",
        "Measured p95 tail-latency",
        "Measured p99 tail-latency",
    ]


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path):
    for seed in ("5", "5", "6"):
        run(
            tmp_path,
            "--numpy_rand_seed",
            seed,
            "--model_accel",
            "--accel_request_size_thres",
            "300",
        )
    by_seed = {}
    for saved in run_folder.find(tmp_path / "results"):
        files = [(saved.folder / f"{name}.parquet").read_bytes() for name in ("queries", "tasks")]
        by_seed.setdefault(saved.document["config"]["numpy_rand_seed"], []).append(files)
    assert by_seed[5][0] == by_seed[5][1]
    assert by_seed[5][0] != by_seed[6][0]


def test_nothing_imports_torch(tmp_path):
    words = [
        *VIRTUAL,
        "--model_accel",
        "--accel_device",
        "nvidia_a100,nvidia_gtx_1080_ti",
        "--tune_batch_qps",
    ]
    code = (
        f"import sys, DeepRecSys; code = DeepRecSys.main({words!r}); print(code, 'torch' in "
        "sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "0 False"


def test_a_law_gives_what_theory_says(tmp_path):
    _, (saved,) = run(tmp_path, *MM1)
    summary = saved.document["summary"]
    assert summary["p95_ms"]["value"] == pytest.approx(np.log(20) / 0.3, rel=0.1)
    assert summary["p50_ms"]["value"] == pytest.approx(np.log(2) / 0.3, rel=0.1)


def test_an_overload_is_invalid(tmp_path):
    done, (saved,) = run(tmp_path, *MM1, "--arrival_qps", "1100")
    assert done.returncode == 0
    assert not saved.document["summary"]["valid"]
    assert any("growing" in reason for reason in saved.document["summary"]["invalid_reasons"])


@pytest.mark.alone
def test_a_real_run_is_replayed_task_by_task(tmp_path):
    done = run_script("DeepRecSys.py", *TINY, "--arrival_qps", "400", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (real,) = run_folder.find(tmp_path / "results")
    words = [
        "--config_file",
        str(real.folder / "run.json"),
        "--backend",
        "simulated",
        "--service_law",
        "replay",
    ]
    done = run_script(
        "DeepRecSys.py",
        *words,
        "--service_profile",
        str(real.folder),
        "--results_dir",
        "again",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    (again,) = run_folder.find(tmp_path / "again")
    measured, replayed = (
        (rows.queries["done_ns"] - rows.queries["arrival_ns"]).to_numpy(float) / MS
        for rows in (real.rows(), again.rows())
    )
    pd.testing.assert_series_equal(
        real.rows().queries["arrival_ns"], again.rows().queries["arrival_ns"]
    )
    # Two engines that are free at once may take their tasks in the other order.
    assert np.median(np.abs(replayed / measured - 1)) < 0.15
    took = [
        rows.tasks.set_index(["query_id", "part"]).sort_index()
        for rows in (real.rows(), again.rows())
    ]
    assert (
        (took[0]["end_ns"] - took[0]["start_ns"]) == (took[1]["end_ns"] - took[1]["start_ns"])
    ).all()


@pytest.mark.parametrize("scheduler", ["hill", "guided"])
def test_tuning_in_virtual_time(tmp_path, scheduler):
    done, (saved,) = run(
        tmp_path,
        "--tune_batch_qps",
        "--model_accel",
        "--tune_accel_qps",
        "--scheduler",
        scheduler,
        "--nepochs",
        "60",
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    tuning = saved.document["tuning"]
    assert tuning[0]["batch_items"] == 26  # 1,024 items over 40 cores
    assert tuning[-1]["rate_qps"] > tuning[0]["rate_qps"]
    assert done.stdout.splitlines()[-1].startswith("Best: batch ")
    if scheduler == "guided":
        assert tuning[-1]["n_trials"] <= 3 or "reality disagrees" in done.stdout
        assert "was foretold to carry" in done.stdout
        assert saved.document["forecast"]


def test_ctrl_c_keeps_what_the_search_has_so_far(tmp_path):
    words = [
        "--tune_batch_qps",
        "--scheduler",
        "exhaustive",
        "--batch_configs",
        "-".join(map(str, range(8, 1024, 2))),
        "--nepochs",
        "2000",
    ]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "DeepRecSys.py"), *VIRTUAL, *words],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while (
        len(list(tmp_path.glob("results/*/search_queries.parquet/*"))) < 12
        and time.monotonic() < deadline
    ):
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "INVALID: the search was interrupted; --resume" in out
    (saved,) = run_folder.find(tmp_path / "results")
    assert saved.document["tuning"][0]["name"] == "static"


def test_power_is_what_is_stated(tmp_path):
    words = ["--tune_batch_qps", "--objective", "qps_per_watt", "--nepochs", "30"]
    done = run_script("DeepRecSys.py", *VIRTUAL, *words, cwd=tmp_path)
    assert done.returncode == 2
    assert (
        done.stderr
        == "DeepRecSys.py: --cpu_watts is not set, and virtual time draws no power; give the "
        "CPUs' TDP\n"
    )
    done, (saved,) = run(tmp_path, *words, "--cpu_watts", "250")
    assert done.returncode == 0, done.stderr
    assert saved.document["power"]["cpu"]["watts"] == 250


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--queue", "false"],
            "--backend is simulated, which knows the at-scale mode only; add queue",
        ),
        (
            ["--backend", "process", "--service_mean_ms", "2"],
            "--service_mean_ms is read in virtual time only",
        ),
        (["--service_law", "replay", "--tune_batch_qps"], "--service_law is replay"),
        (
            ["--service_law", "replay", "--service_profile", "nowhere"],
            "--service_profile is 'nowhere'",
        ),
        (["--service_law", "normal"], "--service_law is 'normal'; expected"),
        (
            ["--service_profile", "cpu_cores"],
            "--service_profile is 'cpu_cores'; expected a profile's file or a folder",
        ),
        (["--service_profile", "README.md"], "--service_profile README.md: "),
        (["--service_mean_ms", "0"], "--service_mean_ms is 0; expected more than 0"),
        (["--service_cv", "nan"], "--service_cv"),
        (
            ["--model_accel", "--accel_device", "cuda"],
            "--accel_device is cuda, which has no virtual time",
        ),
        (["--model_accel", "--accel_device", "nix"], "--accel_device is 'nix'"),
        (["--service_law", "replay", "--service_profile", "broken"], "broken"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, words, message):
    (tmp_path / "README.md").write_text("no profile\n")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.json").write_text(json.dumps({"notes": []}))
    (tmp_path / "broken" / "tasks.parquet").write_text("no parquet")
    done = run_script("DeepRecSys.py", *VIRTUAL, *words, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1, done.stderr
    assert message in done.stderr
    assert not (tmp_path / "results").exists()
