"""Checkpoint files read without running what they hold."""

from __future__ import annotations

import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from rs_d2.utils.atomic_write import atomic_write
from rs_d2.utils.errors import UserError

_HARMLESS = {  # what arrays are pickled with; "numpy." is left out
    ("core.multiarray", "_reconstruct"),
    ("core.multiarray", "scalar"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
    ("collections", "OrderedDict"),
}
_REFUSED = re.compile(r"GLOBAL (\S+)")  # torch's word for a class that is not on its list


def read_checkpoint(path: str | Path, *, mmap: bool = False) -> dict[str, Any]:
    """Content of a file that ``torch.save`` wrote, on the CPU.

    Only tensors and plain types are read (``weights_only``): a pickle that would run code is
    refused.

    Args:
        path: of the file.
        mmap: map the tensors into memory, so that those that nobody looks at, such as the
            optimizer's, are never read. The file must not be written in place while they live;
            :func:`write_checkpoint` may replace it.

    Raises:
        UserError: The file is missing, no checkpoint, or more than tensors and plain types.
    """
    if not Path(path).is_file():
        raise UserError(f"{path} does not exist" if not Path(path).exists() else f"{path}: no file")
    try:
        mmap = mmap and zipfile.is_zipfile(path)  # files of torch before 1.6 are not
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        named = _REFUSED.search(str(error))
        if named is None:
            raise UserError(f"{path} is not a checkpoint") from error
        raise UserError(
            f"{path} holds {named[1]}, more than tensors and plain types: refused, since reading"
            " it could run code"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, LookupError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{path} is not a checkpoint ({reason})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a checkpoint (it holds a {type(content).__name__})")
    return content


def check_pickle(path: str | Path) -> None:
    """Make sure that reading a pickle, as Detectron2's model zoo has them, runs no code.

    Raises:
        UserError: The file is missing, no pickle, or holds more than arrays and plain types.
    """
    try:
        with open(path, "rb") as file:
            _ArraysOnly(file, encoding="latin1").load()
    except pickle.UnpicklingError as error:
        raise UserError(f"{path}: {error}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error
    except Exception as error:  # whatever a file that is no pickle makes its reader raise
        raise UserError(f"{path} is not a checkpoint") from error


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module.removeprefix("numpy.").replace("_core", "core"), name) in _HARMLESS:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(
            f"holds {module}.{name}, more than arrays and plain types: refused, since reading it"
            " could run code"
        )


def write_checkpoint(content: dict[str, Any], path: str | Path) -> None:
    """Write a file that :func:`read_checkpoint` reads: whole or not at all.

    Raises:
        UserError: The file cannot be written there.
    """
    try:
        with atomic_write(path) as file:
            torch.save(content, file)
    except RuntimeError as error:  # torch's own for a full disk
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{path} cannot be written ({reason})") from error
