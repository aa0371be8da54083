"""Synthetic clicks: the rate is met, popularity is Zipf's, splits share no pair; rankers learn."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score

from experiments.recpipe.datasets import click_rankers, clicks
from experiments.recpipe.datasets.click_rankers import (
    TrainableDlrm,
    train,
    trained,
    validation_ndcg,
)
from experiments.recpipe.datasets.clicks import ClickConfig, Clicks
from experiments.recpipe.datasets.ranked import TrainedRanker, sample, scores

TINY = ClickConfig(
    n_users=60, n_items=300, n_train=12_000, n_valid_queries=3, n_queries=40, n_candidates=80
)
RANKER = replace(click_rankers.RANKERS[0], bottom=(13, 8, 4), top=(8, 1), learning_rate=1e-2)


@pytest.fixture(scope="module")
def world():
    return Clicks(TINY)


@pytest.fixture(scope="module")
def examples(world):
    return world.examples()


def pairs(queries):
    """(user, item) of every candidate."""
    item = 1 + len(TINY.user_rows)
    return {(int(u), int(i)) for u, i in queries.ids_QNT[:, :, [0, item]].reshape(-1, 2)}


# The data


@pytest.mark.parametrize("rate", [0.03, 0.256])
def test_the_click_rate_is_met_within_its_binomial_error(rate):
    config = replace(TINY, click_rate=rate)
    label_N = Clicks(config).examples().label_N
    error = (rate * (1 - rate) / config.n_train) ** 0.5
    assert label_N.mean() == pytest.approx(rate, abs=4 * error)


@given(st.floats(0.001, 0.999), st.floats(-20, 20), st.floats(0.01, 5))
@settings(max_examples=50, deadline=None)
def test_the_constant_gives_the_mean_probability(rate, middle, spread):
    log_odds = middle + spread * np.random.default_rng(1).standard_normal(500)
    constant = clicks.constant_for(log_odds, rate)
    assert (1 / (1 + np.exp(-log_odds - constant))).mean() == pytest.approx(rate, rel=1e-6)


def test_clicks_come_as_often_as_the_log_odds_and_the_noise_say():
    world = Clicks(replace(TINY, noise=1.5))
    log_odds = np.linspace(-3, 3, 7, dtype=np.float32)
    clicked = world.clicks(log_odds.repeat(20_000), np.random.default_rng(1))
    points, weights = np.polynomial.hermite_e.hermegauss(30)
    for odds, mean in zip(log_odds, clicked.reshape(7, -1).mean(axis=1), strict=True):
        p = (weights / (1 + np.exp(-odds - world.constant - 1.5 * points))).sum() / weights.sum()
        assert mean == pytest.approx(p, abs=5 * (p * (1 - p) / 20_000) ** 0.5)


def test_items_are_shown_by_zipf_s_law(world):
    counts = np.bincount(world.item_N, minlength=TINY.n_items)
    shares = np.arange(1, TINY.n_items + 1) ** -TINY.item_alpha
    order = np.argsort(-world.items_shown.log_weights())
    expected = shares / shares.sum() * TINY.n_train
    assert stats.chisquare(counts[order], expected).pvalue > 1e-3
    assert not (np.diff(order) == 1).all()  # popular items are spread over the table


def test_candidates_are_drawn_by_popularity_one_by_one():
    config = replace(
        TINY, n_users=800, n_items=30, n_train=1, n_valid_queries=0, n_queries=700, n_candidates=8
    )
    world = Clicks(config)
    queries = world.test()[0]
    items = queries.ids_QNT[:, :, 1 + len(config.user_rows)]
    assert all(len(set(candidates)) == 8 for candidates in items)
    shares = np.bincount(items.reshape(-1), minlength=30) / 700
    weights = np.exp(world.items_shown.log_weights())
    rng = np.random.default_rng(1)
    slow = [rng.choice(30, 8, replace=False, p=weights / weights.sum()) for _ in range(4000)]
    expected = np.bincount(np.concatenate(slow), minlength=30) / 4000
    error = np.sqrt(expected * (1 - expected) * (1 / 700 + 1 / 4000))
    assert (np.abs(shares - expected) < 5 * error).all()
    first = np.bincount(items[:, 0], minlength=30) / 700  # their order tells nothing
    assert (np.abs(first - expected / 8) < 5 * np.sqrt(expected / 8 / 700 + 1e-4)).all()


def test_no_pair_of_training_is_a_candidate_and_no_user_is_in_two_splits(world, examples):
    test, _ = world.test()
    shown = {*zip(world.user_N.tolist(), world.item_N.tolist(), strict=True)}
    assert not shown & pairs(test)
    assert not shown & pairs(examples.valid)
    users = [{user for user, _ in pairs(queries)} for queries in (test, examples.valid)]
    assert not users[0] & users[1]
    assert [*map(len, users)] == [TINY.n_queries, TINY.n_valid_queries]
    columns = examples.ids_NT[:, [0, 1 + len(TINY.user_rows)]]
    assert {(user, item) for user, item in columns.tolist()} == shown


def test_more_candidates_than_are_left_are_refused(world):
    with pytest.raises(ValueError, match="300 candidates, but"):
        world.test(300)


def test_ids_are_rows_of_their_tables_and_attributes_belong_to_their_owner(world, examples):
    queries = world.test()[0]
    for ids in (examples.ids_NT, queries.ids_QNT.reshape(-1, len(TINY.table_rows))):
        assert (ids >= 0).all()
        assert (ids.max(axis=0) < TINY.table_rows).all()
    n_user = 1 + len(TINY.user_rows)
    seen = np.concatenate((examples.ids_NT, queries.ids_QNT.reshape(-1, len(TINY.table_rows))))
    assert len(np.unique(seen[:, :n_user], axis=0)) == len(np.unique(seen[:, 0]))
    item = seen[:, n_user : n_user + 1 + len(TINY.item_rows)]
    assert len(np.unique(item, axis=0)) == len(np.unique(item[:, 0]))
    assert len(TINY.table_rows) == len(TINY.table_names) == 26
    sessions = queries.ids_QNT[:, :, -len(TINY.session_rows) :]
    assert (sessions == sessions[:, :1]).all()  # one session a query


def test_sessions_of_queries_are_as_those_of_training(examples):
    many = Clicks(replace(TINY, n_users=600, n_queries=590, n_candidates=2))
    sessions = many.test()[0].ids_QNT[:, 0, -len(TINY.session_rows) :]
    for column in (0, 2):
        rows = TINY.session_rows[column]
        trained_on = examples.ids_NT[:, -len(TINY.session_rows) + column]
        shares = np.bincount(trained_on, minlength=rows) / TINY.n_train
        counts = np.bincount(sessions[:, column], minlength=rows)
        assert stats.chisquare(counts, shares * 590).pvalue > 1e-3


def test_equal_seeds_give_equal_data_and_more_queries_leave_the_rest_alone(examples, world):
    again = Clicks(replace(TINY, n_queries=50))
    same = again.examples()
    assert (same.ids_NT == examples.ids_NT).all()
    assert (same.label_N == examples.label_N).all()
    assert (same.dense_NF == examples.dense_NF).all()
    assert (again.test()[0].labels_QN[:40] == world.test()[0].labels_QN).all()
    reseeded = Clicks(replace(TINY, seed=2)).examples()
    assert (reseeded.label_N != examples.label_N).any()
    assert reseeded.digest != examples.digest


def test_the_strengths_of_latent_factors_fall_and_their_squares_sum_to_one():
    strengths = clicks.strengths(8)
    assert (np.diff(strengths) < 0).all()
    assert (strengths**2).sum() == pytest.approx(1)


@pytest.mark.parametrize(
    ("wrong", "message"), [({"click_rate": 1.0}, "click_rate is 1"), ({"n_users": 42}, "42 users")]
)
def test_settings_without_sense_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **wrong)


# The rankers


def test_training_repeats_and_the_served_model_scores_as_the_trained_net(examples, tmp_path):
    first, again = (train(RANKER, examples, lambda *_: None) for _ in range(2))
    assert all((first[name] == again[name]).all() for name in first)
    ranker = trained(RANKER, examples, tmp_path, lambda *_: None)
    assert all((ranker.weights[name] == first[name]).all() for name in first)
    kept = trained(RANKER, examples, tmp_path, lambda *_: pytest.fail("trained again"))
    net = net_with(first, examples)
    queries = examples.valid
    with torch.no_grad():
        ids_NT = torch.from_numpy(queries.ids_QNT.reshape(-1, len(TINY.table_rows)))
        logits = net(ids_NT, torch.from_numpy(queries.dense_QNF.reshape(-1, 13)))
    expected = torch.sigmoid(logits).numpy().reshape(queries.labels_QN.shape)
    assert scores(kept.model(), queries) == pytest.approx(expected, abs=1e-5)


def net_with(weights, examples):
    net = TrainableDlrm(RANKER, examples.table_rows)
    with torch.no_grad():
        tables = [weights[f"param.emb.sls{t}_w"] for t in range(len(examples.table_rows))]
        net.tables.weight.copy_(torch.from_numpy(np.concatenate(tables)))
        for blob, stack in (("bot", net.bottom), ("top", net.top)):
            for i, layer in enumerate(stack, start=1):
                layer.weight.copy_(torch.from_numpy(weights[f"param.{blob}.fc{i}_w"]))
                layer.bias.copy_(torch.from_numpy(weights[f"param.{blob}.fc{i}_b"]))
    return net


def test_a_ranker_learns_what_is_likely_to_be_clicked_but_not_what_is_chance(world, examples):
    queries, log_odds = world.test()
    config = RANKER.model_config(examples.table_rows)
    weights = train(replace(RANKER, epochs=4), examples, lambda *_: None)
    learnt = scores(TrainedRanker(config, weights).model(), queries)
    drawn = np.random.default_rng(1).random(learnt.shape)

    def auc(scores_QN):
        pairs = zip(queries.labels_QN, scores_QN, strict=True)
        return np.mean([roc_auc_score(labels, scores_N) for labels, scores_N in pairs])

    chance = auc(drawn)
    assert abs(chance - 0.5) < 0.05
    assert chance + 0.05 < auc(learnt) < auc(log_odds) < 0.95  # no ranker is perfect


def test_of_several_passes_the_best_is_kept(examples):
    ndcg = []

    def listen(_fraction, detail=""):
        if detail.startswith("validation"):
            ndcg.append(float(detail.split()[-1]))

    weights = train(replace(RANKER, epochs=6, learning_rate=0.05), examples, listen)
    ranker = TrainedRanker(RANKER.model_config(examples.table_rows), weights)
    assert len(ndcg) == 6
    assert validation_ndcg(ranker, examples.valid) == pytest.approx(max(ndcg), abs=1e-4)
    assert max(ndcg) > ndcg[-1]  # else this test shows nothing


@pytest.mark.parametrize("part", ["ids_NT", "dense_NF", "label_N", "valid"])
def test_the_digest_is_of_everything(examples, part):
    changed = sample(examples.valid, 1) if part == "valid" else getattr(examples, part)[::-1]
    digest = replace(examples, **{part: changed}).digest
    assert digest != examples.digest == replace(examples).digest


def test_a_checkpoint_is_of_its_data(examples, tmp_path):
    names = ("ids_NT", "dense_NF", "label_N")
    few = replace(examples, **{name: getattr(examples, name)[:100] for name in names})
    flipped = replace(few, label_N=1 - few.label_N)
    for config, data in ((RANKER, few), (RANKER, flipped), (replace(RANKER, seed=2), few)):
        trained(config, data, tmp_path, lambda *_: None)
    assert len([*tmp_path.iterdir()]) == 3
