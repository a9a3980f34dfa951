"""A list of results in COCO's form as columns, checked; and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import numpy as np

from rs_d2.coco.checks import EntryError, shorten, show
from rs_d2.coco.columns import (
    box_column,
    is_box,
    is_id,
    is_number,
    number_column,
    place_column,
)
from rs_d2.coco.records import (
    Detections,
    GroundTruth,
    no_detections,
    object_array,
    to_rle,
)
from rs_d2.coco.rle import run_totals
from rs_d2.utils.errors import UserError


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
            its image; names the first such entry by its place in the list.
    """
    if not isinstance(results, list):
        found = type(results).__name__
        raise UserError(f"{source}: expected a list of results, found {_json_name(found)}")
    if not results:
        return no_detections(iou_type == "segm")
    try:
        images = _places(results, "image_id", ground_truth.image_ids)
        categories = _places(results, "category_id", ground_truth.category_ids)
        scores = _numbers(results, "score")
        if iou_type == "bbox":
            return Detections(images, categories, scores, _boxes(results))
        rles = _rles(results, ground_truth.image_sizes[images])
    except EntryError as problem:
        raise UserError(f"{source}: {problem}") from None
    return Detections(images, categories, scores, np.zeros((len(results), 4)), rles)


def _wrong(results: Sequence[Any], index: int, key: str, expected: str) -> EntryError:
    entry = results[int(index)]
    if not isinstance(entry, dict):
        return EntryError(f"entry {index}: expected an object, found {shorten(entry)}")
    about = ", ".join(
        f"{name.removesuffix('_id')} {entry[name]}"
        for name in ("image_id", "category_id")
        if name in entry and name != key
    )
    where = f"entry {index} ({about})" if about else f"entry {index}"
    return EntryError(f"{where}: {key}: expected {expected}, found {show(entry, key)}")


def _column(results: Sequence[Any], key: str, expected: str) -> list[Any]:
    try:
        return [entry[key] for entry in results]
    except (KeyError, TypeError, IndexError):
        _raise_first(results, results, key, expected, lambda e: isinstance(e, dict) and key in e)


def _raise_first(
    results: Sequence[Any],
    column: Sequence[Any],
    key: str,
    expected: str,
    fits: Callable[[Any], bool],
) -> NoReturn:
    """Name the first entry whose value does not fit; found only when it is known that one does."""
    index = next(i for i, value in enumerate(column) if not fits(value))
    raise _wrong(results, index, key, expected)


def _places(results: Sequence[Any], key: str, ids: np.ndarray) -> np.ndarray:
    kind = "an image" if key == "image_id" else "a category"
    expected = f"the id of {kind} of the ground truth"
    column = _column(results, key, expected)
    known = {identity: place for place, identity in enumerate(ids.tolist())}
    found = place_column(column, known)
    if found is None:
        _raise_first(results, column, key, expected, lambda value: is_id(value, known))
    return found


def _numbers(results: Sequence[Any], key: str) -> np.ndarray:
    expected = "a finite number"
    column = _column(results, key, expected)
    numbers = number_column(column)
    if numbers is None:
        _raise_first(results, column, key, expected, is_number)
    return numbers


def _boxes(results: Sequence[Any]) -> np.ndarray:
    expected = "four finite numbers [x, y, width, height] with width and height >= 0"
    column = _column(results, "bbox", expected)
    boxes = box_column(column)
    if boxes is None or (boxes[:, 2:] < 0).any():
        _raise_first(
            results, column, "bbox", expected, lambda box: is_box(box) and min(box[2:]) >= 0
        )
    return boxes


def _rles(results: Sequence[Any], sizes: np.ndarray) -> np.ndarray:
    expected = "run lengths or polygons"
    column = _column(results, "segmentation", expected)
    rles = []
    for index, (value, size) in enumerate(zip(column, sizes.tolist(), strict=True)):
        if isinstance(value, list) and value and all(map(_is_polygon, value)):
            value = to_rle(value, *size)
        elif not isinstance(value, dict) or not isinstance(value.get("counts"), (str, bytes, list)):
            raise _wrong(results, index, "segmentation", expected)
        if list(value.get("size", ())) != size:
            fitting = f"a mask of the image's height and width {size}"
            raise _wrong(results, index, "segmentation", fitting)
        if isinstance(value["counts"], list):
            if not all(type(run) is int and run >= 0 for run in value["counts"]):
                raise _wrong(results, index, "segmentation", expected)
            value = to_rle(value, *size) if sum(value["counts"]) == size[0] * size[1] else None
        rles.append(value)
    whole = np.array([rle is not None for rle in rles])
    compressed = [rle["counts"] for rle in rles if rle is not None]
    whole[whole] = run_totals(compressed) == sizes[whole].prod(axis=1)
    if not whole.all():
        index = int(np.argmin(whole))
        fitting = f"runs of {sizes[index].prod()} pixels, the image's {sizes[index].tolist()}"
        raise _wrong(results, index, "segmentation", fitting)
    return object_array(rles)


def _is_polygon(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) >= 6
        and len(value) % 2 == 0
        and number_column(value) is not None
    )


def _json_name(type_name: str) -> str:
    return {"dict": "an object", "str": "a string", "NoneType": "null"}.get(type_name, "a number")


def as_results(detections: Detections, ground_truth: GroundTruth) -> list[dict[str, Any]]:
    """Results in COCO's form, in the order of the detections; masks where there are any."""
    columns = {
        "image_id": ground_truth.image_ids[detections.images].tolist(),
        "category_id": ground_truth.category_ids[detections.categories].tolist(),
        "bbox": detections.boxes.tolist(),
        "score": detections.scores.tolist(),
    }
    if detections.rles is not None:
        columns["segmentation"] = [
            {"size": list(map(int, rle["size"])), "counts": _as_text(rle["counts"])}
            for rle in detections.rles
        ]
    rows = zip(*columns.values(), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in rows]


def _as_text(counts: str | bytes) -> str:
    return counts if isinstance(counts, str) else counts.decode()
