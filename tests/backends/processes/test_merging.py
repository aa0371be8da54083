"""Engines that merge what waits: every task is answered, and a broken batch fails all of its
queries.
"""

import pytest
from helpers import poisson_schedule

from backends.processes.engine import NullEngine, PoolSpec
from backends.processes.process import ProcessSession
from infra.messages import CPU
from scheduler import Policy

pytestmark = pytest.mark.alone


class Merging(NullEngine):
    """Takes up to four tasks at once; raises for input 7."""

    def takes_more(self, tasks):
        return len(tasks) < 4

    def score_merged(self, tasks):
        self.score(tasks[0])


class Broken(Merging):
    def score_merged(self, tasks):
        raise RuntimeError(f"out of memory with {len(tasks)} tasks")


def run(engine, rate_qps):
    with ProcessSession([PoolSpec(CPU, 1, lambda _: engine(2_000_000))]) as session:
        return session.run(poisson_schedule(rate_qps, 120, n_items=8), Policy(8))


def test_what_waits_is_scored_together_and_answered_once():
    tasks = run(Merging, 5000).tasks
    assert sorted(tasks["query_id"]) == list(range(120))
    together = tasks.groupby("start_ns").size()
    assert together.max() == 4
    assert (tasks.groupby("start_ns")["end_ns"].nunique() == 1).all()


def test_a_batch_that_cannot_be_scored_fails_its_queries_with_the_reason():
    rows = run(Broken, 5000)
    assert any("out of memory" in note for note in rows.notes)
    assert rows.queries["done_ns"].isna().any()
