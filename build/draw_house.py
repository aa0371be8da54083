"""Draws the house: which rooms the code has, what each is for, and who imports whom.

    python build/draw_house.py [FILE]     (default build/house.svg)

Everything is read from the code. A floor follows from the imports: a file or folder stands above
all that it imports. What a room is for is the first sentence of its docstring. The same code gives
the same bytes.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from textwrap import wrap

ROOT = Path(__file__).resolve().parent.parent

# Left and right end of every top-level file and folder on its floor, in hundredths of the width.
PLACES = {
    "infra": (0, 100),
    "scheduler": (0, 19),
    "loadGenerator": (19, 38),
    "models": (38, 100),
    "inferenceEngine": (38, 60),
    "accelerator": (60, 100),
    "accelInferenceEngine": (38, 100),
    "backends": (0, 100),
    "DeepRecSys": (0, 100),
}
ATTIC = "experiments"  # under the roof; nothing imports it

WIDTH = 1060
ROOF = 208  # its height
WALL = 42  # from the picture's edge to the rooms
GAP = 32  # between two floors, for the arrows
PAD = 14
BETWEEN = 12  # between two boxes of a floor
LETTER = {"title": 9.6, "text": 7.2, "small": 6.4, "names": 7.3}  # widths of average letters
LINE = {"title": 22.0, "text": 18.2, "small": 16.2, "names": 16.2}  # heights of lines

KEY = (
    "An arrow says that the upper imports the lower; imports that follow from others have none. "
    "Nothing imports upwards."
)
STYLE = """
    text { font-family: 'Segoe UI', Helvetica, Arial, 'DejaVu Sans', sans-serif; fill: #24303c; }
    .title { font-size: 16px; font-weight: 700; }
    .text { font-size: 13.5px; }
    .name { font-weight: 700; }
    .small { font-size: 12px; }
    .names { font-size: 12px; font-family: Menlo, Consolas, 'DejaVu Sans Mono', monospace;
             fill: #5d6b79; }
    .sky { fill: #ffffff; }
    .wall { fill: #f4efe6; stroke: #b9ab94; stroke-width: 2; }
    .roof { fill: #b5533c; stroke: #8c3d2b; stroke-width: 2; }
    .onroof { fill: #ffffff; }
    .box { fill: #ffffff; stroke: #c5bba8; stroke-width: 1.2; }
    .room { fill: #e9f0f5; stroke: #b4c5d2; stroke-width: 1; }
    .arrow { stroke: #8c3d2b; stroke-width: 2; fill: none; }
    .head { fill: #8c3d2b; }
    @media (prefers-color-scheme: dark) {
      text { fill: #e4e9ee; }
      .names { fill: #9fb0bf; }
      .sky { fill: #12171d; }
      .wall { fill: #1b222a; stroke: #4a5563; }
      .box { fill: #242d37; stroke: #4a5563; }
      .room { fill: #2d3a47; stroke: #51667a; }
      .arrow { stroke: #e08a70; }
      .head { fill: #e08a70; }
    }
"""


@dataclass(frozen=True)
class Part:
    """A file or a folder of Python code, with what its docstring says first."""

    name: str  # as on disk: scheduler.py, infra/
    sentence: str
    rooms: tuple[Part, ...] = ()  # folders inside that are packages
    others: tuple[str, ...] = ()  # a file's public classes, a folder's other files and folders


@dataclass(frozen=True)
class Box:
    """Where a part stands in the picture."""

    left: float
    top: float
    width: float
    height: float

    def svg(self, css: str) -> str:
        """The box itself."""
        return (
            f'<rect class="{css}" x="{self.left:.1f}" y="{self.top:.1f}" '
            f'width="{self.width:.1f}" height="{self.height:.1f}" rx="6"/>'
        )


def first_sentence(file: Path) -> str:
    """What a module says that it is: its docstring up to the first period or empty line."""
    doc = ast.get_docstring(ast.parse(file.read_text())) if file.is_file() else None
    paragraph = " ".join((doc or "").split("\n\n")[0].split())
    return paragraph.split(". ")[0].rstrip(".")


def public_classes(file: Path) -> list[str]:
    """Names of a module's public classes."""
    return [
        node.name
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    ]


def read_part(path: Path) -> Part:
    """The part at a path, with the rooms inside."""
    if path.suffix == ".py":
        return Part(path.name, first_sentence(path), others=tuple(public_classes(path)))
    inside = [entry for entry in sorted(path.iterdir()) if not entry.name.startswith(("_", "."))]
    rooms = [entry for entry in inside if (entry / "__init__.py").is_file()]
    others = [entry.name for entry in inside if entry.suffix == ".py"]
    others += [f"{entry.name}/" for entry in inside if entry.is_dir() and entry not in rooms]
    return Part(
        f"{path.name}/",
        first_sentence(path / "__init__.py"),
        tuple(Part(f"{room.name}/", first_sentence(room / "__init__.py")) for room in rooms),
        tuple(others),
    )


def imported(file: Path) -> Iterator[str]:
    """Top-level names that a file imports."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.split(".")[0]


def read_imports(root: Path) -> dict[str, set[str]]:
    """{name: names that it imports} of the top-level files and folders."""
    names = {
        entry.stem
        for entry in root.iterdir()
        if entry.suffix == ".py" or (entry / "__init__.py").is_file()
    } - {"tests"} | {ATTIC}
    files = {
        name: [root / f"{name}.py"]
        if (root / f"{name}.py").is_file()
        else (root / name).rglob("*.py")
        for name in names
    }
    return {
        name: {word for file in files[name] for word in imported(file)} & names - {name}
        for name in sorted(names)
    }


def floors(imports: dict[str, set[str]]) -> dict[str, int]:
    """{name: floor}, one above the highest of what it imports; raises ValueError at a circle."""
    floor: dict[str, int] = {}
    while left := [name for name in imports if name not in floor]:
        ready = [name for name in left if imports[name] <= floor.keys()]
        if not ready:
            raise ValueError(f"{', '.join(left)}: these import each other in a circle")
        floor |= {name: 1 + max((floor[n] for n in imports[name]), default=-1) for name in ready}
    return floor


def direct(imports: dict[str, set[str]]) -> list[tuple[str, str]]:
    """The imports that do not follow from others: what an arrow is drawn for."""
    below: dict[str, set[str]] = {}
    for name in sorted(imports, key=floors(imports).__getitem__):
        below[name] = imports[name].union(*(below[n] for n in imports[name]))
    return [
        (name, target)
        for name, targets in imports.items()
        for target in sorted(targets)
        if not any(target in below[via] for via in targets)
    ]


def lines_of(css: str, text: str, width: float) -> list[str]:
    """Text in lines that fit into a width."""
    return wrap(text, int(width / LETTER[css]), break_long_words=False)


def written(css: str, lines: list[str], x: float, y: float) -> list[str]:
    """Lines of text below y."""
    step = LINE[css.split(maxsplit=1)[0]]
    return [
        f'<text class="{css}" x="{x:.1f}" y="{y + (i + 0.75) * step:.1f}">{escape(line)}</text>'
        for i, line in enumerate(lines)
    ]


def draw_part(part: Part, box: Box) -> tuple[list[str], float]:
    """A part in its box: name, sentence, rooms, other names; and the height that this takes."""
    x, y, width = box.left + PAD, box.top + PAD - 4, box.width - 2 * PAD
    body = written("title", [part.name], x, y)
    y += LINE["title"]
    sentence = lines_of("text", part.sentence, width)
    body += written("text", sentence, x, y)
    y += len(sentence) * LINE["text"] + 6
    if part.rooms:
        rooms, height = draw_rooms(part.rooms, x, y, width)
        body += rooms
        y += height + 6
    names = lines_of("names", "\u00a0 ".join(part.others), width)
    if y + len(part.others) * LINE["names"] + PAD < box.top + box.height:
        names = list(part.others)  # a tall box has a line for each
    body += written("names", names, x, y)
    return [box.svg("box"), *body], y + len(names) * LINE["names"] + PAD - box.top


def draw_rooms(
    rooms: tuple[Part, ...], x: float, y: float, width: float
) -> tuple[list[str], float]:
    """Rooms side by side; and their height."""
    each = (width + BETWEEN) / len(rooms)
    lines = [lines_of("small", room.sentence, each - BETWEEN - 20) for room in rooms]
    height = 34 + max(map(len, lines)) * LINE["small"]
    body = []
    for i, room in enumerate(rooms):
        box = Box(x + i * each, y, each - BETWEEN, height)
        body += [box.svg("room"), *written("text name", [room.name], box.left + 10, y + 6)]
        body += written("small", lines[i], box.left + 10, y + 25)
    return body, height


def draw_arrow(upper: Box, lower: Box) -> str:
    """An arrow down from the importing box, where the two stand above each other."""
    right = min(upper.left + upper.width, lower.left + lower.width)
    x = (max(upper.left, lower.left) + right) / 2
    return (
        f'<path class="arrow" d="M{x:.1f} {upper.top + upper.height:.1f}V{lower.top - 9:.1f}"/>'
        f'<path class="head" d="M{x - 6:.1f} {lower.top - 10:.1f}h12L{x:.1f} {lower.top:.1f}z"/>'
    )


def draw_attic(studies: list[str]) -> list[str]:
    """The roof with the studies under it, in lines that widen with it."""
    body = [
        f'<rect class="roof" x="{WIDTH * 0.74:.1f}" y="40" width="46" height="100"/>',
        f'<path class="roof" d="M8 {ROOF}L{WIDTH / 2} 8L{WIDTH - 8} {ROOF}z"/>',
    ]
    lines: list[tuple[str, str]] = []
    while studies:  # from the eaves upwards
        n_letters = (WIDTH * (ROOF - 40 - 20 * len(lines)) / ROOF - 90) / LETTER["small"]
        line = studies.pop()
        while studies and len(line) + len(studies[-1]) < n_letters:
            line = f"{studies.pop()} · {line}"
        lines.append(("small", line))
    lines += [("text", "one folder a question"), ("title", f"{ATTIC}/")]
    return body + [
        f'<text class="{css} onroof" text-anchor="middle" x="{WIDTH / 2}" y="{ROOF - 16 - 20 * i}">'
        f"{line}</text>"
        for i, (css, line) in enumerate(lines)
    ]


def stand(root: Path, imports: dict[str, set[str]]) -> dict[str, tuple[Part, Box]]:
    """Every part on its floor, as tall as it can be: up to the lowest that imports it."""
    floor = floors(imports)
    names = [name for name in imports if name != ATTIC]
    if missing := [name for name in names if name not in PLACES]:
        raise ValueError(f"{', '.join(missing)}: PLACES in build/draw_house.py has no place for it")
    files = {name: root / f"{name}.py" for name in names}
    parts = {
        name: read_part(file if file.is_file() else root / name) for name, file in files.items()
    }
    highest = {
        name: min(floor[user] for user in imports if name in imports[user]) - 1 for name in names
    }
    heights = [0.0] * floor[ATTIC]
    for name in names:
        if floor[name] == highest[name]:
            needed = draw_part(parts[name], place_of(name))[1]
            heights[floor[name]] = max(heights[floor[name]], needed)
    tops = tops_of(heights)
    placed = {}
    for name in names:
        top = tops[highest[name]]
        bottom = tops[floor[name]] + heights[floor[name]]
        placed[name] = (parts[name], replace(place_of(name), top=top, height=bottom - top))
    return placed


def place_of(name: str) -> Box:
    """From the part's left to its right; no height yet."""
    unit = (WIDTH - 2 * WALL + BETWEEN) / 100
    left, right = PLACES[name]
    return Box(WALL + left * unit, 0, (right - left) * unit - BETWEEN, 0)


def tops_of(heights: list[float]) -> list[float]:
    """Where each floor begins, the lowest floor first."""
    return [
        ROOF + sum(height + GAP for height in heights[level + 1 :]) + GAP
        for level in range(len(heights))
    ]


def draw_house(root: Path = ROOT) -> str:
    """The picture as the text of an SVG file."""
    imports = read_imports(root)
    placed = stand(root, imports)
    ground = max(box.top + box.height for _, box in placed.values()) + 18
    studies = [f.name for f in sorted((root / ATTIC).iterdir()) if (f / "README.md").is_file()]
    wall = Box(WALL - 18, ROOF, WIDTH - 2 * WALL + 36, ground - ROOF)
    body = [wall.svg("wall"), *draw_attic(studies)]
    for part, box in placed.values():
        body += draw_part(part, box)[0]
    boxes = {name: box for name, (_, box) in placed.items()}
    boxes[ATTIC] = Box(WALL, 0, WIDTH - 2 * WALL, ROOF)
    body += [draw_arrow(boxes[name], boxes[target]) for name, target in direct(imports)]
    body += written("small", [KEY], WALL, ground + 10)
    size = f'width="{WIDTH}" height="{ground + 40:.0f}"'
    lines = "\n  ".join(body)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {ground + 40:.0f}" {size}>\n'
        f'  <style>{STYLE}  </style>\n  <rect class="sky" {size} rx="10"/>\n  {lines}\n</svg>\n'
    )


if __name__ == "__main__":
    Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "build/house.svg").write_text(draw_house())
