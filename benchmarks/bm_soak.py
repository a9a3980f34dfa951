"""Does a long training stay as it began: memory, speed, and what it leaves behind.

    python benchmarks/bm_soak.py                      # 2,000 iterations, 20 evaluations
    python benchmarks/bm_soak.py --iterations 400     # a shorter look

RS-Mask R-CNN on the digits, in this process, with glibc's threshold for large blocks fixed (it
moves otherwise, and freed memory stays with the process). Resident memory is read every tenth
iteration; its growth is that of the median of the last fifth over that of the second fifth. Speed
is in iterations per second of CPU time of this process, which other programs disturb less than wall
time: the last tenth against the 5th to 15th per cent. Open files, child processes, and files in the
temporary folder and in shared memory are counted before and after. The exit code is 1 if memory
grew by more than 5 %, speed fell or rose by more than 10 %, or anything is left.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import common
from detectron2.engine import HookBase

from rs_d2.engine import RSTrainer, prepare

CONFIG = "quick/rs_mask_rcnn_digits"
EVERY = 10  # iterations between two readings of the memory
MAX_GROWTH, MAX_CHANGE = 0.05, 0.10
MMAP_THRESHOLD = 64 * 1024  # bytes


class Readings(HookBase):
    """Reads memory and clocks while the training runs; evaluations are not in the times."""

    def __init__(self) -> None:
        self.memory: list[int] = []  # bytes
        self.cpu: list[float] = []  # seconds of each iteration
        self.wall: list[float] = []

    def before_step(self) -> None:
        """Start the clocks."""
        self._began = time.process_time(), time.perf_counter()

    def after_step(self) -> None:
        """Stop them."""
        self.cpu.append(time.process_time() - self._began[0])
        self.wall.append(time.perf_counter() - self._began[1])
        if self.trainer.iter % EVERY == 0:
            self.memory.append(common.resident_memory())


def fix_malloc() -> bool:
    """Fix the threshold above which glibc takes blocks from the system one by one, if it is one."""
    try:
        return bool(ctypes.CDLL("libc.so.6").mallopt(-3, MMAP_THRESHOLD))  # M_MMAP_THRESHOLD
    except OSError:
        return False


def belongings(folder: str) -> dict[str, list[str]]:
    """What this process holds: open files, children, files in the temporary folder and in memory.

    Args:
        folder: the temporary folder, of this process alone.
    """
    files = []
    for link in Path("/proc/self/fd").iterdir():
        try:
            files.append(os.readlink(link))
        except OSError:  # the listing's own
            continue
    files = [name for name in files if "site-packages" not in name]  # fonts, which matplotlib keeps
    tasks = Path("/proc/self/task").glob("*/children")
    shared = Path("/dev/shm").glob(f"torch_{os.getpid()}_*")
    return {
        "open files": files,
        "processes": [pid for task in tasks for pid in task.read_text().split()],
        "temporary files": sorted(map(str, _files_below(Path(folder)))),
        "shared memory": sorted(map(str, shared)),
    }


def _files_below(folder: Path) -> Iterator[Path]:
    """All but the folder of sockets that Python's multiprocessing removes when the process ends."""
    for path in folder.rglob("*"):
        if not path.relative_to(folder).parts[0].startswith("pymp-"):
            yield path


def train(iterations: int, evaluations: int, folder: str, overrides: Mapping[str, Any]) -> Readings:
    """Train with evaluations in between; nothing of it is kept but the readings."""
    cfg, _ = prepare(
        CONFIG,
        {
            "SOLVER.MAX_ITER": iterations,
            "SOLVER.STEPS": (),
            "SOLVER.CHECKPOINT_PERIOD": max(1, iterations // 4),
            "TEST.EVAL_PERIOD": max(1, iterations // evaluations),
            "TEST.EXPECTED_RESULTS": [],
            "MODEL.DEVICE": "cpu",
            "OUTPUT_DIR": folder,
            **overrides,
        },
    )
    trainer = RSTrainer(cfg)
    trainer.resume_or_load(resume=False)
    readings = Readings()
    trainer.register_hooks([readings])
    # Around the step alone: before the hooks that evaluate and save.
    trainer._hooks.insert(0, trainer._hooks.pop())
    trainer.train()
    return readings


def summary(readings: Readings, left: Mapping[str, list[str]]) -> dict[str, Any]:
    """The numbers that count, and whether each is as it should be."""
    total = len(readings.cpu)
    memory, fifth = readings.memory, max(1, len(readings.memory) // 5)
    early = statistics.median(memory[fifth : 2 * fifth] or memory)
    late = statistics.median(memory[-fifth:])
    windows = slice(total // 20, 3 * total // 20 or None), slice(-max(1, total // 10), None)
    speed = [1 / statistics.mean(readings.cpu[window]) for window in windows]
    wall = [1 / statistics.mean(readings.wall[window]) for window in windows]
    growth, change = late / early - 1, speed[1] / speed[0] - 1
    return {
        "iterations": total,
        "memory early MB": early / 1e6,
        "memory late MB": late / 1e6,
        "growth": growth,
        "its/s early": speed[0],
        "its/s late": speed[1],
        "change": change,
        "its/s early, wall": wall[0],
        "its/s late, wall": wall[1],
        **{f"left: {name}": len(items) for name, items in left.items()},
        "is flat": growth <= MAX_GROWTH,
        "is steady": abs(change) <= MAX_CHANGE,
        "is clean": not any(left.values()),
    }


def soak(
    iterations: int, evaluations: int, overrides: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any], Readings, dict[str, list[str]]]:
    """Train, and look at what has changed: a summary, the readings, and what is left by name."""
    with tempfile.TemporaryDirectory() as root:
        output, temporary = Path(root, "output"), Path(root, "tmp")
        temporary.mkdir()
        before_tempdir, tempfile.tempdir = tempfile.tempdir, str(temporary)
        try:
            before = belongings(str(temporary))
            readings = train(iterations, evaluations, str(output), overrides or {})
            close_logs()
            gc.collect()
            time.sleep(1)  # for children that are about to end
            after = belongings(str(temporary))
        finally:
            tempfile.tempdir = before_tempdir
    left = {name: _beyond(after[name], before[name]) for name in after}
    return summary(readings, left), readings, left


def close_logs() -> None:
    """Close the log files that a training opens for the life of its process."""
    import logging

    for name in ("detectron2", "fvcore", "rs_d2"):
        for handler in logging.getLogger(name).handlers[:]:
            logging.getLogger(name).removeHandler(handler)
            handler.close()


def _beyond(after: list[str], before: list[str]) -> list[str]:
    rest = list(before)
    return [item for item in after if item not in rest or rest.remove(item)]


def main(argv: list[str] | None = None) -> int:
    """Train, print a table, write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--iterations", type=int, default=2000)
    parser.add_argument("--evaluations", type=int, default=20)
    parser.add_argument("--output", type=Path, help="JSON; default: results/soak_cpu.json")
    args = parser.parse_args(argv)
    is_fixed = fix_malloc()
    row, readings, left = soak(args.iterations, args.evaluations)
    print(common.table([row], list(row)))
    for name, items in left.items():
        if items:
            print(f"left, {name}: {', '.join(items)}")
    path = common.write_results(
        "soak_cpu",
        [row],
        args.output,
        evaluations=args.evaluations,
        malloc_threshold_fixed=is_fixed,
        memory_mb=[value / 1e6 for value in readings.memory],
    )
    print(f"written to {path}")
    return 0 if row["is flat"] and row["is steady"] and row["is clean"] else 1


if __name__ == "__main__":
    sys.exit(main())
