"""Read and check a COCO or LVIS json; plain Python, usable without Detectron2.

What makes a file ambiguous (a wrong type, an id that occurs twice or does not exist) is an error;
a single annotation that cannot be used is left out and counted, so that training is not lost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rs_d2.coco.checks import EntryError, expect, is_integer, shorten, show
from rs_d2.coco.cleaning import LeftOut, clean_annotations, mostly_masks
from rs_d2.coco.image_files import read_json
from rs_d2.utils.errors import UserError

FREQUENCIES = ("r", "c", "f")
_RARE, _COMMON = 10, 100  # LVIS: rare classes are in up to 10 training images, common in up to 100


@dataclass(frozen=True)
class AnnotationFile:
    """A checked json: what can be trained and evaluated on.

    ``content`` is the json as it was read, ``format`` is "coco" or "lvis", ``images`` and
    ``categories`` are sorted by id, ``annotations`` are the usable ones in the file's order.
    ``has_masks``: all of them have a segmentation. ``left_out``: what was dropped, in one line;
    empty if nothing was.
    """

    path: Path
    content: dict[str, Any]
    format: str
    images: list[dict]
    annotations: list[dict]
    categories: list[dict]
    has_masks: bool
    left_out: str


def read_annotations(path: str | Path) -> AnnotationFile:
    """Read a COCO or LVIS json (`.json` or `.json.gz`) and check every field that is used.

    It is LVIS if an image has `neg_category_ids` or a category has `frequency`. A file in which at
    most half of the annotations have a segmentation counts as boxes only. `ignore` in an
    annotation means the same as `iscrowd`.

    Raises:
        UserError: The file is missing, not json, has a field of a wrong type, an id twice, an
            annotation of an unknown image or category, or nothing to train or evaluate on.
    """
    path = Path(path)
    content = read_json(path)
    try:
        return _check(path, content)
    except EntryError as problem:
        raise UserError(f"{path}: {problem}") from None


def check_same_categories(file: AnnotationFile, ids: Sequence[int], names: Sequence[str]) -> None:
    """Make sure that a file's categories are among those a model is trained on.

    Args:
        file: the file to check; it may lack categories.
        ids: the training file's category ids.
        names: their names.

    Raises:
        UserError: An id is unknown or has another name; names the first such category.
    """
    known = dict(zip(ids, names, strict=True))
    for category in file.categories:
        identity, name = category["id"], category["name"]
        if known.get(identity) != name:
            other = f"is '{known[identity]}'" if identity in known else "does not exist"
            raise UserError(
                f"{file.path}: category {identity} '{name}' {other} in the training set"
            )


def category_frequencies(file: AnnotationFile) -> dict[int, str]:
    """LVIS frequency group of each category: "r", "c" or "f".

    The file's own `frequency`; where a category has none, by the file's number of images with it
    (up to 10, up to 100, more). Rare if it has none.
    """
    pairs = {(a["image_id"], a["category_id"]) for a in file.annotations}
    counts = Counter(category for _, category in pairs)
    return {c["id"]: c.get("frequency") or _group(counts[c["id"]]) for c in file.categories}


def _group(num_images: int) -> str:
    return "r" if num_images <= _RARE else "c" if num_images <= _COMMON else "f"


def _check(path: Path, content: Any) -> AnnotationFile:
    _check_tables(content)
    images, categories = content["images"], content["categories"]
    for index, image in enumerate(images):
        _check_image(image, f"images[{index}]")
    for index, category in enumerate(categories):
        _check_category(category, f"categories[{index}]")
    _check_ids(images, "image")
    _check_ids(categories, "category")
    sizes = {image["id"]: (image["width"], image["height"]) for image in images}
    known = {category["id"] for category in categories}
    for index, annotation in enumerate(content["annotations"]):
        _check_annotation(annotation, index, sizes, known)
    _check_ids(content["annotations"], "annotation")
    annotations = [_as_crowd(a) if a.get("ignore") else a for a in content["annotations"]]
    has_masks, left_out = mostly_masks(annotations), LeftOut()
    annotations = clean_annotations(annotations, sizes, has_masks, left_out)
    if all(a.get("iscrowd") for a in annotations):
        extra = f" ({left_out} left out)" if str(left_out) else ""
        raise EntryError(f"annotations: nothing to train or evaluate on{extra}")
    return AnnotationFile(
        path=path,
        content=content,
        format="lvis" if _is_lvis(images, categories) else "coco",
        images=sorted(images, key=lambda image: image["id"]),
        annotations=annotations,
        categories=sorted(categories, key=lambda category: category["id"]),
        has_masks=has_masks,
        left_out=str(left_out),
    )


def _is_lvis(images: list[dict], categories: list[dict]) -> bool:
    federated = any("neg_category_ids" in image for image in images)
    return federated or any("frequency" in category for category in categories)


def _as_crowd(annotation: dict) -> dict:
    return {**annotation, "iscrowd": 1}


def _check_tables(content: Any) -> None:
    if not isinstance(content, dict):
        raise EntryError("neither COCO nor LVIS: the top level is not an object")
    for name in ("images", "annotations", "categories"):
        table = content.get(name)
        if not isinstance(table, list):
            raise EntryError(f"{name}: expected a list, found {show(content, name)}")
        for index, entry in enumerate(table):
            if not isinstance(entry, dict):
                raise EntryError(f"{name}[{index}]: expected an object, found {shorten(entry)}")
    for name in ("images", "categories"):
        if not content[name]:
            raise EntryError(f"{name}: the list is empty")


def _check_image(image: dict, where: str) -> None:
    expect(image, "id", where, "an integer or a string", lambda v: is_integer(v) or _is_text(v))
    where = f"image {image['id']}"
    for side in ("width", "height"):
        expect(image, side, where, "a positive integer", lambda v: is_integer(v) and v > 0)
    name = "coco_url" if image.get("coco_url") and not image.get("file_name") else "file_name"
    expect(image, name, where, "the name of a file", _is_text)
    for ids in ("neg_category_ids", "not_exhaustive_category_ids"):
        if ids in image:
            expect(image, ids, where, "a list of integers", _is_integers)


def _check_category(category: dict, where: str) -> None:
    expect(category, "id", where, "an integer", is_integer)
    where = f"category {category['id']}"
    expect(category, "name", where, "a name", _is_text)
    if "frequency" in category:
        expect(category, "frequency", where, "r, c or f", lambda v: v in FREQUENCIES)


def _check_annotation(annotation: dict, index: int, images: dict, categories: set) -> None:
    expect(annotation, "id", f"annotations[{index}]", "an integer", is_integer)
    where = f"annotation {annotation['id']}"
    for name, known in (("image_id", images), ("category_id", categories)):
        kind = name.removesuffix("_id")
        expect(
            annotation,
            name,
            where,
            f"the id of {'an' if kind == 'image' else 'a'} {kind}",
            lambda v, known=known: (is_integer(v) or _is_text(v)) and v in known,
        )
    expect(annotation, "bbox", where, "four numbers [x, y, width, height]", _is_box)
    if annotation.get("segmentation"):
        expect(annotation, "segmentation", where, "polygons or a run-length mask", _is_mask)


def _check_ids(entries: list[dict], kind: str) -> None:
    ids = [entry["id"] for entry in entries]
    if len(set(map(type, ids))) > 1:
        raise EntryError(f"{kind} ids: some are integers and some are strings")
    repeated = next((i for i, count in Counter(ids).items() if count > 1), None)
    if repeated is not None:
        raise EntryError(f"{kind} {repeated}: the id occurs {ids.count(repeated)} times")


def _is_integers(value: Any) -> bool:
    return isinstance(value, list) and all(map(is_integer, value))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _is_box(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(_is_number, value))


def _is_mask(value: Any) -> bool:
    if isinstance(value, dict):
        counts = value.get("counts")
        return _is_integers(value.get("size")) and (_is_text(counts) or _is_integers(counts))
    return isinstance(value, list) and all(map(_is_piece, value))


def _is_piece(value: Any) -> bool:
    """A list of numbers, told by its sum: files may hold hundreds of millions of coordinates."""
    try:
        return isinstance(value, list) and _is_number(sum(value))
    except (TypeError, OverflowError):
        return False
