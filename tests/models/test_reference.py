"""The nets against recorded outputs of the release, and the published variants against NumPy."""

import json

import numpy as np
import pytest
import torch
from helpers import DATA

from infra.settings.config import ModelConfig
from models import MODELS, architecture, build
from models.batch import from_tables
from models.inputs.synthetic import InputPool

ARGUMENTS = json.loads((DATA / "nets/arguments.json").read_text())
KEYS = (
    "arch_mlp_bot",
    "arch_mlp_top",
    "arch_mlp_tasks",
    "num_multi_tasks",
    "arch_sparse_feature_size",
    "num_indices_per_lookup",
    "arch_interaction_op",
    "arch_interaction_itself",
    "hidden_size",
)


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def reference_model(name, execution="fused"):
    arguments = ARGUMENTS[name]
    arrays = dict(np.load(DATA / f"nets/{name}.npz"))
    model_type = arguments["model"]
    config = ModelConfig(
        model_type="dlrm" if model_type in ("rm1", "rm2", "rm3") else model_type,
        arch_embedding_size="-".join([str(arguments["rows_per_table"])] * arguments["tables"]),
        num_indices_per_lookup_fixed=True,
        fused="off" if execution == "off" else "on",
        embedding_operator="fused" if execution == "off" else execution,
        **{key: arguments[key] for key in KEYS},
    )
    model = architecture(config.model_type)(config)
    model.load_reference(arrays)
    return model, arrays, arguments


def reference_batch(model, arrays, n_items):
    n_ids = model.config.num_indices_per_lookup
    return from_tables(
        arrays["input.dense"][:n_items],
        arrays["input.indices"][:, : n_items * n_ids],
        arrays["input.lengths"][:, :n_items],
        model.config.table_rows,
    )


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("execution", ["fused", "per_table", "off"])
@pytest.mark.parametrize("name", sorted(ARGUMENTS))
def test_the_net_computes_what_the_released_net_computes(name, execution, packed):
    model, arrays, arguments = reference_model(name, execution)
    if packed:
        model.pack()
    for n_items in (*arguments["prefix_batches"], arguments["batch"]):
        scores = model(reference_batch(model, arrays, n_items))
        scores = scores if scores.dim() == 3 else scores.unsqueeze(0)
        assert len(scores) == len(arguments["outputs"])
        for score_BO, blob in zip(scores, arguments["outputs"], strict=True):
            expected = arrays[f"output.{blob}.b{n_items}"]
            assert score_BO.shape == expected.shape
            error = np.abs(score_BO.numpy() - expected).max() / np.abs(expected).max()
            assert error < 1e-5


def test_the_recorded_outputs_react_to_the_ids():
    model, arrays, _ = reference_model("wnd__tiny")
    before = model(reference_batch(model, arrays, 17))
    arrays["input.indices"] = (arrays["input.indices"] + 1) % 64
    assert (model(reference_batch(model, arrays, 17)) - before).abs().max() > 1e-3


def test_a_weight_of_another_shape_is_refused_by_name():
    model, arrays, _ = reference_model("rm1__tiny")
    arrays["param.bot.fc1_w"] = arrays["param.bot.fc1_w"][:, 1:]
    with pytest.raises(ValueError, match=r"bot\.fc1"):
        model.load_reference(arrays)


def small(model_type, **settings):
    defaults = {
        "wnd": {"arch_mlp_bot": "5", "arch_embedding_size": "50-60-70"},
        "mtwnd": {
            "arch_mlp_bot": "5",
            "arch_mlp_top": "12-6",
            "arch_mlp_tasks": "6-5-3",
            "num_multi_tasks": 3,
        },
        "dlrm": {"arch_mlp_bot": "5-6-8", "arch_interaction_op": "dot"},
        "ncf": {"arch_embedding_size": "50-60-70-80", "arch_mlp_top": "12-10-7"},
        "din": {
            "arch_embedding_size": "50-60-70-80",
            "arch_mlp_bot": "6",
            "user_behavior_tables": 5,
        },
        "dien": {"arch_embedding_size": "50-60-61-62-63-70-80", "hidden_size": 9},
    }[model_type]
    base = {
        "arch_embedding_size": "50-60-70",
        "arch_sparse_feature_size": 8,
        "arch_mlp_top": "12-6-2",
        "num_indices_per_lookup": 3,
    }
    return ModelConfig(model_type=model_type, **{**base, **defaults, **settings})


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def numbers(layer):
    return layer.weight_OI.numpy().astype(float), layer.bias_O.numpy().astype(float)


def linear(layer, x):
    weight, bias = numbers(layer)
    return weight @ x + bias


def dice(x):
    p = sigmoid(x / np.sqrt(1 + 1e-8))
    return p * x + (1 - p) * 0.25 * x


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def top_with_dice(model, x):
    layers = [layer for layer in model.top if hasattr(layer, "weight_OI")]
    for layer in layers[:-1]:
        x = dice(linear(layer, x))
    return softmax(linear(layers[-1], x))


def pooled_rows(model, batch, item):
    """(T, D) of one item, row by row."""
    n_tables = len(model.tables.table_rows)
    weight = model.tables.weight_RD.numpy().astype(float)
    offsets = batch.offsets.numpy()
    bags = range(item * n_tables, (item + 1) * n_tables)
    return [sum(weight[i] for i in batch.ids_L[offsets[m] : offsets[m + 1]].tolist()) for m in bags]


def published_ncf(model, rows):
    h = np.concatenate(rows[2:])
    for layer in model.tower:
        if hasattr(layer, "weight_OI"):
            h = np.maximum(linear(layer, h), 0)
    return sigmoid(linear(model.final[0], np.concatenate([rows[0] * rows[1], h])))


def published_din(model, rows):
    profile, *behaviours, ad, context = rows
    interest = np.zeros_like(ad)
    for behaviour in behaviours:
        x = np.concatenate([behaviour, behaviour * ad, ad])
        x = dice(linear(model.attention.unit[0], x))
        interest += linear(model.attention.unit[2], x)[0] * behaviour
    return top_with_dice(model, np.concatenate([profile, interest, ad, context]))


def gated(cell, x, h, score=1.0):
    w_x, w_h, b = (
        t.numpy().astype(float) for t in (cell.weight_x_3HI, cell.weight_h_3HH, cell.bias_3H)
    )
    n = len(h)
    u, r, c = (slice(i * n, (i + 1) * n) for i in range(3))
    update = score * sigmoid(w_x[u] @ x + w_h[u] @ h + b[u])
    reset = sigmoid(w_x[r] @ x + w_h[r] @ h + b[r])
    new = np.tanh(w_x[c] @ x + reset * (w_h[c] @ h) + b[c])
    return (1 - update) * h + update * new


def published_dien(model, rows):
    profile, *behaviours, ad, context = rows
    h = np.zeros(model.config.hidden_size)
    interests = []
    for behaviour in behaviours:
        h = gated(model.evolve.extractor, behaviour, h)
        interests.append(h)
    compared = linear(model.evolve.compare, ad)
    attention = softmax(np.array([interest @ compared for interest in interests]))
    h = np.zeros(model.config.hidden_size)
    for interest, score in zip(interests, attention, strict=True):
        h = gated(model.evolve.evolution, interest, h, score)
    return top_with_dice(model, np.concatenate([h, profile, ad, context]))


@pytest.mark.parametrize(
    ("model_type", "slow"),
    [("ncf", published_ncf), ("din", published_din), ("dien", published_dien)],
)
def test_the_published_variant_agrees_with_a_slow_computation(model_type, slow):
    model = build(small(model_type, arch_variant="paper"), seed=3)
    model.tables.weight_RD.mul_(5)  # let the ids matter
    batch = InputPool(model.config, 1, 7, seed=3).batch(0, 0, 7)
    scores = model(batch).numpy()
    for item in range(7):
        np.testing.assert_allclose(
            scores[item], slow(model, pooled_rows(model, batch, item)), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("model_type", ["dlrm", "wnd", "mtwnd", "ncf", "din"])
def test_a_task_gives_the_scores_that_the_whole_query_gives(model_type):
    """Not DIEN: its released recurrence mixes the samples of a batch."""
    model = build(small(model_type), seed=3)
    inputs = InputPool(model.config, 2, 20, seed=3)
    whole = model(inputs.batch(1, 0, 20))
    parts = [model(inputs.batch(1, first, n)) for first, n in ((0, 7), (7, 7), (14, 6))]
    torch.testing.assert_close(torch.cat(parts, dim=-2), whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("model_type", sorted(MODELS))
def test_weights_come_from_the_seed_alone(model_type):
    first, again, another = (build(small(model_type), seed) for seed in (1, 1, 2))
    for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(first.tables.weight_RD, again.tables.weight_RD)
    assert not torch.equal(first.tables.weight_RD, another.tables.weight_RD)


def test_initial_weights_have_the_variances_of_the_release():
    model = build(
        ModelConfig(
            model_type="wnd",
            arch_embedding_size="20000-500",
            arch_mlp_bot="200",
            arch_mlp_top="300-1",
            arch_sparse_feature_size=16,
            num_indices_per_lookup=1,
        ),
        seed=1,
    )
    weight, bias = numbers(model.top[0])
    n_in = 200 + 2 * 16
    assert weight.var() == pytest.approx(2 / (n_in + 300), rel=0.05)
    assert bias.var() == pytest.approx(1 / 300, rel=0.3)
    for table, rows in ((0, 20000), (1, 500)):
        values = model.tables.table(table).numpy()
        assert np.abs(values).max() <= rows**-0.5
        assert values.var() == pytest.approx(1 / rows / 3, rel=0.05)
        assert abs(values.mean()) < 4 * rows**-0.5 / np.sqrt(3 * values.size)


def test_din_has_as_many_behaviour_tables_as_asked_for():
    assert len(small("din", user_behavior_tables=250).table_rows) == 253
    assert len(small("din", user_behavior_tables=1).table_rows) == 4
    written_out = small("din", arch_embedding_size="50-60-60-60-70-80")
    assert len(written_out.table_rows) == 6  # a longer list names every table
