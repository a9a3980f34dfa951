"""Files that are written whole or not at all."""

from __future__ import annotations

import json
import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from rs_d2.utils.errors import UserError


class NotWritten(UserError):
    """A file cannot be written: the disk is full, the folder read-only or gone."""


@contextmanager
def atomic_write(path: str | os.PathLike, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a file to be written; it takes its name when the ``with`` block has ended well.

    Until then, and after an error or Ctrl-C in the block, a file of that name is what it was before
    (or is not there). The content is on the disk before it gets the name. A new file has the
    permissions that the user's umask gives, one that is replaced keeps its own; of a link, the file
    that it points to is replaced. Several processes may write the same file: one of them wins.
    Devices and pipes, such as ``/dev/stdout``, are written as they come.

    Args:
        path: of the file; its folder must be there.
        mode: "wb", or "w" for text in UTF-8.

    Raises:
        NotWritten: The file cannot be written.
    """
    target = Path(os.path.realpath(path))
    encoding = None if "b" in mode else "utf-8"
    try:
        status = target.stat() if target.exists() else None
        if status is not None and not stat.S_ISREG(status.st_mode) and not target.is_dir():
            with open(target, mode, encoding=encoding) as file:
                yield file
            return
        partial = target.with_name(f".{uuid.uuid4().hex[:12]}.part")
        try:
            with open(partial, mode.replace("w", "x"), encoding=encoding) as file:
                if status is not None:
                    os.chmod(partial, stat.S_IMODE(status.st_mode))
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise NotWritten(f"{path} cannot be written ({error.strerror or error})") from error


def write_json(path: str | os.PathLike, content: Any, indent: int = 1) -> None:
    """Write a json file, as :func:`atomic_write` does."""
    with atomic_write(path, "w") as file:
        file.write(json.dumps(content, indent=indent) + "\n")
