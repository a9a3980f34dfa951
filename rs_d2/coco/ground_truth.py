"""The content of a COCO or LVIS json as columns."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from rs_d2.coco.checks import Finding, Severity, check_content, label, show
from rs_d2.coco.cleaning import mask_problems
from rs_d2.coco.columns import box_column, index_column, number_column
from rs_d2.coco.fill_missing import crowd_pairs, object_area
from rs_d2.coco.image_files import file_name
from rs_d2.coco.reading import AnnotationFile, read_to_evaluate
from rs_d2.coco.records import STYLES, GroundTruth, indices_of
from rs_d2.utils.errors import UserError

_logger = logging.getLogger(__name__)


def read_ground_truth(path: str | Path, style: str) -> GroundTruth:
    """Columns of a COCO or LVIS json, as training evaluates on it.

    What training leaves out is left out, and told in the log.

    Args:
        path: `.json` or `.json.gz`.
        style: see ``ground_truth_from``.

    Raises:
        UserError: The file cannot be read, has no list of annotations, or see
            ``ground_truth_from``.
    """
    file = read_to_evaluate(path)
    if "annotations" not in file.content:
        raise UserError(f"{path}: annotations: expected a list, found nothing")
    if file.left_out:
        _logger.warning("%s: left out %s", path, file.left_out)
    return ground_truth_of(file, style)


def ground_truth_of(file: AnnotationFile, style: str) -> GroundTruth:
    """Columns of a file that was read; see ``ground_truth_from``."""
    return _columns(file.images, file.categories, file.annotations, style)


def ground_truth_from(content: Any, style: str, source: str = "ground truth") -> GroundTruth:
    """Columns of the content of a COCO or LVIS json.

    Nothing is left out: what the official evaluators count is counted, an object without area, too.
    A missing `area` is the mask's, or the box's. In the LVIS form, without any `neg_category_ids`
    every class counts as annotated in every image. `iscrowd` and `ignore` mean the same: in the
    COCO form a crowd, in the LVIS form, which has none, an object that is ignored; there, `iscrowd`
    alone says that not every object of its class is annotated in its image.

    Args:
        content: what the json holds.
        style: "coco" or "lvis".
        source: its name, for messages.

    Raises:
        UserError: A field is missing or of a wrong type, an id occurs twice, an annotation names an
            unknown image or category, a box is not finite, a mask cannot be rasterised; names the
            entry.
    """
    for finding in check_content(content):
        if finding.severity is Severity.STOPS:
            raise UserError(f"{source}: {finding}")
    if not isinstance(content.get("annotations"), list):
        raise UserError(f"{source}: annotations: expected a list, found nothing")
    annotations = content["annotations"]
    boxes = box_column([annotation["bbox"] for annotation in annotations])
    finite = np.isfinite(boxes).all(axis=1)
    if not finite.all():
        index = int(np.argmin(finite))
        entry = annotations[index]
        where, expected = label(entry, "annotations", index), "four finite numbers"
        raise UserError(f"{source}: {Finding(where, 'bbox', expected, show(entry, 'bbox'))}")
    for finding in mask_problems(content):
        raise UserError(f"{source}: {finding}")
    return _columns(content["images"], content["categories"], annotations, style)


def _columns(
    images: Sequence[dict], categories: Sequence[dict], annotations: Sequence[dict], style: str
) -> GroundTruth:
    """Columns of checked entries."""
    if style not in STYLES:
        raise UserError(f"'{style}' is not one of {', '.join(STYLES)}")
    images = sorted(images, key=lambda image: image["id"])
    categories = sorted(categories, key=lambda category: category["id"])
    lvis = style == "lvis"
    image_index = {image["id"]: index for index, image in enumerate(images)}
    category_index = {category["id"]: index for index, category in enumerate(categories)}
    object_images = index_column([a["image_id"] for a in annotations], image_index)
    object_categories = index_column([a["category_id"] for a in annotations], category_index)
    ignored = np.array([bool(a.get("iscrowd") or a.get("ignore")) for a in annotations], dtype=bool)
    sizes = np.array([[image["height"], image["width"]] for image in images])
    known, not_exhaustive = None, np.zeros(0, dtype=np.int64)
    if lvis:
        pairs = object_images * len(categories) + object_categories
        crowds = [
            image_index[image] * len(categories) + category_index[category]
            for image, category in crowd_pairs(annotations)
        ]
        not_exhaustive = _listed(images, "not_exhaustive_category_ids", category_index)
        not_exhaustive = np.union1d(not_exhaustive, np.array(crowds, dtype=np.int64))
        if any(image.get("neg_category_ids") is not None for image in images):
            known = np.union1d(_listed(images, "neg_category_ids", category_index), pairs)
    return GroundTruth(
        style=style,
        image_ids=np.array([*image_index]),
        image_sizes=sizes,
        file_names=[file_name(image) for image in images],
        category_ids=np.array([*category_index]),
        names=[str(category.get("name") or category["id"]) for category in categories],
        frequencies=np.array([category.get("frequency") or "" for category in categories]),
        images=object_images,
        categories=object_categories,
        boxes=box_column([a["bbox"] for a in annotations]),
        areas=_areas(annotations, sizes[object_images].tolist()),
        crowd=np.zeros_like(ignored) if lvis else ignored,
        ignored=ignored,
        segmentations=[a.get("segmentation") or None for a in annotations],
        known=known,
        not_exhaustive=not_exhaustive,
    )


def _listed(images: Sequence[dict], key: str, category_index: dict[int, int]) -> np.ndarray:
    """Sorted ``image * K + category`` of the category ids that the images list."""
    listed = [image.get(key) or [] for image in images]
    owners = np.repeat(np.arange(len(images)), [len(ids) for ids in listed])
    ids = np.array([*chain.from_iterable(listed)], dtype=np.int64)
    categories = indices_of(ids, np.array([*category_index]))
    inside = categories >= 0  # lists of a full set remain in a subset with fewer classes
    return np.unique(owners[inside] * len(category_index) + categories[inside])


def _areas(annotations: Sequence[dict], sizes: Sequence[list[int]]) -> np.ndarray:
    areas = number_column([annotation.get("area") for annotation in annotations])
    if areas is not None and ((areas > 0) & np.isfinite(areas)).all():
        return areas
    rows = zip(annotations, sizes, strict=True)
    return np.array([object_area(annotation, *size) for annotation, size in rows], dtype=float)
