"""Run a long command with its output in a log file and a line of progress on the screen."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

QUIET_INTERVAL = 30.0  # seconds between lines when the output is not a terminal


class CommandError(Exception):
    """The command failed; the message is one line that names the log."""


def duration(seconds: float) -> str:
    """A time as people say it, such as "8 s" or "2 min 05 s"."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def run_logged(command: list[str], title: str, usually: str, log: Path, **options: object) -> None:
    """Run a command and say what it does, how long that usually takes and how long it took.

    Args:
        command: Program and arguments.
        title: What it does, such as "installing the requirements".
        usually: How long that usually takes, in words.
        log: File that the output is appended to.
        options: Further arguments of `subprocess.Popen`.

    Raises:
        CommandError: It could not be started, or exited with a code other than 0.
    """
    print(f"{title} (usually {usually})", flush=True)
    started = time.monotonic()
    with log.open("ab") as out:
        out.write(f"\n$ {' '.join(command)}\n".encode())
        out.flush()
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, **options
        )
        try:
            _watch(process, started, log)
        finally:
            process.kill()  # no effect on one that has ended
            process.wait()
    if process.returncode:
        raise CommandError(f"{title} failed: {_last_line(log, 'error')}; full output in {log}")
    print(f"  done in {duration(time.monotonic() - started)}", flush=True)


def _watch(process: subprocess.Popen, started: float, log: Path) -> None:
    """Wait for the process, showing the time and the last line it wrote."""
    terminal = sys.stdout.isatty()
    next_line = started + QUIET_INTERVAL
    while True:
        try:
            process.wait(timeout=0.5)
            break
        except subprocess.TimeoutExpired:
            status = f"  {duration(time.monotonic() - started)}: {_last_line(log)}"[:78]
        if terminal:
            print(f"\r{status:<78}", end="", flush=True)
        elif time.monotonic() >= next_line:
            next_line += QUIET_INTERVAL
            print(status, flush=True)
    if terminal:
        print("\r" + " " * 78, end="\r", flush=True)


def _last_line(log: Path, containing: str = "") -> str:
    """The last line of the log, or the last one that contains a word when there is such a line."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 8192))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines()]
    lines = [line for line in lines if line and "uninstall" not in line.lower()]  # pip's detours
    chosen = [line for line in lines if containing in line.lower()] or lines
    return chosen[-1] if chosen else ""
