"""``train_log.jsonl``: scalars every 20 iterations, the same however often a run is resumed."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import IO, Any

from detectron2.engine import HookBase
from detectron2.utils.events import EventWriter, get_event_storage

from rs_d2.utils.atomic_write import atomic_write

ITERATION_LOG = "train_log.jsonl"  # Detectron2 would call it metrics.json, the name of our results
LOG_PERIOD = 20  # iterations, that of Detectron2's writers; the median of as many is written
_TIMES = ("time", "data_time", "rank_data_time", "eta_seconds")  # not those of another machine


class IterationLog(EventWriter):
    """Appends the scalars that are new since the last line, as json; noisy ones as their median."""

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._file: IO[str] | None = None
        self._written = -1  # iteration of the last line

    def write(self) -> None:
        """Write a line for each iteration that has new scalars."""
        lines: dict[int, dict[str, float]] = defaultdict(dict)
        for name, (value, iteration) in (
            get_event_storage().latest_with_smoothing_hint(LOG_PERIOD).items()
        ):
            if iteration > self._written:
                lines[iteration][name] = value
        if not lines:
            return
        if self._file is None:
            self._file = self._path.open("a", encoding="utf-8")
        for iteration in sorted(lines):
            line = {**lines[iteration], "iteration": iteration}
            self._file.write(json.dumps(line, sort_keys=True) + "\n")
        self._file.flush()
        self._written = max(lines)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def resume(self, next_iteration: int, max_iter: int) -> None:
        """Take back the lines of iterations that will run again; to be followed by ``write``.

        So are those of a run that ended between two lines. Lines of an earlier run in the same
        folder, before the iterations began anew, stay.
        """
        lines = self._path.read_bytes().splitlines() if self._path.is_file() else []
        entries = [parse_line(line) for line in lines]
        start, before = 0, -1
        for index, entry in enumerate(entries):
            iteration = before if entry is None else entry["iteration"]
            if iteration < before:
                start = index
            before = iteration
        kept = lines[:start]
        for line, entry in zip(lines[start:], entries[start:], strict=True):
            if entry is not None and _stays(entry, next_iteration, max_iter):
                kept.append(line)
                self._written = entry["iteration"]
        if len(kept) < len(lines):
            with atomic_write(self._path) as file:
                file.writelines(line + b"\n" for line in kept)


def parse_line(line: bytes) -> dict[str, Any] | None:
    """None of a line that a dying machine left half written."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) and isinstance(entry.get("iteration"), int) else None


def _stays(entry: dict[str, Any], next_iteration: int, max_iter: int) -> bool:
    iteration = entry["iteration"]
    if "total_loss" not in entry:  # results; the final ones bear the number after the last
        return iteration <= next_iteration
    on_time = (iteration + 1) % LOG_PERIOD == 0 or iteration + 1 == max_iter
    return on_time and iteration < next_iteration


class RecentScalars(HookBase):
    """Carries the scalars that the next line's medians need from a run to the one that resumes it.

    Args:
        log: of the first process; None in the others.
    """

    def __init__(self, log: IterationLog | None) -> None:
        self._log = log
        self._restored: dict[str, Any] = {}

    def before_train(self) -> None:
        """Put the scalars back, and write the line that the run before did not come to."""
        trainer = self.trainer
        if self._log is None or not trainer.start_iter:
            return
        storage = trainer.storage
        for name, scalar in self._restored.items():
            for value, storage.iter in zip(scalar["values"], scalar["iterations"], strict=True):
                storage.put_scalar(name, value, smoothing_hint=scalar["smoothed"])
        storage.iter = trainer.start_iter
        self._log.resume(trainer.start_iter, trainer.max_iter)
        if trainer.start_iter % LOG_PERIOD == 0 and self._restored:
            self._log.write()

    def state_dict(self) -> dict[str, Any]:
        """By name, the values of the last iterations and whether they are smoothed."""
        if self._log is None or not hasattr(self.trainer, "storage"):
            return {}
        storage = self.trainer.storage
        state = {}
        for name, history in storage.histories().items():
            smoothed = storage.smoothing_hints()[name]
            kept = history.values()[-LOG_PERIOD if smoothed else -1 :]
            if name not in _TIMES:
                state[name] = {
                    "values": [float(value) for value, _ in kept],
                    "iterations": [int(iteration) for _, iteration in kept],
                    "smoothed": bool(smoothed),
                }
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Keep what ``state_dict`` gave until the training begins."""
        self._restored = {
            name: {
                "values": [float(value) for value in scalar["values"]],
                "iterations": [int(iteration) for iteration in scalar["iterations"]],
                "smoothed": bool(scalar["smoothed"]),
            }
            for name, scalar in state.items()
        }
        for name, scalar in self._restored.items():
            if len(scalar["values"]) != len(scalar["iterations"]):
                raise ValueError(f"{name} has not one iteration for each value")
