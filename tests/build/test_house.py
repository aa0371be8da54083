"""The picture of the house is that of the code."""

import xml.etree.ElementTree as ET

import pytest
from helpers import ROOT

from build import draw_house as house


def test_the_picture_is_that_of_the_code():
    assert (ROOT / "build/house.svg").read_text() == house.draw_house(), (
        "the rooms have changed; run: python build/draw_house.py"
    )


def test_the_picture_can_be_read_as_xml_and_names_every_room():
    picture = ET.fromstring(house.draw_house())  # noqa: S314 (our own)
    words = " ".join(picture.itertext())
    rooms = [file.parent for file in ROOT.glob("[a-z]*/*/__init__.py")]
    assert len(rooms) > 8
    for room in [*rooms, *ROOT.glob("*.py")]:
        assert room.name in words


def write_tree(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


FILES = {
    "infra/__init__.py": '"""What everyone may import. And more."""\n',
    "scheduler.py": '"""Decides."""\nfrom infra.clock import now\n',
    "DeepRecSys.py": '"""The command line."""\nimport infra\nimport scheduler\n',
    "experiments/cluster/run.py": "import DeepRecSys\nimport scheduler\n",
}


def test_a_floor_is_above_all_that_it_imports_and_arrows_are_few(tmp_path):
    write_tree(tmp_path, FILES)
    imports = house.read_imports(tmp_path)
    assert house.floors(imports) == {
        "infra": 0,
        "scheduler": 1,
        "DeepRecSys": 2,
        "experiments": 3,
    }
    assert sorted(house.direct(imports)) == [
        ("DeepRecSys", "scheduler"),
        ("experiments", "DeepRecSys"),
        ("scheduler", "infra"),
    ]
    assert "What everyone may import" in house.draw_house(tmp_path)
    assert "And more" not in house.draw_house(tmp_path)


def test_a_circle_of_imports_and_a_name_without_a_place_are_refused(tmp_path):
    write_tree(tmp_path, FILES | {"infra/clock.py": "import scheduler\n"})
    with pytest.raises(ValueError, match="infra, scheduler: these import each other"):
        house.draw_house(tmp_path)
    write_tree(tmp_path, {"infra/clock.py": "", "cellar.py": "import infra\n"})
    with pytest.raises(ValueError, match=r"cellar: PLACES in build/draw_house\.py has no place"):
        house.draw_house(tmp_path)
