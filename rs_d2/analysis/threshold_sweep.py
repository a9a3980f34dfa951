"""What a model would score at every score threshold, from its detections at the lowest one.

A detection survives class-wise suppression by what scores higher. So those that a model returns at
a threshold are, of those it returns at a lower one, the ones that score above the threshold: the
model runs once for its detections. Then it runs at every threshold for its times.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import nn

from rs_d2.analysis.search_times import SEARCHES, searching
from rs_d2.coco.records import Detections, GroundTruth
from rs_d2.engine.trainer import RSTrainer
from rs_d2.evaluation import build_evaluator
from rs_d2.evaluation.evaluate import Evaluation, evaluate_detections
from rs_d2.evaluation.evaluator import ArrayEvaluator
from rs_d2.utils.atomic_write import atomic_write, write_json
from rs_d2.utils.csv_files import write_csv

THRESHOLDS = (1e-4, 1e-3, 1e-2, 0.1, 0.4, 0.6, 0.8)  # those of the published table

_BY_FREQUENCY, _BY_IOU = ("AP", "APr", "APc", "APf", "oLRP"), ("AP", "AP50", "AP75", "oLRP")
_SHOWN = {"bbox": "box", "segm": "mask"}
_COLORS = {"AP": "#333333", "early stopping": "#2471a3", "plain": "#c0392b"}


def collect_detections(
    cfg: CfgNode, model: nn.Module, threshold: float, num_kept: int
) -> tuple[ArrayEvaluator, list[Any]]:
    """Show what a model finds in the first test set to an evaluator.

    Args:
        cfg: config.
        model: in evaluation mode.
        threshold: the model's score threshold for this.
        num_kept: how many inputs to keep, at even distances.

    Returns:
        The evaluator, which has not evaluated yet, and the inputs that were kept.

    Raises:
        UserError: The model has not one box predictor.
    """
    name = cfg.DATASETS.TEST[0]
    evaluator = build_evaluator(cfg, name, cfg.OUTPUT_DIR)
    loader = RSTrainer.build_test_loader(cfg, name)
    every = max(1, len(loader) // max(num_kept, 1))
    kept = []
    with torch.no_grad(), searching(model, SEARCHES[0], threshold):
        for index, inputs in enumerate(loader):
            evaluator.process(inputs, model(inputs))
            if index % every == 0 and len(kept) < num_kept:
                kept.append(inputs)
    return evaluator, kept


def evaluate_at(
    ground_truth: GroundTruth,
    detections: Detections,
    threshold: float,
    tasks: Sequence[str],
    engine: str = "auto",
) -> dict[str, Evaluation]:
    """Evaluation of each task with the detections that score above a threshold.

    Args:
        ground_truth: from ``ground_truth_from``.
        detections: of a lower threshold; their scores are float32 numbers.
        threshold: in [0, 1), compared in float32 as the model does it.
        tasks: "bbox", "segm".
        engine: "auto", "hotcoco" or "reference".
    """
    kept = detections.select(detections.scores > np.float32(threshold))
    return {task: evaluate_detections(ground_truth, kept, task, engine) for task in tasks}


def sweep(
    ground_truth: GroundTruth,
    detections: Detections,
    thresholds: Sequence[float],
    tasks: Sequence[str],
    engine: str = "auto",
) -> list[dict[str, Any]]:
    """A row for each threshold, in ascending order, in percent.

    The first task is shown by frequency group, or by IoU where classes have no groups; of the
    others AP alone. ``detections`` is the mean number of an image.

    Args:
        ground_truth: from ``ground_truth_from``.
        detections: of the lowest threshold or one below.
        thresholds: in [0, 1).
        tasks: "bbox", "segm"; the main one first.
        engine: "auto", "hotcoco" or "reference".
    """
    metrics = _BY_FREQUENCY if any(ground_truth.frequencies) else _BY_IOU
    rows = []
    for threshold in sorted(thresholds):
        evaluations = evaluate_at(ground_truth, detections, threshold, tasks, engine)
        row = {"threshold": threshold}
        for task, evaluation in evaluations.items():
            chosen = metrics if task == tasks[0] else ("AP",)
            row |= {f"{_SHOWN[task]} {name}": evaluation.summary[name] for name in chosen}
        kept = len(evaluations[tasks[0]].detections)
        rows.append({**row, "detections": kept / len(ground_truth.image_ids)})
    return rows


def recommend(rows: Sequence[Mapping[str, Any]], tolerance: float = 0.0) -> Mapping[str, Any]:
    """The row of the largest threshold that loses at most ``tolerance`` AP of the main task.

    Args:
        rows: from ``sweep``.
        tolerance: percentage points below the best row.
    """
    name = main_metric(rows)
    best = max(row[name] for row in rows)
    rounding = 1e-9
    good = [row for row in rows if row[name] >= best - tolerance - rounding]
    return max(good, key=lambda row: row["threshold"], default=rows[0])


def main_metric(rows: Sequence[Mapping[str, Any]]) -> str:
    """Name of the column with the AP of the main task."""
    return next(name for name in rows[0] if name.endswith(" AP"))


def write_sweep(folder: Path, rows: Sequence[Mapping[str, Any]], **about: Any) -> dict[str, Path]:
    """Write ``sweep.csv``, ``sweep.json`` (rows and ``about``) and ``sweep.png`` into a folder."""
    paths = sweep_files(folder)
    plain = [{name: _number(value) for name, value in row.items()} for row in rows]
    write_csv(paths["csv"], list(rows[0]), plain)
    write_json(paths["json"], {**about, "rows": plain}, indent=2)
    _draw(rows, paths["png"])
    return paths


def sweep_files(folder: Path) -> dict[str, Path]:
    """What :func:`write_sweep` writes, by kind."""
    return {kind: folder / f"sweep.{kind}" for kind in ("csv", "json", "png")}


def _draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """AP and images per second over the threshold; the thresholds at even distances."""
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes, name = figure.add_subplot(), main_metric(rows)
    places = range(len(rows))
    lines = axes.plot(places, [row[name] for row in rows], "o-", color=_COLORS["AP"], label=name)
    axes.set_xticks(places, [f"{row['threshold']:g}" for row in rows])
    axes.set_xlabel("score threshold")
    axes.set_ylabel(f"{name}, percent")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25)
    speed = axes.twinx()
    speed.set_ylabel("images per second")
    for search in ("early stopping", "plain"):
        values = [row.get(f"images/s {search}") for row in rows]
        if None not in values:
            color, label = _COLORS[search], f"images/s, {search} search"
            lines += speed.plot(places, values, "s--", color=color, label=label)
    speed.set_ylim(bottom=0)
    axes.legend(handles=lines, frameon=False, loc="lower left")
    with atomic_write(path) as file:
        figure.savefig(file, dpi=150, metadata={"Software": None})


def _number(value: Any) -> Any:
    """None where there is nothing to average."""
    return None if isinstance(value, float) and value != value else value
