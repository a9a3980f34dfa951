"""Checked annotation files in the user's cache, so that no second process checks them."""

from __future__ import annotations

import hashlib
import marshal
import os
import sys
import tempfile
import zlib
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from rs_d2.utils.atomic_write import atomic_write
from rs_d2.utils.errors import UserError
from rs_d2.utils.folders import cache_dir

_HEAD_SIZE = 74  # see _head


class Stamp(NamedTuple):
    """What a file's content is known by: path, bytes and nanoseconds of the last change."""

    path: str
    size: int
    changed: int


def stamp(path: Path) -> Stamp:
    """The stamp of a file now; to be taken before the file is read, which may change meanwhile.

    Raises:
        UserError: The file is not there.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    return Stamp(str(path.resolve()), status.st_size, status.st_mtime_ns)


def digest(source: Stamp, *more: Any) -> str:
    """A name for what is made of a file; another one once the file, this code or Python changes.

    Args:
        source: the file.
        more: what else it is made of.
    """
    return hashlib.sha256(repr((*source, _code(), sys.version, *more)).encode()).hexdigest()


def folder() -> Path:
    """The cache's folder; a temporary one where the home is read-only."""
    path = cache_dir("annotations")
    try:
        path.mkdir(parents=True, exist_ok=True)
        return path if os.access(path, os.W_OK) else _temporary_folder()
    except OSError:
        return _temporary_folder()


def store(source: Stamp, content: Any) -> None:
    """Keep what was made of a file; no harm is done where that fails.

    Args:
        source: the file.
        content: lists, dicts, strings and numbers only.
    """
    payload = marshal.dumps(content)
    with suppress(UserError), atomic_write(_prepared_file(source)) as file:
        file.write(_head(source, payload))
        file.write(payload)


def load(source: Stamp) -> Any:
    """What ``store`` kept; None if there is nothing, or if it is stale or damaged."""
    try:
        data = memoryview(_prepared_file(source).read_bytes())
    except OSError:
        return None
    payload = data[_HEAD_SIZE:]
    return marshal.loads(payload) if data[:_HEAD_SIZE] == _head(source, payload) else None


def _head(source: Stamp, payload: bytes | memoryview) -> bytes:
    """What the payload was made of, and a checksum."""
    return f"{digest(source)} {zlib.crc32(payload):08x}\n".encode()


def _prepared_file(source: Stamp) -> Path:
    """One for each path, so that a file that changes leaves nothing behind."""
    name = hashlib.sha256(source.path.encode()).hexdigest()[:16]
    return folder() / f"{Path(source.path).name.split('.')[0]}-{name}.prepared"


@cache
def _temporary_folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="rs_d2-"))


@cache
def _code() -> str:
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
