"""The harness's bench: its peers answer, and its rows become medians."""

import numpy as np
import pandas as pd
import pytest
from helpers import poisson_schedule

from experiments.harness_overhead import loadgen, peers
from experiments.harness_overhead.run import STUDY, medians


def test_the_queue_peer_answers_every_task():
    run = peers.through_queues(1, poisson_schedule(500, 40))
    assert (run["added_us"] > 0).all()
    assert (run["late_us"] >= 0).all()
    assert run["cpu_us"] > 0


def test_the_null_pool_answers_over_the_products_own_sockets():
    with peers.null_pool(2) as (pool, replies):
        for number in (1, 2, 3):
            pool.driver_end.send(peers.pack_task(number, 0, 0, 0, 16))
        replies.settimeout(20)
        answers = [peers.WireReply.unpack(replies.recv(4096)) for _ in range(3)]
    assert {reply.ticket for reply in answers} == {1, 2, 3}
    assert all(reply.end_ns >= reply.start_ns > 0 for reply in answers)


def test_loadgens_percentiles_are_read_from_its_summary():
    text = (
        "QPS : 3\n50.00 percentile latency (ns)   : 168091\n99.90 percentile latency (ns)   : "
        "312852\nother : 1\n"
    )
    assert loadgen._percentiles(text).tolist() == [168091, 312852]


def test_loadgen_drives_the_null_engines():
    pytest.importorskip(
        "mlperf_loadgen", reason="mlcommons-loadgen is optional: build/bench_requirements.txt"
    )
    run = peers.through_loadgen(1, 200, 60)
    assert len(run["sent_ns"]) >= 60
    assert (np.diff(run["latency_us"]) >= 0).all()


def test_overhead_is_the_median_of_the_rounds_with_their_spread():
    rounds = pd.DataFrame(
        {
            "who": "ours",
            "engines": 1,
            "rate_qps": [100, 100, 100, 200],
            "added_p50_us": [3, 1, 2, 9],
        }
    )
    table = medians(rounds).set_index("rate_qps")
    assert table["added_p50_us"].to_dict() == {100: 2, 200: 9}
    assert table.loc[100, ["added_p50_least", "added_p50_most"]].tolist() == [1, 3]


@pytest.mark.alone
def test_a_quick_round_gives_the_harness_beside_the_queue(tmp_path):
    words = ["--quick", "--only", "engines=2,rate_qps=1000,rate_qps=None", "--out", str(tmp_path)]
    assert STUDY.command(words) == 0
    overhead = pd.read_csv(tmp_path / "overhead.csv").set_index("who")
    assert {"ours", "multiprocessing.Queue"} <= set(overhead.index)
    assert (overhead["added_p50_us"] > 0).all()
    assert pd.read_csv(tmp_path / "burst.csv")["tasks_per_s"].tolist() > [0]
