"""The pages say what is: every link, path and flag in them exists, every command in them runs."""

from __future__ import annotations

import ast
import functools
import importlib.util
import itertools
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from helpers import ROOT


def files(pattern: str) -> list[Path]:
    """Files of the tree, without what runs leave behind."""
    tops = [entry for entry in ROOT.iterdir() if entry.name[0] != "." and entry.name != "results"]
    folders = [entry for entry in tops if entry.is_dir()]
    return sorted([*ROOT.glob(pattern), *(f for top in folders for f in top.rglob(pattern))])


PAGES = files("*.md")
BLOCK = re.compile(
    r"(?:<!-- test: (?P<rule>[^\n]*) -->\n)?^```bash\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)
COMMAND = re.compile(r"^(\s*(?:\./\w+\.py|python [-\w./]+).*?)(\s+(?:\|\||#).*)?$")
# Flags of other programs that pages name.
FOREIGN = {"no-deps", "rm", "repeat", "input-range", "head-count"}


@dataclass(frozen=True)
class Block:
    """Commands of a page, and what the comment before them tells the test."""

    page: str
    number: int
    code: str
    rule: str

    @property
    def starts_engines(self) -> bool:
        """Whether it needs the cores for itself."""
        return "--queue" in self.code and "--backend simulated" not in self.code


def blocks_of(page: Path) -> list[Block]:
    """The commands of a page in order."""
    return [
        Block(str(page.relative_to(ROOT)), i, match["code"], match["rule"] or "")
        for i, match in enumerate(BLOCK.finditer(page.read_text()))
    ]


def is_a_study(page: Path) -> bool:
    """Whether a page tells how a study was made: its commands take minutes to hours."""
    parts = page.relative_to(ROOT).parts
    return parts[0] == "experiments" and len(parts) > 2


BLOCKS = [block for page in PAGES if not is_a_study(page) for block in blocks_of(page)]
README = (ROOT / "README.md").read_text()
TOUR = README[README.index("## Ten seconds") : README.index("## Measure on real engines")]


def logical_lines(code: str) -> list[str]:
    """Lines with those that follow a backslash joined to them."""
    return re.sub(r"\\\n\s*", "", code).splitlines()


def scaled(block: Block) -> str:
    """The block's code with the flags that its rule adds."""
    match = re.fullmatch(r"(first command, )?add (.*)", block.rule)
    if match is None:
        return block.code
    lines = logical_lines(block.code)
    commands = [i for i, line in enumerate(lines) if COMMAND.match(line)]
    for i in commands[:1] if match[1] else commands:
        lines[i] = COMMAND.sub(rf"\1 {match[2]}\2", lines[i])
    return "\n".join(lines)


def unwatched(code: str) -> str:
    """The code without the second for which each run on engines first watches the machine."""
    lines = logical_lines(code)
    for i, line in enumerate(lines):
        if "DeepRecSys.py --queue" in line and "--backend simulated" not in line:
            lines[i] = COMMAND.sub(r"\1 --quiet_check 0\2", line)
    return "\n".join(lines)


@functools.cache
def flags_of_the_code() -> set[str]:
    """Every flag that a program of the tree takes."""
    names = set()
    for file in files("*.py"):
        if file.relative_to(ROOT).parts[0] == "tests":
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                names |= {m[1] for m in re.finditer(r"(?:^|\s)--([\w-]+)", node.value)}
            elif isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.Call):
                names.add(getattr(node.target, "id", ""))  # a field that is a flag
    return names


def without_blocks(text: str) -> str:
    """A page's text without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def anchor(heading: str) -> str:
    """What a heading is linked by."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def test_the_readme_fits_on_a_few_screens():
    assert len(README.splitlines()) <= 200


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_of_a_page_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", without_blocks(page.read_text())):
        if target.startswith("https://"):
            continue
        name, _, section = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), f"{page.relative_to(ROOT)} links {target}, which is not there"
        if section:
            headings = re.findall(r"^#+ (.*)$", without_blocks(file.read_text()), re.MULTILINE)
            assert section in map(anchor, headings), f"{target}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_flag_that_a_page_names_is_one_of_a_program(page):
    if page.name in {"CHANGELOG.md", "LOG.md"}:
        return  # what was
    text = re.sub(r"<!-- test: fails -->\n```.*?```", "", page.read_text(), flags=re.DOTALL)
    flags = set(re.findall(r"(?<![\w-])--([a-zA-Z][\w-]*)", text))
    strange = sorted(flags - flags_of_the_code() - FOREIGN)
    assert not strange, f"{page.relative_to(ROOT)} names flags that no program takes"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_path_that_a_page_names_is_there(page):
    if page.name in {"CHANGELOG.md", "LOG.md"}:
        return
    tops = {entry.name for entry in ROOT.iterdir()} - {"results", "log"}
    missing = []
    for span in re.findall(r"`([^`\n]+)`", without_blocks(page.read_text())):
        for word in span.split():
            is_path = re.fullmatch(r"[\w.*/-]+", word) and "NAME" not in word
            is_script = is_path and "/" not in word and word.endswith((".py", ".sh"))
            if is_path and "/" in word and word.split("/")[0] in tops:
                here = [*ROOT.glob(word.rstrip("/")), *page.parent.glob(word.rstrip("/"))]
                missing += [] if here or "characterization_data" in word else [word]
            elif is_script and not files(word):
                missing.append(word)
    assert not missing, f"{page.relative_to(ROOT)} names {', '.join(missing)}: not there"


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
    """A stand-in for .venv in which all is installed: the interpreter that runs the tests."""
    folder = tmp_path_factory.mktemp("environment")
    (folder / "bin").mkdir()
    for name in ("python", "python3"):
        program = folder / "bin" / name
        program.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        program.chmod(0o755)
    for name in ("pip_requirements.txt", "test_requirements.txt"):
        shutil.copy(ROOT / "build" / name, folder / f"installed_{name}")
    return folder


@pytest.fixture(scope="session")
def tree(tmp_path_factory):
    """A copy of the project, so that commands leave nothing behind."""
    copy = tmp_path_factory.mktemp("tree") / "project"
    left_out = shutil.ignore_patterns(".*", "__pycache__")
    for entry in ROOT.iterdir():
        if entry.is_file():
            copy.mkdir(exist_ok=True)
            shutil.copy(entry, copy)
        elif entry.name[0] != "." and entry.name not in {"results", "log", "tests"}:
            shutil.copytree(entry, copy / entry.name, ignore=left_out)
    return copy


def run(code: str, folder: Path, environment: Path) -> subprocess.CompletedProcess[str]:
    """Commands in a shell after the set-up, as the pages say."""
    words = {
        "PATH": f"{environment / 'bin'}:{os.environ['PATH']}",
        "DEEPRECSYS_VENV": str(environment),
        "PYTHONPATH": str(folder),
    }
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", code],
        cwd=folder,
        env=os.environ | words,
        capture_output=True,
        text=True,
        timeout=220,
        check=False,
    )


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(
            block,
            id=f"{block.page}:{block.number}",
            marks=pytest.mark.alone if block.starts_engines else (),
        )
        for block in BLOCKS
        if not block.rule.startswith("skip") and block.code not in TOUR
    ],
)
def test_the_commands_of_a_page_run(block, tree, environment):
    if block.rule.startswith("needs "):
        package = block.rule.removeprefix("needs ")
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is optional ({block.page})")
    shutil.rmtree(tree / "results", ignore_errors=True)
    done = run(unwatched(scaled(block)), tree, environment)
    if block.rule == "fails":
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
    else:
        assert done.returncode == 0, f"{scaled(block)}\n{done.stdout}\n{done.stderr}"


def test_a_rule_of_a_block_is_one_that_the_tests_know():
    rules = re.compile(r"(skip, .+|fails|needs \w+|(first command, )?add --.+|)")
    assert all(rules.fullmatch(block.rule) for block in BLOCKS)
    n_rules = sum(page.read_text().count("<!-- test: ") for page in PAGES if not is_a_study(page))
    in_table = (ROOT / "tests/README.md").read_text().count("`<!-- test: ")
    assert sum(block.rule != "" for block in BLOCKS) == n_rules - in_table


def test_the_tour_gives_the_table_that_the_readme_shows(tree, environment):
    """Virtual time: the same numbers everywhere."""
    shown = [line for line in TOUR.splitlines() if line.startswith("│")]
    done = run(BLOCK.search(TOUR)["code"], tree, environment)
    assert done.returncode == 0, done.stderr
    printed = done.stdout.splitlines()
    assert any(line.startswith("Results: ") for line in printed)
    assert [line for line in printed if line.startswith("│")] == shown, (
        "run the tour, and put its table and its scheduler.png (build/tour.png) into README.md"
    )


def test_every_package_of_the_requirements_has_its_line_in_the_readme():
    dependencies = README.split("## Dependencies")[1]
    texts = [(ROOT / f"build/{name}_requirements.txt").read_text() for name in ("pip", "test")]
    lines = itertools.chain(*(text.splitlines() for text in texts))
    for name in (line.split("==")[0] for line in lines if "==" in line):
        assert re.search(rf"\b{name}\b", dependencies), f"{name} has no line in README.md"


def test_the_list_of_experiments_is_that_of_the_folders():
    listed = set(
        re.findall(r"^\| \[(\w+)\]", (ROOT / "experiments/README.md").read_text(), re.MULTILINE)
    )
    assert listed == {page.parent.name for page in ROOT.glob("experiments/*/README.md")}
