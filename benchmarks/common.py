"""What the benchmarks share: interleaved timing, metadata, tables and result files."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timezone
from importlib import metadata as packages
from pathlib import Path
from typing import Any, NamedTuple

import torch

from rs_d2.checkpoint.revision import code_revision

RESULTS = Path(__file__).resolve().parent / "results"


class Timing(NamedTuple):
    """Milliseconds of one method over the rounds of a run."""

    median_ms: float
    min_ms: float
    max_ms: float

    @property
    def spread_ms(self) -> tuple[float, float]:
        """Fastest and slowest round."""
        return self.min_ms, self.max_ms


def measure(
    methods: Mapping[str, Callable[[], Any]],
    rounds: int,
    warmup: int = 1,
    device: str = "cpu",
    inner: Mapping[str, int] | None = None,
) -> dict[str, Timing]:
    """Time the methods in turn, ``rounds`` times over, so that a slow minute hits all of them.

    Args:
        methods: name to a call without arguments.
        rounds: timed calls of each method; the median counts.
        warmup: calls of each method before them.
        device: on ``cpu`` the CPU time of the process is taken (other processes do not disturb it),
            on ``cuda`` the wall time between two synchronisations.
        inner: calls per timed round, for methods too short for the clock; 1 where not given.

    Returns:
        A :class:`Timing` per method, of one call.
    """
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    gc.collect()
    gc.disable()  # a collection would be charged to the method that happens to trigger it
    try:
        for turn in range(-warmup, rounds):
            for name, call in methods.items():
                elapsed = _time_of(call, (inner or {}).get(name, 1), device)
                if turn >= 0:
                    seconds[name].append(elapsed)
    finally:
        gc.enable()
    return {name: _timing(values) for name, values in seconds.items()}


def peak_memory(call: Callable[[], Any], device: str = "cpu") -> int | None:
    """Bytes that ``call`` needs at its peak beyond what there was before; None where unknown."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    gc.collect()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # give back what earlier calls have freed
        Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to the present
    except OSError:
        return None
    before = _memory_status("VmRSS")
    call()
    return _memory_status("VmHWM") - before


def resident_memory() -> int:
    """Bytes of this process that are in memory now (on Linux)."""
    return _memory_status("VmRSS")


def metadata(device: str = "cpu") -> dict[str, Any]:
    """Hardware, versions, date and revision that a result belongs to."""
    versions = {name: _version(name) for name in ("torch", "torchvision", "detectron2", "numpy")}
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "revision": code_revision() or None,
        "device": torch.cuda.get_device_name() if device == "cuda" else _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: version for name, version in versions.items() if version},
    }


def write_results(
    name: str, rows: list[dict[str, Any]], output: Path | None = None, **extra: Any
) -> Path:
    """Write ``rows`` with :func:`metadata` to ``output``, by default ``results/<name>.json``."""
    path = output or RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"benchmark": name, "metadata": metadata(), **extra, "rows": rows}
    path.write_text(json.dumps(_rounded(content), indent=1) + "\n")
    return path


def table(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """A markdown table of the rows' ``columns``; numbers with three significant digits."""
    lines = [columns, ["---"] * len(columns)]
    lines += [[_cell(row.get(column)) for column in columns] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _rounded(value: Any) -> Any:
    """Numbers to five significant digits; more would be noise."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, (list, tuple)) else value


def _memory_status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(field + ":"))
    return 1024 * int(line.split()[1])


def _timing(seconds: list[float]) -> Timing:
    milliseconds = [1e3 * value for value in seconds]
    return Timing(statistics.median(milliseconds), min(milliseconds), max(milliseconds))


def _time_of(call: Callable[[], Any], repeats: int, device: str) -> float:
    """Seconds of one of ``repeats`` calls."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    _synchronise(device)
    start = clock()
    for _ in range(repeats):
        call()
    _synchronise(device)
    return (clock() - start) / repeats


def _synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _version(name: str) -> str | None:
    try:
        return packages.version(name)
    except packages.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
