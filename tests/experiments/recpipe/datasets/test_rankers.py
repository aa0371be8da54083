"""Files of trained rankers and ranking queries: what is read back scores as what was trained."""

import json

import numpy as np
import pytest
import torch
from drawn_rankers import DLRM, NCF, drawn_queries, drawn_weights

from experiments.recpipe.datasets import rankers
from experiments.recpipe.datasets.ranked import RankedData, TrainedRanker, scores
from infra.labelled_queries import read_queries
from infra.settings.cli import read_file
from infra.settings.config import ModelConfig
from models import architecture


def read_ranker(folder, name):
    config = ModelConfig(**read_file(str(folder / f"{name}.json")))
    return TrainedRanker(config, dict(np.load(folder / f"{name}.npz")))


@pytest.mark.parametrize("config", [NCF, DLRM], ids=["ncf", "dlrm"])
def test_what_is_read_back_scores_as_what_was_written(config, tmp_path):
    queries = drawn_queries(config, [7, 20, 13], 1)
    written = {
        name: TrainedRanker(config, drawn_weights(config, seed))
        for seed, name in enumerate(("small", "large"))
    }
    rankers.export(RankedData("drawn", written, queries, 4, {"what": "drawn"}), tmp_path, 100)
    again = read_queries(str(tmp_path / "queries.npz"))
    for field in ("ids_QNT", "dense_QNF", "labels_QN", "n_items_Q"):
        assert (getattr(again, field) == getattr(queries, field)).all()
    for name, ranker in written.items():
        read = read_ranker(tmp_path, name)
        assert read.config == config
        assert (scores(read.model(), again) == scores(ranker.model(), queries)).all()
    facts = json.loads((tmp_path / "queries.json").read_text())
    assert facts["rankers"] == ["small", "large"]
    labels = np.concatenate([queries.labels(q) for q in range(3)])
    assert facts["label_rate"] == pytest.approx(labels.mean())


def test_the_files_are_enough_to_score_without_this_study(tmp_path):
    """As a server does: a file of flags, weights by their blobs' names, ids count by table."""
    queries = drawn_queries(DLRM, [6, 11], 2)
    trained = TrainedRanker(DLRM, drawn_weights(DLRM, 3))
    rankers.export(RankedData("drawn", {"only": trained}, queries, 4, {}), tmp_path, 100)
    config = ModelConfig(**read_file(str(tmp_path / "only.json")))
    expected = []
    with torch.no_grad():
        model = architecture(config.model_type)(config)
        model.load_reference(dict(np.load(tmp_path / "only.npz")))
        arrays = np.load(tmp_path / "queries.npz")
        for query, n in enumerate(arrays["n_items"]):
            for item in range(n):
                dense = torch.from_numpy(arrays["dense"][query, item])
                bottom = torch.relu(model.bot[2](torch.relu(model.bot[0](dense))))
                ids = arrays["ids"][query, item]
                rows = [model.tables.table(t)[row] for t, row in enumerate(ids)]
                vectors = torch.stack([bottom, *rows])
                pairs = [vectors[i] @ vectors[j] for i in range(len(vectors)) for j in range(i)]
                top = torch.cat([bottom, torch.stack(pairs)])
                expected.append(float(torch.sigmoid(model.top[2](torch.relu(model.top[0](top))))))
    scores_QN = scores(trained.model(), queries)
    true = np.concatenate([scores_QN[query, :n] for query, n in enumerate(queries.n_items_Q)])
    assert true == pytest.approx(np.array(expected), abs=1e-5)
    assert not scores_QN[0, 6:].any()
