"""What every session and every engine must do, whatever its world."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from helpers import MS, poisson_schedule

from accelerator.latency import Profile, ProfiledDevice
from accelerator.service import ServiceTable
from accelInferenceEngine import EngineFactory
from backends.processes.engine import NullEngine, PoolSpec
from backends.processes.process import ProcessSession
from backends.virtual.simulated import SimulatedSession
from inferenceEngine import CpuEngine, prepare
from infra.deployment import resolve
from infra.messages import ACCEL, CPU, WireTask
from infra.progress import Progress
from infra.results.rows import TASK_COLUMNS
from infra.settings.cli import parse
from infra.settings.pipeline import CUDA, PoolConfig
from loadGenerator import Schedule
from scheduler import ONE_STAGE, Policy, Stage

CONFIG = parse(
    "--num_batches 2 --max_mini_batch_size 32 --model_type wnd --arch_embedding_size 50-60 "
    "--num_indices_per_lookup 3".split()
)
DEPLOYMENT = resolve(CONFIG)


@pytest.fixture(params=["simulated", "compiled", pytest.param("process", marks=pytest.mark.alone)])
def opening(request):
    """Opens a session of some stages on two CPU engines and an accelerator."""
    engines = {CPU: 2, ACCEL: 1}
    if request.param == "simulated":
        return lambda stages: nullcontext(
            SimulatedSession(engines, lambda task: task.n_items * 1000, stages)
        )
    if request.param == "compiled":
        ns = np.maximum(np.arange(101) * 1000, 1)[None]
        return lambda stages: nullcontext(SimulatedSession(engines, ServiceTable(ns, ns), stages))
    specs = [PoolSpec(pool, n, lambda _: NullEngine(20_000)) for pool, n in engines.items()]
    return lambda stages: ProcessSession(specs, stages)


@pytest.fixture
def session(opening):
    """One stage on two CPU engines and an accelerator."""
    with opening(ONE_STAGE) as opened:
        yield opened


def sized_schedule(n=200, n_warmup=0):
    base = poisson_schedule(1000, n)
    sizes = np.random.default_rng(1).integers(1, 100, n).astype(np.int32)
    return Schedule(base.arrival_ns, sizes, np.zeros(n, np.int32), n_warmup)


def test_every_item_is_scored_once_by_an_engine_of_the_right_pool(session):
    schedule = sized_schedule()
    rows = session.run(schedule, Policy(16, offload_items=60))
    assert rows.tasks.groupby("query_id")["n_items"].sum().tolist() == schedule.n_items.tolist()
    large = schedule.n_items[rows.tasks["query_id"]] >= 60
    assert ((rows.tasks["pool"] == ACCEL) == large).all()
    assert set(rows.tasks["engine"][rows.tasks["pool"] == CPU]) == {0, 1}
    assert rows.queries["n_tasks"].tolist() == [
        1 if n >= 60 else -(-n // 16) for n in schedule.n_items
    ]


def test_rows_have_their_columns_and_times_in_order(session):
    rows = session.run(sized_schedule(n_warmup=20), Policy(16))
    assert list(rows.tasks.columns) == TASK_COLUMNS
    assert rows.queries["is_warmup"].sum() == 20
    queries = rows.queries
    assert (queries["arrival_ns"] <= queries["sent_ns"]).all()
    assert (queries["sent_ns"] <= queries["first_start_ns"]).all()
    assert (queries["first_start_ns"] < queries["done_ns"]).all()
    last_end = rows.tasks.groupby("query_id")["end_ns"].max().to_numpy()
    assert (queries["done_ns"].to_numpy(np.int64) == last_end).all()


def test_an_engine_works_on_one_task_at_a_time(session):
    rows = session.run(sized_schedule(), Policy(16))
    for _, tasks in rows.tasks.sort_values("start_ns").groupby(["pool", "engine"]):
        assert (tasks["start_ns"].to_numpy()[1:] >= tasks["end_ns"].to_numpy()[:-1]).all()


def test_a_pipeline_of_two_stages_serves_what_it_keeps(opening):
    with opening([Stage(keep_items=10), Stage(batch_items=4)]) as session:
        rows = session.run(sized_schedule(60), Policy(16))
    assert (rows.tasks["n_items"][rows.tasks["stage"] == 1] <= 4).all()
    second = rows.tasks[rows.tasks["stage"] == 1].groupby("query_id")["n_items"].sum()
    assert second.tolist() == np.minimum(sized_schedule(60).n_items, 10).tolist()


def test_a_session_runs_again_and_an_empty_schedule_is_no_work(session):
    nothing = Schedule(np.zeros(0, np.int64), np.zeros(0, np.int32), np.zeros(0, np.int32))
    assert len(session.run(nothing, Policy(16)).queries) == 0
    for _ in range(2):
        assert session.run(sized_schedule(20), Policy(16)).queries["done_ns"].notna().all()


def cpu_engine():
    workloads = prepare(DEPLOYMENT, Progress("none"))
    return EngineFactory(DEPLOYMENT, DEPLOYMENT.pools[0], workloads)(0)


def modelled_engine():
    device = ProfiledDevice("a device", {"wnd": Profile({1: 0.1, 32: 0.2})})
    return EngineFactory(DEPLOYMENT, PoolConfig(ACCEL, 1, "a device"), latencies={0: [device]})(0)


def cuda_engine():
    return EngineFactory(DEPLOYMENT, PoolConfig(ACCEL, 1, CUDA))(0)


ENGINES = [
    cpu_engine,
    modelled_engine,
    pytest.param(
        cuda_engine,
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
        ],
    ),
]


@pytest.mark.parametrize("build", ENGINES)
def test_an_engine_warms_up_and_scores_any_slice_of_any_input(build):
    engine = build()
    engine.warm_up()
    for input_id, first, n_items in ((0, 0, 1), (1, 31, 1), (0, 0, 32), (1, 5, 7)):
        assert engine.score(WireTask(1, 0, input_id, first, n_items)) is None


@pytest.mark.parametrize("build", [ENGINES[0], ENGINES[2]])
def test_an_engine_refuses_items_that_are_not_there(build):
    engine = build()
    for bad in ((0, 31, 2), (2, 0, 1), (0, 0, 0)):
        with pytest.raises(IndexError):
            engine.score(WireTask(1, 0, *bad))


@pytest.mark.alone
def test_an_engine_that_refuses_a_task_says_so_and_goes_on():
    workload = prepare(DEPLOYMENT, Progress("none"))[0]
    base = poisson_schedule(500, 60, n_items=32)
    ids = np.where(np.arange(60) == 30, 7, 0).astype(np.int32)  # there is no input 7
    with ProcessSession([PoolSpec(CPU, 1, lambda _: CpuEngine(workload, 1, 32))]) as session:
        rows = session.run(Schedule(base.arrival_ns, base.n_items, ids), Policy(16))
        assert not session.deaths
    assert rows.queries["query_id"][rows.queries["done_ns"].isna()].tolist() == [30]
    assert "input 7" in rows.notes[0]
    took_ns = rows.tasks["end_ns"] - rows.tasks["start_ns"]
    assert 0 < took_ns.min() < took_ns.max() < 1000 * MS
