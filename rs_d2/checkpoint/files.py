"""Checkpoint files read without running what they hold."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from rs_d2.errors import UserError


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
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{path} cannot be read safely as a checkpoint ({reason})") from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{path} is not a checkpoint ({reason})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a checkpoint (it holds a {type(content).__name__})")
    return content
