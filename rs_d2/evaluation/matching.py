"""Which detection finds which object, at one IoU threshold and for all area ranges at once.

The rule is COCO's: image by image and class by class, best score first, a detection takes the
object that it overlaps most among those still free; ignored objects only if nothing else is left.
An object is ignored that does not count, or whose area is out of range; a crowd may be taken any
number of times. A detection is ignored that takes an ignored object, or that takes none and is
itself out of range or of a class that is not exhaustively annotated in its image.

Only pairs that reach the threshold are looked at, and all images and classes advance together, one
detection of each at a time: the engines of the average precision give neither the IoUs of their
matches nor the matches themselves at less than tens of seconds and gigabytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from pycocotools import mask as mask_util

from rs_d2.coco.records import AREA_RANGES, AREAS, Detections, GroundTruth
from rs_d2.evaluation.top_k import rank_in_group

_PAIRS_AT_ONCE = 2_000_000  # bounds the memory of the IoUs


@dataclass(frozen=True)
class Matches:
    """Detections sorted by class, then by score, best first; ``M`` of them count.

    Attributes:
        detections: [M], indices into the ``Detections`` that were matched; ties are in the order
            of the images, then in the file's.
        categories: [M].
        scores: [M].
        objects: [A, M], index of the object that is taken; -1 for none.
        ious: [A, M], IoU with it; 0 for none.
        ignored: [A, M] bool.
        num_objects: [A, K], objects that count.
    """

    detections: np.ndarray
    categories: np.ndarray
    scores: np.ndarray
    objects: np.ndarray
    ious: np.ndarray
    ignored: np.ndarray
    num_objects: np.ndarray

    def true_positives(self, area: int = 0) -> np.ndarray:
        """[M] bool."""
        return (self.objects[area] >= 0) & ~self.ignored[area]

    def false_positives(self, area: int = 0) -> np.ndarray:
        """[M] bool."""
        return (self.objects[area] < 0) & ~self.ignored[area]

    def renumbered(self, index: np.ndarray) -> Matches:
        """The same, where detection ``i`` was number ``index[i]`` of a larger collection."""
        return replace(self, detections=index[self.detections])


def match(
    ground_truth: GroundTruth,
    detections: Detections,
    iou_type: str,
    max_dets: float = np.inf,
    iou_thresh: float = 0.5,
) -> Matches:
    """Match detections with objects, for each of ``AREAS``.

    Args:
        ground_truth: objects.
        detections: boxes or masks; those of classes that their image does not state are left out.
        iou_type: "bbox" or "segm".
        max_dets: only so many of each image and class, the best, take part.
        iou_thresh: smallest IoU of a match, in (0, 1].

    Returns:
        The matches; without detections all columns are empty, ``num_objects`` is not.
    """
    order = _sorted_and_capped(ground_truth, detections, max_dets)
    found = detections.select(order)
    pairs = _overlaps(ground_truth, found, iou_type, min(iou_thresh, 1 - 1e-10))
    gt_ignored = ground_truth.ignored | _out_of_range(ground_truth.areas)  # [A, G]
    out_of_range = _out_of_range(found.areas(iou_type))
    unsure = ground_truth.is_not_exhaustive(found.images, found.categories)
    objects = np.full((len(AREAS), len(found)), -1, dtype=np.int64)
    ious, ignored = np.zeros(objects.shape), np.zeros(objects.shape, dtype=bool)
    for area in range(len(AREAS)):
        rows, taken = _take(pairs, gt_ignored[area], ground_truth.crowd)
        objects[area, rows] = pairs.objects[taken]
        ious[area, rows] = pairs.ious[taken]
        ignored[area] = (objects[area] < 0) & (out_of_range[area] | unsure)
        ignored[area, rows] = gt_ignored[area, pairs.objects[taken]]
    num_objects = [
        np.bincount(ground_truth.categories[~ignored], minlength=ground_truth.num_categories)
        for ignored in gt_ignored
    ]
    by_class = np.lexsort((found.images, -found.scores, found.categories))
    return Matches(
        detections=order[by_class],
        categories=found.categories[by_class],
        scores=found.scores[by_class],
        objects=objects[:, by_class],
        ious=ious[:, by_class],
        ignored=ignored[:, by_class],
        num_objects=np.stack(num_objects),
    )


@dataclass(frozen=True)
class _Pairs:
    """Detections and objects of one image and class that overlap enough.

    Sorted by turn, then by detection, and for each by preference: the largest IoU, of equal ones
    the last object in the file. ``turns[t]`` to ``turns[t + 1]`` are the pairs of the ``t``-th
    detection, among those that have any, of every image and class.
    """

    rows: np.ndarray
    objects: np.ndarray
    ious: np.ndarray
    turns: np.ndarray


def _sorted_and_capped(
    ground_truth: GroundTruth, detections: Detections, max_dets: float
) -> np.ndarray:
    """Indices of the detections that count, by image and class, best score first."""
    index = np.flatnonzero(ground_truth.is_known(detections.images, detections.categories))
    group = _groups(ground_truth, detections.images[index], detections.categories[index])
    by_score = np.lexsort((-detections.scores[index], group))
    index, group = index[by_score], group[by_score]
    return index[rank_in_group(group) < max_dets]


def _groups(ground_truth: GroundTruth, images: np.ndarray, categories: np.ndarray) -> np.ndarray:
    """A number for each image and class."""
    return images * ground_truth.num_categories + categories


def _out_of_range(areas: np.ndarray) -> np.ndarray:
    """[A, N] bool."""
    return (areas < AREA_RANGES[:, :1]) | (areas > AREA_RANGES[:, 1:])


def _overlaps(
    ground_truth: GroundTruth, found: Detections, iou_type: str, threshold: float
) -> _Pairs:
    """Pairs whose IoU reaches the threshold; ``found`` is sorted by image and class."""
    ious_of = _box_ious if iou_type == "bbox" else _mask_ious
    parts = []
    for rows, objects, shapes in _candidates(ground_truth, found):
        ious = ious_of(ground_truth, found, rows, objects, shapes)
        near = ious >= threshold
        parts.append((rows[near], objects[near], ious[near]))
    empty = np.zeros(0, dtype=np.int64)
    rows, objects, ious = map(np.concatenate, zip((empty, empty, np.zeros(0)), *parts, strict=True))
    group = _groups(ground_truth, found.images[rows], found.categories[rows])
    first = np.diff(rows, prepend=-1) != 0  # the first pair of each detection
    turn = rank_in_group(group[first])[np.cumsum(first) - 1] if len(rows) else empty
    order = np.lexsort((-objects, -ious, rows, turn))
    turns = np.searchsorted(turn[order], np.arange(turn.max(initial=-1) + 2))
    return _Pairs(rows[order], objects[order], ious[order], turns)


def _candidates(
    ground_truth: GroundTruth, found: Detections
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Every pair of one image and class, detection by detection, some groups at a time.

    Yields:
        Rows of ``found`` and objects, [pairs] each, and [groups, 2] detections and objects of each
        group, whose pairs form a rectangle.
    """
    dt_groups = _groups(ground_truth, found.images, found.categories)
    gt_groups = _groups(ground_truth, ground_truth.images, ground_truth.categories)
    gt_order = np.argsort(gt_groups, kind="stable")
    groups, dt_starts, dt_sizes = np.unique(dt_groups, return_index=True, return_counts=True)
    gt_starts = np.searchsorted(gt_groups[gt_order], groups)
    gt_sizes = np.searchsorted(gt_groups[gt_order], groups, side="right") - gt_starts
    both = np.flatnonzero(gt_sizes)
    chunk = np.cumsum(dt_sizes[both] * gt_sizes[both]) // _PAIRS_AT_ONCE
    for part in np.split(both, np.flatnonzero(np.diff(chunk)) + 1):
        dt, gt = dt_sizes[part], gt_sizes[part]
        rows = np.repeat(_ranges(dt_starts[part], dt), np.repeat(gt, dt))
        objects = gt_order[_ranges(np.repeat(gt_starts[part], dt), np.repeat(gt, dt))]
        yield rows, objects, np.stack([dt, gt], axis=1)


def _ranges(starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """``start, start + 1, ...`` of every range, one after the other."""
    ends = np.cumsum(sizes)
    return np.arange(sizes.sum()) + np.repeat(starts - ends + sizes, sizes)


def _box_ious(
    ground_truth: GroundTruth,
    found: Detections,
    rows: np.ndarray,
    objects: np.ndarray,
    shapes: np.ndarray,
) -> np.ndarray:
    """IoU of each pair; with a crowd, the share of the detection that it covers."""
    dt, gt = found.boxes[rows].T, ground_truth.boxes[objects].T
    width = np.minimum(dt[0] + dt[2], gt[0] + gt[2]) - np.maximum(dt[0], gt[0])
    height = np.minimum(dt[1] + dt[3], gt[1] + gt[3]) - np.maximum(dt[1], gt[1])
    inner = np.where((width > 0) & (height > 0), width * height, 0)
    dt_area = dt[2] * dt[3]
    union = np.where(ground_truth.crowd[objects], dt_area, dt_area + gt[2] * gt[3] - inner)
    return np.divide(inner, union, out=np.zeros(len(rows)), where=inner > 0)


def _mask_ious(
    ground_truth: GroundTruth,
    found: Detections,
    rows: np.ndarray,
    objects: np.ndarray,
    shapes: np.ndarray,
) -> np.ndarray:
    """The same of masks, group by group."""
    parts, start = [np.zeros(0)], 0
    for num_dt, num_gt in shapes.tolist():
        stop = start + num_dt * num_gt
        gt = objects[start : start + num_gt]
        masks = [ground_truth.rles[i] for i in gt.tolist()]
        crowd = ground_truth.crowd[gt].astype(np.uint8).tolist()
        found_masks = found.rles[rows[start:stop:num_gt]].tolist()
        parts.append(np.asarray(mask_util.iou(found_masks, masks, crowd)).reshape(-1))
        start = stop
    return np.concatenate(parts)


def _take(
    pairs: _Pairs, gt_ignored: np.ndarray, crowd: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Let each detection take an object in its turn.

    Args:
        pairs: candidates.
        gt_ignored: [G] bool.
        crowd: [G] bool.

    Returns:
        Rows that take an object, and the index of the pair that each takes.
    """
    # of a detection's pairs, those whose object counts come first; otherwise in the same order
    detection = np.cumsum(np.diff(pairs.rows, prepend=-1) != 0)
    preference = np.argsort(2 * detection + gt_ignored[pairs.objects], kind="stable")
    rows, objects = pairs.rows[preference], pairs.objects[preference]
    free = np.ones(len(gt_ignored), dtype=bool)
    chosen = [np.zeros(0, dtype=np.int64)]
    for start, stop in zip(pairs.turns[:-1], pairs.turns[1:], strict=True):
        open_pairs = start + np.flatnonzero(free[objects[start:stop]])
        best = open_pairs[np.diff(rows[open_pairs], prepend=-1) != 0]
        free[objects[best]] = crowd[objects[best]]
        chosen.append(best)
    chosen = np.concatenate(chosen)
    return rows[chosen], preference[chosen]
