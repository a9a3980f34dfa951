"""What can be used in a json, but is perhaps a mistake."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from rs_d2.coco.checks import Finding, Severity, label, shorten

_EXTREME = 20  # times longer than wide
_OVER = 1.0  # pixels that rounding explains


def note_oddities(content: Mapping[str, Any], annotations: Sequence[dict]) -> Iterator[Finding]:
    """Oddities of a content that ``check_content`` finds nothing wrong with.

    Args:
        content: of the json.
        annotations: those of it that are used, see ``clean_content``.

    Yields:
        Findings of severity ``NOTED``: classes without objects, names that occur twice, images of
        an extreme aspect, images without objects, boxes over the border, lists of LVIS that
        contradict the annotations.
    """
    images, categories = content["images"], content["categories"]
    yield from _note_categories(categories, annotations)
    annotated = {annotation["image_id"] for annotation in annotations}
    for index, image in enumerate(images):
        where, sides = label(image, "images", index), (image["width"], image["height"])
        if max(sides) > _EXTREME * min(sides):
            told = f"{sides[0]} x {sides[1]} pixels"
            yield _note(where, told, "images more than 20 times longer than wide")
        if image["id"] not in annotated:
            yield _note(where, "no object that is used", "images without objects")
    yield from _note_borders(images, annotations)
    yield from _note_lists(images, categories, annotations)


def _note(entry: str, found: str, kind: str, field: str = "") -> Finding:
    return Finding(entry, field, "", found, Severity.NOTED, kind)


def _note_categories(categories: Sequence[dict], annotations: Sequence[dict]) -> Iterator[Finding]:
    used = {annotation["category_id"] for annotation in annotations}
    names = Counter(shorten(category.get("name")) for category in categories)
    for index, category in enumerate(categories):
        where, name = label(category, "categories", index), shorten(category.get("name"))
        if category["id"] not in used:
            yield _note(where, f"no image has it ({name})", "categories without images")
        if names[name] > 1:
            yield _note(where, f"{names[name]} have the name {name}", "names that occur twice")


def _note_borders(images: Sequence[dict], annotations: Sequence[dict]) -> Iterator[Finding]:
    sizes = {image["id"]: (image["width"], image["height"]) for image in images}
    boxes = np.array([a["bbox"] for a in annotations], dtype=float).reshape(-1, 4)
    size = np.array([sizes[a["image_id"]] for a in annotations], dtype=float).reshape(-1, 2)
    corner = boxes[:, :2] + boxes[:, 2:]
    over = (boxes[:, :2] < -_OVER).any(axis=1) | (corner > size + _OVER).any(axis=1)
    for index in np.flatnonzero(over).tolist():
        found, kind = str(annotations[index]["bbox"]), "boxes over the border, which are clipped"
        yield _note(f"annotation {annotations[index]['id']}", found, kind, "bbox")


def _note_lists(
    images: Sequence[dict], categories: Sequence[dict], annotations: Sequence[dict]
) -> Iterator[Finding]:
    known = {category["id"] for category in categories}
    present: dict[Any, set[int]] = defaultdict(set)
    for annotation in annotations:
        present[annotation["image_id"]].add(annotation["category_id"])
    for index, image in enumerate(images):
        where = label(image, "images", index)
        absent = set(image.get("neg_category_ids") or ())
        partial = set(image.get("not_exhaustive_category_ids") or ())
        for field, ids, kind in (
            ("neg_category_ids", absent & present[image["id"]], "categories absent and annotated"),
            ("neg_category_ids", absent & partial, "categories absent and not exhaustive"),
            ("not_exhaustive_category_ids", partial - known, "unknown categories in lists"),
            ("neg_category_ids", absent - known, "unknown categories in lists"),
        ):
            if ids:
                yield _note(where, f"{kind}: {sorted(ids)[:5]}", kind, field)
