"""What is wrong with the content of a json, found column by column and told entry by entry."""

from __future__ import annotations

import reprlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from rs_d2.coco.columns import box_column, index_column, is_box, is_id
from rs_d2.coco.records import FREQUENCIES


class Severity(Enum):
    """What a finding means for the file."""

    STOPS = "nobody can use the file"
    STOPS_TRAINING = "the file can be evaluated on, but not trained on"
    LEFT_OUT = "the entry, or a part of it, is left out"
    NOTED = "it is used as it is; perhaps a mistake"


@dataclass(frozen=True)
class Finding:
    """Something that is wrong; as text it is one line.

    ``entry`` is "annotation 17", or "annotations[3]" where the id cannot be told. ``expected`` is
    empty where ``found`` says it all. ``kind`` names all findings of the same sort, if they are
    counted.
    """

    entry: str
    field: str
    expected: str
    found: str
    severity: Severity = Severity.STOPS
    kind: str = ""

    def __str__(self) -> str:
        told = f"expected {self.expected}, found {self.found}" if self.expected else self.found
        return ": ".join(part for part in (self.entry, self.field, told) if part)


def check_content(content: Any) -> Iterator[Finding]:
    """Check every field of a COCO or LVIS json that is read anywhere.

    A null is the same as no entry. Whole columns are looked at first; entries are gone through
    only where a column is known to have a bad one, and only as far as the caller asks.

    Args:
        content: what the json holds.

    Numbers have bounds, so that no entry can ask for all memory: ids fit into 64 bits, images have
    fewer than 2^31 pixels.

    Yields:
        Findings that stop everything or training; no entry is left out for these.
    """
    if not isinstance(content, dict):
        yield Finding("", "", "", "neither COCO nor LVIS: the top level is not an object")
        return
    broken = [*_check_tables(content)]
    yield from broken
    if broken:
        return
    images, categories = content["images"], content["categories"]
    annotations = content.get("annotations") or []
    problems = [*_check_ids(images, "images", "an integer or a string", _is_image_id)]
    problems += _check_ids(categories, "categories", "an integer", is_integer)
    yield from problems
    yield from _check_images(images)
    yield from _check_categories(categories)
    yield from _check_ids(annotations, "annotations", "an integer", is_integer)
    if not problems:
        yield from _check_annotations(annotations, images, categories)


def label(entry: Mapping[str, Any], table: str, index: int) -> str:
    """The name of an entry of "images", "categories" or "annotations" in messages."""
    identity = entry.get("id")
    if not _is_image_id(identity):
        return f"{table}[{index}]"
    text = str(identity) if _is_readable(identity) else shorten(identity)
    return f"{_SINGULAR[table]} {text}"


def show(entry: Mapping[str, Any], field: str) -> str:
    """A field's value in a few characters of one line, or that there is none."""
    return shorten(entry[field]) if field in entry else "nothing"


def shorten(value: Any) -> str:
    """A value in a few characters of one line."""
    return reprlib.repr(value).replace("\n", " ")


def printable(name: str) -> str:
    """A name as it is, or shorter, or with its line breaks and escape codes written out."""
    name = name if len(name) <= _LONGEST_NAME else f"{name[:100]}...{name[-100:]}"
    return name if name.isprintable() else repr(name)[1:-1]


def is_integer(value: Any) -> bool:
    """Whether it is an int and no bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_text(value: Any) -> bool:
    """Whether a file may be named by it: a text, no half of a character and no NUL in it."""
    if not isinstance(value, str) or not value or "\0" in value:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:  # a lone surrogate
        return False
    return True


_SINGULAR = {"images": "image", "categories": "category", "annotations": "annotation"}
_LONGEST_NAME = 1000
_LARGEST_ID = 2**63 - 1
_FLAGS = (0, 1, None)  # True is 1
_NAMES = ("file_name", "coco_url")
_MOST_PIXELS = 2**31 - 1  # run lengths are counted in 32 bits


def _check_tables(content: Mapping[str, Any]) -> Iterator[Finding]:
    for name in ("images", "categories", "annotations"):
        table = content.get(name)
        if isinstance(table, list):
            for index, entry in enumerate(table):
                if not isinstance(entry, dict):
                    yield Finding(f"{name}[{index}]", "", "an object", shorten(entry))
        elif name != "annotations" or table is not None:
            yield Finding(name, "", "a list", show(content, name))
    for name in ("images", "categories"):
        if content.get(name) == []:
            yield Finding(name, "", "", "the list is empty")


def _check_ids(
    entries: Sequence[dict], table: str, expected: str, fits: Callable[[Any], bool]
) -> Iterator[Finding]:
    ids = [entry.get("id") for entry in entries]
    wrong = [i for i, identity in enumerate(ids) if not fits(identity)]
    for index in wrong:
        yield Finding(f"{table}[{index}]", "id", expected, show(entries[index], "id"))
    huge = [i for i, identity in enumerate(ids) if is_integer(identity) and not _fits(identity)]
    for index in huge:
        told = show(entries[index], "id")
        yield Finding(f"{table}[{index}]", "id", "an integer of at most 64 bits", told)
    if wrong or huge:
        return
    if len(set(map(type, ids))) > 1:
        told = "some are integers and some are strings"
        yield Finding(f"{_SINGULAR[table]} ids", "", "", told)
    if len(set(ids)) < len(ids):
        for identity, count in Counter(ids).items():
            if count > 1:
                told = f"the id occurs {count} times"
                yield Finding(label({"id": identity}, table, 0), "", "", told)


def _check_images(images: Sequence[dict]) -> Iterator[Finding]:
    for index, image in enumerate(images):
        where = label(image, "images", index)
        for side in ("width", "height"):
            if not (is_integer(image.get(side)) and image[side] > 0):
                yield Finding(where, side, "a positive integer", show(image, side))
                break
        else:
            if image["width"] * image["height"] > _MOST_PIXELS:
                told = f"{shorten(image['width'])} x {shorten(image['height'])}"
                yield Finding(where, "width, height", "fewer than 2^31 pixels", told)
        for name in ("neg_category_ids", "not_exhaustive_category_ids"):
            listed = image.get(name)
            if listed is not None and not (_is_integers(listed) and all(map(_fits, listed))):
                yield Finding(where, name, "a list of integers", show(image, name))
        for name in [name for name in _NAMES if image.get(name)] or ["file_name"]:
            if not is_text(image.get(name)):
                expected, found = "the name of a file", show(image, name)
                yield Finding(where, name, expected, found, Severity.STOPS_TRAINING)


def _check_categories(categories: Sequence[dict]) -> Iterator[Finding]:
    for index, category in enumerate(categories):
        where = label(category, "categories", index)
        if not is_text(category.get("name")):
            found = show(category, "name")
            yield Finding(where, "name", "a name", found, Severity.STOPS_TRAINING)
        group = category.get("frequency")
        if group is not None and group not in FREQUENCIES:
            yield Finding(where, "frequency", "r, c or f", show(category, "frequency"))


def _check_annotations(
    annotations: Sequence[dict], images: Sequence[dict], categories: Sequence[dict]
) -> Iterator[Finding]:
    for field, owners, expected in (
        ("image_id", images, "the id of an image"),
        ("category_id", categories, "the id of a category"),
    ):
        known = {owner["id"]: index for index, owner in enumerate(owners)}
        column = [annotation.get(field) for annotation in annotations]
        if index_column(column, known) is None:
            fits = [is_id(value, known) for value in column]
            yield from _misfits(annotations, field, expected, fits)
    column = [annotation.get("bbox") for annotation in annotations]
    if box_column(column) is None:
        fits = map(is_box, column)
        yield from _misfits(annotations, "bbox", "four numbers [x, y, width, height]", fits)
    for field in ("iscrowd", "ignore"):
        fits = [a.get(field) in _FLAGS for a in annotations]
        yield from _misfits(annotations, field, "0 or 1", fits)
    fits = (not a.get("segmentation") or _is_mask(a["segmentation"]) for a in annotations)
    yield from _misfits(annotations, "segmentation", "polygons or a run-length mask", fits)


def _misfits(
    annotations: Sequence[dict], field: str, expected: str, fits: Iterator[bool] | list[bool]
) -> Iterator[Finding]:
    """A finding for each annotation that does not fit."""
    for index, (annotation, good) in enumerate(zip(annotations, fits, strict=True)):
        if not good:
            where = label(annotation, "annotations", index)
            yield Finding(where, field, expected, show(annotation, field))


def _is_image_id(value: Any) -> bool:
    return is_integer(value) or is_text(value)


def _is_readable(identity: int | str) -> bool:
    """Whether an id can stand in a message as it is."""
    if isinstance(identity, int):
        return _fits(identity)
    return len(identity) <= 60 and identity.isprintable()


def _fits(number: int) -> bool:
    return -_LARGEST_ID <= number <= _LARGEST_ID


def _is_integers(value: Any) -> bool:
    return isinstance(value, list) and set(map(type, value)) <= {int}


def _is_mask(value: Any) -> bool:
    if isinstance(value, dict):
        counts = value.get("counts")
        return _is_integers(value.get("size")) and (is_text(counts) or _is_integers(counts))
    return isinstance(value, list) and all(map(_is_piece, value))


def _is_piece(value: Any) -> bool:
    """A list of numbers, told by its sum: files may hold hundreds of millions of coordinates."""
    try:
        return isinstance(value, list) and type(sum(value)) in (int, float)
    except (TypeError, OverflowError):
        return False
