"""Signals that ask a training to stop: a batch system's before it takes a machine away."""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)

_received: list[int] = []


class TrainingStopped(SystemExit):
    """A signal stopped the training, which has left a checkpoint; 128 + signal is the exit code."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


@contextmanager
def handled_by(handler: Callable[[int, Any], Any]) -> Iterator[None]:
    """Let a function handle the signals in the ``with`` block.

    Elsewhere than in the main thread, which alone can receive signals, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {each: signal.signal(each, handler) for each in STOP_SIGNALS}
    try:
        yield
    finally:
        for each, old in before.items():
            signal.signal(each, old)


@contextmanager
def stop_signals() -> Iterator[None]:
    """Note the signals in the ``with`` block instead of dying of them.

    Elsewhere than in the main thread, which alone can receive signals, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _received.clear()
    before = {each: signal.signal(each, _note) for each in STOP_SIGNALS}
    try:
        yield
    except TrainingStopped:
        # One of several processes: whoever started them may signal the rest once the first ends.
        if multiprocessing.parent_process():
            before = dict.fromkeys(before, signal.SIG_IGN)
        raise
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
        _received.clear()


def stop_signal() -> int:
    """The signal that asks this process to stop; 0 for none."""
    return _received[0] if _received else 0


def stop_if_asked() -> None:
    """Stop here.

    Raises:
        TrainingStopped: A signal has come.
    """
    if _received:
        raise TrainingStopped(_received[0])


def _note(number: int, frame: Any) -> None:
    _received.append(number)
