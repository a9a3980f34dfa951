"""Imports point down only, and the pure half never touches Detectron2."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "rs_d2"

# From the top down; a room may import those below it and, where a set has several, no other of it.
LAYERS = [
    {"analysis", "export", "model_zoo"},
    {"engine"},
    {"prediction"},
    {"modeling", "evaluation", "report", "drawing", "data"},
    {"config", "checkpoint"},
    {"criterion", "coco"},
    {"losses", "targets"},
    {"ops", "utils"},
    {"version"},
]
# Neighbours that know each other, in one direction.
BESIDE = {"report": {"evaluation", "drawing"}, "drawing": {"data"}, "ops": {"utils"}}
PURE = {"criterion", "coco", "losses", "targets", "ops", "utils", "version"}
GLUE_IN_UTILS = {"d2_compat.py", "launch.py"}


def modules():
    return sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


def room_of(path):
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def below(room):
    """Rooms that a room may import."""
    level = next(i for i, rooms in enumerate(LAYERS) if room in rooms)
    return set().union(*LAYERS[level + 1 :], BESIDE.get(room, ()), {room})


def imported(path):
    """Full names of the modules that a file imports anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            if node.module == "rs_d2":
                yield from (f"rs_d2.{alias.name}" for alias in node.names)
            else:
                yield node.module


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path):
    room = room_of(path)
    names = list(imported(path))
    ours = {n.split(".")[1] for n in names if n.startswith("rs_d2.")}
    assert ours - below(room) == set()
    if room in PURE and path.name not in GLUE_IN_UTILS:
        assert not [n for n in names if n.split(".")[0] in {"detectron2", "fvcore"}]


def test_every_room_has_a_layer():
    rooms = {p.name for p in PACKAGE.iterdir() if (p / "__init__.py").is_file()} | {"version"}
    assert rooms == set().union(*LAYERS)


def test_nothing_in_the_package_imports_a_program():
    names = {n.split(".")[0] for path in modules() for n in imported(path)}
    assert names.isdisjoint({"train_net", "tools", "benchmarks", "tests", "datasets", "dev"})
