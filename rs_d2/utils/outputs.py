"""Files that a program may not write: its own inputs, and one that it writes already."""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterable

from rs_d2.utils.errors import UserError

StrPath = str | os.PathLike


def check_outputs(
    inputs: Iterable[StrPath | None], outputs: Iterable[tuple[str, StrPath | None]]
) -> None:
    """Check that no file to be written is one that is read, by whatever path or link, or twice one.

    Args:
        inputs: files that are read; None counts not.
        outputs: files that will be written, each with the option that names it; None counts not.

    Raises:
        UserError: The first that is.
    """
    files = (path for path in inputs if path is not None and not _is_other(path))
    known = {_identity(path): path for path in files}
    taken: dict[Hashable, str] = {}
    for option, target in outputs:
        if target is None or _is_other(target):
            continue  # devices such as /dev/stdout may be written often; folders complain later
        identity = _identity(target)
        if identity in known:
            raise UserError(
                f"{option}: {target} would overwrite the input {known[identity]}; choose another"
                f" {option}"
            )
        if taken.setdefault(identity, option) != option:
            raise UserError(f"{option}: {target} is the file of {taken[identity]}, too")


def same_file(one: StrPath, other: StrPath) -> bool:
    """Whether both are there and the same file, by whatever path or link."""
    return os.path.exists(one) and os.path.exists(other) and os.path.samefile(one, other)


def _is_other(path: StrPath) -> bool:
    """Whether a folder or device is there."""
    return os.path.exists(path) and not os.path.isfile(path)


def _identity(path: StrPath) -> Hashable:
    """Equal for equal files, those that are not there yet included."""
    try:
        status = os.stat(path)
    except OSError:
        return os.path.realpath(path)
    except ValueError:  # a zero in the name: nothing can be written there
        return os.fspath(path)
    return status.st_dev, status.st_ino
