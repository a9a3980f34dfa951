"""What Detectron2 0.6 needs on today's PyTorch, NumPy, Pillow and Python, as data.

Detectron2 0.6 is from 2021. `EDITS` lists every line that no longer works; each entry states how
often its pattern must occur, so a different source tree can never be edited silently. `ADDED_FILES`
and `APPENDED` replace what only the compiled extension offers. Nothing else is changed.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class EditError(Exception):
    """The source tree is not the one that the table was written for."""


class Edit(NamedTuple):
    """Replace every match of a regular expression in one file.

    Attributes:
        path: File inside the wheel.
        pattern: Regular expression, compiled with `re.MULTILINE`.
        replacement: Replacement as in `re.sub`.
        count: Number of matches the file must have.
        reason: Why the original does not work today.
    """

    path: str
    pattern: str
    replacement: str
    count: int
    reason: str


_NUMPY_ALIAS = r"\bnp\.(bool|int|float|str|object)\b"


def _numpy(path: str, count: int) -> Edit:
    return Edit(
        f"detectron2/{path}", _NUMPY_ALIAS, r"\1", count, "NumPy has no such alias any more"
    )


def _scheduler(path: str, pattern: str, count: int) -> Edit:
    reason = "LRScheduler is the base class since PyTorch 2.0; the old name matches nothing"
    return Edit(f"detectron2/{path}", pattern, r"\1LRScheduler\2", count, reason)


EDITS: tuple[Edit, ...] = (
    _numpy("data/build.py", 2),
    _numpy("data/datasets/pascal_voc.py", 1),
    _numpy("evaluation/pascal_voc_evaluation.py", 2),
    _numpy("evaluation/sem_seg_evaluation.py", 7),
    _numpy("structures/masks.py", 3),
    _numpy("utils/video_visualizer.py", 1),
    _numpy("utils/visualizer.py", 3),
    _scheduler("engine/hooks.py", r"(torch\.optim\.lr_scheduler\.)_LRScheduler(\))", 2),
    _scheduler("solver/build.py", r"(-> torch\.optim\.lr_scheduler\.)_LRScheduler(:)", 1),
    _scheduler("solver/lr_scheduler.py", r"(\(torch\.optim\.lr_scheduler\.)_LRScheduler(\):)", 3),
    Edit(
        "detectron2/data/common.py",
        r"\.sample\(self\._fallback_candidates,",
        ".sample(list(self._fallback_candidates),",
        1,
        "random.sample takes no set since Python 3.11",
    ),
    Edit(
        "detectron2/data/transforms/transform.py",
        r"\bImage\.LINEAR\b",
        "Image.BILINEAR",
        1,
        "Pillow 10 dropped the old name",
    ),
    Edit(
        "detectron2/evaluation/coco_evaluation.py",
        r"^from detectron2\.evaluation\.fast_eval_api import COCOeval_opt$",
        "COCOeval_opt = COCOeval",
        1,
        "the faster evaluation is compiled code; pycocotools gives the same numbers",
    ),
    Edit(
        "detectron2/export/__init__.py",
        r"^from \.api import \*$",
        "try:\n    from .api import *\nexcept ImportError:\n    pass",
        1,
        "PyTorch ships no caffe2 any more",
    ),
    Edit(
        "detectron2/model_zoo/model_zoo.py",
        r"^import pkg_resources$",
        "from importlib import resources",
        1,
        "setuptools 81 dropped pkg_resources",
    ),
    Edit(
        "detectron2/model_zoo/model_zoo.py",
        r"pkg_resources\.resource_filename\(\s+"
        r'"detectron2\.model_zoo", (os\.path\.join\(.*\))\s+\)',
        r'str(resources.files("detectron2.model_zoo") / \1)',
        1,
        "setuptools 81 dropped pkg_resources",
    ),
)

_DEFORM_CONV = """

# The two functions below replace the compiled operators above; they train on CPU and GPU.
# Convolution groups and offset groups follow from the shapes of `weight` and `offset`.


def deform_conv(
    input,
    offset,
    weight,
    stride=1,
    padding=0,
    dilation=1,
    groups=1,
    deformable_groups=1,
    im2col_step=64,
):
    return deform_conv2d(
        input, offset, weight, stride=stride, padding=padding, dilation=dilation
    )


def modulated_deform_conv(
    input,
    offset,
    mask,
    weight,
    bias=None,
    stride=1,
    padding=0,
    dilation=1,
    groups=1,
    deformable_groups=1,
):
    return deform_conv2d(
        input, offset, weight, bias, stride=stride, padding=padding, dilation=dilation, mask=mask
    )
"""

APPENDED: dict[str, tuple[str, str]] = {
    "detectron2/layers/deform_conv.py": (
        _DEFORM_CONV,
        "torchvision's deformable convolution instead of the compiled one",
    ),
}

_STAND_IN = '''"""Stands in for the compiled extension, which this Detectron2 does not have.

Written by rs_d2's tools/install_detectron2.py; not part of Detectron2.
"""


def get_compiler_version():
    return "none (pure-Python build)"


def get_cuda_version():
    return "none (pure-Python build)"


def has_cuda():
    return False


def __getattr__(name):
    raise AttributeError(
        f"detectron2._C.{name} needs a compiled Detectron2; this is the pure-Python build "
        "(rotated boxes are what it lacks)"
    )
'''

ADDED_FILES: dict[str, str] = {"detectron2/_C.py": _STAND_IN}


def _note(reasons: list[str]) -> str:
    """One comment line saying that and why a file was changed (Apache License 2.0, section 4b)."""
    return (
        f"# Changed by rs_d2's tools/install_detectron2.py: {'; '.join(dict.fromkeys(reasons))}.\n"
    )


def apply_edits(files: dict[str, str]) -> dict[str, str]:
    """The changed and added files of a Detectron2 0.6 tree.

    Args:
        files: Text of every Python file, by its path inside the wheel. Not modified.

    Returns:
        New text by path, for the files that differ from the source only.

    Raises:
        EditError: A file is missing, a pattern does not occur as often as it must, or an outdated
            NumPy name is left anywhere.
    """
    changed: dict[str, str] = {}
    reasons: dict[str, list[str]] = {}
    for edit in EDITS:
        text = changed.get(edit.path) or _source(files, edit.path)
        changed[edit.path], found = re.subn(
            edit.pattern, edit.replacement, text, flags=re.MULTILINE
        )
        if found != edit.count:
            raise EditError(
                f"{edit.path}: expected {edit.count} x {edit.pattern!r}, found {found}; "
                "this is not the source of Detectron2 0.6"
            )
        reasons.setdefault(edit.path, []).append(edit.reason)
    for path, (addition, reason) in APPENDED.items():
        changed[path] = (changed.get(path) or _source(files, path)) + addition
        reasons.setdefault(path, []).append(reason)
    changed = {path: _note(reasons[path]) + text for path, text in changed.items()}
    for path, text in {**files, **changed}.items():
        if path.endswith(".py") and (left := re.search(_NUMPY_ALIAS, text)):
            raise EditError(f"{path}: outdated NumPy name {left.group()} is left")
    return {**changed, **ADDED_FILES}


def _source(files: dict[str, str], path: str) -> str:
    if path not in files:
        raise EditError(f"{path} is missing; this is not the source of Detectron2 0.6")
    return files[path]
