"""Flags and files: the release's names and defaults, precedence, and a line for bad input."""

import csv
import json
from dataclasses import replace

import pytest
import yaml
from helpers import DATA, ROOT

from infra.deployment import one_model
from infra.memory import check_memory
from infra.settings.cli import parse
from infra.settings.config import (
    ConfigError,
    InputConfig,
    ModelConfig,
    RunConfig,
    from_settings,
    to_settings,
)

CONFIGS = ROOT / "models" / "configs"
with (DATA / "released_flags.csv").open() as flags_file:
    RELEASED = list(csv.DictReader(line for line in flags_file if not line.startswith("#")))


def parsed(line, model=None):
    """The configuration of a command line, after the file of a model in models/configs."""
    file = ["--config_file", str(CONFIGS / f"{model}.json")] if model else []
    return parse([*file, *line.split()])


def settings(line=""):
    return to_settings(parsed(f"--num_batches 4 {line}"))


def refused(capsys, *words):
    """The line with which a command line is refused."""
    with pytest.raises(SystemExit) as stop:
        parse(list(words))
    assert stop.value.code == 2
    out = capsys.readouterr()
    assert out.out == ""
    assert out.err.count("\n") == 1
    return out.err


def test_the_release_has_71_flags():
    assert len(RELEASED) == 71


@pytest.mark.parametrize("row", RELEASED, ids=lambda row: row["flag"])
def test_a_released_flag_keeps_its_name_type_and_default(row):
    name = row["flag"]
    kind = row["type"]
    default = row["default"]
    if name == "config_file":
        return
    value = settings()[name] if name != "num_batches" else InputConfig.num_batches
    types = {"int": int, "float": float, "bool": "True".__eq__, "store_true": "True".__eq__}
    assert value == (None if default == "None" else types.get(kind, str)(default))
    few_ids = "--num_indices_per_lookup 2"
    if kind == "store_true":
        assert settings(f"--queue --model_accel {few_ids} --{name}")[name] is True
    elif kind == "bool":
        assert settings(f"{few_ids} --{name} false")[name] is False
        assert settings(f"{few_ids} --{name} True")[name] is True


TABLES = {
    "dien": ([500000] * 41 + [5000000] * 2, 32, 1),
    "din": ([1000000] + [100000] * 250 + [10000000] * 2, 32, 3),
    "dlrm_rm1": ([4000000] * 8, 32, 80),
    "dlrm_rm2": ([500000] * 32, 64, 120),
    "dlrm_rm3": ([2000000] * 10, 32, 20),
    "mtwnd": ([500000] * 41 + [5000000] * 2, 32, 1),
    "ncf": ([140000] * 2 + [28000] * 2, 64, 1),
    "wide_and_deep": ([1000000] * 27, 32, 1),
}


@pytest.mark.parametrize("name", sorted(TABLES))
def test_the_eight_configurations_have_the_released_tables(name):
    model = parsed("--num_batches 1", name).model
    rows, width, n_ids = TABLES[name]
    assert list(model.table_rows) == rows
    assert model.arch_sparse_feature_size == width
    assert model.num_indices_per_lookup == n_ids
    assert model.num_indices_per_lookup_fixed
    assert model.arch_interaction_op == "cat"
    assert model.table_bytes == sum(rows) * width * 4


def test_an_explicit_flag_beats_the_file_and_the_file_beats_the_default(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump({"num_batches": 7, "nepochs": 3, "target_latency": 33}))
    config = parse(["--config_file", str(file), "--nepochs", "5"])
    assert config.inputs.num_batches == 7
    assert config.inputs.nepochs == 5
    assert config.tune.target_latency == 33.0
    assert config.tune.req_granularity == 64


def test_a_flag_that_repeats_the_default_still_beats_the_file(tmp_path):
    file = tmp_path / "run.json"
    file.write_text(json.dumps({"num_batches": 7, "nepochs": 3}))
    assert parse(["--config_file", str(file), "--nepochs", "1"]).inputs.nepochs == 1


def test_settings_survive_a_round_trip():
    config = parsed("--num_batches 4 --arrival_qps 50 --queue", "din")
    assert from_settings(json.loads(json.dumps(to_settings(config)))) == config


def test_a_saved_run_can_be_read_as_a_configuration(tmp_path):
    config = parsed("--num_batches 4 --arrival_qps 50", "ncf")
    document = {"config": to_settings(config), "provenance": {}, "summary": {}}
    (tmp_path / "run.json").write_text(json.dumps(document))
    assert parse(["--config_file", str(tmp_path / "run.json")]) == config
    again = parse(["--config_file", str(tmp_path / "run.json"), "--avg_arrival_rate", "4"])
    assert again.load.rate_qps == 250.0  # the flag replaces the file's way of giving the rate


def test_the_gap_and_the_rate_are_two_ways_to_say_one_thing():
    assert parsed("--num_batches 1 --avg_arrival_rate 25").load.rate_qps == 40.0
    assert parsed("--num_batches 1 --arrival_qps 40").load.rate_qps == 40.0


def test_flags_without_a_meaning_here_are_accepted_and_said(capsys):
    parsed("--num_batches 1 --caffe2_net_type async_dag --engine TBB --queue")
    err = capsys.readouterr().err
    assert "--caffe2_net_type has no effect" in err
    assert "--engine" not in err  # stated, but as it was by default


def test_engines_can_be_left_to_the_machine():
    assert settings("--inference_engines auto")["inference_engines"] == 0
    assert settings("--inference_engines 0")["inference_engines"] == 0


def test_help_is_grouped_and_states_units(capsys):
    with pytest.raises(SystemExit) as stop:
        parse(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for group in ("Model architecture", "Load: arrivals and query sizes", "Engines"):
        assert group in text
    assert "Scheduler" in text
    assert "Output" in text
    assert "mean GAP between queries in ms" in " ".join(text.split())


WRONG_MODELS = [
    ("--arch_mlp_bot 4-3", "arch_sparse_feature_size is 2"),
    ("--model_type ncf", "NCF has 4"),
    ("--model_type mtwnd --arch_mlp_tasks 9-1", "arch_mlp_tasks begins with 9"),
    ("--model_type din", "profile-behaviours-ad-context"),
]
WRONG_WORDS = [
    ("--num_batchs 4", "did you mean 'num_batches'"),
    ("--num_batches four", "num_batches is 'four'; expected a whole number"),
    ("--num_batches 2.5", "expected a whole number"),
    ("", "num_batches is 0"),
    ("--num_batches -1", "num_batches is -1; expected at least 0"),
    ("--num_batches 1 stray", "unexpected argument 'stray'"),
    ("--config_file nowhere.json", "nowhere.json: no such file"),
    *((f"--num_batches 1 {line}", message) for line, message in WRONG_MODELS),
]
WRONG_WITH_WND = [
    ("--table_scale 0", "table_scale is 0"),
    ("--table_scale 1.5", "table_scale is 1.5; expected at most 1"),
    ("--arch_mlp_bot 4-x", "arch_mlp_bot is '4-x'"),
    ("--arch_embedding_size 4-0", "arch_embedding_size is '4-0'"),
    ("--model_type wdn", "model_type is 'wdn'; expected one of dlrm"),
    ("--arrival_qps nan", "arrival_qps is nan; expected a finite number"),
    ("--arrival_qps 0", "arrival_qps is 0"),
    ("--arrival_qps 5 --avg_arrival_rate 3", "both set; give one"),
    ("--arrival_qps 5 --offered_load 0.5", "both set; give one"),
    ("--arrival_process file", "arrival_file is not set"),
    ("--tune_accel_qps --queue", "tune_accel_qps needs an accelerator"),
    ("--tune_batch_qps", "tune_batch_qps needs the at-scale mode"),
    ("--queue --tune_batch_qps --batch_configs 32,64", "batch_configs is '32,64'"),
    ("--queue --tune_batch_qps --arrival_process file --arrival_file x", "arrival_process is"),
    ("--min_arr_range 30 --max_arr_range 20", "min_arr_range is 30"),
    ("--mini_batch_size 8", "mini_batch_size is 8, larger than max_mini_batch_size"),
    ("--warmup_queries 4", "warmup_queries is 4, but the run has 4"),
    ("--inference_engines -2", "inference_engines is -2"),
    ("--queue perhaps", "queue is 'perhaps'; expected true or false"),
    ("--data_generation novel", "data_generation is 'novel'"),
    ("--data_generation dataset", "raw_data_file is not set"),
    ("--queue --tune_batch_qps --arrival_process mmpp", "a trial of a tuning run ends before"),
    ("--batch_size_distribution trace", "needs arrival_process trace"),
    ("--arrival_burst_s 0", "arrival_burst_s is 0"),
    ("--num_indices_per_lookup 2000000", "a table has 1000000 rows"),
]


@pytest.mark.parametrize(("line", "message"), WRONG_WORDS)
def test_bad_input_is_one_line_and_exit_code_2(capsys, line, message):
    assert message in refused(capsys, *line.split())


@pytest.mark.parametrize(("line", "message"), WRONG_WITH_WND)
def test_bad_settings_are_one_line_and_exit_code_2(capsys, line, message):
    wnd = str(CONFIGS / "wide_and_deep.json")
    assert message in refused(capsys, "--config_file", wnd, "--num_batches", "4", *line.split())


BAD_FILES = [
    (
        "rm9.json",
        '{"arch_mlp_boot": "4-3-2"}',
        "unknown key 'arch_mlp_boot'; did you mean 'arch_mlp_bot'?",
    ),
    ("rm9.json", '{"nepochs": "many"}', "nepochs is 'many'"),
    ("rm9.json", '{"nepochs": true}', "nepochs is True; expected a number"),
    ("rm9.json", '{"nepochs": null}', "nepochs has no value"),
    ("rm9.json", '{"nepochs": 1', "not readable as json"),
    ("rm9.yaml", "a: [1", "not readable as yaml"),
    ("rm9.json", "[1, 2]", "expected one mapping"),
    ("rm9.json", '{"num_batches": 1, "arch_mlp_bot": "x"}', "arch_mlp_bot is 'x'"),
]


@pytest.mark.parametrize(("name", "text", "message"), BAD_FILES)
def test_a_bad_file_is_named_with_what_is_wrong(capsys, tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    line = refused(capsys, "--config_file", str(tmp_path / name))
    assert f"{name}: " in line
    assert message in line


def test_tables_that_do_not_fit_say_how_much_is_needed_and_what_to_do(monkeypatch):
    config = parsed("--num_batches 1", "dlrm_rm1")
    monkeypatch.setattr("infra.memory.free_bytes", lambda: 3 << 30)
    advice = r"needs 4\.4 GiB .*3\.0 GiB are free; try --table_scale 0\.5\d"
    with pytest.raises(ConfigError, match=advice) as error:
        check_memory(one_model(config, n_engines=0))
    assert error.value.flag == "arch_embedding_size"
    scale = float(str(error.value).rsplit(" ", 1)[1])
    scaled = replace(config, model=replace(config.model, table_scale=scale))
    check_memory(one_model(scaled, n_engines=0))  # the advice helps
    monkeypatch.setattr("infra.memory.free_bytes", lambda: 64 << 20)
    with pytest.raises(ConfigError, match="lower --num_batches"):
        check_memory(one_model(config, n_engines=0))


def test_table_scale_keeps_at_least_a_bag_of_rows():
    model = ModelConfig(
        model_type="wnd",
        arch_embedding_size="1000-200",
        num_indices_per_lookup=20,
        table_scale=0.05,
        num_indices_per_lookup_fixed=True,
    )
    assert model.table_rows == (50, 20)


def test_warm_up_is_a_tenth_but_not_more_than_200_unless_told():
    assert parsed("--num_batches 50 --nepochs 2").n_warmup == 10
    assert parsed("--num_batches 50 --nepochs 900").n_warmup == 200
    assert parsed("--num_batches 50 --warmup_queries 0").n_warmup == 0
    assert isinstance(parsed("--num_batches 50"), RunConfig)
