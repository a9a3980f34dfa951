"""One row for each class: what there is of it and how well it is found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from rs_d2.evaluation.evaluate import Evaluation
from rs_d2.report.class_counts import ClassCounts
from rs_d2.utils.csv_files import write_csv

# Percent, but for counts and the threshold, which is a score.
COLUMNS = (
    "id",
    "name",
    "frequency",
    "train_count",
    "images",
    "negative_images",
    "instances",
    "detections",
    "left_out",
    "AP",
    "AP50",
    "oLRP",
    "oLRP_Loc",
    "oLRP_FP",
    "oLRP_FN",
    "threshold",
)


def per_class_rows(
    evaluation: Evaluation, train_counts: ClassCounts | None = None
) -> list[dict[str, Any]]:
    """A row of ``COLUMNS`` for each class, by category id; None for what is undefined.

    `train_count` is what ``train_counts`` say. `images` have an object of the class,
    `negative_images` are known to have none; `instances` are the objects that count. `left_out`
    detections were beyond the cap or, in LVIS, of images that say nothing of the class;
    `detections` are the others. `threshold` is the LRP-optimal one: the score of the worst
    detection to keep.
    """
    truth, lrp = evaluation.ground_truth, evaluation.lrp
    used = np.bincount(evaluation.matches.categories, minlength=truth.num_categories)
    given = np.bincount(evaluation.detections.categories, minlength=truth.num_categories)
    positive, negative = _num_images(evaluation)
    columns = (
        truth.category_ids,
        truth.names,
        truth.frequencies,
        [None] * truth.num_categories if train_counts is None else train_counts.values,
        positive,
        negative,
        evaluation.matches.num_objects[0],
        used,
        given - used,
        evaluation.class_ap(),
        evaluation.class_ap(0),
        100 * lrp.olrp[0],
        100 * lrp.localisation[0],
        100 * lrp.false_positives[0],
        100 * lrp.false_negatives[0],
        lrp.thresholds[0],
    )
    rows = zip(*(_plain(column) for column in columns), strict=True)
    return [dict(zip(COLUMNS, row, strict=True)) for row in rows]


def write_per_class(
    path: Path, evaluation: Evaluation, train_counts: ClassCounts | None = None
) -> None:
    """Write the rows as CSV; an empty cell for what is undefined."""
    write_csv(path, COLUMNS, per_class_rows(evaluation, train_counts))


def _num_images(evaluation: Evaluation) -> tuple[np.ndarray, np.ndarray]:
    truth = evaluation.ground_truth
    num_classes = truth.num_categories
    pairs = np.unique(truth.images * num_classes + truth.categories)
    positive = np.bincount(pairs % num_classes, minlength=num_classes)
    if truth.known is None:
        return positive, len(truth.image_ids) - positive
    known = np.bincount(truth.known % num_classes, minlength=num_classes)
    return positive, known - positive


def _plain(column: Any) -> list[Any]:
    values = column.tolist() if isinstance(column, np.ndarray) else column
    return [None if value != value or value == "" else value for value in values]
