"""One page about an evaluation that opens anywhere: nothing in it is loaded from elsewhere."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from rs_d2.evaluation.evaluate import Evaluation
from rs_d2.report import figures, tables
from rs_d2.report.class_counts import ClassCounts
from rs_d2.report.per_class import write_per_class
from rs_d2.report.worst_images import FOUND, MISSED, WRONG, draw, worst_images
from rs_d2.utils.atomic_write import atomic_write

_logger = logging.getLogger(__name__)

_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
)
_WORST = 6  # images that are shown


def write_report(
    folder: Path,
    evaluations: Mapping[str, Evaluation],
    title: str,
    image_root: str | Path | None = None,
    train_counts: ClassCounts | None = None,
    imbalance: Mapping[str, Any] | None = None,
) -> Path:
    """Write `report.html` and `per_class_{task}.csv`.

    Args:
        folder: made if needed.
        evaluations: by task, "bbox" or "segm"; at least one.
        title: what was evaluated.
        image_root: folder of the images; without it boxes are drawn on blank ones.
        train_counts: how often the training set has each class, if known.
        imbalance: a row of ``rs_d2.criterion.imbalance.imbalance_table``, if known.

    Returns:
        The path of the page.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for task, evaluation in evaluations.items():
        write_per_class(folder / f"per_class_{task}.csv", evaluation, train_counts)
    path = folder / "report.html"
    root = None if image_root is None else Path(image_root)
    page = report_html(evaluations, title, root, train_counts, imbalance)
    with atomic_write(path, "w") as file:
        file.write(page)
    _logger.info("report: %s", path)
    return path


def report_html(
    evaluations: Mapping[str, Evaluation],
    title: str,
    image_root: Path | None = None,
    train_counts: ClassCounts | None = None,
    imbalance: Mapping[str, Any] | None = None,
) -> str:
    """The page: tables, curves, histograms, the worst images and every class."""
    return _TEMPLATES.get_template("page.html.j2").render(
        title=title,
        about=_about(next(iter(evaluations.values()))),
        summary=tables.summary_table(evaluations),
        sections=[
            {
                "title": tables.TASKS[task],
                "groups": tables.group_table(evaluation),
                "figures": figures.all_figures(evaluation, train_counts),
                "worst": _worst(evaluation, image_root),
                "classes": tables.class_table(evaluation, train_counts),
            }
            for task, evaluation in evaluations.items()
        ],
        training=None if imbalance is None else tables.training_table(imbalance),
        colors={"found": FOUND, "wrong": WRONG, "missed": MISSED},
    )


def _about(evaluation: Evaluation) -> str:
    truth = evaluation.ground_truth
    return (
        f"{len(truth.image_ids):,} images, {int(evaluation.matches.num_objects[0].sum()):,} objects"
        f" of {int(evaluation.classes_with_objects().sum()):,} classes,"
        f" {len(evaluation.detections):,} detections. Rules of {truth.style.upper()}, computed by"
        f" {evaluation.engine}. All numbers are percent; of AP more is better, of oLRP less."
    )


def _worst(evaluation: Evaluation, image_root: Path | None) -> list[tuple[str, str]]:
    """Picture and caption of each of the worst images."""
    pictures = []
    for mistakes in worst_images(evaluation, _WORST):
        caption = (
            f"image {evaluation.ground_truth.image_ids[mistakes.image]}:"
            f" {len(mistakes.found)} found, {len(mistakes.wrong)} false positives,"
            f" {len(mistakes.missed)} missed"
        )
        pictures.append((draw(evaluation, mistakes, image_root), caption))
    return pictures
