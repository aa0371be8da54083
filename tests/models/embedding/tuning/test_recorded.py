"""Folders of tables and batches that come back as they were written."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.embedding.plan.spec import TableSpec
from models.embedding.tuning.recorded import Jagged, Recorded, read


@settings(deadline=None, max_examples=20)
@given(data=st.data())
def test_a_folder_is_read_as_it_was_written(data, tmp_path_factory):
    spec = st.builds(
        TableSpec, st.integers(1, 40), st.integers(1, 9), st.sampled_from((None, 1, 2))
    )
    specs = tuple(data.draw(st.lists(spec, min_size=1, max_size=4)))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    batches = []
    for n_items in data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=3)):
        lengths = np.stack(
            [
                np.full(n_items, s.bag_ids) if s.bag_ids else rng.integers(0, 4, n_items)
                for s in specs
            ]
        )
        ids = [rng.integers(0, s.rows, n.sum()) for s, n in zip(specs, lengths, strict=True)]
        batches.append(Jagged.of(np.concatenate(ids), lengths))
    recorded = Recorded(specs, tuple(batches))
    for save in (recorded.save_text, recorded.save_parquet):
        folder = tmp_path_factory.mktemp("tables")
        save(folder)
        again = read(folder)
        assert again.specs == specs
        for batch, written in zip(again.batches, batches, strict=True):
            assert np.array_equal(batch.ids_L, written.ids_L)
            assert np.array_equal(batch.offsets, written.offsets)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("table_config.txt", "10,4\n3\n", "needs `rows,dim` a line"),
        ("table_config.txt", "10,x\n", "expected whole numbers"),
        ("data/f0.txt", "1,2\n", "1 samples; batch_sizes.txt has 2"),
        ("data/f0.txt", "1\n10\n", "has 10 rows, but ids 1 to 10"),
        ("bags_config.txt", "1\n", "declares 1 ids a bag"),
    ],
)
def test_a_folder_that_does_not_fit_together_is_refused(file, text, message, tmp_path):
    batch = Jagged.of(np.array([1, 2, 3]), np.array([[1, 2]]))
    Recorded((TableSpec(10, 4),), (batch,)).save_text(tmp_path)
    (tmp_path / file).write_text(text)
    with pytest.raises(ValueError, match=message):
        read(tmp_path)
