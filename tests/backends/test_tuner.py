"""The tuner in virtual time: theory knows the answer, and every query is accounted for."""

import math
from dataclasses import replace

import numpy as np
import pytest
from helpers import MS

from backends.simulated import SimulatedSession
from backends.tuner import Tuner
from infra.cli import parse
from infra.messages import ACCEL, CPU
from infra.progress import Progress

BASE = [
    "--queue", "--num_batches", "16", "--nepochs", "500", "--max_mini_batch_size", "8", "--tune_batch_qps",
    "--batch_configs", "8", "--target_latency", "20", "--req_granularity", "400", "--max_arr_range", "10",
    "--min_arr_range", "1", "--arr_steps", "60", "--avg_mini_batch_size", "8",
]  # fmt: skip


def tune(*words, engines=1, service_ms=1.0, accel_ms=0.2, seed=0, session=None):
    config = parse([*BASE, *words])
    rng = np.random.default_rng(seed)

    def service_ns(task):
        mean_ms = accel_ms if task.pool == ACCEL else service_ms * task.n_items / 8
        return int(rng.exponential(mean_ms) * MS)

    session = session or SimulatedSession({CPU: engines, ACCEL: 1}, service_ns)
    return Tuner(config, session, engines, Progress("none")).run()


def test_on_an_mm1_queue_the_confirmed_rate_is_near_the_closed_form():
    best_qps = 1000 * (1 - math.log(20) / 20)  # p95 of M/M/1 is ln(20) / (mu - lambda)
    for seed in range(3):
        phase = tune(seed=seed).phases[-1]
        assert phase.policy.batch_items == 8
        assert phase.summary.meets_sla
        assert phase.rate_qps == pytest.approx(best_qps, rel=0.09)  # a step of the grid is 4 %


def test_every_phase_begins_with_the_static_baseline_and_ends_confirmed():
    words = "--model_accel --tune_accel_qps --accel_configs 4-8 --batch_configs 4-8 --min_arr_range 0.1"
    search = tune(*words.split(), engines=2)
    assert [phase.name for phase in search.phases] == ["static", "tuned CPU", "tuned CPU + accelerator"]
    static, _, with_accel = search.phases
    assert static.policy.batch_items == 4  # 8 items over 2 engines
    assert with_accel.policy.offload_items in (4, 8)
    assert with_accel.rate_qps > static.rate_qps
    for phase in search.phases:
        assert phase.summary.meets_sla
        assert phase.summary.n_queries == 8000 - 200
        assert phase.rows is not None


def test_every_query_that_was_sent_is_in_the_tables():
    search = tune()
    updates, queries = search.updates_table(), search.queries_table()
    assert updates["n_queries"].sum() == len(queries)
    assert (queries.groupby("update").size() == 500).all()  # 400 that count and their warm-up
    assert queries["done_ns"].notna().all()
    assert set(updates["verdict"]) <= {"up", "hold", "down"}
    assert updates["update"].tolist() == list(range(len(updates)))


def test_where_no_rate_meets_the_sla_the_phase_says_so():
    search = tune("--target_latency", "0.01")
    assert all(phase.summary is None and phase.rate_qps == 0 for phase in search.phases)


def test_an_interrupted_search_keeps_what_it_has():
    class Interrupted(SimulatedSession):
        def run(self, *arguments):
            self.left -= 1
            self.interrupted = self.left <= 0
            return super().run(*arguments)

    session = Interrupted({CPU: 1, ACCEL: 1}, lambda task: task.n_items * MS // 8)
    session.left = 5
    search = tune(session=session)
    assert len(search.updates) == 4
    assert search.phases == []


def test_trials_have_seeds_of_their_own_and_a_search_repeats_with_its_seed():
    first, again = tune(), tune()
    assert first.updates_table().equals(again.updates_table())
    queries = first.queries_table()
    gaps = [part["arrival_ns"].diff().dropna().to_numpy() for _, part in queries.groupby("update")]
    assert abs(np.corrcoef(gaps[0], gaps[1])[0, 1]) < 0.2


def test_a_grid_that_ends_below_the_limit_is_climbed_to_its_end():
    search = tune("--min_arr_range", "5")
    assert search.phases[-1].rate_qps == pytest.approx(200)


def test_configurations_are_frozen():
    config = parse(BASE)
    with pytest.raises(AttributeError):
        config.tune.target_latency = 1.0
    assert replace(config.tune, target_latency=1.0).target_latency == 1.0
