"""The GPU engine gives the CPU engine's scores, query by query and merged.

Its steps run on the CPU, too.
"""

import pytest
import torch

from accelInferenceEngine import cuda_engines
from backends.processes.engine import MergingEngine
from inferenceEngine import prepare
from infra.deployment import resolve
from infra.messages import WireTask
from infra.progress import Progress
from infra.settings.cli import parse

NO_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NO_CUDA])]
NETS = {
    "wnd": "--model_type wnd --arch_mlp_bot 6 --arch_mlp_top 8-1",
    "ncf": "--model_type ncf --arch_mlp_top 8-4-4 --arch_embedding_size 50-60-70-80",
}
INPUTS = "--num_batches 2 --max_mini_batch_size 32 --num_indices_per_lookup 3"


def deployed(net, more=""):
    return resolve(parse(f"{INPUTS} --arch_embedding_size 50-60 {NETS[net]} {more}".split()))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("net", NETS)
def test_scores_are_those_of_the_cpu_engine(net, device):
    deployment = deployed(net, "--accel_merge_mib 1")
    engine = cuda_engines(deployment, [0], device)[0]
    reference = prepare(deployment, Progress("none"))[0]
    engine.warm_up()
    tasks = [WireTask(1, 0, 0, 0, 32), WireTask(2, 0, 1, 5, 7), WireTask(3, 0, 1, 31, 1)]
    with torch.inference_mode():
        expected = [
            reference.model(reference.inputs.batch(t.input_id, t.first_item, t.n_items))
            for t in tasks
        ]
    for task, scores in zip(tasks, expected, strict=True):
        torch.testing.assert_close(engine.scores([task]), scores, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(engine.scores(tasks), torch.cat(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
def test_queries_merge_up_to_the_budget_and_not_without_one(device):
    engine = cuda_engines(deployed("wnd", "--accel_merge_mib 0.01"), [0], device)[0]
    assert isinstance(engine, MergingEngine)
    small = WireTask(1, 0, 0, 0, 1)
    large = WireTask(2, 0, 0, 0, 32)
    assert engine.takes_more([small])
    assert not engine.takes_more([large] * 8)
    assert not cuda_engines(deployed("wnd"), [0], device)[0].takes_more([small])
    with pytest.raises(ValueError, match="staging"):
        engine.scores([large] * 300)
