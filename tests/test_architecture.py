"""The house as a test: who may import whom, what lives where, how the code is written."""

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
from helpers import ROOT

LAYERS = [  # a room may import from rooms above it in this list, and from itself
    {"infra"},
    {"models", "scheduler", "loadGenerator"},
    {"accelerator"},
    {"inferenceEngine", "accelInferenceEngine"},
    {"backends"},
    {"DeepRecSys"},
    {"experiments"},
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
# The engines' factory builds what the CPU engine builds; a modelled device needs no PyTorch.
ALLOWED = {("accelInferenceEngine", "inferenceEngine")}
WORLDS = ("backends.processes", "backends.virtual", "backends.cluster")
TORCH = (
    "models accelerator/profiler.py inferenceEngine.py accelInferenceEngine.py DeepRecSys.py "
    "experiments/common/core_limits.py experiments/common/fresh_calls.py "
    "experiments/common/look_up_peers.py experiments/embedding "
    "experiments/model_speed experiments/operator_breakdown experiments/roofline "
    "experiments/colocation/pairs.py experiments/locality/look_ups.py experiments/recpipe/datasets"
).split()
MATPLOTLIB = ["infra/results/figures.py", "experiments"]
TOP = set(
    "DeepRecSys.py loadGenerator.py scheduler.py inferenceEngine.py accelInferenceEngine.py models "
    "accelerator experiments infra backends run_DeepRecInfra.sh run_DeepRecSys.sh build tests "
    "README.md pyproject.toml LICENSE CHANGELOG.md .ci .gitignore .dockerignore".split()
)
TOP_TESTS = {
    f"test_{name}.py"
    for name in "architecture deeprecsys load_generator scheduler inference_engine".split()
}
VAGUE = {"own", "found", "one", "given", "said", "every"}
MOST_MODULES = 12  # of a folder; beyond it, its name says too little
TRACKED = subprocess.run(
    ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
).stdout.split()
PYTHON = [Path(name) for name in TRACKED if name.endswith(".py") and (ROOT / name).is_file()]
PRODUCT = [path for path in PYTHON if path.parts[0].removesuffix(".py") in RANK]

every_file = pytest.mark.parametrize("path", PYTHON, ids=str)
product_file = pytest.mark.parametrize("path", PRODUCT, ids=str)


@cache
def source(path):
    return (ROOT / path).read_text()


@cache
def tree_of(path):
    return ast.parse(source(path))


def module_of(path):
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path) for path in PRODUCT}


def imports(path):
    """(line, module) of what a file imports anywhere in it; of `from a import b` also `a.b`."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            modules = [name for name in names if name in MODULES]
            yield from ((node.lineno, name) for name in modules or [node.module])


def is_below(path, places):
    return any(str(path) == place or str(path).startswith(f"{place}/") for place in places)


def test_there_is_something_to_check():
    assert len(PRODUCT) > 150
    assert len(MODULES) == len(PRODUCT)


@product_file
def test_imports_point_down(path):
    here = path.parts[0].removesuffix(".py")
    for line, module in imports(path):
        name = module.split(".")[0]
        if name in RANK and name != here:
            is_down = RANK[name] < RANK[here] or (here, name) in ALLOWED
            assert is_down, f"{path}:{line}: {here} must not import {module}: arrows point down"


def test_no_modules_import_each_other_in_a_circle():
    arrows = {
        module_of(path): {name for _, name in imports(path) if name in MODULES} for path in PRODUCT
    }
    while ground := {name for name, targets in arrows.items() if not targets}:
        arrows = {name: set(t) - ground for name, t in arrows.items() if name not in ground}
    circle = {name: sorted(targets) for name, targets in arrows.items()}
    assert circle.keys() <= {"accelInferenceEngine", "inferenceEngine"}, f"a circle: {circle}"


@product_file
def test_the_worlds_of_backends_do_not_know_each_other(path):
    here = next((world for world in WORLDS if module_of(path).startswith(f"{world}.")), None)
    others = tuple(f"{world}." for world in WORLDS if world != here)
    for line, module in imports(path):
        is_other = here is not None and f"{module}.".startswith(others)
        assert not is_other, f"{path}:{line}: {here} must not import {module}"


@product_file
def test_heavy_libraries_stay_where_they_are_used(path):
    for line, module in imports(path):
        library = module.split(".")[0]
        if library == "torch":
            assert is_below(path, TORCH), f"{path}:{line}: torch belongs to {', '.join(TORCH)}"
        if library == "matplotlib":
            assert is_below(path, MATPLOTLIB), f"{path}:{line}: figures belong to {MATPLOTLIB}"
        if library in ("ray", "tritonclient"):
            assert is_below(path, ["backends/cluster"]), f"{path}:{line}: {library} is optional"


def stored_names(path):
    """(line, name) of variables, parameters, attributes that are set, functions and classes."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id if isinstance(node, ast.Name) else node.attr
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.lineno, node.name


@every_file
def test_no_name_says_nothing(path):
    vague = [(line, name) for line, name in stored_names(path) if name.strip("_") in VAGUE]
    assert not vague, f"{path}: name the thing: {vague}"


@every_file
def test_lines_have_at_most_100_characters(path):
    written = [re.sub(r"  # (noqa|type: ignore).*", "", x) for x in source(path).splitlines()]
    long = [i for i, line in enumerate(written, start=1) if len(line) > 100]
    assert not long, f"{path}: lines {long} are longer; ruff format . breaks code, not words"


def comments(path):
    tokens = tokenize.generate_tokens(io.StringIO(source(path)).readline)
    return [(token.start[0], token.string) for token in tokens if token.type == tokenize.COMMENT]


def is_table(path, line):
    """Whether a statement that is a literal of constants ends in this line."""
    statements = [x for x in ast.walk(tree_of(path)) if isinstance(x, ast.Assign | ast.AnnAssign)]
    ends = [x.value for x in statements if x.end_lineno == line]
    return any(isinstance(x, ast.List | ast.Dict | ast.Tuple | ast.Set) for x in ends)


@every_file
def test_only_tables_of_data_are_formatted_by_hand(path):
    for line, text in comments(path):
        if "fmt: skip" in text or "fmt: off" in text:
            assert is_table(path, line), f"{path}:{line}: let ruff format it"


@every_file
def test_what_a_checker_must_not_say_has_its_reason(path):
    for line, text in comments(path):
        if re.match(r"# (ruff: )?noqa", text):
            assert "(" in text, f"{path}:{line}: {text}: say why in parentheses"


def test_a_class_has_a_name_of_its_own():
    names = Counter()
    places = {}
    for path in PRODUCT:
        for node in tree_of(path).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                names[node.name] += 1
                places.setdefault(node.name, []).append(f"{path}:{node.lineno}")
    twice = {name: places[name] for name, n in names.items() if n > 1}
    assert not twice, f"one word, one meaning: {twice}"


def test_folders_are_small():
    folders = Counter(path.parent for path in PRODUCT if path.name != "__init__.py")
    del folders[Path()]
    large = {str(folder): n for folder, n in folders.items() if n > MOST_MODULES}
    assert not large, f"more than {MOST_MODULES} modules in a folder: {large}"


def test_the_top_level_holds_what_its_users_named():
    assert {name.split("/")[0] for name in TRACKED} <= TOP


def test_tests_mirror_the_tree():
    at_top = {Path(name).name for name in TRACKED if re.fullmatch(r"tests/test_\w+\.py", name)}
    assert at_top <= TOP_TESTS, f"move to the folder that they test: {at_top - TOP_TESTS}"
    deep = [name for name in TRACKED if re.fullmatch(r"tests/\w+/(.*/)?test_\w+\.py", name)]
    folders = {str(Path(name).parent.relative_to("tests")) for name in deep}
    assert not [folder for folder in folders if not (ROOT / folder).is_dir()]


def run_python(code):
    words = [sys.executable, "-c", code]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_driver_and_the_simulator_start_without_torch():
    modules = (
        "backends.virtual.simulated, backends.processes.process, backends.tuning.policy_tuner, "
        "scheduler, loadGenerator, infra.results.run_folder"
    )
    done = run_python(f"import sys, {modules}; print('torch' in sys.modules)")
    assert done.stdout.strip() == "False", done.stderr


def test_what_runs_on_a_borrowed_gpu_needs_neither_rich_nor_numba():
    modules = (
        "models.embedding.bags, models.embedding.tuning.search, models.embedding.tuner, "
        "models.embedding.gpu.backend, experiments.embedding.gpu"
    )
    missing = "sys.modules |= dict.fromkeys(('rich', 'numba', 'llvmlite'))"
    done = run_python(f"import sys; {missing}; import {modules}; print('done')")
    assert done.stdout.strip() == "done", done.stderr
