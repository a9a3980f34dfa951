"""Folders of the package and of the user."""

from __future__ import annotations

import os
from pathlib import Path

from rs_d2.utils.errors import UserError

_PACKAGE = Path(__file__).resolve().parents[1]


def config_dir() -> Path:
    """The folder of the yaml files, in an installed package as well as in a checkout.

    Raises:
        UserError: Neither place has it; the installation is incomplete.
    """
    for folder in (_PACKAGE / "configs", _PACKAGE.parent / "configs"):
        if folder.is_dir():
            return folder
    raise UserError(f"no configs folder in or beside {_PACKAGE}; install rs_d2 again")


def cache_dir(part: str) -> Path:
    """The folder for one kind of files in the user's cache; it need not be there."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(home) / "rs_d2" / part


def make_folder(path: str | os.PathLike, name: str) -> Path:
    """Make a folder and those around it, where they are not there.

    Args:
        path: of the folder.
        name: of the key or option that names it, for the message.

    Raises:
        UserError: It cannot be made.
    """
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{name}: {path} cannot be made ({error.strerror})") from error
    return Path(path)
