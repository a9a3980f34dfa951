"""How often a walk enters a module, and which private helpers have one caller."""

import sys

import pytest
from conftest import REPO

sys.path.insert(0, str(REPO / "dev"))
import measure_house as house

MODULES = {
    "data/reading.py": """
from small_house.data.checks import check

def read(entries):
    return [check(entry) for entry in entries]

def _size(entry):
    return len(entry)

def area(entry):
    return _size(entry) ** 2
""",
    "data/checks.py": """
def check(entry):
    return _own(entry)

def _own(entry):
    from small_house.data import reading
    return reading.area(entry) + _own_again(entry) + _own_again(entry)

def _own_again(entry):
    return 0
""",
    "losses/loss.py": "def loss():\n    return 0\n",
}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """The folder of a package that the script takes for ours."""
    for name, text in MODULES.items():
        path = tmp_path / "small_house" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(house, "PACKAGE", "small_house")
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_a_loop_counts_once_and_a_return_counts_again(package):
    from small_house.data import reading
    from small_house.losses import loss

    walks = house.Walks(package / "small_house")
    sys.setprofile(walks)
    reading.read(["a", "bc", "def"])
    loss.loss()
    reading.area("after the first loss")
    sys.setprofile(None)
    assert walks.sample == ["data/reading", "data/checks", "data/reading"]
    assert walks.report == []


def test_helpers_with_one_caller(package):
    measured = house.helpers(package)
    assert measured["functions"] == 7
    assert measured["private helpers"] == 3
    assert measured["with one caller"] == 2


def test_rooms(package):
    lines = {name: text.count("\n") for name, text in MODULES.items()}
    assert house.rooms(package) == {
        "small_house/data": (2, lines["data/reading.py"] + lines["data/checks.py"]),
        "small_house/losses": (1, lines["losses/loss.py"]),
    }
