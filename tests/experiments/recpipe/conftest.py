"""A world of designs with drawn rankers and made-up times."""

import pytest
from drawn_rankers import DLRM, K, drawn_queries, drawn_weights

from accelerator.latency import Profile
from experiments.recpipe.chains import Scored
from experiments.recpipe.datasets.ranked import RankedData, TrainedRanker
from experiments.recpipe.world import RankingWorld


@pytest.fixture(scope="session")
def world():
    """Three rankers with drawn weights on queries of 40 candidates; made-up times."""
    rankers = {
        name: TrainedRanker(DLRM, drawn_weights(DLRM, i))
        for i, name in enumerate(("small", "medium", "large"))
    }
    queries = drawn_queries(DLRM, [40] * 12, 3)
    scored = Scored.of(RankedData("movielens", rankers, queries, K, {}))
    costs = {"small": 1, "medium": 3, "large": 9}
    cpu = {name: Profile({1: 0.1 * cost, 40: 2.0 * cost}) for name, cost in costs.items()}
    return RankingWorld(scored, cpu, n_cores=8, n_queries=400)
