"""Checkpoint files read without running what they hold."""

from __future__ import annotations

import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from rs_d2.errors import UserError

_REFUSED = re.compile(r"GLOBAL (\S+)")  # torch's word for a class that is not on its list


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Content of a file that ``torch.save`` wrote, on the CPU.

    Only tensors and plain types are read (``weights_only``): a pickle that would run code is
    refused.

    Raises:
        UserError: The file is missing, no checkpoint, or more than tensors and plain types.
    """
    if not Path(path).is_file():
        raise UserError(f"{path} does not exist" if not Path(path).exists() else f"{path}: no file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
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


def write_checkpoint(content: dict[str, Any], path: str | Path) -> None:
    """Write a file that :func:`read_checkpoint` reads: whole or not at all.

    Raises:
        UserError: The file cannot be written there.
    """
    path = Path(path)
    part = path.with_name(f"{path.name}.part")
    try:
        torch.save(content, part)
        part.replace(path)
    except (OSError, RuntimeError) as error:  # torch's own for a folder that is missing
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{path} cannot be written ({reason})") from error
    finally:
        part.unlink(missing_ok=True)
