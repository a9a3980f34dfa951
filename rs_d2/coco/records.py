"""Ground truth and detections as columns, which every part of the evaluation works on.

Shapes: ``I`` images, ``K`` categories, ``G`` objects, ``N`` detections, ``A`` area ranges. Boxes
are XYWH in pixels, masks are compressed run lengths. Images and categories are sorted by id and
addressed by their index in that order; objects and detections keep the order of their file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from rs_d2.coco.rle import mask_areas, to_rle

IOU_TYPES = ("bbox", "segm")
STYLES = ("coco", "lvis")
FREQUENCIES = ("r", "c", "f")

# An object or a detection of exactly a limit belongs to both ranges, as COCO has it.
AREAS = ("all", "small", "medium", "large")
AREA_RANGES = np.array([[0, 1e10], [0, 32**2], [32**2, 96**2], [96**2, 1e10]], dtype=float)


@dataclass(frozen=True)
class GroundTruth:
    """A data set's objects; ``ground_truth_from`` makes it from a json's content.

    Attributes:
        style: "coco" or "lvis": whose rules hold.
        image_ids: [I], integers or strings.
        image_sizes: [I, 2], height and width.
        file_names: [I], "" where unknown.
        category_ids: [K].
        names: [K].
        frequencies: [K], "r", "c", "f", or "" where unknown.
        images: [G], index of each object's image.
        categories: [G], index of its category.
        boxes: [G, 4].
        areas: [G], pixels.
        crowd: [G], regions that any number of detections may match ("coco" only).
        ignored: [G], objects that are neither found nor missed.
        segmentations: [G], polygons or run lengths, None where there are none.
        known: sorted ``image * K + category`` of the pairs whose objects are stated ("lvis"), or
            None: all are.
        not_exhaustive: the same of the pairs in which not every object is annotated.
    """

    style: str
    image_ids: np.ndarray
    image_sizes: np.ndarray
    file_names: list[str]
    category_ids: np.ndarray
    names: list[str]
    frequencies: np.ndarray
    images: np.ndarray
    categories: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    crowd: np.ndarray
    ignored: np.ndarray
    segmentations: list[Any]
    known: np.ndarray | None
    not_exhaustive: np.ndarray

    @property
    def num_categories(self) -> int:
        """``K``."""
        return len(self.category_ids)

    @property
    def has_masks(self) -> bool:
        """Whether every object has a mask."""
        return bool(self.segmentations) and all(s is not None for s in self.segmentations)

    @cached_property
    def rles(self) -> list[dict[str, Any]]:
        """[G], compressed run lengths of the objects."""
        sizes = self.image_sizes[self.images].tolist()
        return [to_rle(s, *size) for s, size in zip(self.segmentations, sizes, strict=True)]

    def is_known(self, images: np.ndarray, categories: np.ndarray) -> np.ndarray:
        """[N] bool: whether the image states all objects, or the absence, of the category."""
        if self.known is None:
            return np.ones(len(images), dtype=bool)
        return np.isin(images * self.num_categories + categories, self.known)

    def is_not_exhaustive(self, images: np.ndarray, categories: np.ndarray) -> np.ndarray:
        """[N] bool: whether the image may hold more objects of the category than annotated."""
        return np.isin(images * self.num_categories + categories, self.not_exhaustive)


@dataclass(frozen=True)
class Detections:
    """What a model found, in any order.

    Attributes:
        images: [N], index of the image in ``GroundTruth.image_ids``.
        categories: [N], index of the category in ``GroundTruth.category_ids``.
        scores: [N], finite.
        boxes: [N, 4]; zeros where only masks are known.
        rles: [N] objects ``{"size": [height, width], "counts": str or bytes}``, or None.
    """

    images: np.ndarray
    categories: np.ndarray
    scores: np.ndarray
    boxes: np.ndarray
    rles: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.scores)

    def select(self, index: np.ndarray) -> Detections:
        """Those at ``index`` (integers or a mask), in its order."""
        rles = None if self.rles is None else self.rles[index]
        return Detections(
            self.images[index], self.categories[index], self.scores[index], self.boxes[index], rles
        )

    def areas(self, iou_type: str) -> np.ndarray:
        """[N] pixels of the boxes, or of the masks."""
        if iou_type == "bbox":
            return self.boxes[:, 2] * self.boxes[:, 3]
        return mask_areas(self.rles)


def no_detections(with_masks: bool = False) -> Detections:
    """``N = 0``."""
    index = np.zeros(0, dtype=np.int64)
    masks = np.zeros(0, dtype=object) if with_masks else None
    return Detections(index, index, np.zeros(0), np.zeros((0, 4)), masks)


def concatenate(parts: Sequence[Detections]) -> Detections:
    """All detections in the order of the parts; masks only if every part has them."""
    if not parts:
        return no_detections()
    rles = [part.rles for part in parts]
    return Detections(
        np.concatenate([part.images for part in parts]),
        np.concatenate([part.categories for part in parts]),
        np.concatenate([part.scores for part in parts]),
        np.concatenate([part.boxes for part in parts]),
        None if any(masks is None for masks in rles) else np.concatenate(rles),
    )


def object_array(items: Sequence[Any]) -> np.ndarray:
    """A 1-D array of Python objects, which can be indexed like the other columns."""
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array


def indices_of(wanted: Sequence[Any] | np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Index of each wanted id in sorted ``ids``; -1 where it is not among them."""
    wanted = np.asarray(wanted)
    if not len(ids) or not len(wanted) or wanted.dtype.kind != ids.dtype.kind:
        return np.full(len(wanted), -1, dtype=np.int64)
    found = np.minimum(np.searchsorted(ids, wanted), len(ids) - 1)
    return np.where(ids[found] == wanted, found, -1)
