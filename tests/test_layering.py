"""Imports point down only, and the pure half never touches Detectron2."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "rs_d2"

PURE = {
    "ops",
    "losses",
    "targets",
    "balancing",
    "imbalance",
    "criterion",
    "entries",
    "errors",
    "version",
}
ANYBODY = {"entries", "errors", "version"}
# What each part may import of ours, besides itself and ANYBODY.
ALLOWED = {
    "ops": set(),
    "losses": {"ops"},
    "targets": {"ops"},
    "balancing": set(),
    "imbalance": set(),
    "criterion": {"losses", "targets", "balancing", "imbalance", "ops"},
    "config": set(),
    "entries": set(),
    "errors": set(),
    "version": set(),
    "_compat": set(),
    "modeling": PURE | {"config", "_compat"},
    "evaluation": {"ops", "_compat", "imbalance"},
    "data": {"ops", "_compat"},
    "checkpoint": {"ops", "_compat", "config"},
    "model_zoo": {"_compat", "config", "checkpoint", "engine"},
}


def modules():
    return sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


def part_of(path):
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


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
    part = part_of(path)
    names = list(imported(path))
    if part in PURE:
        assert not [n for n in names if n.split(".")[0] in {"detectron2", "fvcore"}]
    if part not in ALLOWED:
        return  # the top of the package may import everything below
    ours = {n.split(".")[1] for n in names if n.startswith("rs_d2.")}
    assert ours - ALLOWED[part] - ANYBODY - {part} == set()


def test_nothing_in_the_package_imports_a_program():
    names = {n.split(".")[0] for path in modules() for n in imported(path)}
    assert names.isdisjoint({"train_net", "tools", "benchmarks", "tests", "datasets"})
