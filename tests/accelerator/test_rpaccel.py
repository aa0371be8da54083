"""RPAccel's model against the release's recorded numbers, each correction against its purpose."""

import itertools
import json
from dataclasses import fields, replace

import pytest
from helpers import ROOT

from accelerator import rpaccel
from accelerator.rpaccel import RANKERS, RELEASED_ARRAYS, Corrections, Ranker, stage_cycles, stage_s

GOLDEN = json.loads((ROOT / "tests/data/recpipe_golden.json").read_text())
COMPONENTS = {case["id"]: case for case in GOLDEN["components"]}
NAMES = {
    "dim_4_0": "rm-small",
    "dim_16": "rm-med",
    "dim_32_0": "rm-large",
    "movie1m_small": "neumf-1m-small",
}
PARTS = {  # ours: the release's
    "pcie_in": "input_pcie",
    "embedding": "embedding",
    "bottom": "mlp_bot",
    "top": "mlp_top",
    "filter": "sort",
    "pcie_out": "output_pcie",
}
WHOLE = RELEASED_ARRAYS[1]


def assert_same(value, golden):
    assert value == pytest.approx(golden, rel=1e-12, abs=0)


@pytest.mark.parametrize("case", GOLDEN["accelerator"], ids=lambda case: case["id"])
def test_a_query_takes_what_the_released_model_says(case):
    query = case["input"]
    golden = case["output"]
    array = RELEASED_ARRAYS[int(query["accel_config"].split("_")[1])]
    ranker = RANKERS[NAMES[query["model_config"]]]
    parts = stage_cycles(ranker, query["items_per_query"], query["top_n"], array)
    assert list(ranker.top_widths(dot=False)) == query["mlp_top_layers"]
    for ours, theirs in PARTS.items():
        assert_same(getattr(parts, ours), golden["parts_cycles"][f"{theirs}_cycles"])
    assert_same(parts.total, golden["total_cycles"])
    assert_same(stage_s(parts, array), golden["inference_time_s"])


@pytest.mark.parametrize("case", ["C01", "C03", "C05"])
def test_a_layer_takes_what_the_released_model_says(case):
    mlp = COMPONENTS[case]["input"]
    cycles = rpaccel.mlp_cycles(mlp["layers"], mlp["items_per_query"], WHOLE)
    assert_same(cycles, COMPONENTS[case]["output"])


@pytest.mark.parametrize("case", ["C07", "C09"])
def test_a_transfer_takes_what_the_released_model_says(case):
    cycles = rpaccel.transfer_cycles(COMPONENTS[case]["input"]["bytes"], WHOLE)
    assert_same(cycles, COMPONENTS[case]["output"])


@pytest.mark.parametrize("case", ["C11", "C13", "C15"])
def test_sorting_on_the_host_takes_what_the_release_states(case):
    assert rpaccel.host_sort_ns(COMPONENTS[case]["input"]["items"]) == COMPONENTS[case]["output"]


def test_sorting_more_than_was_stated_is_refused():
    with pytest.raises(ValueError, match="up to 4096"):
        rpaccel.host_sort_ns(4097)


def test_caches_that_throw_out_what_came_first_miss_as_released():
    caches = COMPONENTS["C17"]["input"]
    keys = list(itertools.chain.from_iterable(caches["idx"]))
    misses = rpaccel.fifo_misses(keys, caches["l1_vectors"], caches["dram_vectors"])
    cycles = rpaccel.embedding_cycles(RANKERS["rm-small"], 2, WHOLE, *misses)
    assert_same(cycles, COMPONENTS["C17"]["output"])


@pytest.mark.parametrize("case", ["C19", "C21"])
def test_the_designs_are_those_of_the_release(case):
    n_stages = COMPONENTS[case]["input"]["num_stages"]
    golden = COMPONENTS[case]["output"]
    splits = rpaccel.sub_array_splits(n_stages)
    assert [list(split) for split in splits] == golden["configs"]
    assert [[n // n_stages for n in split] for split in splits] == golden["engines"]


def stage(ranker="rm-large", n_items=4096, n_kept=64, miss=0.5, **fixes):
    return stage_cycles(RANKERS[ranker], n_items, n_kept, WHOLE, Corrections(**fixes), miss)


def total(*args, **fixes):
    return stage(*args, **fixes).total


@pytest.mark.parametrize("field", [field.name for field in fields(Corrections)])
def test_every_correction_is_a_switch_of_its_own(field):
    alone = Corrections(**{field: True})
    assert alone != Corrections()
    assert [f.name for f in fields(Corrections) if getattr(alone, f.name)] == [field]


def test_consistent_units_take_the_link_down_to_an_eighth_and_the_filter_up_to_eight_times():
    before = stage("rm-med")
    after = stage("rm-med", units=True)
    assert after.pcie_in == pytest.approx(before.pcie_in / 8)
    assert after.filter == pytest.approx(8 * before.filter) == 256
    # us for 4096 items, as its comments mean
    assert after.pcie_in * WHOLE.clock_ns / 1e3 == pytest.approx(17)
    assert after.top > before.top  # partial sums


def test_the_last_slice_of_weights_is_charged_by_its_size():
    released = rpaccel.load_cycles(2048, 512, WHOLE)
    exact = rpaccel.load_cycles(2048, 512, WHOLE, exact=True)
    unused_bytes = 5e6 - 4 * 2048 * 512
    unused_ns = unused_bytes / (32 * rpaccel.GIB_S_IN_BYTES_PER_NS)
    assert released - exact == pytest.approx(unused_ns / 8)
    whole_slice = rpaccel.load_cycles(96, 1, WHOLE)
    assert rpaccel.load_cycles(96, 1, WHOLE, exact=True) == pytest.approx(whole_slice)


def test_the_dot_interaction_narrows_the_top_and_costs_its_products():
    assert RANKERS["rm-large"].top_widths(dot=True)[0] == 351 + 32
    concatenated = stage()
    dot = stage(dot_interaction=True)
    assert dot.top < concatenated.top
    assert concatenated.interaction == 0
    assert dot.interaction == 4096 * (32 + 27)


def test_partitioned_buffers_add_up_to_the_chip_s():
    for n, array in RELEASED_ARRAYS.items():
        share = rpaccel.shared(array)
        assert array.n_on_chip == n
        assert share.dram_gib_s * n == WHOLE.dram_gib_s
        assert share.weight_sram_bytes * n == WHOLE.weight_sram_bytes
        assert share.cache_bytes * n == WHOLE.cache_bytes


def test_weights_that_fit_are_loaded_once():
    small = stage("rm-small", 512, resident_weights=True)
    assert small.bottom == 64 + 13 + 512 + 64 + 4 + 512  # two layers, each one tile
    assert total("rm-med", resident_weights=True) < total("rm-med")
    assert total("rm-large", resident_weights=True) == total("rm-large")  # 1.05 MB do not fit 1
    huge = replace(RANKERS["rm-large"], bottom=(13, 4096, 4096, 32))
    kept, released = (
        stage_cycles(huge, 512, 64, WHOLE, Corrections(resident_weights=fix)).bottom
        for fix in (True, False)
    )
    assert kept == released  # does not fit


def test_overlap_hides_the_shorter_of_two():
    parts = stage(overlap=True)
    assert parts.hidden == min(parts.embedding, parts.bottom)
    assert parts.total < total()
    layer = rpaccel.mlp_cycles((864, 96), 16, WHOLE, Corrections(overlap=True))
    load = rpaccel.load_cycles(864, 96, WHOLE)
    assert layer == max(load, rpaccel.compute_cycles(864, 96, 16, WHOLE))


def test_the_cache_s_miss_rate_counts_with_its_correction_only():
    assert total(miss=0.1) == total(miss=0.9)
    dram = rpaccel.GIB_S_IN_BYTES_PER_NS * 32 * 8
    sram = 64
    n_bytes = RANKERS["rm-large"].row_bytes(4096)
    change = total(miss=0.9, embedding_cache=True) - total(miss=0.1, embedding_cache=True)
    assert change == pytest.approx(0.8 * n_bytes * (1 / dram - 1 / sram))


@pytest.mark.parametrize("n_arrays", [1, 4, 16, 64])
def test_the_cache_s_port_is_as_wide_as_the_array_and_the_smallest_array_s_as_released(n_arrays):
    array = rpaccel.RELEASED_ARRAYS[n_arrays]
    n_bytes = RANKERS["rm-large"].row_bytes(4096)
    released, wide = (
        rpaccel.embedding_cycles(RANKERS["rm-large"], 4096, array, 0.0, wide_port=on)
        for on in (False, True)
    )
    assert released - wide == pytest.approx(n_bytes * (1 / 64 - 1 / (4 * array.side)))
    assert (released == wide) == (n_arrays == 64)
    fixes = Corrections(embedding_cache=True, cache_port=True)
    assert stage_cycles(RANKERS["rm-large"], 4096, 64, array, fixes, 0.0).embedding == wide


def test_handing_out_takes_a_cycle_an_item():
    assert total(n_kept=512, top_k_unit=True) - total(n_kept=512) == 512


def test_a_query_crosses_the_link_once():
    inner = {"first": False, "last": False}
    query = (RANKERS["rm-med"], 512, 64, WHOLE)
    middle = stage_cycles(*query, Corrections(pcie_once=True), **inner)
    assert middle.pcie_in == middle.pcie_out == 0
    assert stage_cycles(*query, **inner).pcie_in > 0


def test_sub_batches_go_at_the_slowest_stage_s_pace():
    assert rpaccel.pipelined_s([3.0, 1.0], 1) == 4.0
    assert rpaccel.pipelined_s([0.75, 0.25], 4) == pytest.approx(0.75 + 0.25 + 3 * 0.75)
    with pytest.raises(ValueError, match="0 sub-batches"):
        rpaccel.pipelined_s([1.0], 0)


def test_more_items_never_take_less_time():
    for ranker, array in itertools.product(RANKERS.values(), RELEASED_ARRAYS.values()):
        for fixes in (Corrections(), Corrections.all()):
            sizes = (1, 64, 512, 4096)
            stages = [stage_cycles(ranker, n, min(n, 64), array, fixes, 0.3) for n in sizes]
            times = [parts.total for parts in stages]
            assert times == sorted(times)


def test_a_model_without_look_ups_reads_no_rows():
    mlp = Ranker("mlp", 4, (4, 1), (1, 1), lookups=0)
    assert rpaccel.embedding_cycles(mlp, 10, WHOLE, 0.5) == 0


@pytest.mark.parametrize(
    ("blocks", "mm2", "mw"),
    [(rpaccel.BASELINE_CHIP, 26.5172, 3653.12), (rpaccel.RPACCEL_CHIP, 28.5504, 4655.232)],
)
def test_area_and_power_are_the_published_ones(blocks, mm2, mw):
    assert sum(rpaccel.area_mm2(blocks).values()) == pytest.approx(mm2, rel=1e-4)
    # It was published from rounded powers.
    assert sum(rpaccel.power_mw(blocks).values()) == pytest.approx(mw, rel=2e-3)
