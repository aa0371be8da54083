"""Settings become a deployment once: one model is one stage, a pipeline's file states several."""

import json

import pytest
import yaml

from infra.deployment import one_model, resolve
from infra.messages import CPU, MESSAGE_BYTES
from infra.settings import pipeline
from infra.settings.cli import parse
from infra.settings.config import ConfigError
from infra.settings.pipeline import PoolConfig
from scheduler import ONE_STAGE, Policy, Stage, stages_of

MODEL = {
    "model_type": "dlrm", "arch_embedding_size": "50-60", "arch_sparse_feature_size": 4,
    "arch_mlp_bot": "5-4", "arch_mlp_top": "8-1", "num_indices_per_lookup": 1,
}  # fmt: skip
TWO = [{"keep_items": 300}, {"keep_items": 5, "engines": 2, "batch_items": 7}]


@pytest.fixture
def deploy(tmp_path):
    """A deployment of a file's stages, or of one model, under some flags."""
    (tmp_path / "small.json").write_text(json.dumps(MODEL))

    def deploy(stages, *words, **top):
        flags = "--queue --num_batches 4 --inference_engines 3 --max_mini_batch_size 900".split()
        if stages:
            document = {"stages": [{"model": "small.json", **stage} for stage in stages], **top}
            file = tmp_path / "p.yaml"
            file.write_text(yaml.safe_dump(document))
            flags += ["--pipeline", str(file)]
        return resolve(parse([*flags, *words]))

    return deploy


def test_one_model_is_one_stage_on_the_cores(deploy):
    deployment = deploy([], "--model_name", "wnd")
    assert [stage.model.name for stage in deployment.stages] == ["wnd"]
    assert deployment.pools == (PoolConfig(CPU, 3),)
    assert stages_of(deployment) == ONE_STAGE
    assert (deployment.fingerprint, deployment.is_staged, deployment.n_engines) == (None, False, 3)
    assert deployment.message_bytes(deployment.pools[0]) == MESSAGE_BYTES


@pytest.mark.parametrize("stages", [[], TWO])
def test_an_accelerator_is_a_pool_that_the_stages_on_cores_offload_to(deploy, stages):
    deployment = deploy(stages, "--model_accel", "--accel_device", "nvidia_t4, nvidia_a100")
    accel = deployment.accelerators
    assert accel.devices == ["nvidia_t4", "nvidia_a100"]
    assert deployment.served_by(accel) == list(range(len(deployment.stages)))
    assert not deployment.is_ranked
    policies = [stage.under(Policy(16, 100)) for stage in stages_of(deployment)]
    assert {policy.offload_items for policy in policies} == {100}


def test_a_stage_on_a_device_takes_whole_queries_and_offloads_none(deploy):
    on_device = [{"keep_items": 9, "device": "nvidia_t4"}, {"keep_items": 3}]
    deployment = deploy(on_device, "--model_accel")
    first, second = (stage.under(Policy(16, 100)) for stage in stages_of(deployment))
    assert first.batch_items >= 900
    assert (first.offload_items, second) == (None, Policy(16, 100))
    assert deployment.served_by(deployment.accelerators) == [1]
    assert [pool.name for pool in deployment.device_pools] == ["stage0"]


def test_messages_are_as_large_as_the_items_that_travel(deploy):
    deployment = deploy(TWO, "--sub_task_batch_size", "500", "--model_accel")
    cores, later, accel = deployment.pools
    assert deployment.message_bytes(cores) >= 4 * 500
    assert deployment.message_bytes(later) == MESSAGE_BYTES
    assert deployment.message_bytes(accel) >= 4 * 900


def test_it_is_ranked_only_if_every_stage_that_chooses_has_scores(deploy):
    assert deploy([{"keep_items": 5}, {"keep_items": 3}]).is_ranked
    assert not deploy([{"keep_items": 5, "device": "nvidia_t4"}, {"keep_items": 3}]).is_ranked
    assert not deploy([{}]).is_ranked  # nobody chooses
    assert not deploy([{"keep_items": 5}, {}]).is_ranked  # the answer is not chosen


def test_the_largest_task_is_the_static_baseline_s_where_something_is_tuned(deploy):
    assert deploy([], "--sub_task_batch_size", "64").largest_task(0) == 64
    assert deploy([], "--tune_batch_qps", "--batch_configs", "32").largest_task(0) == 900
    deployment = deploy([{"keep_items": 20}, {}], "--tune_batch_qps")
    assert [deployment.largest_task(i) for i in range(2)] == [900, 20]


def test_a_fingerprint_is_that_of_run_folders_written_before(deploy):
    stages = [{"keep_items": 300}, {"keep_items": 5, "engines": 2, "batch_items": 7}]
    assert deploy(stages, items=900).fingerprint == "c8e48573e97bb1e8"
    assert deploy(stages, items=900).fingerprint != deploy(stages).fingerprint


def test_the_file_is_read_once(deploy, monkeypatch):
    read = []
    load = yaml.safe_load
    monkeypatch.setattr(pipeline.yaml, "safe_load", lambda text: read.append(text) or load(text))
    deploy(TWO)
    assert len(read) == 1


def test_a_model_setting_is_wrong_where_the_user_wrote_it(deploy):
    problem = ("arch_embedding_size", "needs 4 GiB")
    assert deploy([]).wrong_setting(*problem).flag == "arch_embedding_size"
    error = deploy(TWO, name="mine").wrong_setting(*problem)
    assert (error.flag, str(error).count("mine: arch_embedding_size needs")) == ("pipeline", 1)


def test_a_model_beside_a_pipeline_is_refused(deploy):
    with pytest.raises(ConfigError, match="table_scale is of no stage"):
        deploy(TWO, "--table_scale", "0.1")


def test_a_standalone_run_has_no_engines(deploy):
    config = deploy([], "--model_name", "wnd").config
    assert one_model(config, 0).pools == (PoolConfig(CPU, 0),)


def test_stages_are_one_by_default():
    assert (Stage(),) == ONE_STAGE
