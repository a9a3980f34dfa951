"""Fill in what evaluators read and users' files often lack."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pycocotools import mask as mask_util

from rs_d2.coco import prepared
from rs_d2.coco.reading import AnnotationFile, category_frequencies, keep, remember
from rs_d2.coco.rle import to_rle
from rs_d2.utils.atomic_write import atomic_write


def evaluation_json(file: AnnotationFile, train_categories: Sequence[dict]) -> Path:
    """A json with the annotations of a checked file that any evaluator can read.

    Args:
        file: a checked file.
        train_categories: categories the model knows; those the file lacks are added.

    Returns:
        The file itself where it is complete, as official ones are; else a completed copy in the
        user's cache folder, which counts as read and checked in this process.
    """
    content = completed(file, train_categories)
    if content == file.content and file.path.suffix != ".gz":
        return file.path
    name = f"{file.path.name.split('.')[0]}-{prepared.digest(file.stamp, train_categories)[:16]}"
    path = prepared.folder() / f"{name}.json"
    is_new = not path.exists()
    if is_new:
        with atomic_write(path) as written:
            written.write(json.dumps(content).encode())
    copy = replace(
        file,
        path=path,
        stamp=prepared.stamp(path),
        content=content,
        images=sorted(content["images"], key=lambda image: image["id"]),
        annotations=content["annotations"],
        categories=sorted(content["categories"], key=lambda category: category["id"]),
        left_out="",
    )
    if is_new:
        keep(copy)
    remember(copy)
    return path


def completed(file: AnnotationFile, train_categories: Sequence[dict]) -> dict[str, Any]:
    """The file's content with every field that evaluation reads; nothing present is changed.

    Boxes and masks are the cleaned ones. Annotations are numbered anew from 1 if an id is 0, which
    the evaluators take for "not matched". An LVIS file without any `neg_category_ids` counts as
    annotated throughout: every category without an object in an image is absent from it. Crowds,
    which LVIS does not have, are ignored there and make their category not exhaustive.

    Args:
        file: a checked file.
        train_categories: see ``evaluation_json``.
    """
    lvis = file.format == "lvis"
    sizes = {image["id"]: (image["height"], image["width"]) for image in file.images}
    renumber = any(annotation["id"] == 0 for annotation in file.annotations)
    annotations = []
    for index, annotation in enumerate(file.annotations):
        extra: dict[str, Any] = {"id": index + 1} if renumber else {}
        if lvis and annotation.get("iscrowd"):
            extra["ignore"] = 1
        if not lvis and annotation.get("iscrowd") is None:
            extra["iscrowd"] = 0
        area = object_area(annotation, *sizes[annotation["image_id"]])
        if area != annotation.get("area"):
            extra["area"] = area
        annotations.append({**annotation, **extra} if extra else annotation)
    categories = add_categories(file.content["categories"], train_categories)
    content = {**file.content, "annotations": annotations, "categories": categories}
    if lvis:
        frequencies = category_frequencies(file)
        frequencies |= {c["id"]: c["frequency"] for c in train_categories if c.get("frequency")}
        content["categories"] = [
            c if c.get("frequency") else {**c, "frequency": frequencies.get(c["id"], "r")}
            for c in categories
        ]
        content["images"] = _federated_images(file, [c["id"] for c in categories])
    return content


def add_categories(categories: Sequence[dict], wanted: Sequence[dict]) -> list[dict]:
    """The categories, and the wanted ones whose id is not among them."""
    present = {category["id"] for category in categories}
    return [*categories, *(category for category in wanted if category["id"] not in present)]


def object_area(annotation: dict, height: int, width: int) -> float:
    """Pixels of an object: its `area` if that is above 0, else of the mask, else of the box."""
    area = annotation.get("area")
    if type(area) in (int, float) and 0 < area <= sys.float_info.max:
        return float(area)
    if annotation.get("segmentation"):
        return float(mask_util.area(to_rle(annotation["segmentation"], height, width)))
    return float(annotation["bbox"][2]) * float(annotation["bbox"][3])


def crowd_pairs(annotations: Iterable[dict]) -> set[tuple[Any, int]]:
    """(image, category) with a crowd, in which LVIS cannot expect every object to be annotated.

    `ignore` alone, which LVIS knows, says nothing about other objects.
    """
    return {
        (annotation["image_id"], annotation["category_id"])
        for annotation in annotations
        if annotation.get("iscrowd") and not annotation.get("ignore")
    }


def _federated_images(file: AnnotationFile, category_ids: list[int]) -> list[dict]:
    federated = any(image.get("neg_category_ids") is not None for image in file.images)
    present: dict[Any, set[int]] = defaultdict(set)
    for annotation in file.annotations:
        present[annotation["image_id"]].add(annotation["category_id"])
    crowded: dict[Any, set[int]] = defaultdict(set)
    for image_id, category_id in crowd_pairs(file.annotations):
        crowded[image_id].add(category_id)
    images = []
    for image in file.content["images"]:
        absent = image.get("neg_category_ids")
        if absent is None:
            absent = [] if federated else [i for i in category_ids if i not in present[image["id"]]]
        partial = image.get("not_exhaustive_category_ids") or []
        partial = partial + sorted(crowded[image["id"]] - set(partial))
        lists = {"neg_category_ids": absent, "not_exhaustive_category_ids": partial}
        images.append({**image, **lists})
    return images
