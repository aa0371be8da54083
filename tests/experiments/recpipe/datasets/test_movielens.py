"""MovieLens for ranking: the split leaks nothing, training repeats and learns."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from drawn_rankers import full_queries

from experiments.recpipe.datasets.movielens import RANKERS, NeuMF, queries_of, split, train, trained
from experiments.recpipe.datasets.ranked import scores
from infra.ranking import ndcg_at_k
from models.inputs.datasets import Interactions

TINY = replace(RANKERS[1], width=4, tower=(8, 4), epochs=2)


def clusters(n_users=40, n_items=30, n_each=12, seed=1):
    """Users like the items of their half: something to be learnt."""
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
        of_user = data.user == user
        last = data.item[of_user][np.argmax(data.time[of_user])]
        assert parts.test_item[user] == last
        before = data.item[of_user][np.argsort(data.time[of_user])[-2]]
        assert parts.valid_item[user] == before
        trained_on = set(parts.train_item[parts.train_user == user])
        assert trained_on == set(data.item[of_user]) - {last, before}
        assert last in parts.candidates(user)
        assert not (trained_on | {before}) & set(parts.candidates(user))


def test_validation_is_ndcg_among_what_was_not_taken_before():
    parts = split(clusters())
    scores_UI = np.random.default_rng(1).random((40, 30)).astype(np.float32)
    values = []
    for user in range(40):
        pool = [*parts.candidates(user), parts.valid_item[user]]
        ranked = sorted(pool, key=lambda i, user=user: -scores_UI[user, i])
        values.append(ndcg_at_k([i == parts.valid_item[user] for i in ranked], [1], 10))
    assert parts.validation_ndcg(scores_UI, 10) == pytest.approx(np.mean(values))


def test_what_was_taken_at_the_same_time_is_not_trained_on():
    time = np.array([1.0, 2.0, 3.0, 3.0, 3.0])
    parts = split(Interactions(np.zeros(5, dtype=int), np.arange(5), np.ones(5), time))
    assert parts.valid_item == [3]
    assert parts.test_item == [4]
    assert list(parts.train_item) == [0, 1]
    assert list(parts.candidates(0)) == [4]  # the item of the same time was taken before, too


def test_users_with_too_few_items_are_left_out():
    users = np.array([0, 0, 0, 1, 1])
    parts = split(Interactions(users, np.arange(5), np.ones(5), np.arange(5.0)))
    assert parts.n_users == 1
    assert parts.n_items == 5


def all_items(data):
    """Queries of every user with every item."""
    user, item = np.indices((data.n_users, data.n_items))
    return full_queries(np.stack((user, item) * 2, axis=2), np.zeros(user.shape))


def test_training_repeats_and_learns(tmp_path):
    data = split(clusters(n_users=100))
    first, again = (train(replace(TINY, epochs=3), data, lambda *_: None) for _ in range(2))
    assert all((first[name] == again[name]).all() for name in first)
    ranker = trained(replace(TINY, epochs=80), data, tmp_path, lambda *_: None)
    scores_UI = scores(ranker.model(), all_items(data))
    # How often an item of the first half is above one of the second.
    likes_first = (scores_UI[:, :15, None] > scores_UI[:, None, 15:]).mean(axis=(1, 2))
    assert likes_first[::2].mean() > 0.6
    assert likes_first[1::2].mean() < 0.4


def test_the_served_model_scores_as_the_trained_one(tmp_path):
    data = split(clusters())
    weights = train(TINY, data, lambda *_: None)
    net = NeuMF(TINY, data.n_users, data.n_items)
    tables = ("emb.mf_sls0", "emb.mf_sls1", "emb.mlp_sls0", "emb.mlp_sls1")
    for table, name in zip(net.tables, tables, strict=True):
        table.weight.data = torch.from_numpy(weights[f"param.{name}_w"])
    layers = ("mlpfc.fc1", "mlpfc.fc2", "final.fc1")
    for layer, name in zip((*net.tower, net.final), layers, strict=True):
        layer.weight.data = torch.from_numpy(weights[f"param.{name}_w"])
        layer.bias.data = torch.from_numpy(weights[f"param.{name}_b"])
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
        items = queries.ids_QNT[user, :n, 1]
        assert list(items) == list(data.candidates(user))
        assert (queries.ids_QNT[user, :n, 0] == user).all()
        assert (queries.ids_QNT[user, :, :2] == queries.ids_QNT[user, :, 2:]).all()
        assert list(items[queries.labels(user) == 1]) == [data.test_item[user]]
        assert not queries.labels_QN[user, n:].any()
