"""The content of a COCO or LVIS json as columns, checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, NoReturn

import numpy as np
from pycocotools import mask as mask_util

from rs_d2.coco.checks import EntryError, expect, is_integer, shorten, show
from rs_d2.coco.columns import (
    box_column,
    is_box,
    is_id,
    is_number,
    number_column,
    place_column,
)
from rs_d2.coco.records import FREQUENCIES, STYLES, GroundTruth, places, to_rle
from rs_d2.utils.errors import UserError


def ground_truth_from(content: Any, style: str, source: str = "ground truth") -> GroundTruth:
    """Columns of a COCO or LVIS json.

    Nothing is left out: what the official evaluators count is counted. A missing `area` is the
    mask's, or the box's. In the LVIS form, without any `neg_category_ids` every class counts as
    annotated in every image. Of the flags of an object the COCO form reads `iscrowd`, the LVIS form
    `ignore`, as the official evaluators do.

    Args:
        content: what the json holds.
        style: "coco" or "lvis".
        source: its name, for messages.

    Raises:
        UserError: A field is missing or of a wrong type, an id occurs twice, an annotation names an
            unknown image or category; names the entry.
    """
    if style not in STYLES:
        raise UserError(f"'{style}' is not one of {', '.join(STYLES)}")
    try:
        return _read(content, style)
    except EntryError as problem:
        raise UserError(f"{source}: {problem}") from None


def _read(content: Any, style: str) -> GroundTruth:
    _check(content)
    images = sorted(content["images"], key=lambda image: image["id"])
    categories = sorted(content["categories"], key=lambda category: category["id"])
    annotations = content["annotations"]
    image_ids = np.array([image["id"] for image in images])
    category_ids = np.array([category["id"] for category in categories])
    object_images = _known_places(annotations, "image_id", image_ids)
    object_categories = _known_places(annotations, "category_id", category_ids)
    lvis = style == "lvis"
    flag = "ignore" if lvis else "iscrowd"
    ignored = np.array([bool(a.get(flag)) for a in annotations], dtype=bool)
    sizes = np.array([[image["height"], image["width"]] for image in images])
    pairs = object_images * len(categories) + object_categories
    known, not_exhaustive = None, np.zeros(0, dtype=np.int64)
    if lvis:
        known, not_exhaustive = _federation(images, category_ids, pairs)
    return GroundTruth(
        style=style,
        image_ids=image_ids,
        image_sizes=sizes,
        file_names=[_file_name(image) for image in images],
        category_ids=category_ids,
        names=[str(category.get("name", category["id"])) for category in categories],
        frequencies=np.array([category.get("frequency") or "" for category in categories]),
        images=object_images,
        categories=object_categories,
        boxes=_boxes(annotations),
        areas=_areas(annotations, sizes[object_images].tolist()),
        crowd=np.zeros_like(ignored) if lvis else ignored,
        ignored=ignored,
        segmentations=[a.get("segmentation") or None for a in annotations],
        known=known,
        not_exhaustive=not_exhaustive,
    )


def _check(content: Any) -> None:
    if not isinstance(content, dict):
        raise EntryError("neither COCO nor LVIS: the top level is not an object")
    for name in ("images", "categories", "annotations"):
        table = content.get(name)
        if not isinstance(table, list):
            raise EntryError(f"{name}: expected a list, found {show(content, name)}")
        for index, entry in enumerate(table):
            if not isinstance(entry, dict):
                raise EntryError(f"{name}[{index}]: expected an object, found {shorten(entry)}")
    for name in ("images", "categories"):
        if not content[name]:
            raise EntryError(f"{name}: the list is empty")
    for index, image in enumerate(content["images"]):
        expect(image, "id", f"images[{index}]", "an integer or a string", _is_id)
        for side in ("height", "width"):
            expect(image, side, f"image {image['id']}", "a positive integer", _is_size)
    for index, category in enumerate(content["categories"]):
        expect(category, "id", f"categories[{index}]", "an integer", is_integer)
        group = category.get("frequency")
        if group is not None and group not in FREQUENCIES:
            expect(category, "frequency", f"category {category['id']}", "r, c or f", lambda _: 0)
    _check_unique(content["images"], "image")
    _check_unique(content["categories"], "category")


def _check_unique(entries: Sequence[dict], kind: str) -> None:
    seen: set[Any] = set()
    for entry in entries:
        if entry["id"] in seen:
            raise EntryError(f"{kind} {entry['id']}: the id occurs twice")
        seen.add(entry["id"])
    if len({isinstance(identity, str) for identity in seen}) > 1:
        raise EntryError(f"{kind} ids: some are integers and some are strings")


def _known_places(annotations: Sequence[dict], key: str, ids: np.ndarray) -> np.ndarray:
    known = {identity: place for place, identity in enumerate(ids.tolist())}
    found = place_column([a.get(key) for a in annotations], known)
    if found is None:
        kind = "an image" if key == "image_id" else "a category"
        _raise_first(annotations, key, f"the id of {kind}", lambda value: is_id(value, known))
    return found


def _boxes(annotations: Sequence[dict]) -> np.ndarray:
    boxes = box_column([a.get("bbox") for a in annotations])
    if boxes is None:
        _raise_first(annotations, "bbox", "four finite numbers [x, y, width, height]", is_box)
    return boxes


def _raise_first(
    annotations: Sequence[dict], key: str, expected: str, fits: Callable[[Any], bool]
) -> NoReturn:
    """Name the first annotation whose value does not fit, where there is one."""
    index = next(i for i, a in enumerate(annotations) if not fits(a.get(key)))
    where = f"annotation {annotations[index].get('id', f'number {index}')}"
    raise EntryError(f"{where}: {key}: expected {expected}, found {show(annotations[index], key)}")


def _federation(
    images: Sequence[dict], category_ids: np.ndarray, pairs: np.ndarray
) -> tuple[np.ndarray | None, np.ndarray]:
    """What is known of which class, and where not every object is annotated."""
    not_exhaustive = _listed(images, "not_exhaustive_category_ids", category_ids)
    if not any("neg_category_ids" in image for image in images):
        return None, not_exhaustive
    negative = _listed(images, "neg_category_ids", category_ids)
    return np.unique(np.concatenate([negative, pairs])), not_exhaustive


def _listed(images: Sequence[dict], key: str, category_ids: np.ndarray) -> np.ndarray:
    listed = [image.get(key) or [] for image in images]
    for image, ids in zip(images, listed, strict=True):
        if not isinstance(ids, list) or not all(map(is_integer, ids)):
            expect(image, key, f"image {image['id']}", "a list of integers", lambda _: 0)
    owners = np.repeat(np.arange(len(images)), [len(ids) for ids in listed])
    categories = places(category_ids, np.array([*chain.from_iterable(listed)], dtype=np.int64))
    inside = categories >= 0  # lists of a full set remain in a subset with fewer classes
    return np.unique(owners[inside] * len(category_ids) + categories[inside])


def _file_name(image: dict) -> str:
    return str(image.get("file_name") or image.get("coco_url") or "")


def _areas(annotations: Sequence[dict], sizes: Sequence[list[int]]) -> np.ndarray:
    areas = number_column([a.get("area") for a in annotations])
    if areas is not None:
        return areas
    rows = zip(annotations, sizes, strict=True)
    return np.array([_area(annotation, size) for annotation, size in rows], dtype=float)


def _area(annotation: dict, size: list[int]) -> float:
    if is_number(annotation.get("area")):
        return float(annotation["area"])
    if annotation.get("segmentation"):
        return float(mask_util.area(to_rle(annotation["segmentation"], *size)))
    return float(annotation["bbox"][2]) * float(annotation["bbox"][3])


def _is_id(value: Any) -> bool:
    return is_integer(value) or isinstance(value, str)


def _is_size(value: Any) -> bool:
    return is_integer(value) and value > 0
