"""The user's own COCO or LVIS json as a Detectron2 data set."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rs_d2.coco.fill_missing import evaluation_json
from rs_d2.coco.image_files import check_image_sizes, locate_images
from rs_d2.coco.reading import (
    AnnotationFile,
    category_frequencies,
    check_same_categories,
    read_annotations,
)
from rs_d2.coco.rle import to_rle

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CustomDataset:
    """What the json of a registered data set holds.

    ``format`` is "coco" or "lvis". ``category_ids``, ``thing_classes`` (their names) and, in the
    LVIS form, ``frequencies`` ("r", "c" or "f"; else None) are those of the training file, sorted
    by id. ``has_masks``: every object has a mask. ``left_out``: annotations that were dropped, in
    one line; empty if none was.
    """

    name: str
    format: str
    thing_classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    frequencies: tuple[str, ...] | None
    has_masks: bool
    num_images: int
    num_instances: int
    left_out: str


def register_custom(
    name: str,
    json_file: str,
    image_root: str,
    *,
    reference: CustomDataset | None = None,
    absolute_paths: bool = False,
) -> CustomDataset:
    """Check a COCO or LVIS json and register it with Detectron2's catalogs; a name may be reused.

    The metadata has `json_file` (completed for evaluation where needed, so not always the given
    one), `image_root`, `evaluator_type`, `thing_classes`, `thing_dataset_id_to_contiguous_id`,
    `has_masks`, `num_images` and, in the LVIS form, `frequencies`.

    Args:
        name: name for the catalogs.
        json_file: `.json` or `.json.gz`.
        image_root: folder that `file_name` (or the end of `coco_url`) is relative to.
        reference: the training set of a validation set; its categories are used, and this file's
            must be among them.
        absolute_paths: a `file_name` may be absolute; else it must stay below ``image_root``, which
            "../" never leaves.

    Raises:
        UserError: The file or an image is missing, the file is broken, an image has another size
            than stated, or the categories are not the training set's.
    """
    from detectron2.data import DatasetCatalog, MetadataCatalog

    file = read_annotations(json_file)
    root = Path(image_root)
    paths = locate_images(file.images, root, file.path, absolute_paths=absolute_paths)
    check_image_sizes(file.images, paths, file.path)
    if file.left_out:
        _logger.warning("%s: left out %s", file.path, file.left_out)
    if reference is not None:
        check_same_categories(file, reference.category_ids, reference.thing_classes)
    dataset = _describe(name, file, reference)
    id_map = {category: index for index, category in enumerate(dataset.category_ids)}
    metadata = {
        "json_file": str(evaluation_json(file, _categories(dataset))),
        "image_root": image_root,
        "evaluator_type": file.format,
        "thing_classes": list(dataset.thing_classes),
        "thing_dataset_id_to_contiguous_id": id_map,
        "has_masks": file.has_masks,
        "num_images": dataset.num_images,
    }
    if dataset.frequencies is not None:
        metadata["frequencies"] = list(dataset.frequencies)
    if name in DatasetCatalog:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    DatasetCatalog.register(name, lambda: dataset_dicts(read_annotations(json_file), paths, id_map))
    MetadataCatalog.get(name).set(**metadata)
    return dataset


def dataset_dicts(
    file: AnnotationFile, paths: Mapping[Any, str], id_map: Mapping[int, int]
) -> list[dict[str, Any]]:
    """Detectron2's standard dicts of an annotation file, sorted by image id.

    Coordinates are floats, because Detectron2 scales integers in place and so truncates them.

    Args:
        file: a checked file; it is not changed, and shares nothing with the dicts.
        paths: file by image id.
        id_map: contiguous class index by category id.
    """
    from detectron2.structures import BoxMode

    dicts = {}
    for image in file.images:
        dicts[image["id"]] = {
            "file_name": paths[image["id"]],
            "image_id": image["id"],
            "height": image["height"],
            "width": image["width"],
            "annotations": [],
        }
        if file.format == "lvis":  # original category ids, as in Detectron2's own LVIS sets
            for key in ("neg_category_ids", "not_exhaustive_category_ids"):
                dicts[image["id"]][key] = [*(image.get(key) or [])]
    for annotation in file.annotations:
        item = {
            "bbox": [float(number) for number in annotation["bbox"]],
            "bbox_mode": BoxMode.XYWH_ABS,
            "category_id": id_map[annotation["category_id"]],
            "iscrowd": int(bool(annotation.get("iscrowd"))),
        }
        segmentation = annotation.get("segmentation")
        if isinstance(segmentation, list) and segmentation:
            item["segmentation"] = [[float(number) for number in p] for p in segmentation]
        elif segmentation:
            item["segmentation"] = {**to_rle(segmentation, *segmentation["size"])}
        dicts[annotation["image_id"]]["annotations"].append(item)
    return list(dicts.values())


def _describe(name: str, file: AnnotationFile, reference: CustomDataset | None) -> CustomDataset:
    ids = tuple(category["id"] for category in file.categories)
    classes = tuple(category["name"] for category in file.categories)
    groups = tuple(category_frequencies(file).values()) if file.format == "lvis" else None
    if reference is not None:
        ids, classes = reference.category_ids, reference.thing_classes
        groups = None if groups is None else reference.frequencies
    return CustomDataset(
        name=name,
        format=file.format,
        thing_classes=classes,
        category_ids=ids,
        frequencies=groups,
        has_masks=file.has_masks,
        num_images=len(file.images),
        num_instances=sum(not a.get("iscrowd") for a in file.annotations),
        left_out=file.left_out,
    )


def _categories(dataset: CustomDataset) -> list[dict[str, Any]]:
    categories = [
        {"id": identity, "name": name}
        for identity, name in zip(dataset.category_ids, dataset.thing_classes, strict=True)
    ]
    if dataset.frequencies is not None:
        for category, group in zip(categories, dataset.frequencies, strict=True):
            category["frequency"] = group
    return categories
