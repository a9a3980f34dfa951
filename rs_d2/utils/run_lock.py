"""One run at a time in an output folder."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rs_d2.utils.errors import UserError

LOCK = "run.lock"
BEAT = 10.0  # seconds between two signs of life, for runs on other machines
_LONGEST = 4096  # bytes of a lock file
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
        with suppress(OSError, UserError), _alone(path, beat) as file:
            if _content(file) in (own, None):
                path.unlink()


def _take(path: Path, own: dict[str, Any], beat: float) -> None:
    with _alone(path, beat) as file:
        other = _content(file)
        if other is not None and _lives(path, other, own, beat):
            raise UserError(
                f"OUTPUT_DIR: {path.parent} is in use by process {other['pid']} on"
                f" {other['host']} (lock file {path}); wait for it, or give another OUTPUT_DIR"
            )
        os.ftruncate(file, 0)
        os.pwrite(file, json.dumps(own).encode(), 0)


@contextmanager
def _alone(path: Path, beat: float) -> Iterator[int]:
    """Open the lock file while no other run looks at it: of many, one gets the folder.

    Raises:
        OSError: It cannot be opened.
        UserError: It is not a file of ours, or another program does not let go of it.
    """
    until = time.monotonic() + (_PATIENCE + 2) * beat  # another run may watch for signs of life
    while True:
        # A link would lead to a file that is not ours, and a pipe would be waited for.
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
        file = os.open(path, flags, 0o666)
        try:
            status = os.fstat(file)
            if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
                raise UserError(f"OUTPUT_DIR: {path} is no lock file of a run; remove it")
            _lock(file, path, until)
            # Removed by the run that had it while this one waited: a new file has another number.
            is_there = False
            with suppress(FileNotFoundError):
                is_there = os.path.samestat(status, path.lstat())
            if is_there:
                yield file
                return
        finally:
            os.close(file)


def _lock(file: int, path: Path, until: float) -> None:
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > until:
                raise UserError(f"OUTPUT_DIR: another program holds {path}") from None
            time.sleep(0.01)
        except OSError:  # a file system without locks: then it is as good as can be
            return


def _content(file: int) -> dict[str, Any] | None:
    """None of a file that no run has written whole."""
    try:
        content = json.loads(os.pread(file, _LONGEST, 0))
        pid, _ = content["pid"], content["host"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return content if type(pid) is int and 0 < pid < 2**31 else None


def _lives(path: Path, other: dict[str, Any], own: dict[str, Any], beat: float) -> bool:
    started = str(other.get("started"))
    # Containers may share a name, but not the process ids.
    is_here = other["host"] == own["host"] and _machine(started) == _machine(str(own["started"]))
    if not is_here:
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
    """Where and when a process was started; None where the system does not tell."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return f"{boot} {os.readlink('/proc/self/ns/pid')} {fields[19]}"
    except OSError:
        return None


def _machine(started: str) -> str:
    """The part that all processes share whose ids are of one kind."""
    return started.rpartition(" ")[0]
