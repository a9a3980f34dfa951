"""How often each class occurs in the training set, for the report."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rs_d2.coco.reading import read_to_evaluate
from rs_d2.coco.records import GroundTruth

_LARGEST_FILE = 128 * 2**20  # bytes; to read a larger one would take longer than to evaluate


class ClassCounts(NamedTuple):
    """[K] counts, NaN where unknown, and what was counted."""

    values: np.ndarray
    unit: str


def count_objects(annotations: Iterable[dict[str, Any]], ground_truth: GroundTruth) -> ClassCounts:
    """Objects of each class in a training json, crowds left out.

    Args:
        annotations: of an ``AnnotationFile``.
        ground_truth: the set that is evaluated; its category ids say what is counted.
    """
    counts = dict.fromkeys(ground_truth.category_ids.tolist(), 0.0)
    for annotation in annotations:
        if annotation["category_id"] in counts and not annotation.get("iscrowd"):
            counts[annotation["category_id"]] += 1
    return ClassCounts(np.array(list(counts.values())), "objects in the training set")


def counts_of_metadata(metadata: Sequence[Any], ground_truth: GroundTruth) -> ClassCounts | None:
    """Counts of training sets in Detectron2's catalogs; None where they cannot be had quickly.

    Args:
        metadata: of the training sets.
        ground_truth: the set that is evaluated.
    """
    counts = [_of_one(entry, ground_truth) for entry in metadata]
    if not counts or any(c is None or c.unit != counts[0].unit for c in counts):
        return None
    return ClassCounts(sum(c.values for c in counts), counts[0].unit)


def _of_one(metadata: Any, ground_truth: GroundTruth) -> ClassCounts | None:
    stated = metadata.get("class_image_count")  # Detectron2's own LVIS sets
    if stated is not None:
        by_id = {entry["id"]: entry["image_count"] for entry in stated}
        ids = ground_truth.category_ids.tolist()
        values = np.array([by_id.get(i, np.nan) for i in ids], dtype=float)
        return ClassCounts(values, "training images with the class")
    path = Path(metadata.get("json_file") or "")
    if not path.is_file() or path.stat().st_size > _LARGEST_FILE:
        return None
    return count_objects(read_to_evaluate(path).annotations, ground_truth)
