"""Files of trained rankers and ranking queries: what is read back scores as what was trained;
padding is harmless.
"""

import json

import numpy as np
import pytest
import torch
from drawn_rankers import DLRM, NCF, drawn_queries, drawn_weights

from experiments.recpipe.datasets import rankers
from experiments.recpipe.datasets.ranked import Queries, RankedData, Ranker, scores
from infra.settings.cli import read_file
from infra.settings.config import ModelConfig
from models import architecture


@pytest.mark.parametrize("config", [NCF, DLRM], ids=["ncf", "dlrm"])
def test_what_is_read_back_scores_as_what_was_written(config, tmp_path):
    queries = drawn_queries(config, [7, 20, 13], 1)
    own = {
        name: Ranker(config, drawn_weights(config, seed))
        for seed, name in enumerate(("small", "large"))
    }
    rankers.export(RankedData("drawn", own, queries, 4, {"what": "drawn"}), tmp_path, 100)
    found = Queries.read(tmp_path / "queries.npz")
    for field in ("ids_QNT", "dense_QNF", "labels_QN", "n_items_Q"):
        assert (getattr(found, field) == getattr(queries, field)).all()
    for name, ranker in own.items():
        again = Ranker.read(tmp_path, name)
        assert again.config == config
        assert (scores(again.model(), found) == scores(ranker.model(), queries)).all()
    facts = json.loads((tmp_path / "queries.json").read_text())
    assert facts["rankers"] == ["small", "large"]
    true = np.concatenate([queries.labels(q) for q in range(3)])
    assert facts["label_rate"] == pytest.approx(true.mean())


def test_the_files_are_enough_to_score_without_this_study(tmp_path):
    """As a server does: the configuration is a file of flags, weights have their blobs' names, ids
    count by table.
    """
    queries = drawn_queries(DLRM, [6, 11], 2)
    data = RankedData("drawn", {"only": Ranker(DLRM, drawn_weights(DLRM, 3))}, queries, 4, {})
    rankers.export(data, tmp_path, 100)
    config = ModelConfig(**read_file(str(tmp_path / "only.json")))
    with torch.no_grad():
        model = architecture(config.model_type)(config)
        model.load_reference(dict(np.load(tmp_path / "only.npz")))
        arrays = np.load(tmp_path / "queries.npz")
        expected = []
        for query, n in enumerate(arrays["n_items"]):
            for item in range(n):
                dense = torch.from_numpy(arrays["dense"][query, item])
                bottom = torch.relu(model.bot[2](torch.relu(model.bot[0](dense))))
                rows = [
                    model.tables.table(t)[row] for t, row in enumerate(arrays["ids"][query, item])
                ]
                vectors = torch.stack([bottom, *rows])
                pairs = [vectors[i] @ vectors[j] for i in range(len(vectors)) for j in range(i)]
                top = torch.cat([bottom, torch.stack(pairs)])
                expected.append(float(torch.sigmoid(model.top[2](torch.relu(model.top[0](top))))))
    found = scores(data.rankers["only"].model(), queries)
    true = np.concatenate([found[query, :n] for query, n in enumerate(queries.n_items_Q)])
    assert true == pytest.approx(np.array(expected), abs=1e-5)
    assert not found[0, 6:].any()


def test_a_sample_is_of_different_queries_always_the_same_and_no_more_than_there_are():
    queries = drawn_queries(NCF, [*range(1, 31)], 3)
    sample = queries.sample(10)
    assert len(set(sample.n_items_Q)) == 10
    assert (sample.n_items_Q == queries.sample(10).n_items_Q).all()
    assert list(sample.n_items_Q) != [*range(1, 11)]
    assert (queries.sample(99).n_items_Q == queries.n_items_Q).all()


@pytest.mark.parametrize(
    ("field", "shape"), [("labels_QN", (2, 4)), ("dense_QNF", (3, 5, 0)), ("n_items_Q", (3,))]
)
def test_arrays_of_other_queries_are_refused(field, shape):
    arrays = {
        "ids_QNT": np.zeros((2, 5, 4), np.int32),
        "dense_QNF": np.zeros((2, 5, 0), np.float32),
        "labels_QN": np.zeros((2, 5), np.uint8),
        "n_items_Q": np.full(2, 5, np.int32),
    }
    Queries(**arrays)
    with pytest.raises(ValueError, match="do not belong"):
        Queries(**arrays | {field: np.ones(shape, arrays[field].dtype)})


@pytest.mark.parametrize("n", [0, 6])
def test_a_query_without_items_or_with_more_than_its_rows_is_refused(n):
    with pytest.raises(ValueError, match="items of 5"):
        Queries(
            np.zeros((1, 5, 4), np.int32),
            np.zeros((1, 5, 0), np.float32),
            np.zeros((1, 5), np.uint8),
            np.array([n], np.int32),
        )
