"""One run at a time in an output folder."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from rs_d2.utils.errors import UserError

LOCK = "run.lock"
BEAT = 10.0  # seconds between two signs of life, for runs on other machines
_PATIENCE = 4  # beats without a sign until a run on another machine counts as dead


@contextmanager
def locked_folder(folder: str | os.PathLike, beat: float = BEAT) -> Iterator[None]:
    """Keep a folder for this process in the ``with`` block.

    The lock is a file with the process id, the machine and the time of the process's start. That of
    a process that is dead, or has died since and left its id to another, does not count. Whether
    one on another machine lives shows by the file, which is touched every few seconds.

    Args:
        folder: to be kept; it must be there.
        beat: seconds between two signs of life.

    Raises:
        UserError: Another run has it, or it cannot be written.
    """
    path = Path(folder) / LOCK
    own = {"pid": os.getpid(), "host": socket.gethostname(), "started": _started(os.getpid())}
    own["token"] = f"{time.time_ns()}-{os.urandom(4).hex()}"
    try:
        _take(path, own, beat)
    except OSError as error:
        raise UserError(f"OUTPUT_DIR: {folder} cannot be written ({error.strerror})") from error
    done = threading.Event()
    threading.Thread(target=_touch, args=(path, done, beat), daemon=True).start()
    try:
        yield
    finally:
        done.set()
        with suppress(OSError), _alone(path) as file:
            if _content(file.read()) in (own, None):
                path.unlink()


def _take(path: Path, own: dict[str, Any], beat: float) -> None:
    with _alone(path) as file:
        other = _content(file.read())
        if other is not None and _lives(path, other, beat):
            raise UserError(
                f"OUTPUT_DIR: {path.parent} is in use by process {other['pid']} on"
                f" {other['host']} (lock file {path}); wait for it, or give another OUTPUT_DIR"
            )
        file.truncate(0)
        json.dump(own, file)


@contextmanager
def _alone(path: Path) -> Iterator[TextIO]:
    """Open the lock file while no other run looks at it: of many, one gets the folder."""
    while True:
        with path.open("a+", errors="replace") as file:
            with suppress(OSError):  # a file system without locks: then it is as good as can be
                fcntl.flock(file, fcntl.LOCK_EX)
            # Removed by the run that had it while this one waited: a new file has another number.
            is_there = False
            with suppress(FileNotFoundError):
                is_there = os.path.samestat(os.fstat(file.fileno()), path.stat())
            if is_there:
                file.seek(0)
                yield file
                return


def _content(text: str) -> dict[str, Any] | None:
    """None of a file that no run has written whole."""
    try:
        content = json.loads(text)
    except ValueError:
        return None
    return content if isinstance(content, dict) and {"pid", "host"} <= content.keys() else None


def _lives(path: Path, other: dict[str, Any], beat: float) -> bool:
    if other["host"] != socket.gethostname():
        return _beats(path, beat)
    try:
        os.kill(other["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        pass
    return other.get("started") in (None, _started(other["pid"]))


def _beats(path: Path, beat: float) -> bool:
    """Watch for a sign of life; clocks of two machines need not agree."""
    before = _modified(path)
    for _ in range(_PATIENCE):
        time.sleep(beat)
        if _modified(path) != before:
            return True
    return False


def _modified(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return None


def _touch(path: Path, done: threading.Event, beat: float) -> None:
    while not done.wait(beat):
        with suppress(OSError):
            os.utime(path)


def _started(pid: int) -> str | None:
    """When a process of this machine was started; None where the system does not tell."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return f"{boot} {fields[19]}"
