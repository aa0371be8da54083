"""RecPipe's studies: MovieLens' split leaks nothing, training repeats, chains filter exactly;
arrays and caches.
"""

import itertools
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import run_script

from accelerator.rpaccel import RANKERS as RPACCEL_RANKERS
from experiments.recpipe import arrays, quality
from experiments.recpipe.datasets.movielens import RANKERS, NeuMF, queries_of, split, train, trained
from experiments.recpipe.datasets.ranked import Queries, RankedData, chain, handed_on, scores
from infra.ranking import ndcg_at_k
from models.inputs.datasets import Interactions
from models.inputs.stack_distance import Locality

TINY = replace(RANKERS[1], width=4, tower=(8, 4), epochs=2)


def clusters(n_users=40, n_items=30, n_each=12, seed=1):
    """Users like the items of their own half: something to be learnt."""
    rng = np.random.default_rng(seed)
    half = n_items // 2
    item = np.concatenate([rng.permutation(half)[:n_each] + half * (u % 2) for u in range(n_users)])
    user = np.repeat(np.arange(n_users), n_each)
    time = rng.random(len(user))
    order = np.argsort(time)
    return Interactions(user[order], item[order], np.ones(len(user)), time[order])


def test_the_split_leaves_out_the_last_of_every_user_and_trains_on_what_came_before():
    data = clusters()
    parts = split(data)
    assert parts.n_users == 40
    for user in range(40):
        own = data.user == user
        last = data.item[own][np.argmax(data.time[own])]
        assert parts.test_item[user] == last
        before = data.item[own][np.argsort(data.time[own])[-2]]
        assert parts.valid_item[user] == before
        trained_on = set(parts.train_item[parts.train_user == user])
        assert trained_on == set(data.item[own]) - {last, before}
        assert last in parts.candidates(user)
        assert not (trained_on | {before}) & set(parts.candidates(user))


def test_validation_is_ndcg_among_what_was_not_taken_before():
    parts = split(clusters())
    found = np.random.default_rng(1).random((40, 30)).astype(np.float32)
    values = []
    for user in range(40):
        pool = [*parts.candidates(user), parts.valid_item[user]]
        ranked = sorted(pool, key=lambda i, user=user: -found[user, i])
        values.append(ndcg_at_k([i == parts.valid_item[user] for i in ranked], [1], 10))
    assert parts.validation_ndcg(found, 10) == pytest.approx(np.mean(values))


def test_what_was_taken_at_the_same_time_is_not_trained_on():
    time = np.array([1.0, 2.0, 3.0, 3.0, 3.0])
    parts = split(Interactions(np.zeros(5, dtype=int), np.arange(5), np.ones(5), time))
    assert parts.valid_item == [3]
    assert parts.test_item == [4]
    assert list(parts.train_item) == [0, 1]
    assert list(parts.candidates(0)) == [4]  # the item of the same time was taken before, too


def test_users_with_too_few_items_are_left_out():
    data = Interactions(
        np.array([0, 0, 0, 1, 1]), np.array([0, 1, 2, 3, 4]), np.ones(5), np.arange(5.0)
    )
    parts = split(data)
    assert parts.n_users == 1
    assert parts.n_items == 5


def all_items(data):
    """Every user's query has every item."""
    user, item = np.indices((data.n_users, data.n_items), dtype=np.int32)
    n_items = np.full(data.n_users, data.n_items, np.int32)
    shape = user.shape
    return Queries(
        np.stack((user, item) * 2, axis=2),
        np.zeros((*shape, 0), np.float32),
        np.zeros(shape, np.uint8),
        n_items,
    )


def test_training_repeats_and_learns(tmp_path):
    data = split(clusters(n_users=100))
    one, again = (train(replace(TINY, epochs=3), data, lambda *_: None) for _ in range(2))
    assert all((one[name] == again[name]).all() for name in one)
    found = scores(
        trained(replace(TINY, epochs=80), data, tmp_path, lambda *_: None).model(), all_items(data)
    )
    first = found[:, :15, None]
    second = found[:, None, 15:]
    likes_first = (first > second).mean(
        axis=(1, 2)
    )  # how often an item of the first half is above one of the second
    assert likes_first[::2].mean() > 0.6
    assert likes_first[1::2].mean() < 0.4


def test_the_served_model_scores_as_the_trained_one(tmp_path):
    data = split(clusters())
    weights = train(TINY, data, lambda *_: None)
    net = NeuMF(TINY, data.n_users, data.n_items)
    for table, name in zip(
        net.tables, ("emb.mf_sls0", "emb.mf_sls1", "emb.mlp_sls0", "emb.mlp_sls1"), strict=True
    ):
        table.weight.data = torch.from_numpy(weights[f"param.{name}_w"])
    for layer, name in zip(
        (*net.tower, net.final), ("mlpfc.fc1", "mlpfc.fc2", "final.fc1"), strict=True
    ):
        layer.weight.data, layer.bias.data = (
            torch.from_numpy(weights[f"param.{name}_{end}"]) for end in "wb"
        )
    user, item = np.divmod(np.arange(data.n_users * data.n_items), data.n_items)
    with torch.no_grad():
        expected = torch.sigmoid(net(torch.from_numpy(user), torch.from_numpy(item))).numpy()
    served = scores(trained(TINY, data, tmp_path, lambda *_: None).model(), all_items(data))
    assert served.reshape(-1) == pytest.approx(expected, abs=1e-5)
    assert len([*tmp_path.glob("medium-*.npz")]) == 1
    again = trained(TINY, data, tmp_path, lambda *_: pytest.fail("trained again"))
    assert (scores(again.model(), all_items(data)) == served).all()


def test_a_query_has_what_its_user_had_not_taken_and_seeks_the_item_taken_last():
    data = split(clusters())
    queries = queries_of(data)
    for user in range(data.n_users):
        n = queries.n_items_Q[user]
        assert list(queries.ids_QNT[user, :n, 1]) == list(data.candidates(user))
        assert (queries.ids_QNT[user, :n, 0] == user).all()
        assert (queries.ids_QNT[user, :, :2] == queries.ids_QNT[user, :, 2:]).all()
        assert list(queries.ids_QNT[user, :n, 1][queries.labels(user) == 1]) == [
            data.test_item[user]
        ]
        assert not queries.labels_QN[user, n:].any()


def test_a_chain_keeps_exactly_the_best_of_each_stage():
    rng = np.random.default_rng(2)
    first, second = rng.integers(0, 5, (2, 3, 40)).astype(np.float32)
    pool = rng.permutation(40)[:30]
    for user in range(3):
        kept = sorted(pool, key=lambda i, user=user: (-first[user, i], i))[:10]
        expected = sorted(kept, key=lambda i, user=user: (-second[user, i], i))[:4]
        assert list(chain([first, second], user, pool, (10, 4))) == expected
        everything = chain([first, second], user, pool, (30, 4))
        assert list(everything) == list(
            chain([second], user, pool, (4,))
        )  # a filter that keeps all is no filter


@pytest.mark.parametrize("n_parts", [1, 3])
def test_filters_that_work_in_parts_keep_their_share_of_each_part(n_parts):
    rng = np.random.default_rng(3)
    first, second, third = rng.integers(0, 9, (3, 2, 50)).astype(np.float32)
    pool = rng.permutation(50)[:41]
    bounds = {1: [(0, 41)], 3: [(0, 14), (14, 28), (28, 41)]}[n_parts]
    for query in range(2):
        kept = []
        for begin, end in bounds:
            own = sorted(pool[begin:end], key=lambda i, query=query: (-first[query, i], i))[
                : -(-20 // n_parts)
            ]
            kept += sorted(own, key=lambda i, query=query: (-second[query, i], i))[
                : -(-10 // n_parts)
            ]
        expected = sorted(kept, key=lambda i, query=query: (-third[query, i], i))[:5]
        assert list(handed_on([first, second], query, pool, (20, 10), n_parts)) == kept
        assert list(chain([first, second, third], query, pool, (20, 10, 5), n_parts)) == expected


def oracle(n_queries=20, n_items=200, rate=0.2, seed=4):
    """Queries with a few clicks and a ranker that knows them."""
    rng = np.random.default_rng(seed)
    shape = (n_queries, n_items)
    labels = (rng.random(shape) < rate).astype(np.uint8)
    queries = Queries(
        np.zeros((*shape, 1), np.int32),
        np.zeros((*shape, 0), np.float32),
        labels,
        np.full(n_queries, n_items, np.int32),
    )
    return quality.Scored(
        RankedData("clicks", {}, queries, 10, {}), {"large": labels.astype(np.float32)}
    )


def test_an_oracle_s_quality_is_one_and_falls_with_the_items_it_gets():
    scored = oracle()
    own = quality.Chain(("large",), (10,))
    found = quality.quality_of(own, scored)
    for name in quality.MEASURES:
        assert (found[name] == 1).all()
    shares = [quality.quality(own, scored, scored.parts(share)) for share in quality.POOLS]
    for less, more in itertools.pairwise(shares):
        assert (less["ndcg"] <= more["ndcg"] + 1e-12).all()
    assert shares[0]["ndcg"].mean() < 0.9
    assert (shares[-1]["ndcg"] == 1).all()


def test_the_release_s_measure_asks_for_a_full_list_of_clicks():
    scored = oracle(rate=0.02)
    own = quality.Chain(("large",), (10,))
    found = quality.quality_of(own, scored)
    n_clicks = scored.data.queries.labels_QN.sum(axis=1)
    assert (found["ndcg"][n_clicks > 0] == 1).all()
    assert (found["ndcg_released"][n_clicks < 10] < 1).all()
    assert n_clicks.min() < 10


def test_quality_is_computed_once_a_chain(monkeypatch):
    scored = oracle()
    found = quality.quality_of(quality.Chain(("large",), (10,)), scored)
    monkeypatch.setattr(quality, "quality", lambda *_: pytest.fail("computed again"))
    assert quality.quality_of(quality.Chain(("large",), (10,)), scored) is found


def test_flops_of_a_chain_are_those_of_the_items_each_stage_ranks():
    of_item = {"small": 1.0, "medium": 10.0, "large": 100.0}
    assert quality.Chain(("large",), (10,)).flops(1000, of_item) == 100_000
    assert (
        quality.Chain(("small", "medium", "large"), (200, 50, 10)).flops(1000, of_item)
        == 1000 + 2000 + 5000
    )
    assert (
        quality.Chain(("small", "large"), (200, 10)).flops(100, of_item) == 100 + 10_000
    )  # no more than there are


def test_the_front_has_what_no_other_beats():
    rows = pd.DataFrame(
        {"chain": list("abcd"), "mflops": [1.0, 2.0, 3.0, 3.0], "ndcg": [0.1, 0.05, 0.2, 0.3]}
    )
    assert list(quality.pareto(rows)["chain"]) == ["a", "d"]


def test_the_quality_study_runs(tmp_path):
    data = clusters(n_users=20)
    lines = [f"{u}\t{i}\t5\t{t}" for u, i, t in zip(data.user, data.item, data.time, strict=True)]
    (tmp_path / "u.data").write_text("\n".join(lines))
    here = str(tmp_path)
    done = run_script(
        "experiments/recpipe/quality.py",
        "--quick",
        "--data",
        "movielens",
        "--movielens",
        here,
        "--cache",
        here,
        "--out",
        here,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    rows = pd.read_csv(tmp_path / "chain_quality_movielens.csv").set_index("chain")
    assert rows.loc["large", "less_than_large"] == 0
    assert (rows["ndcg"] <= rows["hit_rate"] + 1e-9).all()
    assert (rows["mrr"] <= rows["ndcg"] + 1e-9).all()
    assert rows.loc["small 400 > large", "ndcg"] == rows.loc["large", "ndcg"]  # keeps all 30 items
    assert (tmp_path / "quality_movielens.png").stat().st_size > 10_000


# The array


def test_small_arrays_are_used_better_and_none_more_than_whole():
    for name in arrays.NAMES:
        used = [arrays.utilisation(RPACCEL_RANKERS[name], side, 4096)[1] for side in arrays.SIDES]
        assert used == sorted(used)
        assert used[0] > 0
        assert used[-1] <= 1
    more, fewer = (arrays.utilisation(RPACCEL_RANKERS["rm-large"], 32, n)[1] for n in (4096, 64))
    assert more > fewer  # filling and draining is spread over more items


def test_the_access_time_weighs_both_caches_by_their_bytes():
    uniform = Locality(np.arange(1000), np.array([1, 1000, 100_000]), np.array([0.2, 0.6, 1.0]))
    whole = arrays.amat_cycles([0.0, 1.0], 1000 * 128 / 1e6, 1 / 8, uniform)
    assert whole == pytest.approx(
        [0.3 + 0.7 * 100] * 2
    )  # half of the bytes each, 0.6 of its accesses hit
    packed = arrays.amat_cycles([1.0], 1000 * 16 / 1e6, 1 / 8, uniform, arrays.ROW_BYTES)
    assert packed == pytest.approx([0.3 + 0.7 * 100])


def test_the_array_study_runs(tmp_path):
    done = run_script("experiments/recpipe/arrays.py", "--out", str(tmp_path), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = pd.read_csv(tmp_path / "cache_split.csv")
    error = (rows["ours"] / rows["amat_cycles"] - 1).abs()
    assert error.median() < 0.1
    assert (rows["packed"] <= rows["ours"] + 1e-9).all()
    assert (tmp_path / "arrays.png").stat().st_size > 10_000
