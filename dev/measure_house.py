"""Measure how a checkout of rs_d2 is built, to compare two revisions.

    python dev/measure_house.py [CHECKOUT] [--json]

Prints as markdown: which modules are entered more than once between a json and the first training
sample, and between the first detection and the end of the run; private helpers with one caller;
files and lines of each room; times of an import. Run it with the environment of the checkout.

A module is entered when code of another module of the package calls into it. Of a pair of functions
only the first call counts, so that a loop over items counts once; several entries in a row count as
one. Entering again later, in the same walk, is a return.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import runpy
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

PACKAGE = "rs_d2"
REPEATS = 3
CHILDREN = ("children_user", "children_system")
# What computes is no part of a walk from one file format to another.
COMPUTING = {"modeling", "losses", "ops", "targets", "criterion", "balancing", "imbalance"}
# One iteration of the own-data config and an evaluation, in one process.
RUN = (
    "train_net.py --config-file configs/quick/rs_mask_rcnn_own_data.yaml"
    " --train-json {data}/train.json --train-images {data} --val-json {data}/val.json"
    " --val-images {data} SOLVER.MAX_ITER 1 SOLVER.IMS_PER_BATCH 2 DATALOADER.NUM_WORKERS 0"
    " MODEL.DEVICE cpu OUTPUT_DIR {data}/output"
)


class Walks:
    """Follows a run and notes the modules of the package in the order in which they are entered."""

    def __init__(self, package: Path) -> None:
        self._root = f"{package}{os.sep}"
        self._modules: dict[str, str | None] = {}  # by file name
        # Of each frame of the package: its module, or None while a module is being imported.
        self._stack: list[tuple[FrameType, str | None]] = []
        self._seen: set[tuple[Any, Any]] = set()
        self._walk: list[str] | None = []
        self.sample: list[str] = self._walk  # up to the first loss
        self.report: list[str] = []  # from the first detections on

    def __call__(self, frame: FrameType, event: str, _arg: Any) -> None:
        """What ``sys.setprofile`` calls."""
        if event == "return" and self._stack and self._stack[-1][0] is frame:
            self._stack.pop()
        if event == "call":
            self._enter(frame)

    def _enter(self, frame: FrameType) -> None:
        code = frame.f_code
        module = self._module(code.co_filename)
        if module is None or (self._stack and self._stack[-1][1] is None):
            return
        if code.co_name == "<module>":
            self._stack.append((frame, None))
        else:
            caller, previous = self._stack[-1] if self._stack else (None, "")
            self._stack.append((frame, module))
            room = module.split("/")[0]
            if room == "losses" and self._walk is self.sample:
                self._walk = None
            elif room == "evaluation" and code.co_name == "process" and not self.report:
                self._walk, self._seen = self.report, set()
            pair = (caller.f_code if caller else None, code)
            if self._walk is None or room in COMPUTING or module == previous or pair in self._seen:
                return
            self._seen.add(pair)
            if self._walk[-1:] != [module]:
                self._walk.append(module)

    def _module(self, filename: str) -> str | None:
        if filename not in self._modules:
            inside = filename.startswith(self._root)
            name = filename.removeprefix(self._root).removesuffix(".py")
            self._modules[filename] = name if inside else None
        return self._modules[filename]


def follow(checkout: Path) -> dict[str, list[str]]:
    """The two walks of one run of ``train_net.py`` in this process, whose directory changes."""
    os.chdir(checkout)
    sys.path.insert(0, str(checkout))
    with tempfile.TemporaryDirectory() as folder:
        _write_data(Path(folder))
        sys.argv = RUN.format(data=folder).split()
        walks = Walks(checkout / PACKAGE)
        sys.setprofile(walks)
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as end:
            if end.code:
                raise
        finally:
            sys.setprofile(None)
    return {"json to sample": walks.sample, "detections to report and pictures": walks.report}


def _write_data(folder: Path) -> None:
    """Two images with two objects of two classes each, as COCO json for training and evaluation."""
    from PIL import Image

    images, annotations = [], []
    for number in (1, 2):
        name = f"{number}.png"
        Image.new("RGB", (160, 120), (40 * number, 90, 120)).save(folder / name)
        images.append({"id": number, "file_name": name, "width": 160, "height": 120})
        for k, (x, y) in enumerate([(10, 20), (80, 40)]):
            outline = [x, y, x + 50, y, x + 50, y + 60, x, y + 60]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": k + 1,
                    "bbox": [x, y, 50, 60],
                    "area": 3000,
                    "iscrowd": 0,
                    "segmentation": [outline],
                }
            )
    categories = [{"id": 1, "name": "cup"}, {"id": 2, "name": "pot"}]
    text = json.dumps({"images": images, "annotations": annotations, "categories": categories})
    for name in ("train.json", "val.json"):
        (folder / name).write_text(text)


def helpers(checkout: Path) -> dict[str, float]:
    """Private functions and methods of the package, and how many of them have one caller."""
    trees = {p: ast.parse(p.read_text()) for p in sorted((checkout / PACKAGE).rglob("*.py"))}
    functions = [(p, node) for p, tree in trees.items() for node in _functions(tree)]
    imported = Counter(
        alias.name
        for tree in trees.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    )
    private = [(p, f) for p, f in functions if f.name.startswith("_") and f.name[:2] != "__"]
    callers = [_references(trees[p], f) + imported[f.name] for p, f in private]
    return {
        "functions": len(functions),
        "median lines of a function's body": statistics.median(_lines(f) for _, f in functions),
        "private helpers": len(private),
        "with one caller": callers.count(1),
    }


def _functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef)))


def _lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function's body without its docstring."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def _references(tree: ast.AST, function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Uses of a function's name in its module, but for those in its own body."""

    def count(node: ast.AST) -> int:
        names = (getattr(n, "id", getattr(n, "attr", None)) for n in ast.walk(node))
        return sum(name == function.name for name in names)

    return count(tree) - count(function)


def rooms(checkout: Path) -> dict[str, tuple[int, int]]:
    """Files and lines of Python of each room of the package, and of the folders beside it."""
    sizes: dict[str, list[int]] = {}
    for path in sorted(checkout.rglob("*.py")):
        parts = path.relative_to(checkout).parts
        if any(part.startswith(".") for part in parts):
            continue
        depth = 2 if parts[0] == PACKAGE else 1
        name = "/".join(parts[:depth]) if len(parts) > depth else "/".join((*parts[:-1], "*.py"))
        sizes.setdefault(name, []).append(len(path.read_text().splitlines()))
    return {name: (len(lines), sum(lines)) for name, lines in sizes.items()}


def seconds(checkout: Path) -> dict[str, float]:
    """Median processor times, which neighbours disturb least, of an import and of the help."""
    commands = {f"import {PACKAGE}": ["-c", f"import {PACKAGE}"], "--help": ["train_net.py", "-h"]}
    times: dict[str, float] = {}
    for name, arguments in commands.items():
        runs = []
        for _ in range(REPEATS):
            before = os.times()
            _python(checkout, arguments)
            after = os.times()
            user, system = (getattr(after, n) - getattr(before, n) for n in CHILDREN)
            runs.append(user + system)
        times[name] = round(statistics.median(runs), 2)
    return times


def _python(checkout: Path, arguments: list[str]) -> str:
    path = os.pathsep.join(filter(None, [str(checkout), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=checkout,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(f"{' '.join(arguments)} failed:\n{done.stderr[-3000:]}")
    return done.stdout


def as_markdown(measured: dict[str, Any]) -> str:
    """The measurements as tables."""
    lines = []
    for name, walk in measured["walks"].items():
        entries = Counter(walk)
        again = {module: count for module, count in entries.most_common() if count > 1}
        returns = sum(again.values()) - len(again)
        lines += [f"{name}: {len(entries)} modules, {returns} returns to {len(again)} of them", ""]
        lines += ["| module | entered |", "|---|---|"]
        lines += [f"| {module} | {count} |" for module, count in again.items()] + [""]
    lines += ["| what | value |", "|---|---|"]
    lines += [f"| {name} | {value:g} |" for name, value in measured["helpers"].items()]
    lines += [f"| {name}, processor s | {value:g} |" for name, value in measured["seconds"].items()]
    lines += ["", "| room | files | lines |", "|---|---|---|"]
    lines += [f"| {name} | {files} | {n} |" for name, (files, n) in measured["rooms"].items()]
    return "\n".join(lines)


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    here = Path(__file__).resolve().parents[1]
    parser.add_argument("checkout", nargs="?", type=Path, default=here, help="default: this one")
    parser.add_argument("--json", action="store_true", help="json in place of markdown")
    parser.add_argument("--follow", type=Path, help=argparse.SUPPRESS)  # in the process of its own
    args = parser.parse_args()
    checkout = args.checkout.resolve()
    if args.follow:
        args.follow.write_text(json.dumps(follow(checkout)))
        return
    with tempfile.TemporaryDirectory() as folder:
        walks = Path(folder) / "walks.json"
        _python(checkout, [str(Path(__file__).resolve()), str(checkout), "--follow", str(walks)])
        measured = {"walks": json.loads(walks.read_text())}
    measured |= {"helpers": helpers(checkout), "seconds": seconds(checkout)}
    measured |= {"rooms": rooms(checkout)}
    print(json.dumps(measured, indent=1) if args.json else as_markdown(measured))


if __name__ == "__main__":
    main()
