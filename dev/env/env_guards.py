"""What must hold before an environment is built: a Python that can, room, and nobody else at it."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

SUPPORTED = ((3, 10), (3, 11), (3, 12))


class EnvError(Exception):
    """The environment cannot be made; the message is one line for the user."""


def use_supported_python() -> None:
    """Start this script again with a Python 3.10 to 3.12 from PATH when it runs under another one.

    Raises:
        EnvError: There is none, or this is not a Unix system.
    """
    if os.name != "posix":
        raise EnvError("make env is for Linux and macOS; README.md has the steps by hand")
    if sys.version_info[:2] in SUPPORTED:
        return
    for major, minor in reversed(SUPPORTED):
        python = shutil.which(f"python{major}.{minor}")
        if python is None:
            continue
        attempt = subprocess.run([python, "-c", "import ensurepip, venv"], capture_output=True)
        if attempt.returncode == 0:
            os.execv(python, [python, *sys.argv])
    raise EnvError(
        f"Python 3.10 to 3.12 is needed and this is {platform.python_version()}; "
        "name one: make env PYTHON=/path/to/python3.11"
    )


def need_room(folder: Path, needed: int) -> None:
    """Raise `EnvError` unless the disk of an existing folder has that many bytes left."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise EnvError(
            f"{folder} has {free / 1e9:.1f} GB left and {needed / 1e9:.0f} GB are needed; "
            "make room, or set XDG_CACHE_HOME to a folder on another disk"
        )


@contextlib.contextmanager
def only_one(cache: Path) -> Iterator[int]:
    """Let one process at a time build; the others wait, then find everything done.

    Yields:
        The file descriptor of the lock. An installer that inherits it goes on holding the lock
        when this process is killed, so that nobody else writes where it still does.
    """
    import fcntl

    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "make_env.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("waiting for another `make env` to finish", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock.fileno()
