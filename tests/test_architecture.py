"""The rules of the house: who may import whom, what a name may be, how a line may look.

A rule names each place that breaks it, as file:line, with what to do. Rules of a single file are
functions on a `Source`; `BROKEN` shows that each of them notices what it forbids. Complexity is
ruff's (pyproject.toml: C901, PLR0912, PLR0915).
"""

import ast
import collections
import fnmatch
import functools
import io
import re
import subprocess
import sys
import tokenize
from dataclasses import dataclass
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
# CudaEngine is the model on another device: it builds what the CPU engine builds.
ALLOWED = {("accelInferenceEngine", "inferenceEngine")}

# Inside backends/: the worlds know the interface only; the long run and tuning use virtual time.
WORLDS = ("processes", "virtual", "cluster")
BACKENDS = {
    "session": (),
    **dict.fromkeys(WORLDS, ("session",)),
    "long_run": ("session", "virtual.simulated"),
    "tuning": ("session", "virtual.simulated", "long_run"),
    "checks": ("session", "tuning"),
    "opening": ("session", *WORLDS),
}

PLACES = {  # where a library that is heavy, or that not everyone has, may be imported
    "torch": [
        "models/",
        "accelerator/profiler.py",
        "inferenceEngine.py",
        "accelInferenceEngine.py",
        "experiments/colocation/pairs.py",
        "experiments/common/core_limits.py",
        "experiments/common/fresh_calls.py",
        "experiments/common/look_up_peers.py",
        "experiments/embedding/",
        "experiments/locality/look_ups.py",
        "experiments/model_speed/",
        "experiments/operator_breakdown/",
        "experiments/recpipe/datasets/",
        "experiments/roofline/",
    ],
    "matplotlib": ["infra/results/figures.py", "experiments/"],
    "numba": [
        "accelerator/service.py",
        "backends/virtual/",
        "models/embedding/cpu/",
        "models/inputs/stack_distance.py",
        "models/kernels/",
    ],
    "llvmlite": ["models/embedding/cpu/", "models/kernels/"],
    "triton": ["models/embedding/gpu/", "experiments/embedding/"],
    "ray": ["backends/cluster/"],
}
TO_COME = {"backends/cluster/"}  # places that need not exist yet

VAGUE = {"own", "found", "one", "given", "said", "every"}
LONGEST_LINE = 100
SKIP = "fmt: " + "skip"  # in two parts, as this file is formatted
MOST_MODULES = 12  # of a folder, __init__.py not counted

SCRIPTS = ("DeepRecSys", "loadGenerator", "scheduler", "inferenceEngine", "accelInferenceEngine")
TOP_LEVEL = {
    *(f"{name}.py" for name in SCRIPTS),
    *("infra", "models", "accelerator", "backends", "experiments", "build", "tests"),
    *("run_DeepRecInfra.sh", "run_DeepRecSys.sh", "README.md"),
    *("pyproject.toml", "LICENSE", "CHANGELOG.md", ".ci", ".gitignore", ".dockerignore"),
}
TOP_TESTS = {
    "test_architecture.py",
    "test_deeprecsys.py",
    "test_load_generator.py",
    "test_scheduler.py",
    "test_inference_engine.py",
    "test_accel_inference_engine.py",
}


@dataclass(frozen=True)
class Source:
    """A Python file: its path inside the repository, and its text."""

    path: str
    text: str

    @functools.cached_property
    def nodes(self) -> list[ast.AST]:
        return list(ast.walk(ast.parse(self.text)))

    @functools.cached_property
    def comments(self) -> list[tuple[int, str]]:
        tokens = tokenize.generate_tokens(io.StringIO(self.text).readline)
        return [
            (token.start[0], token.string) for token in tokens if token.type == tokenize.COMMENT
        ]

    @functools.cached_property
    def imports(self) -> list[tuple[int, str]]:
        """Dotted names that are imported anywhere in the file; `from a import b` gives a.b."""
        names = []
        for node in self.nodes:
            if isinstance(node, ast.Import):
                names += [(node.lineno, alias.name) for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names += [(node.lineno, f"{node.module}.{alias.name}") for alias in node.names]
        return names

    @property
    def module(self) -> str:
        return self.path.removesuffix(".py").replace("/", ".").removesuffix(".__init__")

    @property
    def room(self) -> str:
        return self.module.split(".")[0]


def read_sources(*rooms):
    paths = [path for room in rooms for path in [ROOT / f"{room}.py", *(ROOT / room).rglob("*.py")]]
    return [
        Source(path.relative_to(ROOT).as_posix(), path.read_text())
        for path in sorted(paths)
        if path.is_file()
    ]


PRODUCT = read_sources(*RANK)
TESTS = read_sources("tests")


def imports_point_down(source):
    for line, name in source.imports:
        room = name.split(".")[0]
        if room in (source.room, "__future__") or (source.room, room) in ALLOWED:
            continue
        if room in RANK and RANK[room] >= RANK[source.room]:
            yield line, f"{source.room} must not import {room}: move what both need further down"


def worlds_do_not_know_each_other(source):
    inside = source.module.removeprefix("backends.")
    if inside == source.module:
        return
    part = inside.split(".")[0]
    for line, name in source.imports:
        target = name.removeprefix("backends.")
        allowed = (part, *BACKENDS.get(part, ()))
        if target != name and not any(f"{target}.".startswith(f"{place}.") for place in allowed):
            yield line, f"backends.{part} must not import backends.{target}: ask the session"


def heavy_libraries_stay_in_their_places(source):
    for line, name in source.imports:
        library = name.split(".")[0]
        if library in PLACES and not source.path.startswith(tuple(PLACES[library])):
            yield line, f"imports {library}: leave that to {', '.join(PLACES[library])}"


def names_say_what_a_thing_is(source):
    for node in source.nodes:
        names = [getattr(node, field, None) for field in ("name", "arg", "asname", "rest")]
        if isinstance(node, ast.Name | ast.Attribute) and not isinstance(node.ctx, ast.Load):
            names.append(node.id if isinstance(node, ast.Name) else node.attr)
        if isinstance(node, ast.alias):
            names = [node.asname]
        for name in VAGUE.intersection(names):
            yield getattr(node, "lineno", 1), f"{name!r} says nothing: name the thing"


def lines_can_be_read_at_once(source):
    for number, line in enumerate(source.text.splitlines(), 1):
        if len(line) > LONGEST_LINE:
            yield number, f"{len(line)} characters: break the line, or say less"


def the_formatter_is_left_out_of_tables_only(source):
    tables = {
        node.end_lineno
        for node in source.nodes
        if isinstance(node, ast.Assign | ast.AnnAssign)
        and isinstance(node.value, ast.List | ast.Dict | ast.Tuple | ast.Set)
    }
    for line, comment in source.comments:
        if re.search(r"fmt: *(skip|off)", comment) and line not in tables:
            yield line, "no table: let ruff format it"


def an_exception_to_a_rule_has_its_reason(source):
    with_reason = re.compile(r"noqa: [A-Z]+[0-9]+(, [A-Z]+[0-9]+)* \(.+\)")
    for line, comment in source.comments:
        if "noqa" in comment and not with_reason.search(comment):
            yield line, f"{comment}: write '# noqa: CODE (why)'"


RULES = {
    imports_point_down: PRODUCT,
    worlds_do_not_know_each_other: PRODUCT,
    heavy_libraries_stay_in_their_places: PRODUCT,
    names_say_what_a_thing_is: PRODUCT + TESTS,
    lines_can_be_read_at_once: PRODUCT + TESTS,
    the_formatter_is_left_out_of_tables_only: PRODUCT + TESTS,
    an_exception_to_a_rule_has_its_reason: PRODUCT + TESTS,
}


def breaches(rule, sources):
    return [
        f"{source.path}:{line}: {problem}" for source in sources for line, problem in rule(source)
    ]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_house_keeps_its_rules(rule):
    wrong = breaches(rule, RULES[rule])
    assert not wrong, "\n".join(wrong)


BROKEN = {  # rule: (path, text, line of the breach)
    imports_point_down: [
        ("infra/x.py", "from models import build", 1),
        ("models/x.py", "def f():\n    import scheduler", 2),
        ("inferenceEngine.py", "import accelInferenceEngine", 1),
        ("backends/x.py", "from experiments.common import study", 1),
    ],
    worlds_do_not_know_each_other: [
        ("backends/virtual/x.py", "from backends.processes import run", 1),
        ("backends/processes/x.py", "import backends.virtual.fleet", 1),
        ("backends/tuning/x.py", "from backends.virtual import fleet", 1),
        ("backends/cluster/x.py", "from backends.tuning import probe", 1),
        ("backends/session.py", "from backends import opening", 1),
    ],
    heavy_libraries_stay_in_their_places: [
        ("infra/x.py", "import torch.nn", 1),
        ("DeepRecSys.py", "from matplotlib import pyplot", 1),
        ("backends/processes/x.py", "import ray", 1),
    ],
    names_say_what_a_thing_is: [
        ("x.py", "own = 1", 1),
        ("x.py", "for i, one in pairs: ...", 1),
        ("x.py", "a = [\n    said for said in b]", 2),
        ("x.py", "if (found := f()): ...", 1),
        ("x.py", "def f(a, *, given): ...", 1),
        ("x.py", "def every(): ...", 1),
        ("x.py", "f(one=1)", 1),
        ("x.py", "self.found = 1", 1),
        ("x.py", "class A:\n    one: int", 2),
        ("x.py", "import a as own", 1),
        ("x.py", "try: ...\nexcept E as given: ...", 2),
        ("x.py", "match a:\n    case [*own]: ...", 2),
    ],
    lines_can_be_read_at_once: [("x.py", "a = 1\n" + "#" * 101, 2)],
    the_formatter_is_left_out_of_tables_only: [
        ("x.py", f"f(1)  # {SKIP}", 1),
        ("x.py", f"a = [\n    f(i) for i in b\n]  # {SKIP}", 3),
        ("x.py", "# " + "fmt: off", 1),
    ],
    an_exception_to_a_rule_has_its_reason: [
        ("x.py", "import a  # noqa: PLC0415", 1),
        ("x.py", "import a  # noqa", 1),
    ],
}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_a_rule_notices_what_it_forbids(rule):
    for path, text, line in BROKEN[rule]:
        (breach,) = breaches(rule, [Source(path, text)])
        assert breach.startswith(f"{path}:{line}: ")


KEPT = {
    imports_point_down: ("accelInferenceEngine.py", "from inferenceEngine import prepare"),
    worlds_do_not_know_each_other: ("backends/tuning/x.py", "import backends.virtual.simulated"),
    heavy_libraries_stay_in_their_places: ("models/x.py", "import torch"),
    names_say_what_a_thing_is: (
        "x.py",
        "from hypothesis import given\na = 'own'  # every one\n@given(a)\ndef f(): ...",
    ),
    lines_can_be_read_at_once: ("x.py", "#" * 100),
    the_formatter_is_left_out_of_tables_only: ("x.py", "A = {\n    1: 2, 3: 4,\n}  # " + SKIP),
    an_exception_to_a_rule_has_its_reason: ("x.py", "import a  # noqa: E402, F401 (for b)"),
}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_a_rule_lets_pass_what_it_allows(rule):
    assert breaches(rule, [Source(*KEPT[rule])]) == []


@pytest.mark.parametrize("library", PLACES)
def test_a_place_of_a_heavy_library_uses_it(library):
    users = [
        source.path
        for source in PRODUCT
        if library in {name.split(".")[0] for _, name in source.imports}
    ]
    unused = {p for p in PLACES[library] if not any(user.startswith(p) for user in users)}
    assert unused <= TO_COME, f"take {unused} off PLACES[{library!r}]: nobody there uses it"


def circles(edges):
    """The circles of {module: modules that it imports}, each as a sorted list of its modules."""
    reached = {module: set(targets) for module, targets in edges.items()}
    for middle in edges:  # Warshall's closure
        for module in edges:
            if middle in reached[module]:
                reached[module] |= reached[middle]
    groups = {
        tuple(sorted(b for b in reached[a] if a in reached[b])) for a in edges if a in reached[a]
    }
    return sorted(map(list, groups))


def module_imports(sources):
    """{module: the tree's modules that it imports anywhere, in functions too}."""
    modules = {source.module for source in sources}
    edges = {}
    for source in sources:
        names = [name for _, name in source.imports]
        names = [name if name in modules else name.rpartition(".")[0] for name in names]
        edges[source.module] = modules.intersection(names)
    return edges


def test_no_modules_import_each_other_in_a_circle():
    wrong = circles(module_imports(PRODUCT))
    assert not wrong, f"move what they share into a module of its own: {wrong}"


def test_circles_are_noticed():
    texts = {
        "a/__init__.py": "",
        "a/b.py": "from a import c",
        "a/c.py": "def f():\n    from d import g",
        "d.py": "import a.b",
        "e.py": "from a.b import f",
        "f.py": "from f import g",
    }
    edges = module_imports([Source(path, text) for path, text in texts.items()])
    assert circles(edges) == [["a.b", "a.c", "d"], ["f"]]


def doubled_classes(sources):
    places = collections.defaultdict(list)
    for source in sources:
        for node in source.nodes:
            if isinstance(node, ast.ClassDef):
                places[node.name].append(f"{source.path}:{node.lineno}")
    return {name: where for name, where in places.items() if len(where) > 1}


def test_a_class_name_stands_for_a_single_class():
    wrong = [f"{name}: {', '.join(where)}" for name, where in doubled_classes(PRODUCT).items()]
    assert not wrong, "rename all but one:\n" + "\n".join(wrong)


def test_doubled_classes_are_noticed():
    sources = [Source("a.py", "class A: ...\nclass B: ..."), Source("b.py", "\nclass A: ...")]
    assert doubled_classes(sources) == {"A": ["a.py:1", "b.py:2"]}


def test_a_folder_can_be_overlooked():
    paths = [Path(source.path) for source in PRODUCT]
    modules = collections.Counter(p.parent for p in paths if p.name != "__init__.py")
    wrong = [f"{folder}: {n}" for folder, n in modules.items() if n > MOST_MODULES]
    assert not wrong, f"make rooms of at most {MOST_MODULES} modules: {wrong}"


def test_tests_mirror_the_tree():
    wrong = []
    for source in TESTS:
        path = Path(source.path).relative_to("tests")
        on_top = path.parent == Path()
        if path.name.startswith("test_") and not (
            path.name in TOP_TESTS if on_top else (ROOT / path.parent).is_dir()
        ):
            wrong.append(source.path)
    assert not wrong, f"move them into the folder of what they test: {wrong}"


def test_the_top_level_holds_only_what_is_fixed():
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("no checkout of git")
    tracked = {path.split("/")[0] for path in listed.stdout.splitlines()}
    assert tracked <= TOP_LEVEL, f"move into a room: {sorted(tracked - TOP_LEVEL)}"


def test_there_is_something_to_check():
    assert len(PRODUCT) > 150
    assert len(TESTS) > 50
    assert {source.room for source in PRODUCT} == set(RANK)


def python(code):
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_the_driver_and_the_simulator_start_without_torch():
    modules = (
        "backends.virtual.simulated, backends.processes.process, backends.tuning.policy_tuner, "
        "scheduler, loadGenerator, infra.results.run_folder"
    )
    done = python(f"import sys, {modules}; print('torch' in sys.modules)")
    assert done.stdout.strip() == "False", done.stderr


def test_what_runs_on_a_borrowed_gpu_needs_neither_rich_nor_numba():
    modules = (
        "models.embedding.bags, models.embedding.tuning.search, models.embedding.tuner, "
        "models.embedding.gpu.backend, experiments.embedding.gpu"
    )
    blocked = "sys.modules |= dict.fromkeys(('rich', 'numba', 'llvmlite'))"
    done = python(f"import sys; {blocked}; import {modules}; print('done')")
    assert done.stdout.strip() == "done", done.stderr


def test_no_folder_of_tests_is_left_out(request):
    patterns = request.config.getini("norecursedirs")
    files = [file.relative_to(ROOT) for file in (ROOT / "tests").rglob("test_*.py")]
    left_out = [
        str(file)
        for file in files
        if any(fnmatch.fnmatch(part, pattern) for part in file.parts[:-1] for pattern in patterns)
    ]
    assert len(files) > 80
    assert not left_out, f"pytest does not look into the folder of {left_out}"
