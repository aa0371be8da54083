"""The product as its users start it: measuring, tuning, interrupting, failing, running again."""

import contextlib
import dataclasses
import fnmatch
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pandas as pd
import psutil
import pytest
from helpers import MS, ROOT, SHARED_MEMORY, TINY, run_script

import DeepRecSys
from infra.results import run_folder
from infra.results.rows import TASK_COLUMNS
from infra.results.stats import summarize
from infra.settings.config import ModelConfig

pytestmark = pytest.mark.alone
QUERY_COLUMNS = [
    "query_id",
    "input_id",
    "n_items",
    "n_tasks",
    "arrival_ns",
    "sent_ns",
    "first_start_ns",
    "done_ns",
    "is_warmup",
]


def only_run(folder):
    (run,) = run_folder.find(folder / "results")
    return run


def test_a_measuring_run_leaves_rows_settings_provenance_and_a_figure(tmp_path):
    done = run_script("DeepRecSys.py", *TINY, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run = only_run(tmp_path)
    files = {file.name for file in run.folder.iterdir()}
    assert sorted(files - {"rate_curve.png"}) == [  # a run so short may not tell it
        "disturbance.parquet",
        "disturbance.png",
        "latency.png",
        "queries.parquet",
        "run.json",
        "tasks.parquet",
    ]
    rows = run.rows()
    assert list(rows.queries.columns) == QUERY_COLUMNS
    assert list(rows.tasks.columns) == TASK_COLUMNS
    assert len(rows.queries) == 120
    assert rows.queries["is_warmup"].sum() == 12
    assert (rows.tasks["n_items"] <= 16).all()
    assert (
        rows.tasks.groupby("query_id")["n_items"].sum().tolist() == rows.queries["n_items"].tolist()
    )
    seconds = pd.read_parquet(run.folder / "disturbance.parquet")
    assert set(seconds["engine"]) == {0, 1}
    document = run.document
    assert 0 <= document["disturbance"]["robbed_share"] <= 1
    assert set(document["provenance"]) >= {
        "packages",
        "cpu",
        "cores",
        "memory_gib",
        "seed",
        "git_commit",
    }
    assert document["n_engines"] == 2
    assert len(document["memory"]["engine_private_mib"]) == 2
    summary = document["summary"]
    assert summary["n_queries"] == 108
    again = summarize(rows.queries, rows.tasks, 500.0)
    assert summary["p95_ms"]["value"] == again.p95_ms.value
    low, high = (summary["p95_ms"][bound] for bound in ("low", "high"))  # null: too busy to tell
    assert (low or 0) <= summary["p95_ms"]["value"] <= (high or 1e9)


def test_the_last_lines_are_those_that_scripts_read(tmp_path):
    lines = run_script("DeepRecSys.py", *TINY, cwd=tmp_path).stdout.splitlines()[-3:]
    summary = only_run(tmp_path).document["summary"]
    names = ["Measured QPS:", "Measured p95 tail-latency:", "Measured p99 tail-latency:"]
    values = [summary["achieved_qps"], summary["p95_ms"]["value"], summary["p99_ms"]["value"]]
    for line, name, value in zip(lines, names, values, strict=True):
        assert line.startswith(name)
        assert float(line[len(name) :].split()[0]) == pytest.approx(value, rel=1e-3)


def test_the_task_log_has_one_line_per_task(tmp_path):
    run_script("DeepRecSys.py", *TINY, cwd=tmp_path)
    head, *lines = (tmp_path / "log/output.log").read_text().splitlines()
    assert head.split()[:3] == ["query", "stage", "part"]
    assert len(lines) == len(only_run(tmp_path).rows().tasks)


def test_a_run_can_be_run_again_from_its_file(tmp_path):
    run_script("DeepRecSys.py", *TINY, cwd=tmp_path)
    first = only_run(tmp_path)
    again = run_script(
        "DeepRecSys.py",
        "--config_file",
        str(first.folder / "run.json"),
        "--results_dir",
        "second",
        cwd=tmp_path,
    )
    assert again.returncode == 0, again.stderr
    (second,) = run_folder.find(tmp_path / "second")
    assert second.document["config"] == {**first.document["config"], "results_dir": "second"}
    for column in ("arrival_ns", "n_items", "input_id"):
        assert (first.rows().queries[column] == second.rows().queries[column]).all()


def test_an_accelerator_takes_the_large_queries_for_as_long_as_its_profile_says(tmp_path):
    shutil.copytree(ROOT / "accelerator", tmp_path / "accelerator")
    done = run_script(
        "DeepRecSys.py",
        *TINY,
        "--model_accel",
        "--accel_request_size_thres",
        "30",
        "--accel_root_dir",
        str(tmp_path / "accelerator"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    run = only_run(tmp_path)
    tasks = run.rows().tasks
    assert set(tasks[tasks["pool"] == "accel"]["query_id"]) == set(
        run.rows().queries.query("n_items >= 30")["query_id"]
    )
    profile = run.document["accelerator"]
    assert "1080" in profile["device"]
    assert profile["source"]
    kept = list(tmp_path.glob("accelerator/cpu_core/characterization_data/wnd_scale0.001.csv"))
    assert kept or "are not kept" in done.stderr  # where others use the cores
    fastest_ms = min(profile["batch_ms"][0].values())
    slowest_ms = max(profile["batch_ms"][0].values())
    took_ms = (tasks["end_ns"] - tasks["start_ns"])[tasks["pool"] == "accel"] / MS
    assert took_ms.min() >= fastest_ms
    assert took_ms.median() <= slowest_ms + 0.2


def test_tuning_ends_with_the_configuration_and_a_confirmed_rate(tmp_path):
    done = run_script(
        "DeepRecSys.py",
        *TINY,
        "--tune_batch_qps",
        "--batch_configs",
        "32-16",
        "--target_latency",
        "60",
        "--max_arr_range",
        "20",
        "--min_arr_range",
        "4",
        "--arr_steps",
        "4",
        "--req_granularity",
        "16",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    run = only_run(tmp_path)
    tuning = run.document["tuning"]
    assert [line["name"] for line in tuning] == ["static", "tuned CPU"]
    assert tuning[0]["batch_items"] == 32
    best = max(tuning, key=lambda line: line["rate_qps"])
    last = done.stdout.splitlines()[-1]
    assert last.startswith(
        f"Best: batch {best['batch_items']}, threshold none, {best['rate_qps']:.1f} QPS, p95 "
    )
    assert "Scheduler's Optimal batch_size configuration:  " in done.stdout
    assert (run.folder / "scheduler.png").stat().st_size > 10_000
    updates = pd.read_parquet(run.folder / "search.parquet")
    queries = pd.read_parquet(run.folder / "search_queries.parquet")
    assert len(queries) == updates["n_queries"].sum()
    assert run.document["summary"]["n_queries"] >= 108  # more where those would not last 20 SLAs


SEARCH = [
    "--tune_batch_qps",
    "--batch_configs",
    "32-16",
    "--target_latency",
    "60",
    "--nepochs",
    "20",
    "--rate_width",
    "0.6",
]


def test_a_killed_search_is_resumed_and_asks_only_for_what_is_missing(tmp_path):
    process = start(tmp_path, *SEARCH, "--nepochs", "100")
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        logs = list((tmp_path / "results").glob("*/search.jsonl"))
        if logs and len(logs[0].read_text().splitlines()) >= 3:
            break
        time.sleep(0.05)
    process.kill()
    process.communicate()
    (log,) = (tmp_path / "results").glob("*/search.jsonl")
    before = log.read_text().splitlines()
    assert len(before) >= 3
    done = run_script("DeepRecSys.py", "--resume", log.parent.name, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert log.read_text().splitlines()[: len(before)] == before
    run = only_run(tmp_path)
    assert [line["name"] for line in run.document["tuning"]] == ["static", "tuned CPU"]
    assert (
        len(pd.read_parquet(run.folder / "search.parquet")) == len(log.read_text().splitlines()) - 1
    )
    assert "Best: batch" in done.stdout


def test_a_search_is_compared_with_an_exhaustive_one_of_the_same_settings(tmp_path):
    for scheduler in ("exhaustive", "hill"):
        done = run_script("DeepRecSys.py", *TINY, *SEARCH, "--scheduler", scheduler, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert "of the exhaustive search's rate" in done.stdout
    shares = [
        line["of_exhaustive"]
        for line in run_folder.find(tmp_path / "results")[-1].document["tuning"]
    ]
    assert all(0.2 < share < 5 for share in shares)


def test_qps_per_watt_reports_where_the_watts_come_from(tmp_path):
    words = ["--objective", "qps_per_watt", "--cpu_watts", "50", "--scheduler", "static"]
    done = run_script("DeepRecSys.py", *TINY, *SEARCH, *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Power: CPU 50 W (--cpu_watts)" in done.stdout
    (line,) = only_run(tmp_path).document["tuning"]
    assert line["qps_per_watt"] == pytest.approx(line["rate_qps"] / 50)


def test_several_accelerators_serve_at_once(tmp_path):
    words = [
        "--model_accel",
        "--accel_device",
        "nvidia_t4,nvidia_h200",
        "--accel_request_size_thres",
        "1",
    ]
    done = run_script("DeepRecSys.py", *TINY, *words, "--arrival_qps", "600", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    tasks = only_run(tmp_path).rows().tasks
    assert set(tasks["pool"]) == {"accel"}
    assert set(tasks["engine"]) == {0, 1}
    assert only_run(tmp_path).document["accelerator"]["device"] == "NVIDIA T4, NVIDIA H200"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--resume", "nothing"], "--resume is 'nothing'; expected a run with a search"),
        ([*SEARCH, "--model_accel", "--accel_device", "nvidia_t4,nix"], "--accel_device is 'nix'"),
        ([*SEARCH, "--model_accel", "--accel_device", "cuda,nvidia_t4"], "cuda runs alone"),
        ([*SEARCH, "--confidence", "1.5"], "--confidence is 1.5; expected at most"),
        ([*SEARCH, "--scheduler", "best"], "--scheduler is 'best'; expected one of hill"),
        ([*SEARCH, "--cpu_watts", "-3"], "--cpu_watts is -3; expected more than 0 W"),
    ],
)
def test_a_wrong_search_is_refused_in_one_line_before_anything_starts(tmp_path, words, expected):
    done = run_script("DeepRecSys.py", *TINY, *words, cwd=tmp_path)
    assert done.returncode == 2
    assert expected in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "results").exists() or not list((tmp_path / "results").iterdir())


def start(tmp_path, *words):
    return subprocess.Popen(
        [sys.executable, str(ROOT / "DeepRecSys.py"), *TINY, *words],
        cwd=tmp_path,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def wait_for_engines(process, n):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        children = psutil.Process(process.pid).children()
        if len(children) >= n and all(child.cpu_times().user > 0 for child in children):
            return children
        time.sleep(0.05)
    raise AssertionError("no engines")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_its_results_and_nothing_else(tmp_path, number):
    shared = set(SHARED_MEMORY.iterdir())
    process = start(tmp_path, "--nepochs", "100000", "--arrival_qps", "100")
    engines = wait_for_engines(process, 2)
    time.sleep(2)
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    begun = time.monotonic()
    out, err = process.communicate(timeout=30)
    assert time.monotonic() - begun < 10
    assert process.returncode == 130
    assert "Traceback" not in err
    assert "INVALID" in out
    assert "interrupted" in " ".join(only_run(tmp_path).document["summary"]["invalid_reasons"])
    assert len(only_run(tmp_path).rows().queries) > 0
    _, alive = psutil.wait_procs(engines, timeout=5)
    assert not alive
    assert set(SHARED_MEMORY.iterdir()) == shared


def test_an_interrupted_search_leaves_what_it_has(tmp_path):
    words = [
        "--tune_batch_qps",
        "--batch_configs",
        "32-16",
        "--min_arr_range",
        "9",
        "--max_arr_range",
        "10",
        "--arr_steps",
        "2",
    ]
    process = start(tmp_path, *words, "--req_granularity", "2000")
    wait_for_engines(process, 2)
    time.sleep(2)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert "the search was interrupted" in out
    assert "No rate of the grid" not in out
    assert only_run(tmp_path).document["tuning"] == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_tables_are_built_ends_the_run_in_seconds(tmp_path, number):
    process = start(tmp_path, "--table_scale", "1")
    while (
        psutil.Process(process.pid).memory_info().rss < 500e6
    ):  # PyTorch takes 300 MB, the tables 3.5 GB
        time.sleep(0.01)
    os.killpg(process.pid, number)
    begun = time.monotonic()
    _, err = process.communicate(timeout=30)
    assert time.monotonic() - begun < 10
    assert process.returncode == 130
    assert err == "DeepRecSys.py: interrupted before the first query\n"
    assert not list(tmp_path.glob("results/*"))


def test_a_signal_that_a_callback_swallows_while_tables_are_built_still_ends_the_run(
    tmp_path, monkeypatch, capsys
):
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.chdir(tmp_path)

    @contextlib.contextmanager
    def opening(*_):
        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        yield None

    monkeypatch.setattr(DeepRecSys, "open_session", opening)
    try:
        assert DeepRecSys.main(TINY) == 130
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert capsys.readouterr().err == "DeepRecSys.py: interrupted before the first query\n"


def test_an_interruption_while_the_capacity_is_measured_is_not_an_error_of_the_engines(tmp_path):
    words = [word for word in TINY if word not in ("--arrival_qps", "150")]
    process = subprocess.Popen(
        [
            sys.executable,
            str(ROOT / "DeepRecSys.py"),
            *words,
            "--offered_load",
            "0.5",
            "--sub_task_batch_size",
            "1",
            "--max_mini_batch_size",
            "1024",
            "--avg_mini_batch_size",
            "1024",
            "--var_mini_batch_size",
            "1",
        ],
        cwd=tmp_path,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    engines = wait_for_engines(process, 2)
    before = sum(sum(engine.cpu_times()[:2]) for engine in engines)
    while (
        sum(sum(engine.cpu_times()[:2]) for engine in engines) < before + 0.5
    ):  # at work on 65,536 tasks
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err == "DeepRecSys.py: interrupted before the first query\n"


def test_a_killed_engine_costs_no_query(tmp_path):
    process = start(tmp_path, "--nepochs", "150")
    engines = wait_for_engines(process, 2)
    time.sleep(1)
    engines[0].kill()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    run = only_run(tmp_path)
    assert len(run.document["engine_deaths"]) == 1
    assert run.document["summary"]["n_lost"] == 0
    assert len(run.rows().queries) == 600
    assert "SIGKILL" in err
    assert "Measured QPS:" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--batch_size_distribution", "file", "--batch_dist_file", "sizes.txt"],
            "sizes.txt: no such file",
        ),
        (["--arrival_process", "file", "--arrival_file", "times.txt"], "times.txt: no such file"),
        (["--model_accel", "--accel_device", "tpu"], "accel_device is 'tpu'"),
        (["--model_accel", "--model_name", "bert"], "model_name is 'bert'"),
        (["--model_accel", "--accel_device", "cuda"], "no CUDA device"),
        (["--inference_engines", "1000000"], "inference_engines"),
        (["--num_batches", "100000000", "--max_mini_batch_size", "1024"], "lower --num_batches"),
        (["--results_dir", "/proc/nowhere"], "results_dir"),
    ],
)
def test_what_cannot_be_run_is_said_in_one_line_before_anything_starts(tmp_path, words, message):
    done = run_script("DeepRecSys.py", *TINY, *words, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert not list(tmp_path.glob("results/*"))


def test_without_queue_it_is_a_standalone_run(tmp_path):
    words = [word for word in TINY if word != "--queue"]
    done = run_script("DeepRecSys.py", *words, "--mini_batch_size", "8", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 6
    assert "Total execution time: ***" in done.stdout


def script(tmp_path, name, *words, **environment):
    return subprocess.run(
        [str(ROOT / name), *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
        env={**os.environ, "RESULTS": str(tmp_path / "results"), **environment},
    )


SMALL = [
    "--table_scale",
    "0.001",
    "--num_batches",
    "2",
    "--max_mini_batch_size",
    "64",
    "--avg_mini_batch_size",
    "24",
    "--var_mini_batch_size",
    "4",
    "--nepochs",
]


def test_run_deeprecsys_tunes_cpu_and_accelerator_in_a_tiny_setting(tmp_path):
    done = script(
        tmp_path,
        "run_DeepRecSys.sh",
        *SMALL,
        "60",
        "--batch_configs",
        "32-16",
        "--accel_configs",
        "16-24",
        "--arr_steps",
        "4",
        "--min_arr_range",
        "1",
        "--max_arr_range",
        "4",
        "--req_granularity",
        "16",
        "--target_latency",
        "100",
    )
    assert done.returncode == 0, done.stderr
    for name in ("static", "tuned CPU", "tuned CPU + accelerator"):
        assert f"│ {name} " in done.stdout
    assert done.stdout.splitlines()[-1].startswith("Best: batch ")


def test_another_net_than_the_profiled_one_is_not_tuned_in_virtual_time():
    text = (ROOT / "run_DeepRecSys.sh").read_text()
    patterns = re.findall(r"--[a-z_]+\*", text)
    for setting in dataclasses.fields(ModelConfig):
        assert any(fnmatch.fnmatch(f"--{setting.name}", pattern) for pattern in patterns), setting


def test_run_deeprecinfra_measures_all_eight_models_in_a_tiny_setting(tmp_path):
    done = script(tmp_path, "run_DeepRecInfra.sh", *SMALL, "50")
    assert done.returncode == 0, done.stderr + done.stdout
    assert (tmp_path / "results/tail_latency.png").stat().st_size > 10_000
    labels = [run.document["config"]["model_name"] for run in run_folder.find(tmp_path / "results")]
    assert labels == ["rm1", "rm2", "rm3", "ncf", "wnd", "wnd", "mtwnd", "din", "dien"]
    for name in ("rm1", "rm2", "rm3", "ncf", "wnd + accel", "mtwnd", "din", "dien"):
        assert f"│ {name} " in done.stdout


def test_a_script_stops_with_the_error_of_its_run(tmp_path):
    done = script(tmp_path, "run_DeepRecInfra.sh", "--nepochs", "none")
    assert done.returncode == 2
    assert "nepochs is 'none'" in done.stderr


def test_the_settings_of_a_run_are_json_without_surprises(tmp_path):
    run_script("DeepRecSys.py", *TINY, cwd=tmp_path)
    (file,) = (tmp_path / "results").glob("*/run.json")
    document = json.loads(
        file.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON")
    )
    assert document["config"]["arrival_qps"] == 150
    assert document["config"]["offered_load"] is None
