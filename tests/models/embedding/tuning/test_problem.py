"""What is tuned: batches cut anew, enough of them, and wrong sums told apart from right ones."""

import numpy as np

from models.embedding.cpu.backend import CpuBackend
from models.embedding.plan.plan import Bucket, Group, params
from models.embedding.tuning.problem import enough, of_recorded, recut
from tests.models.embedding.searched import SPECS, recorded


def test_a_round_of_batches_reads_more_than_a_cache_holds():
    for item_bytes in (40, 1e3, 3e5, 1e9):
        for n_items in (1, 8, 512):
            n = enough(item_bytes, n_items)
            assert 64 <= n <= 16_384
            assert n * n_items * item_bytes > 100 << 20 or n == 16_384


def test_small_batches_are_cut_of_all_samples():
    source = recorded(n_items=300)
    assert len(of_recorded(source, [1, 4]).batches[1]) == 600
    assert len(of_recorded(source, [1, 4]).batches[4]) == 150


def test_samples_are_cut_anew_and_none_is_lost():
    source = recorded(n_items=10, n_batches=3)
    parts = recut(source.batches, len(SPECS), 4)
    assert [part.n_items for part in parts] == [4] * 7
    for table in range(len(SPECS)):
        whole = np.concatenate([batch.ids_of(table) for batch in source.batches])
        again = np.concatenate([part.ids_of(table) for part in parts])
        assert np.array_equal(again, whole[: len(again)])
        lengths = np.concatenate([batch.lengths_of(table) for batch in source.batches])[:28]
        assert np.array_equal(np.concatenate([part.lengths_of(table) for part in parts]), lengths)


def test_wrong_sums_are_told_apart_from_right_ones():
    problem = of_recorded(recorded(), [8])
    backend = CpuBackend()
    bucket = Bucket(None, (Group("compiled", (), tuple(range(len(SPECS)))),))
    right = backend.build(problem.layout, problem.weight_E, bucket, checked=True)
    assert problem.wrong(right, range(len(SPECS)), 0.0) is None

    def off_by_one(bags, out):
        right(bags, out)
        out[-1, -1] += 1

    assert problem.wrong(off_by_one, range(len(SPECS)), 0.0) == "table 4 is off by 1"
    assert problem.wrong(off_by_one, [0, 1, 2, 3], 0.0) is None
    narrow = Bucket(None, (Group("compiled", params(storage="int8"), (2,)),))
    run = backend.build(problem.layout, problem.weight_E, narrow, checked=False)
    assert problem.wrong(run, [2], 0.0) is not None
    assert problem.wrong(run, [2], 1 / 255) is None
