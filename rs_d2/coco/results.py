"""A list of results in COCO's form as columns, checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import numpy as np

from rs_d2.coco.checks import Finding, shorten, show
from rs_d2.coco.columns import (
    box_column,
    index_column,
    is_finite,
    is_finite_box,
    is_id,
    number_column,
)
from rs_d2.coco.polygons import is_usable
from rs_d2.coco.records import Detections, GroundTruth, no_detections, object_array
from rs_d2.coco.rle import run_totals, to_rle
from rs_d2.utils.errors import UserError


class _Stop(Exception):
    """Carries the first finding to ``detections_from``, which knows the name of the file."""


def detections_from(
    results: Any, ground_truth: GroundTruth, iou_type: str, source: str = "results"
) -> Detections:
    """Columns of a list of results.

    A box without area is a detection that finds nothing, as in the official evaluators.

    Args:
        results: dicts with `image_id`, `category_id`, `score` and `bbox` (XYWH, pixels) or, for
            "segm", `segmentation` (run lengths, or polygons). They are not changed. An empty list
            means that the model found nothing.
        ground_truth: what the ids refer to.
        iou_type: "bbox" or "segm"; the other field is not read.
        source: name of the file, for messages.

    Raises:
        UserError: Not a list, or an entry has an unknown image or category, a score or coordinate
            that is not a finite number, a negative width or height, or a mask of another size than
            its image; names the first such entry by its index in the list.
    """
    if not isinstance(results, list):
        found = _JSON_NAMES.get(type(results), "a number")
        raise UserError(f"{source}: expected a list of results, found {found}")
    if not results:
        return no_detections(iou_type == "segm")
    try:
        images = _indices(results, "image_id", ground_truth.image_ids)
        categories = _indices(results, "category_id", ground_truth.category_ids)
        scores = _scores(results)
        if iou_type == "bbox":
            return Detections(images, categories, scores, _boxes(results))
        rles = _rles(results, ground_truth.image_sizes[images])
    except _Stop as problem:
        raise UserError(f"{source}: {problem}") from None
    return Detections(images, categories, scores, np.zeros((len(results), 4)), rles)


_JSON_NAMES = {dict: "an object", str: "a string", type(None): "null"}


def _finding(results: Sequence[Any], index: int, field: str, expected: str) -> Finding:
    entry = results[int(index)]
    if not isinstance(entry, dict):
        return Finding(f"entry {index}", "", "an object", shorten(entry))
    about = ", ".join(
        f"{name.removesuffix('_id')} {entry[name]}"
        for name in ("image_id", "category_id")
        if name in entry and name != field
    )
    where = f"entry {index} ({about})" if about else f"entry {index}"
    return Finding(where, field, expected, show(entry, field))


def _column(results: Sequence[Any], field: str, expected: str) -> list[Any]:
    try:
        return [entry[field] for entry in results]
    except (KeyError, TypeError, IndexError):
        there = [isinstance(entry, dict) and field in entry for entry in results]
        raise _Stop(_finding(results, there.index(False), field, expected)) from None


def _stop_at_first(
    results: Sequence[Any],
    column: Sequence[Any],
    field: str,
    expected: str,
    fits: Callable[[Any], bool],
) -> NoReturn:
    """Name the first entry whose value does not fit; called only when it is known that one does."""
    index = next(i for i, value in enumerate(column) if not fits(value))
    raise _Stop(_finding(results, index, field, expected))


def _indices(results: Sequence[Any], field: str, ids: np.ndarray) -> np.ndarray:
    kind = "an image" if field == "image_id" else "a category"
    expected = f"the id of {kind} of the ground truth"
    column = _column(results, field, expected)
    known = {identity: index for index, identity in enumerate(ids.tolist())}
    found = index_column(column, known)
    if found is None:
        _stop_at_first(results, column, field, expected, lambda value: is_id(value, known))
    return found


def _scores(results: Sequence[Any]) -> np.ndarray:
    expected = "a finite number"
    column = _column(results, "score", expected)
    scores = number_column(column)
    if scores is None or not np.isfinite(scores).all():
        _stop_at_first(results, column, "score", expected, is_finite)
    return scores


def _boxes(results: Sequence[Any]) -> np.ndarray:
    expected = "four finite numbers [x, y, width, height] with width and height >= 0"
    column = _column(results, "bbox", expected)
    boxes = box_column(column)
    if boxes is None or not np.isfinite(boxes).all() or (boxes[:, 2:] < 0).any():
        _stop_at_first(
            results, column, "bbox", expected, lambda b: is_finite_box(b) and min(b[2:]) >= 0
        )
    return boxes


def _rles(results: Sequence[Any], sizes: np.ndarray) -> np.ndarray:
    expected = "run lengths or polygons"
    column = _column(results, "segmentation", expected)
    rles = []
    for index, (value, size) in enumerate(zip(column, sizes.tolist(), strict=True)):
        if isinstance(value, list) and value and all(map(_is_polygon, value)):
            if not all(is_usable(polygon, *size) for polygon in value):
                fitting = "polygons of at least 3 points near the image"
                raise _Stop(_finding(results, index, "segmentation", fitting))
            value = to_rle(value, *size)
        elif not isinstance(value, dict) or not isinstance(value.get("counts"), (str, bytes, list)):
            raise _Stop(_finding(results, index, "segmentation", expected))
        if value.get("size") not in (size, tuple(size)):
            fitting = f"a mask of the image's height and width {size}"
            raise _Stop(_finding(results, index, "segmentation", fitting))
        if isinstance(value["counts"], list):
            if not all(type(run) is int and run >= 0 for run in value["counts"]):
                raise _Stop(_finding(results, index, "segmentation", expected))
            value = to_rle(value, *size) if sum(value["counts"]) == size[0] * size[1] else None
        rles.append(value)
    whole = np.array([rle is not None for rle in rles])
    compressed = [rle["counts"] for rle in rles if rle is not None]
    whole[whole] = run_totals(compressed) == sizes[whole].prod(axis=1)
    if not whole.all():
        index = int(np.argmin(whole))
        fitting = f"runs of {sizes[index].prod()} pixels, the image's {sizes[index].tolist()}"
        raise _Stop(_finding(results, index, "segmentation", fitting))
    return object_array(rles)


def _is_polygon(value: Any) -> bool:
    if not isinstance(value, list) or len(value) < 6 or len(value) % 2:
        return False
    numbers = number_column(value)
    return numbers is not None and bool(np.isfinite(numbers).all())
