"""What the cost model of a core offers the search."""

from models.embedding.cpu.candidates import choices
from models.embedding.synthesis import draw
from models.embedding.tuning.clusters import clusters
from models.embedding.tuning.problem import of_recorded


def test_the_cost_model_keeps_the_best_guess_and_drops_the_hopeless():
    problem = of_recorded(draw("A", [64], seed=1, tables_frac=0.02), [64])
    kinds = clusters(problem.layout, problem.batches[64])
    n_tables = len(problem.layout.specs)
    assert sorted(t for cluster in kinds for t in cluster.tables) == [*range(n_tables)]
    for cluster in kinds:
        exact = choices(cluster, 0.0)
        names = [choice.schedule for choice in exact]
        assert names
        assert {"compiled", "copy"} & {*names}
        assert ("copy" in names) <= (cluster.spec.bag_ids == 1)
        assert all(dict(choice.params).get("storage") is None for choice in exact)
        narrow = choices(cluster, 0.01)
        assert any(dict(choice.params).get("storage") == "int8" for choice in narrow)
