"""The eight models on plans: the scores that they have without."""

import pytest
import torch
from helpers import TINY, run_script

from accelerator.devices import model_configs, profile_key
from infra.settings.cli import parse
from models import build
from models.embedding.bags import FusedEmbeddingBags
from models.embedding.plan.plan import Bucket, Group, Plan, params
from models.embedding.plan.spec import TableSpec, model_specs
from models.inputs.synthetic import InputPool

N_ITEMS = 9
CPU = torch.device("cpu")
SAME_ORDER = [
    ("compiled", {"ahead": "none"}),
    ("compiled", {"order": "item"}),
    ("one_width", {}),
    ("fused", {}),
]
OTHER_ORDER = [
    ("compiled", {"unroll": 4}),
    ("per_table", {}),
    ("dedup", {}),
    ("compiled", {"ahead": "table"}),
]


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)
    with torch.inference_mode():
        yield


def config_of(name, *flags):
    words = "--num_batches 2 --table_scale 0.0005".split()
    return parse(["--config_file", str(model_configs()[name]), *words, *flags])


def save(path, specs, buckets):
    Plan("cpu", specs, buckets).save(path)
    return ["--embedding_plan", str(path)]


@pytest.mark.parametrize("name", sorted(model_configs()))
def test_every_model_scores_the_same_on_a_plan(name, tmp_path):
    config = config_of(name)
    specs = model_specs(config.model)
    plain = build(config.model, 4, device=CPU)
    pool = InputPool(config.model, 2, N_ITEMS, seed=1)
    batches = [pool.batch(i, 0, n_items) for i, n_items in ((0, N_ITEMS), (1, 1))]
    tables = tuple(range(len(specs)))
    assert plain(batches[0]).abs().max() > 0
    for schedule, knobs in SAME_ORDER + OTHER_ORDER:
        group = Group(schedule, params(**knobs), tables)
        flags = save(tmp_path / "plan.json", specs, (Bucket(None, (group,)),))
        planned = build(config_of(name, *flags).model, 4, device=CPU, tables_of=plain)
        assert planned.tables.is_packed
        for batch in batches:
            if (schedule, knobs) in SAME_ORDER:
                assert torch.equal(planned(batch), plain(batch)), schedule
            else:
                torch.testing.assert_close(planned(batch), plain(batch), rtol=1e-6, atol=1e-6)


def test_a_mixed_plan_with_buckets(tmp_path):
    config = config_of("rm2")
    specs = model_specs(config.model)
    plain = build(config.model, 4, device=CPU)
    odd = tuple(range(1, len(specs), 2))
    even = tuple(range(0, len(specs), 2))
    mixed = (Group("per_table", (), odd), Group("compiled", params(unroll=2), even))
    buckets = (Bucket(4, mixed), Bucket(None, mixed[::-1], params(threads=2)))
    flags = save(tmp_path / "plan.json", specs, buckets)
    planned = build(config_of("rm2", *flags).model, 4, device=CPU, tables_of=plain)
    pool = InputPool(config.model, 1, 64, seed=1)
    for n_items in (1, 4, 5, 64):
        batch = pool.batch(0, 0, n_items)
        torch.testing.assert_close(planned(batch), plain(batch), rtol=1e-6, atol=1e-6)


def test_the_models_own_kernel_needs_the_models_tables():
    specs = (TableSpec(3, 6), TableSpec(3, 6))
    plan = Plan("cpu", specs, (Bucket(None, (Group("one_width", (), (0, 1)),)),))
    with pytest.raises(ValueError, match="one_width needs all tables, of one width"):
        FusedEmbeddingBags(specs, plan)


@pytest.mark.alone
def test_engines_serve_on_a_plan(tmp_path):
    config = parse(TINY)
    specs = model_specs(config.model)
    group = Group("compiled", params(ahead="none", order="item"), tuple(range(len(specs))))
    flags = save(tmp_path / "plan.json", specs, (Bucket(None, (group,)),))
    folder = ["--results_dir", str(tmp_path), "--log_file", ""]
    done = run_script("DeepRecSys.py", *TINY, *flags, *folder, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Measured QPS" in done.stdout


def test_profiles_are_known_by_the_plans_content_and_not_by_its_name(tmp_path):
    plain = config_of("ncf").model
    specs = model_specs(plain)
    tables = (0, 1, 2, 3)
    keys = []
    for file, schedule in (("a", "fused"), ("b", "fused"), ("c", "compiled")):
        flags = save(tmp_path / file, specs, (Bucket(None, (Group(schedule, (), tables),)),))
        keys.append(profile_key(config_of("ncf", *flags).model, 8))
    assert keys[0] == keys[1]
    assert len({*keys, profile_key(plain, 8)}) == 3
