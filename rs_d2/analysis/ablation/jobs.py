"""Runs side by side, each in a process of its own, under one bar."""

from __future__ import annotations

import multiprocessing as mp
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from tqdm import tqdm

from rs_d2.analysis.ablation.runs import CONSOLE, Run, work
from rs_d2.utils.children import ended_by
from rs_d2.utils.stopping import STOP_SIGNALS, handled_by
from rs_d2.utils.terminal import is_live

_GRACE = 30.0  # seconds to write a checkpoint after a signal
_PAUSE = 0.1


def default_jobs() -> int:
    """GPUs of this machine, or else the cores that this process may use."""
    if torch.cuda.is_available():
        return torch.cuda.device_count()
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def do_runs(
    runs: Sequence[Run],
    jobs: int,
    *,
    label: str,
    tell: Callable[[str], None],
    done: Callable[[], Any],
) -> dict[Run, str]:
    """Do runs, ``jobs`` at a time; one that fails costs no other.

    Whatever ends this process, no run outlives it: Ctrl-C and signals let each write a checkpoint
    first.

    Args:
        runs: what to do.
        jobs: processes side by side, which share torch's threads.
        label: before the bar.
        tell: shows a line.
        done: called after every run.

    Returns:
        Why runs failed, in one line each.

    Raises:
        KeyboardInterrupt: Ctrl-C.
        SystemExit: SIGTERM or SIGUSR1, with 128 + its number as the exit code.
    """
    jobs = max(1, min(jobs, len(runs)))
    waiting, free = list(runs), list(range(jobs))
    threads = max(1, torch.get_num_threads() // jobs)
    active: list[_Process] = []
    failures: dict[Run, str] = {}
    progress = _Progress(runs, label)
    try:
        # SIGTERM and SIGUSR1 end this process, but its runs first.
        with handled_by(lambda number, _: sys.exit(128 + number)):
            while waiting or active:
                while waiting and free:
                    with _signals_held():
                        active.append(_Process(waiting.pop(0), free.pop(0), threads))
                time.sleep(_PAUSE)
                for process in list(active):
                    has_ended = process.listen()
                    progress.show(process)
                    if not has_ended:
                        continue
                    active.remove(process)
                    free.append(process.slot)
                    progress.show(process, is_over=True)
                    why = process.failure()
                    if why:
                        failures[process.run] = why
                    left = f"{len(waiting) + len(active)} more, {progress.time_left()} left"
                    tell(f"{process.run.title}: {why or _result_line(process.run)} ({left})")
                    done()
    finally:
        progress.close()
        _stop(active)
    return failures


class _Process:
    """A run in its process, seen from here."""

    def __init__(self, run: Run, slot: int, num_threads: int) -> None:
        self.run, self.slot = run, slot
        self.iteration = self.resumed_at = 0
        self._failure = ""
        context = mp.get_context("spawn")  # torch's threads and CUDA do not survive a fork
        self._report, writer = context.Pipe(duplex=False)
        self.process: BaseProcess = context.Process(
            target=work, args=(run, writer, slot, num_threads)
        )
        self.process.start()
        writer.close()

    def listen(self) -> bool:
        """Take what it has said; returns whether it has ended."""
        has_ended = self.process.exitcode is not None  # before the last words, not after
        for kind, value in _received(self._report):
            if kind == "failed":
                self._failure = value
                continue
            self.iteration = value
            if kind == "resumed":
                self.resumed_at = value
        return has_ended

    def failure(self) -> str:
        """Why it failed; empty if it has not."""
        code = self.process.exitcode
        if code == 0 and self.run.result() is not None:
            return ""
        if self._failure:
            return f"failed: {self._failure}"
        how = f"ended with exit code {code}"
        if code is not None and code < 0:
            how = ended_by(-code)
        return f"failed: {how} (see {self.run.folder / CONSOLE})"


class _Progress:
    """Iterations of all runs together, and the time that those left will take.

    Iterations that nobody did, because a run went on from a checkpoint or failed, are not counted
    as speed.
    """

    def __init__(self, runs: Sequence[Run], label: str) -> None:
        self._done = dict.fromkeys((run.folder for run in runs), 0)
        self._trained = dict(self._done)
        self._total = sum(run.iterations for run in runs)
        self._began = time.monotonic()
        self._bar: tqdm | None = None
        if is_live() and runs:
            layout = "{l_bar}{bar}| {n_fmt}/{total_fmt} iterations, {postfix}"
            self._bar = tqdm(total=self._total, desc=label, bar_format=layout, dynamic_ncols=True)

    def show(self, process: _Process, is_over: bool = False) -> None:
        """Move the bar to where a process is."""
        folder = process.run.folder
        self._trained[folder] = process.iteration - process.resumed_at
        self._done[folder] = process.run.iterations if is_over else process.iteration
        if self._bar is not None:
            self._bar.set_postfix_str(f"{self.time_left()} left", refresh=False)
            self._bar.update(sum(self._done.values()) - self._bar.n)

    def time_left(self) -> str:
        """Hours, minutes and seconds at the speed so far; "?" before there is one."""
        trained = sum(self._trained.values())
        if not trained:
            return "?"
        left = self._total - sum(self._done.values())
        return str(timedelta(seconds=round((time.monotonic() - self._began) / trained * left)))

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()


def _result_line(run: Run) -> str:
    content: dict[str, Any] = run.result() or {}
    metrics = content.get("metrics", {})
    shown = [f"{name} {metrics[name]:.1f}" for name in ("bbox/AP", "bbox/AP50") if name in metrics]
    return f"{', '.join(shown)} in {timedelta(seconds=round(content.get('seconds', 0)))}"


def _received(report: Connection) -> Iterator[tuple[str, Any]]:
    try:
        while report.poll():
            yield report.recv()
    except (EOFError, OSError):
        return


@contextmanager
def _signals_held() -> Iterator[None]:
    """Signals count after the block, when a process that is started in it is known.

    Such a process never sees Ctrl-C, which reaches all processes of a terminal: this one ends it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    held = (signal.SIGINT, *STOP_SIGNALS)
    before = {n: signal.signal(n, lambda number, _: came.append(number)) for n in held}
    # What is blocked here is blocked there; other threads of this process may still get it.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in came:
            os.kill(os.getpid(), number)


def _stop(active: Sequence[_Process]) -> None:
    """End what still runs."""
    try:
        for each in active:
            each.process.terminate()
        until = time.monotonic() + _GRACE
        for each in active:
            each.process.join(max(0.0, until - time.monotonic()))
    finally:  # also after a second Ctrl-C
        for each in active:
            each.process.kill()
            each.process.join()
