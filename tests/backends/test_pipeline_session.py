"""Pipelines in both worlds: the exact best items go on, nothing is lost, theory holds, one stage is
one model.
"""

import json
import os
import signal
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from helpers import latencies_ms, poisson_schedule

from accelerator.latency import Profile
from accelerator.replay import recorded_times
from accelerator.service import ServiceTable, ServiceTimes
from accelInferenceEngine import cuda_engines
from backends.checks import check
from backends.opening import open_session, pool_specs
from backends.processes.engine import PoolSpec
from backends.processes.process import ProcessSession
from backends.tuning.calibration import calibrate, calibrated_times
from backends.tuning.policy_tuner import PolicyTuner
from backends.tuning.power import server_power
from backends.virtual.simulated import SimulatedSession
from inferenceEngine import CpuEngine, prepare
from infra.deployment import one_model, resolve
from infra.messages import ACCEL, CPU, WireTask
from infra.progress import Progress
from infra.ranking import top_items
from infra.results import run_folder
from infra.results.stages import answer_table, stage_parts, stage_table
from infra.settings.cli import parse
from infra.settings.config import ConfigError
from loadGenerator import Schedule
from scheduler import Policy, Stage, stages_of

pytestmark = pytest.mark.alone
ITEMS = 60


def model(width, name):
    return {
        "model_type": "dlrm",
        "model_name": name,
        "arch_embedding_size": "50-60",
        "arch_sparse_feature_size": width,
        "arch_mlp_bot": f"5-{width}",
        "arch_mlp_top": "8-1",
        "num_indices_per_lookup": 3,
    }


@pytest.fixture
def folder(tmp_path):
    """Three models of different width over the same tables, and queries with labels for models of
    one id a bag.
    """
    for name, width in (("small", 2), ("medium", 4), ("large", 8)):
        (tmp_path / f"{name}.json").write_text(json.dumps(model(width, name)))
        one_id = {
            **model(width, name),
            "num_indices_per_lookup": 1,
            "num_indices_per_lookup_fixed": True,
        }
        (tmp_path / f"one_{name}.json").write_text(json.dumps(one_id))
    rng = np.random.default_rng(5)
    np.savez(
        tmp_path / "queries.npz",
        ids=rng.integers(0, 50, (6, ITEMS, 2), dtype=np.int32),
        dense=rng.random((6, ITEMS, 5), dtype=np.float32),
        labels=rng.random((6, ITEMS)) < 0.2,
        n_items=np.array([ITEMS, 40, ITEMS, 50, 30, ITEMS], np.int32),
    )
    return tmp_path


def deploy(folder, document, *words):
    file = folder / "pipeline.yaml"
    file.write_text(yaml.safe_dump(document))
    sizes = f"--max_mini_batch_size {ITEMS}".split()
    if not ("queries" in document or "items" in document):
        law = "--batch_size_distribution normal --avg_mini_batch_size 40 --var_mini_batch_size 15"
        sizes += law.split()
    common = "--num_batches 6 --nepochs 10 --sub_task_batch_size 16 --arrival_qps 300".split()
    return resolve(parse(["--queue", "--pipeline", str(file), *common, *sizes, *words]))


THREE = {
    "pools": {"shared": {"engines": 2}},
    "stages": [
        {"model": "small.json", "keep_items": 30, "pool": "shared"},
        {"model": "medium.json", "keep_items": 10, "engines": 1, "batch_items": 7},
        {"model": "large.json", "keep_items": 4, "pool": "shared"},
    ],
}  # fmt: skip


def run(deployment, schedule):
    with open_session(deployment, Progress("none")) as opened:
        policy = Policy(deployment.config.engines.sub_task_batch_size)
        return opened.session.run(schedule, policy)


def load(n=60, rate_qps=400):
    rng = np.random.default_rng(2)
    base = poisson_schedule(rate_qps, n)
    sizes = rng.integers(1, ITEMS + 1, n).astype(np.int32)
    return Schedule(base.arrival_ns, sizes, rng.integers(0, 6, n).astype(np.int32))


def chain_by_hand(deployment, input_id, n_items):
    """Every model on all items, then the best of the best: the slow and obvious way."""
    workloads = prepare(deployment, Progress("none"))
    items = np.arange(n_items)
    for i, stage in enumerate(deployment.stages):
        with torch.inference_mode():
            batch = workloads[i].inputs.batch(input_id, 0, n_items)
            scores = workloads[i].model(batch).reshape(-1).numpy()
        items = top_items(items, scores[items], stage.keep_items)
    return items


def test_real_engines_answer_what_the_models_say_of_all_items(folder):
    deployment = deploy(folder, THREE)
    schedule = load()
    rows = run(deployment, schedule)
    answers = answer_table(rows).groupby("query_id")["item"].apply(list)
    assert len(answers) == len(schedule)
    for query in range(0, len(schedule), 7):
        expected = chain_by_hand(
            deployment, int(schedule.input_id[query]), int(schedule.n_items[query])
        )
        assert answers[query] == expected.tolist()


@pytest.mark.parametrize("backend", ["process", "simulated"])
def test_no_item_is_lost_and_none_is_scored_twice(folder, backend):
    words = (
        ["--backend", "simulated", "--service_law", "lognormal"] if backend == "simulated" else []
    )
    deployment = deploy(folder, THREE, *words)
    schedule = load()
    rows = run(deployment, schedule)
    items = rows.tasks.pivot_table(
        index="query_id", columns="stage", values="n_items", aggfunc="sum"
    )
    assert items[0].tolist() == schedule.n_items.tolist()
    assert items[1].tolist() == np.minimum(schedule.n_items, 30).tolist()
    assert items[2].tolist() == np.minimum(schedule.n_items, 10).tolist()
    assert (rows.tasks["n_items"][rows.tasks["stage"] == 1] <= 7).all()
    assert rows.tasks.groupby("stage")["pool"].unique().map(list).tolist() == [
        ["shared"],
        ["stage1"],
        ["shared"],
    ]
    assert not rows.tasks.duplicated(["query_id", "stage", "part"]).any()
    assert rows.queries["done_ns"].notna().all()


@pytest.mark.parametrize("backend", ["process", "simulated"])
def test_the_parts_of_the_stages_add_up_to_the_latency(folder, backend):
    words = (
        ["--backend", "simulated", "--service_law", "lognormal"] if backend == "simulated" else []
    )
    rows = run(deploy(folder, THREE, *words), load())
    table = stage_table(rows)
    assert (table["enqueued_ns"] <= table["first_start_ns"]).all()
    assert (table["first_start_ns"] < table["end_ns"]).all()
    assert (table["end_ns"] <= table["next_ns"]).all()
    spans = (table["next_ns"] - table["enqueued_ns"]).groupby(table["query_id"]).sum()
    assert spans.tolist() == (rows.queries["done_ns"] - rows.queries["arrival_ns"]).tolist()
    parts = stage_parts(rows)
    whole = parts[["queue_ms", "compute_ms", "filter_ms"]].to_numpy().sum()
    assert whole == pytest.approx(latencies_ms(rows).mean())


def test_a_filter_that_keeps_all_is_no_filter(folder):
    def ranked(first_keep):
        stages = [
            {"model": "small.json", "keep_items": first_keep},
            {"model": "large.json", "keep_items": 5},
        ]
        return run(
            deploy(folder, {"stages": stages if first_keep else stages[1:]}), load(20)
        ).answers

    assert ranked(ITEMS) == ranked(None)
    assert ranked(8) != ranked(None)


def test_a_device_without_scores_hands_on_as_many_and_answers_no_list(folder):
    modelled = {"model": "ncf", "settings": {"table_scale": 0.001}, "device": "nvidia_t4"}
    stages = [{"model": "small.json", "keep_items": 20}, {**modelled, "keep_items": 6}]
    rows = run(deploy(folder, {"stages": stages}), load(30))
    assert rows.tasks["n_items"][rows.tasks["stage"] == 1].max() <= 20
    assert rows.queries["done_ns"].notna().all()
    assert not rows.answers
    assert not deploy(folder, {"stages": stages}).is_ranked


def test_generated_inputs_are_gathered_by_item_whatever_the_bags(folder):
    for name in ("small.json", "one_small.json"):
        deployment = deploy(folder, {"stages": [{"model": name, "keep_items": 3}]})
        workload = prepare(deployment, Progress("none"), [0])[0]
        with torch.inference_mode():
            whole = workload.model(workload.inputs.batch(1, 0, ITEMS)).reshape(-1)
            chosen = np.array([41, 3, 3, 0, 59], np.int32)
            assert torch.allclose(
                workload.model(workload.inputs.gather(1, chosen)).reshape(-1),
                whole[chosen],
                atol=1e-6,
            )


def test_later_stages_are_told_of_no_larger_tasks_than_can_come(folder):
    deployment = deploy(folder, THREE, "--sub_task_batch_size", "50")
    assert [deployment.largest_task(i) for i in range(3)] == [50, 7, 10]


VIRTUAL_LAW = "--backend simulated --service_law lognormal".split()
PLAIN = ["query_id", "stage", "part", "pool", "n_items"]


@pytest.mark.parametrize("words", [[], ["--backend", "simulated", "--service_law", "exponential"]])
def test_a_pipeline_of_one_stage_is_the_model_by_itself(folder, words):
    deployment = deploy(folder, {"stages": [{"model": "small.json"}]}, *words)
    engines = replace(deployment.config.engines, pipeline="")
    alone = one_model(
        replace(deployment.config, engines=engines, model=deployment.stages[0].model), n_engines=1
    )
    rows = run(deployment, load())
    plain = run(alone, load())
    if words:
        pd.testing.assert_frame_equal(rows.queries, plain.queries)
        order = ["query_id", "part"]
        pd.testing.assert_frame_equal(
            *(each.tasks.sort_values(order, ignore_index=True) for each in (rows, plain))
        )
    keys = [
        each.tasks[PLAIN].sort_values(["query_id", "part"], ignore_index=True)
        for each in (rows, plain)
    ]
    pd.testing.assert_frame_equal(*keys)
    assert list(rows.queries.columns) == list(plain.queries.columns)
    assert not rows.answers


def test_queries_of_a_file_come_whole_and_their_answers_have_a_quality(folder):
    document = {
        "queries": "queries.npz",
        "stages": [
            {"model": "one_small.json", "keep_items": 20},
            {"model": "one_large.json", "keep_items": 5},
        ],
    }
    deployment = deploy(folder, document)
    inputs = deployment.config.inputs
    assert (inputs.num_batches, inputs.max_mini_batch_size) == (6, ITEMS)
    schedule = load(30)
    rows = run(deployment, schedule)
    assert rows.queries["n_items"].tolist() == [
        [ITEMS, 40, ITEMS, 50, 30, ITEMS][i] for i in schedule.input_id
    ]
    query = int(np.flatnonzero(schedule.input_id == 4)[0])
    assert (
        np.frombuffer(rows.answers[query], np.int32).tolist()
        == chain_by_hand(deployment, 4, 30).tolist()
    )


def test_trained_weights_are_what_scores(folder):
    deployment = deploy(
        folder, {"stages": [{"model": "one_small.json", "keep_items": 3}], "queries": "queries.npz"}
    )
    rng = np.random.default_rng(0)
    trained = prepare(deployment, Progress("none"), [0])[0].model
    weights = {
        f"param.emb.sls{t}_w": rng.random((n, 2), dtype=np.float32) for t, n in ((0, 50), (1, 60))
    }
    for name, (n_out, n_in) in {"bot.fc1": (2, 5), "top.fc1": (8, 5), "top.fc2": (1, 8)}.items():
        weights |= {f"param.{name}_w": rng.random((n_out, n_in), dtype=np.float32)}
        weights |= {f"param.{name}_b": rng.random(n_out, dtype=np.float32)}
    np.savez(folder / "small.npz", **weights)
    stage = {"model": "one_small.json", "checkpoint": "small.npz", "keep_items": 3}
    deployment = deploy(folder, {"stages": [stage], "queries": "queries.npz"})
    loaded = prepare(deployment, Progress("none"), [0])[0].model
    assert np.array_equal(loaded.tables.table(1).numpy(), weights["param.emb.sls1_w"])
    assert not np.array_equal(loaded.tables.table(1).numpy(), trained.tables.table(1).numpy())


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        ({"model": "small.json", "checkpoint": "queries.npz"}, "not a checkpoint of small"),
        ({"model": "small.json", "checkpoint": "small.json"}, "not a checkpoint"),
    ],
)
def test_a_checkpoint_of_something_else_is_told(folder, stage, expected):
    deployment = deploy(folder, {"stages": [{**stage, "keep_items": 3}]})
    with pytest.raises(ConfigError, match=expected):
        prepare(deployment, Progress("none"), [0])


@pytest.mark.parametrize(
    ("document", "words", "expected"),
    [
        (
            {"stages": [{"model": "one_small.json"}], "queries": "queries.npz"},
            ["--num_batches", "7"],
            "has 6 queries",
        ),
        (
            {"stages": [{"model": "one_small.json"}], "queries": "queries.npz", "items": 70},
            [],
            "60 at most",
        ),
        ({"stages": [{"model": "small.json"}]}, ["--num_batches", "0"], "num_batches is 0"),
        (
            {"stages": [{"model": "one_small.json", "keep_items": 61}], "queries": "queries.npz"},
            [],
            "only 60 come in",
        ),
        ({"stages": [{"model": "small.json"}], "items": 40}, [], "max_mini_batch_size is 60"),
        (
            {"stages": [{"model": "small.json"}], "items": 60},
            ["--batch_size_distribution", "mlperf"],
            "distribution",
        ),
        (
            {"stages": [{"model": "small.json"}]},
            ["--table_scale", "0.1"],
            "table_scale is of no stage",
        ),
        (
            {"stages": [{"model": "rm1", "device": "abacus"}]},
            [],
            "pool 'stage0': device is 'abacus'",
        ),
        (
            {"stages": [{"model": "small.json", "device": "cuda", "keep_items": 2}]},
            [],
            "no CUDA device here",
        ),
        (
            {
                "stages": [{"model": "small.json", "batch_items": 50_000, "keep_items": 2}],
                "items": 50_000,
            },
            ["--max_mini_batch_size", "50000"],
            "too large to travel",
        ),
        (
            {"stages": [{"model": "small.json", "batch_items": 3}]},
            ["--tune_batch_qps"],
            "nothing to tune",
        ),
        ({"stages": [{"model": "small.json"}]}, ["--backend", "simulated"], "small.csv"),
        ({"stages": [{"model": "rm1", "device": "abacus"}]}, ["--backend", "simulated"], "abacus"),
        (
            {"stages": [{"model": "rm1", "settings": {"embedding_plan": "none.json"}}]},
            [],
            "none.json",
        ),
        (
            {"stages": [{"model": "rm1", "device": "cpu_core"}]},
            ["--objective", "qps_per_watt"],
            "cpu_core states no tdp_w",
        ),
        (
            {"stages": [{"model": "rm1", "device": "cuda"}]},
            ["--backend", "simulated"],
            "no virtual time",
        ),
    ],
)
def test_settings_that_do_not_fit_the_pipeline_are_told(folder, document, words, expected):
    def deploy_and_check():
        check(deploy(folder, document, *words))

    with pytest.raises(ConfigError, match=expected):
        deploy_and_check()


def offloading(words):
    stages = [{"model": "small.json", "keep_items": 20}, {"model": "large.json", "keep_items": 4}]
    return {"stages": stages}, ["--model_accel", "--accel_device", "cpu_core", *words]


@pytest.mark.parametrize("backend", ["process", "simulated"])
def test_large_queries_go_whole_to_accelerators_beside_a_pipeline(folder, backend, monkeypatch):
    document, words = offloading([] if backend == "process" else VIRTUAL_LAW)
    if backend == "process":  # times of a device that nobody has to measure
        profile = Profile({1: 0.05, ITEMS: 0.1}, {"device": "quick"})
        monkeypatch.setattr("backends.opening.latency_profile", lambda *_, **__: profile)
    deployment = deploy(folder, document, *words)
    schedule = load()
    with open_session(deployment, Progress("none")) as opened:
        rows = opened.session.run(schedule, Policy(16, offload_items=30))
    large = schedule.n_items[rows.tasks["query_id"]] >= 30
    first = rows.tasks["stage"] == 0
    assert ((rows.tasks["pool"] == ACCEL) == (large & first)).all()  # 20 are left of the large
    items = rows.tasks.groupby(["stage", "query_id"])["n_items"].sum()
    assert items[0].tolist() == schedule.n_items.tolist()
    assert items[1].tolist() == np.minimum(schedule.n_items, 20).tolist()
    assert rows.queries["done_ns"].notna().all()


def test_a_pipeline_is_replayed_stage_by_stage_to_the_nanosecond(folder):
    rows = run(deploy(folder, THREE, *VIRTUAL_LAW, "--service_mean_ms", "2"), load())
    deployment = deploy(folder, THREE, *VIRTUAL_LAW)
    pools = {pool.name: pool.engines for pool in deployment.pools}
    cores = frozenset(pools)
    session = SimulatedSession(pools, recorded_times(rows, cores), stages_of(deployment))
    again = session.run(load(), Policy(16))
    pd.testing.assert_frame_equal(again.queries, rows.queries)
    columns = ["query_id", "stage", "part", "start_ns", "end_ns"]
    pd.testing.assert_frame_equal(again.tasks[columns], rows.tasks[columns])


def test_a_replay_of_other_stages_is_refused(folder, tmp_path):
    config = deploy(folder, THREE).config
    rows = run(deploy(folder, THREE, *VIRTUAL_LAW), load())
    run_folder.save(tmp_path, config, rows, {})
    two = {"stages": THREE["stages"][1:], "pools": THREE["pools"]}
    words = f"--backend simulated --service_law replay --service_profile {tmp_path}".split()
    with pytest.raises(ConfigError, match="has 3 stages, the deployment 2"):
        check(deploy(folder, two, *words))


def test_calibration_finds_each_stage_s_times(folder):
    """Two engines that share the cores; the second stage sees at most 20 items."""
    document = {
        "stages": [{"model": "small.json", "keep_items": 20}, {"model": "large.json"}],
        "items": ITEMS,
    }
    deployment = deploy(folder, document, "--inference_engines", "2")
    items = np.arange(ITEMS + 1)
    truth = [ServiceTable((items * ns + 50_000)[None]) for ns in (10_000, 90_000)]
    session = SimulatedSession({CPU: 2}, ServiceTimes(tuple(truth)), stages_of(deployment))
    measured = calibrated_times(deployment, calibrate(session, deployment))
    for table, true, largest in zip(measured.tables, truth, (ITEMS, 20), strict=True):
        spread = table.factors[table.cpu_row].mean(axis=1)
        times = table.cpu_ns[0] * spread
        assert times[1 : largest + 1] == pytest.approx(true.cpu_ns[0, 1 : largest + 1], rel=0.02)


@pytest.mark.parametrize("scheduler", ["guided", "released", "exhaustive"])
def test_every_search_tunes_a_pipeline(folder, scheduler):
    document = {"stages": [{"model": "small.json", "keep_items": 20}, {"model": "large.json"}]}
    words = "--tune_batch_qps --batch_configs 60-30-15 --target_latency 40 --nepochs 50".split()
    deployment = deploy(
        folder, document, *VIRTUAL_LAW, *words, "--scheduler", scheduler, "--inference_engines", "4"
    )
    with open_session(deployment, Progress("none")) as opened:
        tuned = PolicyTuner(deployment, opened.session, Progress("none")).run()
    assert [phase.name for phase in tuned.phases] == ["static", "tuned CPU"]
    assert all(phase.rate_qps > 0 for phase in tuned.phases)


def test_the_power_of_devices_that_serve_stages_is_counted(folder):
    stages = [{"model": "rm1", "device": "nvidia_t4"}]
    words = ["--objective", "qps_per_watt", "--cpu_watts", "100", "--tune_batch_qps"]
    deployment = deploy(folder, {"stages": stages}, *words, "--backend", "simulated")
    check(deployment)
    with open_session(deployment, Progress("none")) as opened:
        power = server_power(deployment, opened.session, opened.devices)
    assert power.of(Policy(8)) == 170
    assert power.as_json()["devices"] == [{"watts": 70.0, "source": "TDP as device.yaml states it"}]


def test_pools_are_pinned_to_the_cores_in_turn(folder, monkeypatch):
    monkeypatch.setattr("backends.opening.usable_cores", lambda: (4, 5, 6))
    document = {
        "stages": [{"model": "small.json", "keep_items": 3, "engines": 2}, {"model": "small.json"}]
    }
    specs, _ = pool_specs(deploy(folder, document, "--pin_cores"), Progress("none"))
    assert [spec.cores[0] for spec in specs] == [4, 6]
    assert {spec.cores for spec in specs} == {(4, 5, 6), (6, 4, 5)}


class KilledOnce(CpuEngine):
    """Ends its process at the 9th task that it is given, if nobody has before."""

    seen = 0

    def score(self, task):
        self.seen += 1
        marker = self.marker
        if self.seen == 9 and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().score(task)


def test_an_engine_that_dies_changes_no_answer(folder):
    deployment = deploy(
        folder,
        {
            **THREE,
            "stages": [
                {**s, "pool": "shared"}
                for s in [
                    {"model": "small.json", "keep_items": 30},
                    {"model": "large.json", "keep_items": 4},
                ]
            ],
        },
    )
    schedule = load()
    workloads = prepare(deployment, Progress("none"), [0, 1])

    class Engines:
        def __init__(self):
            self.by_stage = {i: KilledOnce(workload, 1, ITEMS) for i, workload in workloads.items()}
            for engine in self.by_stage.values():
                engine.marker = folder / "killed"

        def warm_up(self):
            pass

        def score(self, task):
            return self.by_stage[task.stage].score(task)

    specs = [PoolSpec("shared", 2, lambda _: Engines(), yields=True)]
    with ProcessSession(specs, stages_of(deployment)) as session:
        rows = session.run(schedule, Policy(16))
        assert len(session.deaths) == 1
    assert rows.queries["done_ns"].notna().all()
    assert rows.answers == run(deployment, schedule).answers


def test_scores_that_are_no_numbers_fail_their_query_and_say_so():
    class Broken:
        def warm_up(self):
            pass

        def score(self, task):
            return np.full(
                task.n_items, np.nan if task.input_id == 3 else 1.0, np.float32
            ).tobytes()

    schedule = load(40)
    stages = [Stage(keep_items=5), Stage(keep_items=2)]
    with ProcessSession([PoolSpec(CPU, 1, lambda _: Broken())], stages) as session:
        rows = session.run(schedule, Policy(16))
    lost = rows.queries["query_id"][rows.queries["done_ns"].isna()]
    assert lost.tolist() == np.flatnonzero(schedule.input_id == 3).tolist()
    assert all("cannot be ranked" in note for note in rows.notes)
    ties = {query: np.frombuffer(items, np.int32).tolist() for query, items in rows.answers.items()}
    assert all(
        items == list(range(min(2, schedule.n_items[query]))) for query, items in ties.items()
    )


def test_the_engine_for_a_device_gives_the_scores_of_the_cpu(folder):
    deployment = deploy(folder, THREE)
    on_device = cuda_engines(deployment, (0, 2), device="cpu")
    workloads = prepare(deployment, Progress("none"), [0, 2])
    on_cpu = {i: CpuEngine(workload, 1, ITEMS) for i, workload in workloads.items()}
    for stage in (0, 2):
        for items in (b"", np.array([7, 3, 3, 50], np.int32).tobytes()):
            task = WireTask(1, stage, 2, 5, 4, items)
            scores, expected = (
                np.frombuffer(engines[stage].score(task), np.float32)
                for engines in (on_device, on_cpu)
            )
            assert scores == pytest.approx(expected, abs=1e-6)
            assert len(scores) == 4
