"""What a run leaves behind: a file of metrics, pictures, a table and the paths to all of it."""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from tabulate import tabulate
from torch import nn

from rs_d2.drawing.side_by_side import draw_predictions
from rs_d2.evaluation import METRICS
from rs_d2.utils.atomic_write import write_json

_logger = logging.getLogger(__name__)


def finish(cfg: CfgNode, model: nn.Module, results: Mapping[str, Any]) -> None:
    """Write and show the results of a run, then compare them with ``TEST.EXPECTED_RESULTS``.

    Only the first process does anything. A result that differs by more than its tolerance ends the
    program with exit code 1, after everything has been written.

    Args:
        cfg: config.
        model: the trained model, for the pictures.
        results: results of ``RSTrainer.test``; empty without a test set.
    """
    if not comm.is_main_process():
        return
    folder = Path(cfg.OUTPUT_DIR)
    lines = []
    if results:
        metrics = write_metrics(folder / "metrics.json", results)
        lines += ["", format_table(metrics), ""]
        draw_predictions(cfg, model, folder / "predictions")
    lines += [f"{label:<22}{path}" for label, path in _outputs(cfg, folder) if path.exists()]
    _logger.info("Results\n" + "\n".join(lines))
    if results and cfg.TEST.EXPECTED_RESULTS:
        # a task that is missing (masks switched off) is a difference, not a KeyError
        verify_results(cfg, defaultdict(dict, results))


def write_metrics(path: Path, results: Mapping[str, Any]) -> dict[str, Any]:
    """Write results as json; returns what was written: plain floats, ``None`` for no number."""
    metrics = _plain(results)
    write_json(path, metrics, indent=2)
    return metrics


def flat_metrics(results: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Results by one name each, such as "bbox/AP"; those without a finite number are left out."""
    flat: dict[str, float] = {}
    for name, value in results.items():
        if isinstance(value, Mapping):
            flat.update(flat_metrics(value, f"{prefix}{name}/"))
        elif value is not None and math.isfinite(value):
            flat[prefix + name] = float(value)
    return flat


def format_table(metrics: Mapping[str, Any]) -> str:
    """Format metrics as a table: a row per task, a column for each of `METRICS` that any task has.

    Args:
        metrics: task -> metric -> percent or ``None``; one level deeper for several test sets.
    """
    rows = list(_rows(metrics))
    columns = [column for column in METRICS if any(column in row for _, row in rows)]
    cells = [[label, *(_cell(row.get(column)) for column in columns)] for label, row in rows]
    alignment = ["left", *("right" for _ in columns)]
    return tabulate(cells, ["", *columns], disable_numparse=True, colalign=alignment)


def _outputs(cfg: CfgNode, folder: Path) -> Iterator[tuple[str, Path]]:
    yield "weights", folder / "model_final.pth"
    yield "metrics", folder / "metrics.json"
    yield "pictures", folder / "predictions"
    reports = sorted(folder.glob("inference*/**/report.html"))
    yield from (("report", path) for path in reports)
    yield "log", folder / "log.txt"
    yield "tensorboard --logdir", folder


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    value = float(value)
    return value if math.isfinite(value) else None


def _rows(metrics: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name, value in metrics.items():
        if any(isinstance(entry, Mapping) for entry in value.values()):  # several test sets
            yield from _rows(value, f"{prefix}{name} ")
        else:
            yield prefix + name, value


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
