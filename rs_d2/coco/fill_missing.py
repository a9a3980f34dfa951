"""What the evaluators need and users' files often lack; plain Python and pycocotools."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rs_d2.coco.image_files import write_cached_json
from rs_d2.coco.reading import AnnotationFile, category_frequencies


def evaluation_json(file: AnnotationFile, train_categories: Sequence[dict]) -> Path:
    """A json with the annotations of a checked file that pycocotools or lvis can evaluate.

    Args:
        file: a checked file.
        train_categories: categories the model knows; those the file lacks are added.

    Returns:
        The file itself where it is complete, as official ones are; else a completed copy in the
        user's cache folder.
    """
    content = completed(file, train_categories)
    if content == file.content and file.path.suffix != ".gz":
        return file.path
    return write_cached_json(content, file.path.name.split(".")[0])


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
    sizes = {image["id"]: (image["width"], image["height"]) for image in file.images}
    renumber = any(annotation["id"] == 0 for annotation in file.annotations)
    annotations = []
    for index, annotation in enumerate(file.annotations):
        extra: dict[str, Any] = {"id": index + 1} if renumber else {}
        if lvis and annotation.get("iscrowd"):
            extra["ignore"] = 1
        if not lvis and "iscrowd" not in annotation:
            extra["iscrowd"] = 0
        if not _is_area(annotation.get("area")):
            extra["area"] = _area(annotation, *sizes[annotation["image_id"]], file.has_masks)
        annotations.append({**annotation, **extra} if extra else annotation)
    content = {**file.content, "annotations": annotations}
    content["categories"] = _all_categories(file, train_categories)
    if lvis:
        ids = [category["id"] for category in content["categories"]]
        content["images"] = _federated_images(file, ids)
    return content


def _all_categories(file: AnnotationFile, train_categories: Sequence[dict]) -> list[dict]:
    present = {category["id"] for category in file.categories}
    added = [category for category in train_categories if category["id"] not in present]
    categories = [*file.content["categories"], *added]
    if file.format == "lvis":
        known = category_frequencies(file)
        trained = {c["id"]: c["frequency"] for c in train_categories if "frequency" in c}
        for index, category in enumerate(categories):
            if "frequency" not in category:
                group = trained.get(category["id"]) or known.get(category["id"], "r")
                categories[index] = {**category, "frequency": group}
    return categories


def _federated_images(file: AnnotationFile, category_ids: list[int]) -> list[dict]:
    federated = any("neg_category_ids" in image for image in file.images)
    present: dict[Any, set[int]] = defaultdict(set)
    crowded: dict[Any, set[int]] = defaultdict(set)
    for annotation in file.annotations:
        present[annotation["image_id"]].add(annotation["category_id"])
        if annotation.get("iscrowd"):
            crowded[annotation["image_id"]].add(annotation["category_id"])
    images = []
    for image in file.content["images"]:
        absent = [] if federated else [i for i in category_ids if i not in present[image["id"]]]
        partial = image.get("not_exhaustive_category_ids", [])
        partial = partial + sorted(crowded[image["id"]] - set(partial))
        image = {"neg_category_ids": absent, **image, "not_exhaustive_category_ids": partial}
        images.append(image)
    return images


def _is_area(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value) and value > 0


def _area(annotation: dict, width: int, height: int, has_masks: bool) -> float:
    """Pixels of the mask; of the box, where there are no masks."""
    if not has_masks:
        return float(annotation["bbox"][2] * annotation["bbox"][3])
    from pycocotools import mask as mask_util

    segmentation = annotation["segmentation"]
    if isinstance(segmentation, list):
        segmentation = mask_util.merge(mask_util.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        segmentation = mask_util.frPyObjects(segmentation, height, width)
    return float(mask_util.area(segmentation))
