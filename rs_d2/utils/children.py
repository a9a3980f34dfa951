"""Processes that are started together, waited for together, and end together."""

from __future__ import annotations

import multiprocessing as mp
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from rs_d2.utils.errors import UserError
from rs_d2.utils.place import Place
from rs_d2.utils.stopping import STOP_SIGNALS, handled_by
from rs_d2.utils.watch import Failure

_GRACE = 5.0  # seconds to end by oneself after another process has failed
_GRACE_TO_SAVE = 60.0  # the same after one has ended because of a signal
_BY_SIGNAL = (128 + signal.SIGINT, *(128 + number for number in STOP_SIGNALS))  # exit codes


class ProcessFailed(Exception):
    """One of several processes has failed; the text is one line that says which and why."""

    def __init__(self, line: str, exit_code: int) -> None:
        super().__init__(line)
        self.exit_code = exit_code


class Children:
    """The processes that train on this machine, seen from the one that started them.

    Args:
        places: of the processes.
        target: what each calls, with its place, a connection for its failures, and `job`.
        job: further arguments.
    """

    def __init__(
        self, places: Sequence[Place], target: Callable[..., None], job: tuple[Any, ...]
    ) -> None:
        self._places = places
        self._processes: list[BaseProcess] = []
        self._reports: list[Connection] = []
        self._first_signal: str | None = None  # about the first process that a signal ended
        self._forwarded: int | None = None
        context = mp.get_context("spawn")
        try:
            for place in places:
                report, writer = context.Pipe(duplex=False)
                process = context.Process(target=target, args=(place, writer, *job))
                process.start()
                writer.close()
                self._processes.append(process)
                self._reports.append(report)
        except BaseException:
            self._kill()
            raise

    def join(self, left: Callable[[], str] | None) -> None:
        """Wait for all; raises what ``launch`` does."""
        try:
            with handled_by(self._forward):
                self._wait()
        except KeyboardInterrupt:
            self._send(signal.SIGINT)
            self._wait(_GRACE)
            raise
        finally:
            self._kill()
        failures = [failure for report in self._reports for failure in _received(report)]
        if self._first_signal is not None:  # the others only know that it is gone
            line, code = self._first_signal, 1
            if self._forwarded is not None:
                line = f"stopped by {signal.Signals(self._forwarded).name}"
                code = 128 + self._forwarded
            raise ProcessFailed(with_rest(line, code, left), code)
        for failure in failures:
            if failure.exit_code == 2:
                raise UserError(failure.line)
            raise ProcessFailed(failure.line, failure.exit_code)
        code = next((p.exitcode for p in self._processes if p.exitcode), 0)
        if code > 0:
            raise SystemExit(code)

    def _wait(self, grace: float | None = None) -> None:
        """Until all have ended; once one has failed, the others have the grace to end, too."""
        until = None if grace is None else time.monotonic() + grace
        running = list(zip(self._processes, self._places, strict=True))
        while running:
            # Not till a sentinel ends: loader workers that outlive their parent hold it open.
            wait([process.sentinel for process, _ in running], timeout=0.2)
            # read once: one that ends in between would be left out before it was looked at
            codes = [process.exitcode for process, _ in running]
            for (process, place), code in zip(running, codes, strict=True):
                if code and code < 0 and self._first_signal is None:
                    self._first_signal = _signal_line(place, process.pid, -code)
                if code and until is None:
                    grace = _GRACE_TO_SAVE if code in _BY_SIGNAL else _GRACE
                    until = time.monotonic() + grace
            running = [pair for pair, code in zip(running, codes, strict=True) if code is None]
            if until is not None and time.monotonic() > until:
                return

    def _forward(self, number: int, _: Any) -> None:
        """Hand a signal of a preemption on to the processes."""
        self._forwarded = number
        self._send(number)

    def _send(self, number: int) -> None:
        for process in self._processes:
            if process.is_alive():
                os.kill(process.pid, number)

    def _kill(self) -> None:
        for process in self._processes:
            while process.exitcode is None:
                process.kill()
                time.sleep(0.01)


def with_rest(line: str, exit_code: int, left: Callable[[], str] | None) -> str:
    """The line with what is left of the run, where it does not say so."""
    if left is None or exit_code == 2:
        return line
    try:
        rest = left()
    except Exception:  # it must not hide the failure
        return line
    return line if not rest or rest in line else f"{line}; {rest}"


def signal_name(number: int) -> str:
    """Such as "SIGTERM"; real-time signals have only a number."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def ended_by(number: int) -> str:
    """What ended a process whose exit code is minus this number."""
    why = ", perhaps because memory ran out" if number == signal.SIGKILL else ""
    return f"ended by {signal_name(number)}{why}"


def _signal_line(place: Place, pid: int, number: int) -> str:
    return f"{place} (process {pid}) was {ended_by(number)}"


def _received(report: Connection) -> Iterator[Failure]:
    try:
        while report.poll():
            yield report.recv()
    except (EOFError, OSError):
        return
