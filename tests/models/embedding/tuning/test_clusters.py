"""Tables that are alike are tuned together."""

from models.embedding.synthesis import draw
from models.embedding.tuning.clusters import clusters
from models.embedding.tuning.problem import of_recorded


def test_few_clusters_where_many_tables_differ():
    problem = of_recorded(draw("A", [16], seed=1, tables_frac=0.1), [16])
    exact, coarse = (clusters(problem.layout, problem.batches[16], most) for most in (1000, 20))
    assert len(coarse) <= 20 < len(exact)
    for cluster in coarse:
        specs = [problem.layout.specs[table] for table in cluster.tables]
        assert len({(spec.dim, spec.bag_ids) for spec in specs}) == 1
