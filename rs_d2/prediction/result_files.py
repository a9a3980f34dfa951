"""Detections as json in COCO's form, written while they are found."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from detectron2.structures import Instances

from rs_d2.coco.image_files import file_name
from rs_d2.coco.rle import encode_mask
from rs_d2.prediction.predictor import Predictor
from rs_d2.utils.atomic_write import atomic_write, write_json
from rs_d2.utils.errors import UserError
from rs_d2.utils.folders import make_folder

RESULTS, INDEX = "predictions.json", "images.json"


class Ids(NamedTuple):
    """Ids for the json: of the images by position (None: 1, 2, ...) and of the classes."""

    categories: tuple[int, ...]
    images: tuple[Any, ...] | None = None

    def image(self, position: int) -> Any:
        """The id of an image."""
        return position + 1 if self.images is None else self.images[position]


def default_ids(predictor: Predictor) -> Ids:
    """Images count from 1; classes have the ids of the training set, or count from 1, too."""
    id_map = predictor.metadata.get("thing_dataset_id_to_contiguous_id")
    if id_map is None:
        return Ids(tuple(range(1, len(predictor.class_names) + 1)))
    by_class = {index: identity for identity, index in id_map.items()}
    return Ids(tuple(by_class[index] for index in range(len(by_class))))


def ids_of_ground_truth(
    content: Any, source: str, predictor: Predictor, paths: Sequence[Path]
) -> Ids:
    """Ids of a ground truth, so that it can be compared with the detections.

    Images are found by their ``file_name``, or the last part of it; classes by name, or in the
    order of the ids where the model's names are not known.

    Args:
        content: of a COCO or LVIS json.
        source: name of the json, for messages.
        predictor: the model.
        paths: of the images.

    Raises:
        UserError: Not such a json, or an image or class is not in it.
    """
    try:
        names = {file_name(image): image["id"] for image in content["images"]}
        categories = {entry["name"]: entry["id"] for entry in content["categories"]}
    except (KeyError, TypeError):
        raise UserError(f"{source}: expected the images and categories of a COCO json") from None
    images = _image_ids(names, paths, source)
    known = predictor.about.class_names
    if not known and len(categories) == len(predictor.class_names):
        return Ids(tuple(sorted(categories.values())), images)
    missing = [name for name in predictor.class_names if name not in categories]
    if missing:
        raise UserError(
            f"{source}: {len(missing)} of the model's classes are not in it, first '{missing[0]}'"
        )
    return Ids(tuple(categories[name] for name in predictor.class_names), images)


def result_entries(instances: Instances, image_id: Any, ids: Ids) -> list[dict[str, Any]]:
    """Entries of a result file: box XYWH in pixels, and run lengths where there are masks."""
    boxes = instances.pred_boxes.tensor.numpy().astype(float)
    boxes[:, 2:] -= boxes[:, :2]
    entries = [
        {
            "image_id": image_id,
            "category_id": ids.categories[index],
            "bbox": [round(value, 3) for value in box],
            "score": round(score, 6),
        }
        for index, box, score in zip(
            instances.pred_classes.tolist(), boxes.tolist(), instances.scores.tolist(), strict=True
        )
    ]
    if instances.has("pred_masks"):
        for entry, mask in zip(entries, instances.pred_masks.numpy(), strict=True):
            entry["segmentation"] = encode_mask(mask)
    return entries


class ResultFiles:
    """``predictions.json`` and, when all is done, ``images.json``, in a folder.

    A context: at its end, after an error or Ctrl-C as well, both files hold what was added. Until
    then they do not exist, or are an earlier run's.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writing = ExitStack()
        self._images: list[dict[str, Any]] = []
        self._unreadable: list[dict[str, Any]] = []
        self._categories: list[dict[str, Any]] = []
        self.num_detections = 0

    def __enter__(self) -> ResultFiles:
        make_folder(self._folder, "--output")
        self._file = self._writing.enter_context(atomic_write(self._folder / RESULTS, "w"))
        self._file.write("[")
        return self

    def __exit__(self, *_: Any) -> None:
        with self._writing:  # what was added is kept, whatever ended it
            self._file.write("\n]\n")
        index = {"images": self._images, "categories": self._categories}
        if self._unreadable:
            index["unreadable"] = self._unreadable
        write_json(self._folder / INDEX, index)

    def set_categories(self, ids: Ids, class_names: Sequence[str]) -> None:
        """Say what the category ids mean."""
        self._categories = [
            {"id": identity, "name": name}
            for identity, name in zip(ids.categories, class_names, strict=True)
        ]

    def add(self, image: Mapping[str, Any], entries: str, count: int) -> None:
        """Add an image and its detections.

        Args:
            image: its entry in ``images.json``.
            entries: json of its detections, as :func:`as_json` gives it.
            count: how many these are.
        """
        self._images.append(dict(image))
        if count:
            self._file.write(",\n" if self.num_detections else "\n")
            self._file.write(entries)
            self.num_detections += count

    def add_unreadable(self, file_name: str, reason: str) -> None:
        """Add an image that could not be read."""
        self._unreadable.append({"file_name": file_name, "reason": reason})


def as_json(entries: Sequence[Mapping[str, Any]]) -> str:
    """Entries as json, one in a line, without the list's brackets."""
    return ",\n".join(json.dumps(entry) for entry in entries)


def _image_ids(names: Mapping[str, Any], paths: Sequence[Path], source: str) -> tuple[Any, ...]:
    last_parts: dict[str, list[Any]] = {}
    for name, identity in names.items():
        last_parts.setdefault(PurePath(name).name, []).append(identity)
    ids = []
    for path in paths:
        parts = path.parts
        ends = ("/".join(parts[start:]) for start in range(len(parts)))
        exact = next((names[end] for end in ends if end in names), None)
        alike = last_parts.get(path.name, [])
        ids.append(exact if exact is not None else alike[0] if len(alike) == 1 else None)
    missing = [path for path, identity in zip(paths, ids, strict=True) if identity is None]
    if missing:
        raise UserError(
            f"{source}: {len(missing)} of {len(paths)} images are not in it, first {missing[0]}"
        )
    return tuple(ids)
