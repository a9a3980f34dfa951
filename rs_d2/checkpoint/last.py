"""The checkpoint of a folder that a run goes on from: the last one, or the last that is good."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from rs_d2.checkpoint.files import read_checkpoint
from rs_d2.utils.errors import UserError

TAG = "last_checkpoint"  # Detectron2's file that holds the name
_LONGEST_NAME = 255  # bytes
_NUMBERED = re.compile(r"model_(\d{7,})\.pth")


class Resumable(NamedTuple):
    """The checkpoint to go on from, and what is wrong with those that should have been."""

    path: Path
    content: dict[str, Any]
    problems: tuple[str, ...]


def tagged_checkpoint(folder: str | Path) -> Path | None:
    """The file that ``last_checkpoint`` names, there or not; None without a name in the folder."""
    tag = Path(folder) / TAG
    try:
        if not tag.is_file():  # a pipe would be waited for
            return None
        with tag.open("rb") as file:
            name = file.read(_LONGEST_NAME + 2).decode().strip()
    except (OSError, UnicodeDecodeError):
        return None
    is_name = name.isprintable() and Path(name).name == name and len(name.encode()) <= _LONGEST_NAME
    return Path(folder) / name if name and is_name else None


def resumable_checkpoint(folder: str | Path, *, mmap: bool = True) -> Resumable | None:
    """The checkpoint that a resumed run loads; None where a folder has no ``last_checkpoint``.

    It is the one named there or, where that cannot be used, the last of the numbered ones before it
    that can. A checkpoint can be used if it is whole and its weights are finite.

    Args:
        folder: of the run.
        mmap: as of ``read_checkpoint``.

    Raises:
        UserError: None can be used.
    """
    folder = Path(folder)
    if not (folder / TAG).exists():
        return None
    tagged, problems = tagged_checkpoint(folder), []
    if tagged is None:
        problems.append(f"{folder / TAG} names no checkpoint")
    numbered = [
        (int(found[1]), path)
        for path in folder.iterdir()
        if (found := _NUMBERED.fullmatch(path.name))
    ]
    # those after it belong to an earlier, longer run in the same folder
    end = next((number for number, path in numbered if path == tagged), None)
    numbered = [each for each in numbered if end is None or each[0] < end]
    candidates = [] if tagged is None else [tagged]
    for path in [*candidates, *(path for _, path in sorted(numbered, reverse=True))]:
        try:
            return Resumable(path, _read_good(path, mmap), tuple(problems))
        except UserError as error:
            problems.append(str(error))
    raise UserError(f"--resume: {'; '.join(problems)}")


def not_finite(values: Any, name: str = "") -> Iterator[str]:
    """Names of the tensors with a NaN or an infinite value, in nested mappings and sequences."""
    if isinstance(values, Tensor):
        if values.is_floating_point():
            wide = values.float() if values.element_size() == 1 else values  # no 8 bits in torch
            if not wide.isfinite().all():
                yield name
    elif isinstance(values, Mapping):
        for key, value in values.items():
            yield from not_finite(value, f"{name}.{key}" if name else str(key))
    elif isinstance(values, (list, tuple)):
        for index, value in enumerate(values):
            yield from not_finite(value, f"{name}.{index}")


def _read_good(path: Path, mmap: bool) -> dict[str, Any]:
    if not path.exists():
        raise UserError(f"{path}, named by {path.parent / TAG}, is missing")
    content = read_checkpoint(path, mmap=mmap)
    for broken in not_finite(content.get("model", {})):
        raise UserError(f"{path} has diverged: {broken} is not finite")
    return content
