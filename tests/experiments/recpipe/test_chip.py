"""Pipelines on sub-arrays: queues as obvious ones, caches on what stages get, sub-batches."""

import heapq
import itertools
from collections import OrderedDict
from dataclasses import replace

import numpy as np
import pytest
from drawn_rankers import drawn_misses

from accelerator.rpaccel import Corrections, pipelined_s
from experiments.recpipe import chip
from experiments.recpipe.chip import ChipDesign

WHOLE = replace(Corrections.all(), sub_batches=False)
TWO = ChipDesign(("rm-small", "rm-large"), (400, 60), (64, 64), (1, 1))


def obvious_departures(arrivals, n_engines, service):
    free = [0] * n_engines
    out = []
    for arrival in arrivals:
        i = free.index(min(free))
        free[i] = max(free[i], arrival) + service
        out.append(free[i])
    return out


@pytest.mark.parametrize("n_engines", [1, 2, 5])
def test_departures_are_those_of_an_obvious_queue(n_engines):
    arrivals = np.cumsum(np.random.default_rng(n_engines).integers(0, 300, 500))
    left = chip.departures_ns(arrivals, n_engines, 400)
    assert list(left) == obvious_departures(arrivals.tolist(), n_engines, 400)


def test_one_stage_on_poisson_arrivals_waits_as_md1_does():
    arrivals = chip.arrivals_ns("exponential", 250.0, 200_000)
    out = chip.departures_ns(arrivals, 1, 2_000_000)
    waits = (out - arrivals) / 1e6 - 2
    blocks = np.array([block.mean() for block in np.array_split(waits, 40)])
    error = 4 * blocks.std() / np.sqrt(40)
    assert waits.mean() == pytest.approx(0.5 / (2 * 0.5) * 2, abs=error)  # Pollaczek-Khinchine


# Caches


def lru_misses(keys, cache_rows, first_counted):
    """Step by step."""
    cache = OrderedDict()
    missed = 0
    for i, key in enumerate(keys):
        if key in cache:
            cache.move_to_end(key)
        else:
            missed += i >= first_counted
            cache[key] = None
            if len(cache) > cache_rows:
                cache.popitem(last=False)
    return missed / (len(keys) - first_counted)


def stream_of(misses, rankers, items, n_parts=1):
    """The stage's keys, (table, row), by sorting what each filter lets through of each part."""
    (pools,) = misses.pools
    keys = []
    for query in range(len(pools.data.queries)):
        for part in np.array_split(np.arange(items[0]), n_parts):
            kept = part
            for name, keep in zip(rankers, items[1:], strict=True):
                scores = pools.scores[chip.TRAINED[name]][query]
                best = sorted(kept, key=lambda i, scores=scores: (-scores[i], i))
                kept = best[: -(-keep // n_parts)]
            ids = pools.data.queries.ids_QNT[query]
            keys += [(t, row) for i in kept for t, row in enumerate(ids[i])]
    return keys


@pytest.mark.parametrize(
    ("rankers", "items"),
    [
        ((), (400,)),
        ((), (100,)),
        (("rm-small",), (400, 60)),
        (("rm-small", "rm-med"), (400, 100, 30)),
    ],
)
@pytest.mark.parametrize("cache_rows", [1, 20, 150, 10_000])
def test_miss_rates_are_those_of_a_cache_kept_step_by_step(rankers, items, cache_rows):
    misses = drawn_misses()
    keys = stream_of(misses, rankers, items)
    assert misses.rate(rankers, items, cache_rows) == pytest.approx(
        lru_misses(keys, cache_rows, len(keys) // 2)
    )


def test_a_stage_s_cache_holds_rows_of_its_ranker_s_width_in_its_share_of_the_chip():
    misses = drawn_misses(n_queries=20, rows=(50, 3000, 7))
    first, second = misses.of(TWO, WHOLE)
    assert first == misses.rate((), (400,), int(1e6 / 64 / 4 / 4))
    assert second == misses.rate(("rm-small",), (400, 60), int(1e6 / 64 / 4 / 32))
    alone = misses.of(TWO, replace(WHOLE, partitioned_sram=False))
    assert alone == [misses.rate((), (400,), 62_500), misses.rate(("rm-small",), (400, 60), 7812)]
    assert alone[0] < first
    assert alone[1] < second


def test_behind_a_filter_that_works_in_parts_come_the_best_of_each_part():
    misses = drawn_misses()
    design = replace(TWO, n_sub_batches=8)
    keys = stream_of(misses, ("rm-small",), (400, 60), 8)
    expected = lru_misses(keys, int(1e6 / 64 / 4 / 32), len(keys) // 2)
    assert misses.of(design, WHOLE)[1] == pytest.approx(expected)
    whole = misses.of(TWO, WHOLE)
    assert whole[0] == misses.of(design, WHOLE)[0]  # gets everything, whole or in parts
    assert whole[1] != pytest.approx(expected)


def test_pools_that_have_too_few_candidates_are_refused():
    with pytest.raises(ValueError, match="no query has 401"):
        drawn_misses().pool(401)


# Sub-batches


def obvious_answers(stage_ns, engines, arrivals, n_parts):
    """A heap of events; each stage a list of waiting tasks and of free engines.

    Also busy (start, end) by engine.
    """
    free = [list(range(n)) for n in engines]
    waiting = [[] for _ in engines]
    events = []
    left = dict.fromkeys(range(len(arrivals)), n_parts)
    for query, at in enumerate(arrivals):
        for part in range(n_parts):
            heapq.heappush(events, (at, query, part, 0, -1))
    done = {}
    busy = {}
    while events:
        at, query, part, stage, engine = heapq.heappop(events)
        if engine >= 0:  # leaves the stage
            free[stage].append(engine)
            if stage + 1 == len(engines):
                left[query] -= 1
                done[query] = at
            else:
                heapq.heappush(events, (at, query, part, stage + 1, -1))
        else:
            waiting[stage].append((query, part))
        while waiting[stage] and free[stage]:
            task = waiting[stage].pop(0)
            engine = free[stage].pop()
            busy.setdefault((stage, engine), []).append((at, at + stage_ns[stage]))
            heapq.heappush(events, (at + stage_ns[stage], *task, stage, engine))
    assert not any(left.values())
    return [done[query] for query in range(len(arrivals))], busy


@pytest.mark.parametrize("n_parts", [1, 2, 4])
@pytest.mark.parametrize(
    ("stage_ms", "engines"), [((1.0,), (1,)), ((0.9, 2.3), (1, 3)), ((2.1, 0.7, 1.3), (4, 1, 2))]
)
def test_sub_batches_leave_as_from_an_obvious_simulation(stage_ms, engines, n_parts):
    arrivals = np.cumsum(np.random.default_rng(n_parts).integers(1, 4_000_000 * n_parts, 300))
    stage_ns = [round(ms * 1e6) for ms in stage_ms]
    expected, busy = obvious_answers(stage_ns, engines, arrivals.tolist(), n_parts)
    assert list(chip.answers_ns(stage_ms, engines, arrivals, n_parts)) == expected
    for times in busy.values():  # no engine does two things at once
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(times))
    worked = sum(end - begin for times in busy.values() for begin, end in times)
    assert worked == len(arrivals) * n_parts * sum(stage_ns)


def test_one_sub_batch_is_the_query_itself():
    arrivals = chip.arrivals_ns("exponential", 300.0, 500)
    at = arrivals
    for ms, n in ((1.1, 1), (4.0, 2)):
        at = chip.departures_ns(at, n, round(ms * 1e6))
    assert list(chip.answers_ns((1.1, 4.0), (1, 2), arrivals)) == list(at)


@pytest.mark.parametrize("n_parts", [1, 3, 8])
def test_an_idle_pipeline_of_single_engines_takes_what_the_formula_says(n_parts):
    stage_ms = (0.5, 1.25, 0.75)
    arrivals = np.array([0, 10**9])
    latency_ns = chip.answers_ns(stage_ms, (1, 1, 1), arrivals, n_parts) - arrivals
    expected = pipelined_s(stage_ms, n_parts) * 1e6
    assert list(latency_ns) == pytest.approx([expected] * 2)


def test_a_part_ranks_and_hands_on_its_share_of_the_items():
    whole = ChipDesign(TWO.rankers, (4096, 512), (4, 4), (2, 2), n_sub_batches=4)
    quarter = ChipDesign(TWO.rankers, (1024, 128), (4, 4), (2, 2))
    cut = whole.stage_ms(Corrections.all(), [0.3, 0.4])
    # The last stage's list is 64 in both.
    assert cut == quarter.stage_ms(Corrections.all(), [0.3, 0.4])
