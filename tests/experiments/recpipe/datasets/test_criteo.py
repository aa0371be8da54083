"""Criteo's rows for ranking: the last ones are the test, pools share no row; the studies run."""

import json

import numpy as np
import pandas as pd
import pytest
from helpers import run_script

from experiments.recpipe.datasets import criteo
from models.inputs.datasets import Criteo, read_criteo


def drawn(n, seed=1):
    """Row i has the dense feature i, so that rows can be told apart."""
    rng = np.random.default_rng(seed)
    dense = np.repeat(np.arange(n, dtype=np.float32)[:, None], 13, axis=1)
    values = rng.integers(0, 2**63, (50, 26), dtype=np.uint64)
    sparse = values[rng.integers(0, 50, (n, 26)), np.arange(26)]
    return Criteo(dense, sparse, (rng.random(n) < 0.3).astype(np.float32))


def test_the_last_tenth_is_the_test_the_one_before_ends_training_and_no_row_is_in_two():
    data = drawn(1000)
    train, test = criteo.split(data, 30)
    rows = [
        dense[..., 0].reshape(-1).astype(int).tolist()
        for dense in (train.dense_NF, train.valid.dense_QNF, test.dense_QNF)
    ]
    assert rows[0] == [*range(800)]
    assert rows[1] == [*range(800, 890)]  # three pools of 30, the rest is left out
    assert rows[2] == [*range(900, 990)]
    assert (test.labels_QN.reshape(-1) == data.label_N[900:990]).all()
    assert (test.n_items_Q == 30).all()


def test_categories_become_rows_of_tables_as_large_as_they_have_values(monkeypatch):
    data = drawn(1000)
    train, test = criteo.split(data, 30)
    assert train.table_rows == tuple(len(np.unique(column)) for column in data.sparse_NC.T)
    assert (train.ids_NT.max(axis=0) < train.table_rows).all()
    same = data.sparse_NC[900] == data.sparse_NC[901]
    assert (test.ids_QNT[0, 0] == test.ids_QNT[0, 1])[same].all()
    monkeypatch.setattr(criteo, "MOST_ROWS", 7)
    assert set(criteo.table_rows(data)) == {7}


def test_too_few_rows_and_no_clicks_are_refused():
    with pytest.raises(ValueError, match="expected 40960 rows or more"):
        criteo.split(drawn(1000), 4096)
    data = drawn(1000)
    data.label_N[900:] = 0
    with pytest.raises(ValueError, match="none of the last 100 rows is a click"):
        criteo.split(data, 30)


def written(file, n=3000, seed=3):
    rng = np.random.default_rng(seed)
    value = rng.integers(0, 20, (n, 26))
    label = rng.random(n) < np.where(value[:, 0] < 10, 0.6, 0.1)
    lines = [
        "\t".join([str(int(y)), *map(str, rng.integers(0, 9, 13)), *(f"{v:08x}" for v in row)])
        for y, row in zip(label, value, strict=True)
    ]
    file.write_text("\n".join(lines) + "\n")
    return label


def test_labels_are_read(tmp_path):
    label = written(tmp_path / "train.txt", 50)
    assert list(read_criteo(str(tmp_path / "train.txt"), 40).label_N) == list(label[:40])


def test_the_studies_run_on_rows_of_one_s_own(tmp_path):
    written(tmp_path / "train.txt")
    flags = f"--data criteo --criteo {tmp_path}/train.txt --quick --cache {tmp_path}"
    words = f"experiments/recpipe/quality.py {flags} --out {tmp_path}"
    done = run_script(*words.split(), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = pd.read_csv(tmp_path / "chain_quality_criteo.csv")
    assert set(rows["data"]) == {"criteo"}
    assert rows["ndcg"].between(0, 1).all()
    words = f"experiments/recpipe/datasets/rankers.py {flags} --queries 2 --out {tmp_path}/files"
    done = run_script(*words.split(), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    facts = json.loads((tmp_path / "files" / "queries.json").read_text())
    assert facts["n_queries"] == 2
    assert "unrelated impressions" in facts["what"]
