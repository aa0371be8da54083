"""Synthetic clicks: the rate is met, popularity is Zipf's, splits share no pair; rankers learn and
repeat.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score

from experiments.recpipe.datasets import click_rankers, clicks
from experiments.recpipe.datasets.click_rankers import DLRM, train, trained, validation_ndcg
from experiments.recpipe.datasets.clicks import ClickConfig, Clicks
from experiments.recpipe.datasets.ranked import Ranker, scores

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
    return {(int(user), int(own)) for user, own in queries.ids_QNT[:, :, [0, item]].reshape(-1, 2)}


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
    known = np.linspace(-3, 3, 7, dtype=np.float32).repeat(20_000)
    found = world.clicks(known, np.random.default_rng(1)).reshape(7, -1).mean(axis=1)
    points, weights = np.polynomial.hermite_e.hermegauss(30)
    for odds, mean in zip(np.linspace(-3, 3, 7), found, strict=True):
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
    assert all(len(set(own)) == 8 for own in items)
    found = np.bincount(items.reshape(-1), minlength=30) / 700
    weights = np.exp(world.items_shown.log_weights())
    rng = np.random.default_rng(1)
    slow = [rng.choice(30, 8, replace=False, p=weights / weights.sum()) for _ in range(4000)]
    expected = np.bincount(np.concatenate(slow), minlength=30) / 4000
    assert (
        np.abs(found - expected) < 5 * np.sqrt(expected * (1 - expected) * (1 / 700 + 1 / 4000))
    ).all()
    first = np.bincount(items[:, 0], minlength=30) / 700  # their order tells nothing
    assert (np.abs(first - expected / 8) < 5 * np.sqrt(expected / 8 / 700 + 1e-4)).all()


def test_no_pair_of_training_is_a_candidate_and_no_user_is_in_two_splits(world, examples):
    test, _ = world.test()
    shown = {*zip(world.user_N.tolist(), world.item_N.tolist(), strict=True)}
    assert not shown & pairs(test)
    assert not shown & pairs(examples.valid)
    users = [{user for user, _ in pairs(queries)} for queries in (test, examples.valid)]
    assert not users[0] & users[1]
    assert [len(own) for own in users] == [TINY.n_queries, TINY.n_valid_queries]
    in_training = {
        *zip(
            examples.ids_NT[:, 0].tolist(),
            examples.ids_NT[:, 1 + len(TINY.user_rows)].tolist(),
            strict=True,
        )
    }
    assert in_training == shown


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
        shares = (
            np.bincount(examples.ids_NT[:, -len(TINY.session_rows) + column], minlength=rows)
            / TINY.n_train
        )
        counts = np.bincount(sessions[:, column], minlength=rows)
        assert stats.chisquare(counts, shares * 590).pvalue > 1e-3


def test_equal_seeds_give_equal_data_and_more_queries_leave_the_rest_alone(examples, world):
    again = Clicks(replace(TINY, n_queries=50))
    own = again.examples()
    assert (own.ids_NT == examples.ids_NT).all()
    assert (own.label_N == examples.label_N).all()
    assert (own.dense_NF == examples.dense_NF).all()
    assert (again.test()[0].labels_QN[:40] == world.test()[0].labels_QN).all()
    other = Clicks(replace(TINY, seed=2)).examples()
    assert (other.label_N != examples.label_N).any()
    assert other.digest != examples.digest


def test_the_strengths_of_latent_factors_fall_and_their_squares_sum_to_one():
    found = clicks.strengths(8)
    assert (np.diff(found) < 0).all()
    assert (found**2).sum() == pytest.approx(1)


@pytest.mark.parametrize(
    ("wrong", "message"), [({"click_rate": 1.0}, "click_rate is 1"), ({"n_users": 42}, "42 users")]
)
def test_settings_without_sense_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **wrong)


# The rankers


def test_training_repeats_and_the_served_model_scores_as_the_trained_net(examples, tmp_path):
    one, again = (train(RANKER, examples, lambda *_: None) for _ in range(2))
    assert all((one[name] == again[name]).all() for name in one)
    ranker = trained(RANKER, examples, tmp_path, lambda *_: None)
    assert all((ranker.weights[name] == one[name]).all() for name in one)
    kept = trained(RANKER, examples, tmp_path, lambda *_: pytest.fail("trained again"))
    net = net_with(one, examples)
    queries = examples.valid
    with torch.no_grad():
        ids_NT = torch.from_numpy(queries.ids_QNT.reshape(-1, len(TINY.table_rows)))
        logits = net(ids_NT, torch.from_numpy(queries.dense_QNF.reshape(-1, 13)))
    expected = torch.sigmoid(logits).numpy().reshape(queries.labels_QN.shape)
    assert scores(kept.model(), queries) == pytest.approx(expected, abs=1e-5)


def net_with(weights, examples):
    net = DLRM(RANKER, examples.table_rows)
    with torch.no_grad():
        tables = [weights[f"param.emb.sls{t}_w"] for t in range(len(examples.table_rows))]
        net.tables.weight.copy_(torch.from_numpy(np.concatenate(tables)))
        for blob, stack in (("bot", net.bottom), ("top", net.top)):
            for i, layer in enumerate(stack, start=1):
                layer.weight.copy_(torch.from_numpy(weights[f"param.{blob}.fc{i}_w"]))
                layer.bias.copy_(torch.from_numpy(weights[f"param.{blob}.fc{i}_b"]))
    return net


def test_a_ranker_learns_what_is_likely_to_be_clicked_but_not_what_is_chance(world, examples):
    queries, known = world.test()
    config = RANKER.model_config(examples.table_rows)
    found = scores(
        Ranker(config, train(replace(RANKER, epochs=4), examples, lambda *_: None)).model(), queries
    )
    drawn = np.random.default_rng(1).random(found.shape)
    auc = [
        np.mean(
            [roc_auc_score(labels, own) for own, labels in zip(by, queries.labels_QN, strict=True)]
        )
        for by in (drawn, found, known)
    ]
    assert abs(auc[0] - 0.5) < 0.05
    assert auc[0] + 0.05 < auc[1] < auc[2] < 0.95  # no ranker is perfect


def test_of_several_passes_the_best_is_kept(examples):
    found = []

    def listen(_fraction, detail=""):
        if detail.startswith("validation"):
            found.append(float(detail.split()[-1]))

    weights = train(replace(RANKER, epochs=6, learning_rate=0.05), examples, listen)
    best = validation_ndcg(
        Ranker(RANKER.model_config(examples.table_rows), weights), examples.valid
    )
    assert len(found) == 6
    assert best == pytest.approx(max(found), abs=1e-4)
    assert max(found) > found[-1]  # else this test shows nothing


@pytest.mark.parametrize("part", ["ids_NT", "dense_NF", "label_N", "valid"])
def test_the_digest_is_of_everything(examples, part):
    first = (
        {part: getattr(examples, part)[::-1]}
        if part != "valid"
        else {part: examples.valid.sample(1)}
    )
    assert replace(examples, **first).digest != examples.digest == replace(examples).digest


def test_a_checkpoint_is_of_its_data(examples, tmp_path):
    few = replace(
        examples,
        ids_NT=examples.ids_NT[:100],
        dense_NF=examples.dense_NF[:100],
        label_N=examples.label_N[:100],
    )
    for own, data in (
        (RANKER, few),
        (RANKER, replace(few, label_N=1 - few.label_N)),
        (replace(RANKER, seed=2), few),
    ):
        trained(own, data, tmp_path, lambda *_: None)
    assert len([*tmp_path.iterdir()]) == 3
